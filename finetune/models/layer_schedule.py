"""Layer schedule of fine-tuning: frozen parts, gradual unfreezing and discriminative learning rates.

The latter two are ULMFiT's (arXiv:1801.06146, sections 3.2 and 3.3). The parts are those of
models/layer_groups.py; the engine acts on the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from finetune.models.layer_groups import SHARED, LayerGroups, format_ranges, parse_layers
from finetune.runtime.errors import Problems, UserError
from finetune.runtime.text_width import align_table

RIGHT = frozenset({1, 2, 4})  # columns of the table that hold numbers


@dataclass(frozen=True)
class LayerSchedule:
    """Schedule of the trained parts: from which step on, at which learning rate.

    Attributes:
        names: names of all parts, bottom to top.
        frozen: parts that are never trained.
        trainable: the others that have a parameter to train (with LoRA, an adapter).
        unfreeze_every: optimizer steps from the unfreezing of one part to that of the next one below; 0: all
            are trained from the start.
        decay: factor of the learning rate from a part to the one below it; 1: the same rate for all.
    """

    names: tuple[str, ...]
    frozen: frozenset[str]
    trainable: frozenset[str]
    unfreeze_every: int = 0
    decay: float = 1.0

    def scale(self, part: str) -> float:
        """Return the factor of the learning rate: decay ** (parts above this one), frozen ones counted.

        The head has 1, the topmost of L layers decay, layer 0 decay ** L, embeddings decay ** (L + 1):
        ULMFiT's discriminative fine-tuning (arXiv:1801.06146, section 3.2) with decay = 1 / 2.6.
        """
        return self.decay ** (len(self.names) - 1 - self.names.index(part))

    def unfreeze_step(self, part: str) -> int | None:
        """Return the optimizer step (0 is the first) from which a part is trained; None when it never is.

        Gradual unfreezing (arXiv:1801.06146, section 3.3): the topmost trainable part is trained from step 0,
        the next below it from `unfreeze_every` steps later, and so on; a part stays unfrozen.
        """
        above = self.names[self.names.index(part) + 1 :]
        if part not in self.trainable:
            return None
        return self.unfreeze_every * len(self.trainable.intersection(above))

    def trainable_at(self, step: int) -> frozenset[str]:
        """Return the parts that are trained in an optimizer step."""
        return frozenset(part for part, opening in self._unfreeze_steps().items() if opening <= step)

    def _unfreeze_steps(self) -> dict[str, int]:
        """Return the step from which each trainable part is trained."""
        openings = {part: self.unfreeze_step(part) for part in self.trainable}
        return {part: opening for part, opening in openings.items() if opening is not None}

    @property
    def last_unfreeze_step(self) -> int:
        """The step from which the last part is trained: a run of no more steps never trains it."""
        return max(self._unfreeze_steps().values(), default=0)

    @property
    def is_uniform(self) -> bool:
        """True when all trainable parts are trained from the start and at one rate."""
        return self.unfreeze_every == 0 and self.decay == 1

    def describe(self) -> str:
        """Return a description for a checkpoint's identity; "" where all is trained alike from the start."""
        words = []
        if self.frozen:
            words.append("凍結 " + format_ranges(name for name in self.names if name in self.frozen))
        if self.unfreeze_every:
            words.append(f"由上而下每 {self.unfreeze_every} 步多開一部分")
        if self.decay != 1:
            words.append(f"每往下一部分學習率乘 {self.decay!r}")
        return "；".join(words)


def build_schedule(
    flags_freeze: str, flags_train_only: str, unfreeze_every: int, decay: float, layers: LayerGroups
) -> LayerSchedule:
    """Build the schedule for the flags --freeze, --train_only, --unfreeze_every and --layer_lr_decay.

    Args:
        flags_freeze, flags_train_only: as `parse_layers` takes them; "" when not given.
        unfreeze_every, decay: see `LayerSchedule`.
        layers: the model's, with its adapters, before `apply`: what has `requires_grad` now can be trained.

    Raises:
        UserError: all problems of the flags, or nothing would be left to train.
    """
    problems = Problems()
    frozen: frozenset[str] = frozenset()
    names = frozenset(layers.names)
    if flags_freeze and flags_train_only:
        problems.found.append("--freeze 與 --train_only 不能同時使用：前者指定凍結哪些，後者指定只訓練哪些")
    with problems:
        if flags_freeze:
            frozen = parse_layers(flags_freeze, "--freeze", layers)
    with problems:
        if flags_train_only:
            frozen = names - parse_layers(flags_train_only, "--train_only", layers)
    if unfreeze_every < 0:
        problems.found.append(f"--unfreeze_every {unfreeze_every}：應為 0（一開始就訓練全部）以上的步數")
    if not 0 < decay <= 1:
        problems.found.append(f"--layer_lr_decay {decay:g}：應大於 0 且不超過 1（1 是各層相同）")
    problems.report()
    trainable = frozenset(part for part, size in layers.trainable().items() if size)
    if frozen and not trainable - frozen:
        flag = f"--train_only {flags_train_only}" if flags_train_only else f"--freeze {flags_freeze}"
        shown = format_ranges(name for name in layers.names if name in trainable)
        raise UserError(f"{flag}：沒有留下可訓練的參數；這個模型可訓練的部分是 {shown or '（沒有）'}")
    return LayerSchedule(tuple(layers.names), frozen, trainable - frozen, unfreeze_every, decay)


