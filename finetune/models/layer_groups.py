"""Groups of a model's layers, bottom to top, and the syntax by which --freeze and --train_only name them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from torch import nn

from finetune.models.forward import config_of
from finetune.runtime.errors import UserError, nearest

EMBEDDINGS, HEAD = "embeddings", "head"
SHARED = "shared"  # the one set of weights that all of ALBERT's layers use
BODY = "body"  # all before the head, in a model whose layers are no single stack
ENCODER, DECODER = "encoder", "decoder"  # of a model that has both
ALL_BUT_HEAD = "all_but_head"
# Modules of the base model that are defined on one side of the layers and used on the other.
MISPLACED = {
    "opt": {"decoder.final_layer_norm": HEAD, "decoder.project_out": HEAD},
    "deberta-v2": {"encoder.LayerNorm": EMBEDDINGS, "encoder.conv": EMBEDDINGS},
    "gemma4_text": {"per_layer_model_projection": EMBEDDINGS, "per_layer_projection_norm": EMBEDDINGS},
}
RANGE = re.compile(r"([0-9]{1,9})(?: *[-–~] *([0-9]{1,9}))?")


class LayerGroups:
    """Parts of a model of transformers from bottom to top: `embeddings`, `0`, `1`, …, `head`.

    ALBERT has `embeddings`, `shared`, `head`; an encoder with a decoder (T5, BART) has `embeddings`,
    `encoder`, `decoder`, `head`; another model whose layers are no single stack (Funnel) has `body`, `head`.
    Layers of peft may be put in before or after; parameters may be on the meta device.

    Attributes:
        names: names of the parts, bottom to top.
        count: the number of layers of the model, which may share their weights.
        tied: the head's output weights are those of the embeddings, and belong to that part.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        body = getattr(model, str(model.base_model_prefix), model)
        both = config_of(model).is_encoder_decoder and {ENCODER, DECODER} <= {*dict(body.named_children())}
        self._body = next(name for name, module in model.named_modules() if module is body)
        config: Any = config_of(model).get_text_config()
        self.count = getattr(config, "num_hidden_layers", None) or 0
        groups = getattr(config, "num_hidden_groups", None) or self.count  # ALBERT's
        self._both = bool(both)
        stacks = {} if config_of(model).is_encoder_decoder else _stacks(body, min(groups, self.count))
        self._layers = {self._under(name): len(stack) for name, stack in stacks.items()}
        self._shared = bool(stacks) and groups < self.count
        middle = [SHARED] if self._shared else [str(number) for number in range(self.count)]
        if both:
            middle = [ENCODER, DECODER]
        self.names = [EMBEDDINGS, *middle, HEAD] if stacks or both else [BODY, HEAD]
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
        if self._both:
            return _part_of_both(name.removeprefix(f"{self._body}." if self._body else ""))
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


def _part_of_both(path: str) -> str:
    """Return the part of a parameter of an encoder with a decoder, by its path in the base model.

    What stands beside the layers and has to do with embeddings is theirs: BART's positions and the norm after
    them, the table that both share.
    """
    first, _, rest = path.partition(".")
    if first in (ENCODER, DECODER):
        return EMBEDDINGS if "embed" in rest.partition(".")[0] else first
    return EMBEDDINGS if first == SHARED or "embed" in first else HEAD


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
        elif word == BODY and ENCODER in layers.names:
            chosen |= {EMBEDDINGS, ENCODER, DECODER}
        elif match and SHARED in layers.names:
            problems.append(f"{flag} {word}：這個模型的 {layers.count} 層共用一組權重，不能分開；{available}")
        elif match and ENCODER in layers.names:
            problems.append(
                f"{flag} {word}：編碼器與解碼器各有自己的層，不能以層號分開；{available}，"
                "body 是 head 以外的全部"
            )
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
