"""How a causal model is read while it writes: with its cache of keys, values and states or without, rows of
unequal length side by side or one prompt at a time.

transformers passes over what a family's forward pass does not know, and not every family reads padding as
nothing: a model that is read in a way it does not support writes nonsense without a word. So the way is tried
on a few tokens before the first answer, against the plain pass over one row, which is what a model says.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.models.forward import check_numbers
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

CACHES = ("past_key_values", "cache_params")  # names a forward pass takes a cache of transformers by
NO_TOKEN = (1 << 31) - 1  # in the place of padding: beyond every vocabulary
PROBED, SHARED = 8, 5  # tokens of two rows, and of the beginning they share
# Of the mean difference of logits, in units of their spread. A lost token moves it by about one; rounding
# moves it by a millionth in fp32, and by some hundredths where bf16 sends tokens to other experts.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
COARSE = 0.05  # of every other precision


@dataclass(frozen=True)
class Manner:
    """How a model may be read.

    Attributes:
        cached: tokens that were read are remembered; else all are read anew for every new one.
        batched: several prompts at a time, left-padded.
    """

    cached: bool = True
    batched: bool = True

    @property
    def known(self) -> str:
        """What is left out, in words; "" for nothing."""
        left_out = ["用不了快取，每寫一個字都從頭讀一遍（較慢）"] * (not self.cached)
        return "；".join([*left_out, *["不能補齊成批，一次只寫一個提示"] * (not self.batched)])


BEST = Manner()
MANNERS = (BEST, Manner(batched=False), Manner(cached=False), Manner(False, False))  # the fastest first


class Reader:
    """A batch of B prompts, left-padded, and what the model remembers of it.

    Args:
        rows: token ids; of a `manner` that is not batched, one row.
        room: new tokens of each row.
        pad_id: any id will do, padding is masked.
    """

    def __init__(
        self, model, rows: Sequence[Sequence[int]], room: Sequence[int], pad_id: int, manner: Manner
    ):
        from transformers import DynamicCache

        self.model, self.device, self.manner = model, model.device, manner
        self.limits, self.steps = list(room), max(room)
        width = max(map(len, rows))
        if not manner.batched and len(rows) > 1:
            raise ValueError("rows that must be read alone")

        def left(filler: int) -> Tensor:
            return torch.tensor([[*[filler] * (width - len(row)), *row] for row in rows], device=self.device)

        self.ids, self.previous = left(pad_id), left(NO_TOKEN)  # (B, T)
        before = torch.tensor([[width - len(row)] for row in rows], device=self.device)
        places = torch.arange(width + self.steps, device=self.device)
        self.mask = (places >= before).long()  # (B, T + steps)
        self.places = (places - before).clamp(min=0)
        self.seen = 0
        self._read = self.ids[:, :0]  # (B, T) without a cache: what was read
        self._takes = inspect.signature(model.forward).parameters
        self._more = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        self._cache = None
        if manner.cached:
            name = next((name for name in CACHES if name in self._takes), None)
            if name is None:
                raise TypeError("a forward pass that takes no cache")
            self._cache = DynamicCache(config=model.config.get_text_config(decoder=True))
            self._more[name] = self._cache
        if "use_cache" in self._takes:
            self._more["use_cache"] = manner.cached

    def read(self, ids: Tensor) -> Tensor:
        """Reads the next tokens (B, n) of every row; logits (B, V) of what follows the last, in fp32.

        Raises:
            UserError: they are no numbers.
        """
        begin, self.seen = self.seen, self.seen + ids.shape[1]
        if self._cache is None:
            ids = self._read = torch.cat((self._read, ids), 1)
            begin = 0
        more = {}
        if self.manner.batched:  # a row alone is counted and masked as the family does itself
            more["attention_mask"] = self.mask[:, : self.seen]
            if "position_ids" in self._takes:
                more["position_ids"] = self.places[:, begin : self.seen]
        logits = self.model(input_ids=ids, **more, **self._more).logits[:, -1].float()
        check_numbers(logits)
        return logits

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows (R,) of the batch; one may come several times."""
        if self._cache is None:
            self._read = self._read[rows]
        else:
            self._cache.reorder_cache(rows)
        self.mask, self.places, self.previous = self.mask[rows], self.places[rows], self.previous[rows]


