"""Incremental decoding of causal models: with a cache of keys, values and states or without, batched or not.

transformers ignores arguments that a family's forward pass does not take, and not every family ignores
padding: a model that is decoded in a mode it does not support writes nonsense without an error. So each mode
is tried on a few tokens before the first reply, against a plain pass over one row, which defines the right
logits.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from finetune.models.forward import check_numbers, config_of
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

CACHES = ("past_key_values", "cache_params")  # parameters by which a forward pass takes a cache
NO_TOKEN = (1 << 31) - 1  # stands for padding: beyond every vocabulary
PROBED, SHARED = 8, 5  # tokens of the two probe rows, and of the beginning they share
# Mean difference of logits, in units of their spread. A lost token moves it by about one; rounding
# moves it by a millionth in fp32, and by some hundredths where bf16 sends tokens to other experts.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
COARSE = 0.05  # the tolerance for every other precision


@dataclass(frozen=True)
class DecodeMode:
    """A mode of decoding with a model.

    Attributes:
        cached: keys and values are cached; else all tokens are read again for every new one.
        batched: several prompts at a time, left-padded.
        joins: prompts can be read in parts, and rows of other batches can join. For that all keys and values
            are kept, also those that a layer with a window does not attend to any more.
    """

    cached: bool = True
    batched: bool = True
    joins: bool = False

    @property
    def limitations(self) -> str:
        """Description of what is not possible in this mode; "" in the best one."""
        uncached = ["不支援 KV 快取：每生成一個 token 都重算整段（較慢）"] * (not self.cached)
        return "；".join([*uncached, *["不支援批次補齊，一次只生成一個提示"] * (not self.batched)])


BEST = DecodeMode()
JOINING = DecodeMode(joins=True)
MODES = (BEST, DecodeMode(batched=False), DecodeMode(cached=False), DecodeMode(False, False))  # fastest first


class TokenReader(Protocol):
    """A batch of B rows that are continued: `Reader`, or `encoder_decoder.EncoderDecoderReader`."""

    ids: Tensor
    previous: Tensor
    limits: list[int]
    steps: int
    device: torch.device

    def forced(self, step: int, limit: int) -> list[int]:
        """Return the tokens of which one must come as the new token `step` of a row; none where any may.

        Args:
            step: from 0.
            limit: new tokens of the row.
        """

    @property
    def forces_end(self) -> bool:
        """True when a reply without room for more ends with an EOS that the decoder had no choice about."""

    def logits(self, ids: Tensor) -> Tensor:
        """Read the next tokens (B, n) of every row; return logits (B, V) of the token after them, in fp32."""

    def read(self, ids: Tensor) -> Tensor:
        """Return `logits` that are checked to be numbers."""

    def select(self, rows: Tensor) -> None:
        """Continue with these rows (R,) of the batch; a row may occur several times."""


class CachedReader(ABC):
    """Base: what the readers of both kinds of models keep of a batch.

    Attributes:
        previous: (B, T) tokens so far, as penalties count them.
    """

    previous: Tensor
    _cache: Any  # of transformers; None where all tokens are read again for every new one
    _read_ids: Tensor  # (B, T) read so far, needed only without a cache

    @abstractmethod
    def logits(self, ids: Tensor) -> Tensor:
        """Read the next tokens (B, n) of every row; return logits (B, V) of the token after them, in fp32."""

    def read(self, ids: Tensor) -> Tensor:
        """Return the logits (B, V) of the token after the next tokens (B, n) of every row.

        Raises:
            UserError: the logits are no numbers.
        """
        logits = self.logits(ids)
        check_numbers(logits)
        return logits

    def select(self, rows: Tensor) -> None:
        """Continue with these rows (R,) of the batch; a row may occur several times."""
        if self._cache is None:
            self._read_ids = self._read_ids[rows]
        else:
            self._cache.reorder_cache(cast(torch.LongTensor, rows))
        self.previous = self.previous[rows]


class Reader(CachedReader):
    """A batch of B prompts, left-padded, with the model's cache of it.

    Args:
        model: a causal model of transformers.
        rows: token ids; one row in a mode that is not batched.
        room: the number of new tokens of each row.
        pad_id: any id will do, padding is masked.
        mode: see `decode_mode` and `joining_mode`.

    Attributes:
        ids: (B, T) prompts.
        previous: (B, T) the same with NO_TOKEN for padding; the caller appends new tokens if it needs them.
        limits, steps: new tokens of each row, and the most of them.
        num_read: columns read so far.

    Raises:
        ValueError: several rows in a mode that is not batched.
        TypeError: a cached mode for a forward pass that takes no cache.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[Sequence[int]],
        room: Sequence[int],
        pad_id: int,
        mode: DecodeMode,
    ):
        from transformers.cache_utils import Cache, DynamicCache

        from finetune.models.kept_layer import KeptLayer

        self.model, self.device, self.mode = model, cast(torch.device, model.device), mode
        self.limits, self.steps = list(room), max(room)
        width = max(map(len, rows))
        if not mode.batched and len(rows) > 1:
            raise ValueError("rows that must be read alone")

        def left(filler: int) -> Tensor:
            return torch.tensor([[*[filler] * (width - len(row)), *row] for row in rows], device=self.device)

        self.ids, self.previous = left(pad_id), left(NO_TOKEN)  # (B, T)
        # Columns (B, 1) of each row's first token, and after its last one. A row that has all its tokens is
        # read on beside the others: at no position beyond its last one, which a family that learns positions
        # does not have.
        self._begins = torch.tensor([[width - len(row)] for row in rows], device=self.device)
        self._ends = torch.tensor([[width + count] for count in room], device=self.device)
        self.num_read = 0
        self._read_ids = self.ids[:, :0]  # (B, T) read so far, needed only without a cache
        self._parameters = inspect.signature(model.forward).parameters
        self._kwargs: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self._parameters else {}
        self._cache = None
        if mode.cached:
            name = next((name for name in CACHES if name in self._parameters), None)
            if name is None:
                raise TypeError("a forward pass that takes no cache")
            self._cache = (
                Cache(layer_class_to_replicate=KeptLayer)
                if mode.joins
                else DynamicCache(config=config_of(model).get_text_config(decoder=True))
            )
            self._kwargs[name] = self._cache
        if "use_cache" in self._parameters:
            self._kwargs["use_cache"] = mode.cached

    def forced(self, step: int, limit: int) -> list[int]:
        """Return []: after a prompt any token may come."""
        return []

    @property
    def forces_end(self) -> bool:
        """False: a reply may end anywhere."""
        return False

    def logits(self, ids: Tensor) -> Tensor:
        """Read the next tokens (B, n) of every row; return logits (B, V) of the token after them, in fp32."""
        begin, self.num_read = self.num_read, self.num_read + ids.shape[1]
        if self._cache is None:
            ids = self._read_ids = torch.cat((self._read_ids, ids), 1)
            begin = 0
        kwargs = {}
        if self.mode.batched:  # for a single row the family's own positions and mask are right
            columns = torch.arange(self.num_read, device=self.device)
            kwargs["attention_mask"] = ((columns >= self._begins) & (columns < self._ends)).long()
            if "position_ids" in self._parameters:
                positions = columns[begin:].minimum(self._ends - 1) - self._begins
                kwargs["position_ids"] = positions.clamp(min=0)
        return self.model(input_ids=ids, **kwargs, **self._kwargs).logits[:, -1].float()

    def select(self, rows: Tensor) -> None:
        """Continue with these rows (R,) of the batch; a row may occur several times.

        In a mode that joins, columns that are padding in all of them are forgotten.
        """
        self._begins, self._ends = self._begins[rows], self._ends[rows]
        if self.mode.joins:
            columns = int(self._begins.min())
            for layer in self._cache.layers:
                layer.drop_first(columns)
            self.previous = self.previous[:, columns:]
            self._begins, self._ends = self._begins - columns, self._ends - columns
            self.num_read -= columns
        super().select(rows)

    def join(self, other: Reader) -> None:
        """Append the rows of another batch, which has been read as far as this one: up to its newest tokens.

        Both are in a mode that joins.
        """
        from finetune.models.kept_layer import left_padded

        width = max(self.num_read, other.num_read)
        mine, its = width - self.num_read, width - other.num_read
        for layer, other_layer in zip(self._cache.layers, other._cache.layers, strict=True):
            layer.join(other_layer)
        self._begins = torch.cat((self._begins + mine, other._begins + its))
        self._ends = torch.cat((self._ends + mine, other._ends + its))
        length = max(self.previous.shape[1], other.previous.shape[1])
        previous = (left_padded(part.previous, length, 1, NO_TOKEN) for part in (self, other))
        self.previous, self.num_read = torch.cat(tuple(previous)), width


