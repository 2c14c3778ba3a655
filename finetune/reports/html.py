"""index.html of a report: one page that needs nothing but itself.

The words and figures are those of `report.sections()`; the look is report.html.j2. Charts are HTML and SVG
with real text: they grow with the screen, print, and can be searched.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from finetune.evaluation import evaluator
from finetune.reports import plots
from finetune.reports.sections import Section
from finetune.reports.templates import template

SCRIPTS = ["hani.ZHT ", "kana.ZHT ", "latn.ZHT "]  # forms of characters in the font: those of Taiwan


class Content(Protocol):
    """Content of the page: report.Report, with the other fields that the template reads."""

    history: Sequence[dict[str, Any]]

    def sections(self) -> list[Section]:
        """Return a section for each set that holds questions."""
        ...


def render(report: Content, heat_maps: Mapping[str, bytes] = MappingProxyType({})) -> str:
    """Return the page of a report as HTML.

    Args:
        report: the report to write.
        heat_maps: PNG of the confusion matrix of each set of labels, shown where the classes are too many for
            a table.
    """
    page = template("report.html.j2")
    sections = report.sections()
    variables = {
        "report": report,
        "sections": sections,
        "mistakes": {section.name: evaluator.mistakes(section.result) for section in sections},
        "trained": {section.name: trained_questions(section) for section in sections},
        "reliability": {section.name: reliability(section.metrics["calibration"]) for section in sections},
        "training": training(report.history),
        "heat_maps": {name: data_address("image/png", picture) for name, picture in heat_maps.items()},
    }
    return page.render(variables, font=embedded(page.render(variables, font="")))


# ---- charts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axes:
    """Frame of a chart: values to places in an SVG of 340 × 240, whose text is legible on a telephone.

    Args:
        across: ticks of the x axis, from one end to the other.
        up: ticks of the y axis.
    """

    across: Sequence[float]
    up: Sequence[float]

    LEFT, RIGHT, TOP, BOTTOM = 36, 318, 30, 198

    def x(self, value: float) -> float:
        """Return the horizontal place of a value, in SVG units."""
        share = (value - self.across[0]) / (self.across[-1] - self.across[0])
        return round(self.LEFT + share * (self.RIGHT - self.LEFT), 1)

    def y(self, value: float) -> float:
        """Return the vertical place of a value, in SVG units."""
        share = (value - self.up[0]) / (self.up[-1] - self.up[0])
        return round(self.BOTTOM - share * (self.BOTTOM - self.TOP), 1)


@dataclass(frozen=True)
class Curve:
    """Line through points (x, y).

    Args:
        label: in the legend.
        look: name of its colour in the template.
        points: (x, y) in the units of the axes.
    """

    label: str
    look: str
    points: Sequence[tuple[float, float]]


SHARES = (0, 0.25, 0.5, 0.75, 1)
WHOLE = Axes(SHARES, SHARES)


def reliability(calibration: dict[str, Any]) -> list[tuple[str, Axes, dict[str, Any]]]:
    """Return (title, axes, figures) of each reliability diagram: as scored, at the fitted temperature."""
    titles = {"as_scored": "原本的分數", "fitted": "調整溫度後"}
    return [(title, WHOLE, calibration[key]) for key, title in titles.items() if calibration[key]]


def training(history: Sequence[dict[str, Any]]) -> list[tuple[str, Axes, list[Curve]]]:
    """Return (title, axes, curves) of every chart of a training run; none without a history."""
    from matplotlib.ticker import MaxNLocator

    def curve(label: str, look: str, key: str) -> list[Curve]:
        points = [(entry["step"], entry[key]) for entry in history if math.isfinite(entry.get(key, math.nan))]
        return [Curve(label, look, points)] if points else []

    if not history:
        return []
    losses = curve("訓練", "other", "train_loss") + curve("驗證", "model", "validation_loss")
    last_step = max(entry["step"] for entry in history)
    steps = [float(tick) for tick in MaxNLocator(4, integer=True).tick_values(0, last_step)]
    highest = max((value for line in losses for _, value in line.points), default=1)
    values = [float(tick) for tick in MaxNLocator(4).tick_values(0, highest)]
    charts = [("損失", Axes(steps, values), losses)]
    for title, key in (("驗證巨觀 F1", "validation_macro_f1"), ("驗證正確率", "validation_accuracy")):
        if validation := curve("驗證", "model", key):
            charts.append((f"{title}（%）", Axes(steps, SHARES), validation))
            break
    return charts


def trained_questions(section: Section) -> list[dict[str, Any]]:
    """Return the questions of a section that the model was trained on too, each with its stem."""
    stems = {question.id: question.stem for question in section.result.questions}
    return [{**row, "stem": stems[row["id"]]} for row in section.metrics["contamination"].get("rows", ())]


# ---- the font ----------------------------------------------------------------------------------------------


def embedded(characters: Iterable[str]) -> str:
    """Return a font with these characters as a data: address; empty where there is no font to cut it from."""
    source = plots.bundled_font()
    if source is None:
        return ""
    from fontTools import subset

    options = subset.Options(
        flavor="woff", layout_features=["locl"], layout_scripts=SCRIPTS, hinting=False, desubroutinize=True,
        drop_tables=["BASE", "GPOS", "VORG", "vhea", "vmtx", "DSIG"], notdef_outline=True, name_IDs=[],
    )  # fmt: skip
    font = subset.load_font(str(source), options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes={ord(character) for character in set(characters)})
    cutter.subset(font)
    buffer = io.BytesIO()
    subset.save_font(font, buffer, options)
    return data_address("font/woff", buffer.getvalue())


def data_address(media_type: str, content: bytes) -> str:
    """Return a data: address with this content."""
    return f"data:{media_type};base64," + base64.b64encode(content).decode()