def manner_of(model: nn.Module) -> Manner:
    """The fastest manner in which a causal model says what it says of one row in one plain pass: tried once,
    and anything but the best one said aloud.

    Raises:
        UserError: its logits are no numbers; it is none that writes from left to right.
    """
    known = getattr(model, "_manner", None)
    if known is None:
        known = _try(model)
        object.__setattr__(model, "_manner", known)
        if known != BEST:
            log(f"{model.config.model_type} 模型：{known.known}")
    return known


@torch.inference_mode()
def _try(model: nn.Module) -> Manner:
    was_training = model.training
    model.eval()
    try:
        ids = probe_ids(model)
        said = plain_logits(model, ids)
        for manner in MANNERS:
            if _agrees(model, ids, said, manner):
                return manner
    finally:
        model.train(was_training)
    raise UserError(
        f"{model.config.model_type} 模型讀同一段文字的開頭，會因後面接什麼而說得不同"
        "（不是由左到右的因果模型），不能用來接著寫；請換 Qwen/Qwen2.5-0.5B 這類模型"
    )


def probe_ids(model: nn.Module) -> Tensor:
    """Two rows (2, PROBED) that begin alike, of tokens that are no special ones as far as one can tell."""
    config = model.config.get_text_config(decoder=True)
    ends = getattr(config, "eos_token_id", None)
    special = {*(ends if isinstance(ends, list) else [ends])}
    special |= {getattr(config, name, None) for name in ("pad_token_id", "bos_token_id")}
    words = min(config.vocab_size, 1000)
    found = [i for i in (at * 7919 % words for at in range(1, 64)) if i not in special]
    found = (found or [0]) * PROBED  # of a vocabulary of hardly a token
    more = PROBED - SHARED
    return torch.tensor([found[:PROBED], found[:SHARED] + found[PROBED : PROBED + more]], device=model.device)


def plain_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits (B, T, V) in fp32 of whole rows (B, T), read in one pass without any help.

    Raises:
        UserError: they are no numbers.
    """
    more = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    logits = model(input_ids=ids, **more).logits.float()
    check_numbers(logits)
    return logits


def _agrees(model: nn.Module, ids: Tensor, said: Tensor, manner: Manner) -> bool:
    """Whether beginnings of the rows, then two tokens more, with their places exchanged in between as beams
    do, give what the plain pass over the whole rows gave there.
    """
    first = ids[0].tolist()
    # step by step: whose row the places hold, and how much of it has been read
    steps = [([0], [SHARED]), ([0, 1], [SHARED + 1] * 2), ([1, 0], [SHARED + 2] * 2)]
    orders = ([0, 0], [1, 0])
    if manner.batched:
        steps = [
            ([0, 0], [SHARED, 2]), ([0, 0, 1], [3, SHARED + 1, SHARED + 1]),
            ([0, 1, 0], [4, SHARED + 2, SHARED + 2]),
        ]  # fmt: skip
        orders = ([1, 0, 0], [0, 2, 1])
    try:
        reader = Reader(model, [first[:length] for length in steps[0][1]], [3] * len(steps[0][0]), 0, manner)
        found = [reader.read(reader.ids)]
        for (rows, lengths), order in zip(steps[1:], orders, strict=True):
            reader.select(torch.tensor(order, device=reader.device))
            found.append(reader.read(ids[rows, [length - 1 for length in lengths]][:, None]))
    # whatever a family raises over what it does not take; NaN where padding is all it sees
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, UserError):
        return False
    wanted = torch.cat([said[rows, [length - 1 for length in lengths]] for rows, lengths in steps])
    off = (torch.cat(found) - wanted).abs().mean() / said.std().clamp(min=1e-6)
    return bool(off <= TOLERANCE.get(model.dtype, COARSE))
