"""Choices of what to fine-tune, and the parameters that each trains: all, some, the head alone, LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from finetune.models.kinds import NEW_HEAD, kind_of
from finetune.models.layer_groups import ALL_BUT_HEAD, BODY, EMBEDDINGS, ENCODER, HEAD, SHARED, LayerGroups
from finetune.models.layer_schedule import build_schedule
from finetune.models.lora import adapter_sizes
from finetune.models.shape import CLASSES_SHOWN, build_empty, with_outputs
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ALL, SOME, NONE, LORA, RUN = "all", "some", "none", "lora", "run"
RANK = 8  # of the adapters that are drawn


@dataclass(frozen=True)
class LayerChoice:
    """What is trained and what is frozen.

    Attributes:
        name: ALL, SOME, NONE, LORA, or RUN for what a run card records.
        flags: of fine_tuning_llm.py; () for none.
        sizes: parameters of each part, bottom to top, those of adapters not among them.
        trained: those that are trained, by part: with LoRA the adapters.
        steps: the optimizer step from which a part is trained, where it is not the first.
    """

    name: str
    flags: tuple[str, ...]
    sizes: Mapping[str, int]
    trained: Mapping[str, int]
    steps: Mapping[str, int] = field(default_factory=dict)

    @property
    def trained_parameters(self) -> int:
        """The number of parameters that are trained."""
        return sum(self.trained.values())

    @property
    def frozen_parameters(self) -> int:
        """The number of the model's own parameters that stay as they are."""
        full = {part: self.trained[part] for part in self.sizes if self.trained[part] == self.sizes[part]}
        return sum(self.sizes.values()) - sum(full.values())


def empty_model(config: PreTrainedConfig, kind: str) -> nn.Module:
    """Build a model without weights whose head is new, as it is when a base gets one.

    Raises:
        UserError: no model can be built from these numbers.
    """
    is_new = kind in NEW_HEAD and kind_of(config) != kind
    model: Any = build_empty(with_outputs(config, CLASSES_SHOWN) if is_new else config, kind)
    if kind in NEW_HEAD:
        groups = LayerGroups(model)
        names = [name for name, _ in model.named_parameters()]
        model.new_weights = frozenset(name for name in names if groups.group_of(name) == HEAD)
    return model


def choices(model: nn.Module) -> list[LayerChoice]:
    """Return ALL, SOME, NONE and LORA of a model; SOME and NONE only where its layers can be named so.

    Args:
        model: of transformers, with all parameters trainable; it may be on the meta device.
    """
    layers = LayerGroups(model)
    flags = {ALL: "", SOME: _lower(layers), NONE: ALL_BUT_HEAD}
    found = []
    for name, freeze in flags.items():
        if name == SOME and not freeze or name == NONE and not layers.sizes()[HEAD]:
            continue
        found.append(_chosen(name, ("--freeze", freeze) if freeze else (), freeze, "", 0, layers))
    if adapted := lora_choice(model, RANK, ""):
        found.append(adapted)
    return found


def _lower(layers: LayerGroups) -> str:
    """Return what to freeze to train the upper sixth of the layers, or of two stacks the decoder.

    "" where the layers cannot be named.
    """
    if BODY in layers.names:
        return ""
    if ENCODER in layers.names:
        return f"{EMBEDDINGS},{ENCODER}"
    if SHARED in layers.names or layers.count < 2:
        return EMBEDDINGS
    last = layers.count - max(1, layers.count // 6) - 1
    return f"{EMBEDDINGS},0-{last}" if last else f"{EMBEDDINGS},0"


def _chosen(  # noqa: PLR0913  what the flags say, one by one
    name: str, flags: tuple[str, ...], freeze: str, train_only: str, every: int, layers: LayerGroups
) -> LayerChoice:
    schedule = build_schedule(freeze, train_only, every, 1.0, layers)
    sizes = layers.sizes()
    trained = {part: size if part in schedule.trainable else 0 for part, size in sizes.items()}
    steps = {part: schedule.unfreeze_step(part) or 0 for part in schedule.trainable}
    return LayerChoice(name, flags, sizes, trained, {part: step for part, step in steps.items() if step})


def lora_choice(model: nn.Module, rank: int, frozen: str) -> LayerChoice | None:
    """Return what LoRA trains: adapters, and a head that is new; None for a model that takes no adapters.

    Args:
        model: as `empty_model` returns it.
        rank: of the adapters.
        frozen: value of --freeze, "" for none: parts that get no adapter.
    """
    layers = LayerGroups(model)
    try:
        adapters = adapter_sizes(model, rank)
    except (AttributeError, UserError):
        return None
    if not adapters:
        return None
    sizes = layers.sizes()
    trained = dict.fromkeys(sizes, 0)
    for name, size in adapters.items():
        trained[layers.group_of(f"{name}.weight")] += size
    if getattr(model, "new_weights", ()):
        trained[HEAD] = sizes[HEAD]
    return LayerChoice(LORA, ("--lora_rank", str(rank)), sizes, trained)


def choice_of_run(model: nn.Module, flags: Mapping[str, Any]) -> LayerChoice | None:
    """Return what a run trained, by the flags that its run card records; None where they do not fit.

    Args:
        model: as `empty_model` returns it, of the kind that the run made.
        flags: names without dashes, as in run_card.json; they may come from an untrusted file.
    """
    freeze, only = (flags.get(name) or "" for name in ("freeze", "train_only"))
    every, rank = (flags.get(name) or 0 for name in ("unfreeze_every", "lora_rank"))
    if not (isinstance(freeze, str) and isinstance(only, str) and type(every) is int and type(rank) is int):
        return None
    given = [("--freeze", freeze), ("--train_only", only), ("--unfreeze_every", every), ("--lora_rank", rank)]
    shown = tuple(str(word) for name, value in given if value for word in (name, value))
    layers = LayerGroups(model)
    try:
        chosen = _chosen(RUN, shown, freeze, only, every, layers)
    except UserError:
        return None
    if not rank:
        return chosen
    adapted = lora_choice(model, rank, freeze)
    if adapted is None:
        return None
    trained = {part: size if chosen.trained[part] else 0 for part, size in adapted.trained.items()}
    return LayerChoice(RUN, shown, adapted.sizes, trained, chosen.steps)