def uniform_schedule(layers: LayerGroups) -> LayerSchedule:
    """Build the schedule that trains all that has `requires_grad`, from the start and at one rate."""
    return build_schedule("", "", 0, 1.0, layers)


# ---- for the engine ----------------------------------------------------------------------------------------


def freeze(model: nn.Module, layers: LayerGroups, schedule: LayerSchedule) -> None:
    """Freeze the parts that are never trained. What is frozen already (the base under LoRA) stays so."""
    for name, parameter in model.named_parameters():
        if layers.group_of(name) in schedule.frozen:
            parameter.requires_grad_(False)


def by_group(model: nn.Module, layers: LayerGroups) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that have `requires_grad` now, by part, bottom to top; only parts with some."""
    groups: dict[str, list[nn.Parameter]] = {part: [] for part in layers.names}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[layers.group_of(name)].append(parameter)
    return {part: parameters for part, parameters in groups.items() if parameters}


def set_trainable(parts: dict[str, list[nn.Parameter]], opened: frozenset[str]) -> None:
    """Unfreeze the parts in `opened` and freeze the others.

    An optimizer skips a parameter without a gradient, so that neither weight decay nor momentum moves it.

    Args:
        parts: as `by_group` returned them when all that will ever be trained had `requires_grad`.
        opened: names of parts.
    """
    for part, parameters in parts.items():
        for parameter in parameters:
            parameter.requires_grad_(part in opened)
            if part not in opened:
                parameter.grad = None


def build_parameter_groups(
    model: nn.Module, layers: LayerGroups, schedule: LayerSchedule, weight_decay: float
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer, of what has `requires_grad` now.

    Matrices get weight decay, biases and norms none (BERT's recipe).

    Returns:
        Bottom to top, each with "params", "weight_decay", "part" and "scale" (of the learning rate), none
        empty. For a uniform schedule, two groups of part "", in the order of `model.parameters()`, the second
        one empty where only matrices are trained: checkpoints know groups by their positions.
    """
    parts = by_group(model, layers)
    if schedule.is_uniform:
        parts = {"": [parameter for parameter in model.parameters() if parameter.requires_grad]}
    groups: list[dict[str, Any]] = []
    for part, parameters in parts.items():
        scale = schedule.scale(part) if part else 1.0
        matrices = [p for p in parameters if p.ndim >= 2]
        vectors = [p for p in parameters if p.ndim < 2]
        groups += [
            {"params": params, "weight_decay": decay, "part": part, "scale": scale}
            for params, decay in ((matrices, weight_decay), (vectors, 0.0))
            if params or not part
        ]
    return groups


# ---- the table that is printed -----------------------------------------------------------------------------


def table(layers: LayerGroups, schedule: LayerSchedule) -> list[str]:
    """Return the lines of a table of parts: parameters, trained parameters, first step, learning-rate factor.

    The last line is the sum. To be called before an engine freezes what is trained later.
    """
    sizes = layers.sizes()
    trained = {part: size if part in schedule.trainable else 0 for part, size in layers.trainable().items()}

    def state(part: str) -> str:
        opens = schedule.unfreeze_step(part)
        if part in schedule.frozen:
            return "凍結"
        if opens is None:
            return "沒有可訓練的參數"
        return f"{opens} 步後解凍" if opens else "訓練"

    def look(part: str) -> tuple[bool | str, str, str]:
        factor = f"{schedule.scale(part):.3g}" if part in schedule.trainable else "–"
        return part.isdigit() or part, state(part), factor

    rows = [["部分", "參數", "訓練", "狀態", "學習率倍數"]]
    for (_, shown, factor), run in groupby((part for part in layers.names if sizes[part]), key=look):
        parts = list(run)
        counts = [sum(numbers[part] for part in parts) for numbers in (sizes, trained)]
        rows.append([format_ranges(parts), *map(_millions, counts), shown, factor])
    if schedule.decay == 1:
        rows = [row[:-1] for row in rows]
    lines = ["  ".join(row).rstrip() for row in align_table(rows, RIGHT)]
    if layers.tied:
        lines.append(f"輸出層的權重與詞嵌入是同一組，算在 {layers.names[0]}")
    if SHARED in layers.names:
        lines.append(f"{layers.count} 層共用一組權重，即 shared")
    part_sum, total = sum(trained.values()), sum(sizes.values())
    share = f"{100 * part_sum / total:.1f} %"
    return [*lines, f"訓練 {_millions(part_sum)}／全部 {_millions(total)} 參數（{share}）"]


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"