def decode_mode(model: nn.Module) -> DecodeMode:
    """Return the fastest mode in which a causal model gives the logits of a plain pass over one row.

    Modes are tried once for each model; any but the best one is logged.

    Raises:
        UserError: the logits are no numbers, or the model does not read from left to right.
    """
    mode = getattr(model, "_decode_mode", None)
    if mode is None:
        mode = _try(model)
        object.__setattr__(model, "_decode_mode", mode)
        if mode != BEST:
            log(f"{config_of(model).model_type} 模型：{mode.limitations}")
    return mode


def joining_mode(model: nn.Module) -> DecodeMode:
    """Return JOINING where rows of the model can join a running batch, else `decode_mode`; tried once.

    Raises:
        UserError: as `decode_mode`.
    """
    mode = getattr(model, "_joining_mode", None)
    if mode is None:
        mode = decode_mode(model)
        if mode == BEST and _joins(model):
            mode = JOINING
        object.__setattr__(model, "_joining_mode", mode)
    return mode


@torch.inference_mode()
def _try(model: nn.Module) -> DecodeMode:
    """Return the first of MODES that works."""
    was_training = model.training
    model.eval()
    try:
        ids = probe_ids(model)
        expected = plain_logits(model, ids)
        for mode in MODES:
            if _agrees(model, ids, expected, mode):
                return mode
    finally:
        model.train(was_training)
    raise UserError(
        f"{config_of(model).model_type} 模型：前文的輸出會隨後文改變"
        "（不是由左到右的因果模型），不能用來續寫；請換 Qwen/Qwen2.5-0.5B 這類模型"
    )


