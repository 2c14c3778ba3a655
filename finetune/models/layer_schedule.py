"""Layer schedule of fine-tuning: frozen parts, gradual unfreezing and discriminative learning rates.

The latter two are ULMFiT's (arXiv:1801.06146, sections 3.2 and 3.3). This module holds names, groups and the
schedule; the engine acts on them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from finetune.models.forward import config_of
from finetune.runtime.errors import Problems, UserError, nearest

EMBEDDINGS, HEAD = "embeddings", "head"
SHARED = "shared"  # the one set of weights that all of ALBERT's layers use
BODY = "body"  # all before the head, in a model whose layers are no single stack
ALL_BUT_HEAD = "all_but_head"
# Modules of the base model that are defined on one side of the layers and used on the other.
MISPLACED = {
    "opt": {"decoder.final_layer_norm": HEAD, "decoder.project_out": HEAD},
    "deberta-v2": {"encoder.LayerNorm": EMBEDDINGS, "encoder.conv": EMBEDDINGS},
    "gemma4_text": {"per_layer_model_projection": EMBEDDINGS, "per_layer_projection_norm": EMBEDDINGS},
}
RANGE = re.compile(r"([0-9]{1,9})(?: *[-–~] *([0-9]{1,9}))?")


# ---- the parts of a model ----------------------------------------------------------------------------------


class LayerGroups:
    """Parts of a model of transformers from bottom to top: `embeddings`, `0`, `1`, …, `head`.

    ALBERT has `embeddings`, `shared`, `head`; a model whose layers are no single stack (an encoder with a
    decoder, Funnel) has `body`, `head`. Layers of peft may be put in before or after; parameters may be on
    the meta device.

    Attributes:
        names: names of the parts, bottom to top.
        count: the number of layers of the model, which may share their weights.
        tied: the head's output weights are those of the embeddings, and belong to that part.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        body = getattr(model, str(model.base_model_prefix), model)
        self._body = next(name for name, module in model.named_modules() if module is body)
        config: Any = config_of(model).get_text_config()
        self.count = getattr(config, "num_hidden_layers", None) or 0
        groups = getattr(config, "num_hidden_groups", None) or self.count  # ALBERT's
        stacks = {} if config_of(model).is_encoder_decoder else _stacks(body, min(groups, self.count))
        self._layers = {self._under(name): len(stack) for name, stack in stacks.items()}
        self._shared = bool(stacks) and groups < self.count
        middle = [SHARED] if self._shared else [str(number) for number in range(self.count)]
        self.names = [EMBEDDINGS, *middle, HEAD] if stacks else [BODY, HEAD]
        self._sides: dict[str, str] = {}  # module path -> part, of modules beside the stack
        if stacks:
            self._sides = {self._under(name): part for name, part in _sides(body, stacks).items()}
            known = MISPLACED.get(config.model_type, {})
            self._sides |= {self._under(name): part for name, part in known.items()}
        self._aliases: dict[str, str] = {}  # a name of a Parameter that has several -> its lowest part
        self._find_ties()

    def _under(self, name: str) -> str:
        return f"{self._body}.{name}" if self._body else name

    def _find_ties(self) -> None:
        by_identity: dict[int, list[str]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            by_identity.setdefault(id(parameter), []).append(name)
        for names in by_identity.values():
            lowest = min(map(self._by_path, names), key=self.depth)
            self._aliases |= {name: lowest for name in names if self._by_path(name) != lowest}
        self.tied = any(self._by_path(name) == HEAD for name in self._aliases)

    def group_of(self, parameter_name: str) -> str:
        """Return the part of a parameter; the lowest one, where the parameter has several names.

        Raises:
            AttributeError: the model has no parameter of that name.
        """
        self._model.get_parameter(parameter_name)
        return self._aliases.get(parameter_name) or self._by_path(parameter_name)

    def _by_path(self, name: str) -> str:
        steps = name.split(".")
        paths = [".".join(steps[:length]) for length in range(len(steps), 0, -1)]  # the longest first
        if self._body and self._body not in paths:
            return HEAD
        if not self._layers:
            return BODY
        for path, step in zip(paths[1:], reversed(steps[1:]), strict=False):
            if path in self._layers:
                return SHARED if self._shared else step
        return next((self._sides[path] for path in reversed(paths) if path in self._sides), EMBEDDINGS)

    def depth(self, name: str) -> int:
        """Return the number of parts below this one.

        Raises:
            ValueError: there is no part of that name.
        """
        return self.names.index(name)

    def sizes(self) -> dict[str, int]:
        """Return the number of parameters of each part, trainable or not; a shared Parameter counts once."""
        return self._sum(self._model.named_parameters())

    def trainable(self) -> dict[str, int]:
        """Return how many parameters of each part have `requires_grad` now: with LoRA, the adapters alone."""
        return self._sum((name, p) for name, p in self._model.named_parameters() if p.requires_grad)

    def _sum(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, int]:
        sizes = dict.fromkeys(self.names, 0)
        for name, parameter in parameters:
            sizes[self.group_of(name)] += parameter.numel()
        return sizes


def _stacks(body: nn.Module, length: int) -> dict[str, nn.ModuleList]:
    """Return the largest list of `length` modules, and the lists beside it, by name.

    There are several in XLM, which keeps the attentions and the feed-forward networks of its layers apart.
    """
    candidates = {
        name: module
        for name, module in body.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == length
    }
    if not candidates:
        return {}
    largest = max(candidates, key=lambda name: sum(p.numel() for p in candidates[name].parameters()))
    parent = largest.rpartition(".")[0]
    return {name: module for name, module in candidates.items() if name.rpartition(".")[0] == parent}


def _sides(body: nn.Module, stacks: dict[str, nn.ModuleList]) -> dict[str, str]:
    """Return the parts of modules beside the layers, by path.

    Modules defined after the layers belong to the head; lookup tables are embeddings wherever they are
    (DeBERTa's relative positions).
    """
    paths = dict(body.named_modules())
    order = list(paths)
    late = order[order.index(next(iter(stacks))) + 1 :]
    sides = {name: HEAD for name in late if not name.startswith(tuple(stack + "." for stack in stacks))}
    for name, module in paths.items():
        if isinstance(module, nn.Embedding):
            sides[re.sub(r"\.(base_layer|original_module)$", "", name)] = EMBEDDINGS  # as peft wraps it
    return sides


def format_ranges(names: Iterable[str]) -> str:
    """Join names of parts, bottom to top, with runs of layers as ranges: `embeddings、0–11、head`."""
    runs: list[list[str]] = []
    for name in names:
        if name.isdigit() and runs and runs[-1][-1] == str(int(name) - 1):
            runs[-1].append(name)
        else:
            runs.append([name])
    return "、".join(run[0] if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


# ---- flags and schedule ------------------------------------------------------------------------------------


def parse_layers(spec: str, flag: str, layers: LayerGroups) -> frozenset[str]:
    """Return the parts that a list names.

    Args:
        spec: `embeddings`, `head`, `all_but_head`, `3`, `0-9`, separated by commas (，、 too).
        flag: the flag that holds the list, for messages.
        layers: the model's layers.

    Raises:
        UserError: all problems of the list: unknown names, ranges that are reversed or too high, an empty
            list.
    """
    chosen: set[str] = set()
    problems = []
    available = f"有的是 {format_ranges(layers.names)}"
    words = [word.strip() for word in re.split("[,、]", unicodedata.normalize("NFKC", spec).lower())]
    for word in filter(None, words):
        match = RANGE.fullmatch(word)
        if word == ALL_BUT_HEAD:
            chosen |= set(layers.names) - {HEAD}
        elif word in layers.names:
            chosen.add(word)
        elif match and SHARED in layers.names:
            problems.append(f"{flag} {word}：這個模型的 {layers.count} 層共用一組權重，不能分開；{available}")
        elif match and BODY in layers.names:
            problems.append(f"{flag} {word}：這個模型的層不是單純的一疊，不能分開；{available}")
        elif match:
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                problems.append(f"{flag} {word}：範圍寫反了，請寫 {last}-{first}")
            elif last >= layers.count:
                problems.append(f"{flag} {word}：這個模型只有第 0 到 {layers.count - 1} 層；{available}")
            chosen |= {str(number) for number in range(first, min(last + 1, layers.count))}
        else:
            guess = nearest(word, [*layers.names, ALL_BUT_HEAD])
            hint = f"，是不是 {guess[0]}？" if guess else "；"
            problems.append(f"{flag} {word}：沒有這個部分{hint}{available}，也可寫 {ALL_BUT_HEAD}")
    if not any(words):
        problems.append(f"{flag} 是空的；{available}，也可寫 {ALL_BUT_HEAD}")
    if problems:
        raise UserError(problems)
    return frozenset(chosen)


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

    def opens_at(self, part: str) -> int | None:
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
        return frozenset(part for part, opening in self._openings().items() if opening <= step)

    def _openings(self) -> dict[str, int]:
        """Return the step from which each trainable part is trained."""
        openings = {part: self.opens_at(part) for part in self.trainable}
        return {part: opening for part, opening in openings.items() if opening is not None}

    @property
    def last_opening(self) -> int:
        """The step from which the last part is trained: a run of no more steps never trains it."""
        return max(self._openings().values(), default=0)

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


def apply(model: nn.Module, layers: LayerGroups, learning: LayerSchedule) -> None:
    """Freeze the parts that are never trained. What is frozen already (the base under LoRA) stays so."""
    for name, parameter in model.named_parameters():
        if layers.group_of(name) in learning.frozen:
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
    model: nn.Module, layers: LayerGroups, learning: LayerSchedule, weight_decay: float
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer, of what has `requires_grad` now.

    Matrices get weight decay, biases and norms none (BERT's recipe).

    Returns:
        Bottom to top, each with "params", "weight_decay", "part" and "scale" (of the learning rate), none
        empty. For a uniform schedule, two groups of part "", in the order of `model.parameters()`, the second
        one empty where only matrices are trained: checkpoints know groups by their positions.
    """
    parts = by_group(model, layers)
    if learning.is_uniform:
        parts = {"": [parameter for parameter in model.parameters() if parameter.requires_grad]}
    groups: list[dict[str, Any]] = []
    for part, parameters in parts.items():
        scale = learning.scale(part) if part else 1.0
        matrices = [p for p in parameters if p.ndim >= 2]
        vectors = [p for p in parameters if p.ndim < 2]
        groups += [
            {"params": params, "weight_decay": decay, "part": part, "scale": scale}
            for params, decay in ((matrices, weight_decay), (vectors, 0.0))
            if params or not part
        ]
    return groups


# ---- the table that is printed -----------------------------------------------------------------------------


def table(layers: LayerGroups, learning: LayerSchedule) -> list[str]:
    """Return the lines of a table of parts: parameters, trained parameters, first step, learning-rate factor.

    The last line is the sum. To be called before an engine freezes what is trained later.
    """
    sizes = layers.sizes()
    trained = {part: size if part in learning.trainable else 0 for part, size in layers.trainable().items()}

    def state(part: str) -> str:
        opens = learning.opens_at(part)
        if part in learning.frozen:
            return "凍結"
        if opens is None:
            return "沒有可訓練的參數"
        return f"{opens} 步後解凍" if opens else "訓練"

    def look(part: str) -> tuple[bool | str, str, str]:
        factor = f"{learning.scale(part):.3g}" if part in learning.trainable else "–"
        return part.isdigit() or part, state(part), factor

    rows = [["部分", "參數", "訓練", "狀態", "學習率倍數"]]
    for (_, shown, factor), run in groupby((part for part in layers.names if sizes[part]), key=look):
        parts = list(run)
        counts = [sum(numbers[part] for part in parts) for numbers in (sizes, trained)]
        rows.append([format_ranges(parts), *map(_millions, counts), shown, factor])
    if learning.decay == 1:
        rows = [row[:-1] for row in rows]
    lines = _aligned(rows)
    if layers.tied:
        lines.append(f"輸出層的權重與詞嵌入是同一組，算在 {layers.names[0]}")
    if SHARED in layers.names:
        lines.append(f"{layers.count} 層共用一組權重，即 shared")
    part_sum, total = sum(trained.values()), sum(sizes.values())
    share = f"{100 * part_sum / total:.1f} %"
    return [*lines, f"訓練 {_millions(part_sum)}／全部 {_millions(total)} 參數（{share}）"]


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Align rows for a terminal, where a Chinese character is two columns wide; cells 2, 3, 5 right."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        gaps = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [
            gap + cell if place in (1, 2, 4) else cell + gap
            for place, (cell, gap) in enumerate(zip(row, gaps, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
