"""The five figures of --draw: which configuration each is drawn from, and their files."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.models.kinds import kind_of
from finetune.models.layer_choices import RUN, LayerChoice, choice_of_run, choices, empty_model
from finetune.models.layer_groups import BODY
from finetune.models.run_card import RunCard
from finetune.models.shape import (
    ENCODER_DECODER,
    SPOILT,
    ModelShape,
    family_of,
    has_class,
    heads_of,
    shape_of,
)
from finetune.reports.architecture_figures import architecture_figure
from finetune.reports.family_figure import BART, BERT, COLUMNS, GPT, T5, column_of, family_figure
from finetune.reports.figure_files import NAMES, OF_FIGURES
from finetune.reports.layers_figure import layers_figure
from finetune.reports.report_folder import write
from finetune.reports.transfer_figure import transfer_figure
from finetune.runtime.files import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULTS = {BERT: "BertConfig", GPT: "GPT2Config", T5: "T5Config", BART: "BartConfig"}


@dataclass(frozen=True)
class Subject:
    """Configuration that figures are drawn from.

    Attributes:
        config: of transformers.
        name: of the model.
        source: what configuration it is, for the figures.
        card: its run card; None for a model that was not trained here.
    """

    config: PreTrainedConfig
    name: str
    source: str
    card: RunCard | None = None


@dataclass
class Figures:
    """Figures as files, and the numbers in them.

    Attributes:
        files: name of the figure -> SVG.
        facts: name of the figure -> its numbers, for --json.
        notes: what could not be drawn, and what was drawn in its place.
    """

    files: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def default_subject(column: str) -> Subject:
    """Return the default configuration of transformers for a column of the families."""
    import transformers

    name = DEFAULTS[column]
    return Subject(getattr(transformers, name)(), f"{name}()", f"transformers {name}() 的預設值")


@functools.cache
def default_shape(column: str) -> ModelShape:
    """Return the shape of `default_subject`."""
    subject = default_subject(column)
    return shape_of(subject.config, subject.name)


def draw(subject: Subject | None) -> Figures:
    """Draw the five figures.

    Args:
        subject: of the model; None draws all from default configurations.

    Raises:
        UserError: no model can be built from the numbers of its configuration.
    """
    figures = Figures()
    subjects = {column: default_subject(column) for column in COLUMNS}
    shapes = {column: default_shape(column) for column in COLUMNS}
    shown = BERT  # the column whose model the last two figures are of
    if subject is not None and (shape := _shape(subject, figures)):
        shown = column_of(shape)
        subjects[shown], shapes[shown] = subject, shape
    for name in (BERT, GPT):
        one, shape = subjects[name], shapes[name]
        if not shape.heads:
            figures.notes.append(
                f"{one.config.model_type} 沒有自注意力：{name}.svg 照 {DEFAULTS[name]}() 的預設值畫"
            )
            one, shape = default_subject(name), default_shape(name)
        figures.files[name] = architecture_figure(shape, one.source)
        figures.facts[name] = _facts(shape, one)
    sources = {column: one.source for column, one in subjects.items()}
    figures.files["families"] = family_figure(shapes, sources)
    figures.facts["families"] = {
        "models": {column: shape.name for column, shape in shapes.items()},
        "configurations": sources,
        "parameters": {column: shape.parameters for column, shape in shapes.items()},
    }
    _draw_layers(subjects[shown], shapes[shown], figures)
    _draw_transfer(subjects[shown], shapes[shown], figures)
    return figures


def _shape(subject: Subject, figures: Figures) -> ModelShape | None:
    """Return the shape of a model; None, with a note, for a family that has no place in the figures."""
    model_type = subject.config.model_type
    try:
        if kind_of(subject.config):
            shape = shape_of(subject.config, subject.name)
            if shape.layers and shape.hidden:
                return shape
    except SPOILT:  # an unusual family: its configuration names its sizes otherwise
        pass
    figures.notes.append(f"{model_type} 不是這裡畫得出來的語言模型家族：五張圖都照 transformers 的預設設定畫")
    return None


def _facts(shape: ModelShape, subject: Subject) -> dict[str, Any]:
    return {
        "model": shape.name, "configuration": subject.source, "class": shape.class_name,
        "parameters": shape.parameters, "parts": dict(shape.sizes),
    }  # fmt: skip


def _draw_layers(subject: Subject, shape: ModelShape, figures: Figures) -> None:
    config, card = subject.config, subject.card
    kind, note = kind_of(config), "照這個模型自己的輸出層來數 With its own head"
    plain_language_model = kind in ("masked", "causal") and family_of(config) != ENCODER_DECODER
    if plain_language_model and card is None and has_class(config, "classifier"):
        kind, note = "classifier", "以換上兩個類別的分類輸出層來數 With a new classification head"
    model = empty_model(config, kind)
    shown: list[LayerChoice] = choices(model)
    if BODY in shown[0].sizes:
        note += "；這個家族的層不是單純的一疊，--freeze 分不出某幾層"
    if card is not None and (run := choice_of_run(model, card.flags)):
        shown.append(run)
    figures.files["layers"] = layers_figure(shape, subject.source, shown, note, card)
    figures.facts["layers"] = {
        **_facts(shape, subject),
        "parameters": sum(shown[0].sizes.values()),
        "parts": dict(shown[0].sizes),
        "counted_as": type(model).__name__,
        "choices": {choice.name: _choice(choice) for choice in shown if choice.name != RUN},
        **({"trained": _choice(shown[-1])} if shown[-1].name == RUN else {}),
    }


def _choice(choice: LayerChoice) -> dict[str, Any]:
    return {
        "flags": " ".join(choice.flags), "trained": choice.trained_parameters,
        "frozen": choice.frozen_parameters,
    }  # fmt: skip


def _draw_transfer(subject: Subject, shape: ModelShape, figures: Figures) -> None:
    body, heads = heads_of(subject.config)
    figures.files["transfer"] = transfer_figure(shape, subject.source, body, heads, subject.card)
    figures.facts["transfer"] = {
        **_facts(shape, subject),
        "body": body,
        "heads": {head.kind: {"head": head.parameters, "parameters": head.whole} for head in heads},
    }


def write_figures(folder: Path, files: Mapping[str, str]) -> None:
    """Write the figures into a folder, where only former figures are replaced.

    Raises:
        RunError: they cannot be written; former ones are as they were.
    """

    def write_files(staging: Path) -> None:
        for name in NAMES:
            atomic_write(staging / f"{name}.svg", files[name])

    write(folder, OF_FIGURES, write_files, "請清出空間，或換一個資料夾")