def probe_ids(model: nn.Module) -> Tensor:
    """Return two rows (2, PROBED) that share their first tokens, with no special tokens that are known."""
    config = config_of(model).get_text_config(decoder=True)
    ends = getattr(config, "eos_token_id", None)
    special = {*(ends if isinstance(ends, list) else [ends])}
    special |= {getattr(config, name, None) for name in ("pad_token_id", "bos_token_id")}
    id_limit = min(config.vocab_size, 1000)
    ids = [i for i in (at * 7919 % id_limit for at in range(1, 64)) if i not in special]
    ids = (ids or [0]) * PROBED  # for a vocabulary of hardly a token
    rows = [ids[:PROBED], ids[:SHARED] + ids[PROBED : 2 * PROBED - SHARED]]
    return torch.tensor(rows, device=cast(torch.device, model.device))


def plain_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Return logits (B, T, V) in fp32 of whole rows (B, T), in one pass without cache, mask or positions.

    Raises:
        UserError: the logits are no numbers.
    """
    kwargs = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    logits = model(input_ids=ids, **kwargs).logits.float()
    check_numbers(logits)
    return logits


def _agrees(model: nn.Module, ids: Tensor, expected: Tensor, mode: DecodeMode) -> bool:
    """Return whether a mode gives the logits of the plain pass over whole rows.

    Beginnings of the rows are read, then two tokens more, with rows exchanged in between as beam search does.
    """
    first = ids[0].tolist()
    # for each step: which row of `ids` each row of the batch continues, and how much of it has been read
    steps = [([0], [SHARED]), ([0, 1], [SHARED + 1] * 2), ([1, 0], [SHARED + 2] * 2)]
    orders = ([0, 0], [1, 0])
    if mode.batched:
        steps = [
            ([0, 0], [SHARED, 2]), ([0, 0, 1], [3, SHARED + 1, SHARED + 1]),
            ([0, 1, 0], [4, SHARED + 2, SHARED + 2]),
        ]  # fmt: skip
        orders = ([1, 0, 0], [0, 2, 1])
    try:
        reader = Reader(model, [first[:length] for length in steps[0][1]], [3] * len(steps[0][0]), 0, mode)
        logits = [reader.read(reader.ids)]
        for (rows, lengths), order in zip(steps[1:], orders, strict=True):
            reader.select(torch.tensor(order, device=reader.device))
            logits.append(reader.read(ids[rows, [length - 1 for length in lengths]][:, None]))
    # what families raise over arguments they do not take; UserError: NaN where a family sees only padding
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, UserError):
        return False
    wanted = torch.cat([expected[rows, [length - 1 for length in lengths]] for rows, lengths in steps])
    return _is_close(model, torch.cat(logits), wanted, expected)


def _is_close(model: nn.Module, logits: Tensor, wanted: Tensor, expected: Tensor) -> bool:
    """Return whether logits (N, V) are the wanted ones, up to rounding; `expected` has their spread."""
    difference = (logits - wanted).abs().mean() / expected.std().clamp(min=1e-6)
    return bool(difference <= TOLERANCE.get(cast(torch.dtype, model.dtype), COARSE))


@torch.inference_mode()
def _joins(model: nn.Module) -> bool:
    """Return whether rows that join, and a prompt in parts, get the logits of the plain pass.

    A shorter row joins a longer one, and a longer one in parts the two of them; then the longest leaves.
    """
    was_training = model.training
    model.eval()
    try:
        ids = probe_ids(model)
        expected = plain_logits(model, ids)
        first, second = ids.tolist()

        def reader(row: list[int], length: int) -> Reader:
            return Reader(model, [row[:length]], [8], 0, JOINING)

        batch, short, long = reader(first, 4), reader(first, 2), reader(second, 6)
        found = [batch.logits(batch.ids), short.logits(short.ids)]
        batch.join(short)
        found.append(batch.logits(ids[[0, 0], [4, 2]][:, None]))
        for part in long.ids.split(3, 1):
            last = long.logits(part)
        found.append(last)
        batch.join(long)
        found.append(batch.logits(ids[[0, 0, 1], [5, 3, 6]][:, None]))
        batch.select(torch.tensor([0, 1], device=batch.device))
        found.append(batch.logits(ids[[0, 0], [6, 4]][:, None]))
    # what families raise over a cache that they do not take
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, UserError):
        return False
    finally:
        model.train(was_training)
    read = [(0, 3), (0, 1), (0, 4), (0, 2), (1, 5), (0, 5), (0, 3), (1, 6), (0, 6), (0, 4)]
    wanted = torch.stack([expected[at] for at in read])
    return _is_close(model, torch.cat(found), wanted, expected)
