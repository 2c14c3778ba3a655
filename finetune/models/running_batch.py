"""Continuous batching: replies that are written side by side, which new ones join and finished ones leave.

The reply to a prompt is the one that `Generator` writes to it alone, whenever it joined and whatever stands
beside it, up to the rounding of the model's own sums (Yu et al. 2022, "Orca", section 3.1: scheduling by
iterations).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from finetune.models.decoding import Decoding
from finetune.models.forward import config_of
from finetune.models.generation import BATCH_TOKENS, eos_ids, generation_mode, reader_of, writer_for
from finetune.models.kinds import is_seq2seq
from finetune.models.kv_cache import DecodeMode, joining_mode
from finetune.models.reply_batch import ReplyBatch, ReplyEvent, ReplyRow
from finetune.models.room import reply_room
from finetune.models.streaming import STOPS
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFILL_TOKENS = 512  # of prompts that are read in a step: others wait so long for their next token


@dataclass
class RunningBatch:
    """Replies of a model that writes, a token of each in a step. It is used by one thread.

    Prompts wait in the order they came until there is room. Those that wait together are read together, a
    long one in parts. Then they join the batch that is running; a model whose rows cannot join
    (`kv_cache.joining_mode`) has several batches, which take their steps in turn.

    Attributes:
        model: a causal model or an encoder-decoder of transformers.
        stops: a reply is cut at the first of these strings, and of those of its decoding.
        end_ids: tokens that end a reply; None for `eos_ids` of model and tokenizer.
        max_tokens: rows · tokens of the longest, prompt and reply, stay below it, though one row may run.
        prefill_tokens: tokens of new prompts that are read in a step, at most.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    stops: Sequence[str] = STOPS
    end_ids: set[int] | None = None
    max_tokens: int = BATCH_TOKENS
    prefill_tokens: int = PREFILL_TOKENS
    _waiting: deque[ReplyRow] = field(default_factory=deque, init=False)
    _joining: ReplyBatch | None = field(default=None, init=False)  # its prompts are being read
    _running: list[ReplyBatch] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.end_ids is None:
            self.end_ids = eos_ids(self.model, self.tokenizer)
        seq2seq = is_seq2seq(config_of(self.model))
        self._mode: DecodeMode = (generation_mode if seq2seq else joining_mode)(self.model)
        self._pad_id = self.tokenizer.pad_token_id or 0  # masked: any id pads
        self._writer = writer_for(self.model, self.tokenizer, ())  # what it knows is the same for every row

    @property
    def num_running(self) -> int:
        """Rows whose prompt has been read, or is being read."""
        return sum(len(batch.rows) for batch in self._batches)

    @property
    def num_waiting(self) -> int:
        """Rows that wait for room."""
        return len(self._waiting)

    @property
    def _batches(self) -> list[ReplyBatch]:
        return [*self._running, *([self._joining] if self._joining else [])]

    def add(self, ids: Sequence[int], decoding: Decoding, top_logprobs: int | None = None) -> ReplyRow:
        """Let a prompt wait for its reply; return the row by which events name it.

        Args:
            ids: token ids of the prompt.
            decoding: how its tokens are chosen, without beams.
            top_logprobs: as of `ReplyRow`.

        Raises:
            UserError: a prompt without a token, or that leaves the model no room; beams.
        """
        if decoding.num_beams > 1:
            raise UserError(f"--num_beams {decoding.num_beams}：逐步併入的批次沒有束搜尋；請用 1")
        (limit,) = reply_room(self.model, [ids], decoding)
        writer = self._writer.with_stops((*self.stops, *decoding.stop))
        row = ReplyRow(ids, decoding, limit, writer=writer, top_logprobs=top_logprobs)
        self._waiting.append(row)
        return row

    def remove(self, row: ReplyRow) -> None:
        """Give up a reply, wherever it is; one that has ended needs nothing."""
        if row in self._waiting:
            self._waiting.remove(row)
        for batch in self._batches:
            if row in batch.rows:
                batch.remove(row)
        self._drop_empty()

    def clear(self) -> list[ReplyRow]:
        """Give up all replies, after a failure of the model say; return their rows."""
        rows = [*(row for batch in self._batches for row in batch.rows), *self._waiting]
        self._waiting.clear()
        self._joining, self._running = None, []
        return rows

    def step(self) -> list[ReplyEvent]:
        """Write the next token of every running row, and read a part of the prompts that are to join.

        Returns:
            What became of the rows; nothing of those whose prompt has not been read to its end.
        """
        events = [event for batch in self._running for event in batch.step()]
        self._drop_empty()
        if self._joining is None:
            self._joining = self._admitted()
        if joining := self._joining:
            most = max(1, self.prefill_tokens // len(joining.rows)) if self._mode.joins else 1 << 30
            if first := joining.step(most):
                events += first
                self._joining = None
                self._running.append(joining)
                self._drop_empty()
        if self._mode.joins and len(self._running) > 1:
            self._running[0].join(self._running.pop())
        return events

    def _admitted(self) -> ReplyBatch | None:
        """Return a batch of the rows that have waited longest and fit; None where none does."""
        rows: list[ReplyRow] = []
        while self._waiting and self._fits([*rows, self._waiting[0]]):
            rows.append(self._waiting.popleft())
        if not rows:
            return None
        prompts, room = [row.ids for row in rows], [row.limit for row in rows]
        reader = reader_of(self.model, prompts, room, self._pad_id, self._mode)
        return ReplyBatch(reader, rows, self.end_ids or ())

    def _fits(self, rows: list[ReplyRow]) -> bool:
        """Return whether there is room for these rows as one more batch, whose prompts are read in a step."""
        if len(rows) == 1:
            if not self._running:
                return True
        elif not self._mode.batched or len(rows) * max(len(row.ids) for row in rows) > self.prefill_tokens:
            return False
        groups = [rows, *(batch.rows for batch in self._running)]
        if self._mode.joins:
            groups = [[row for group in groups for row in group]]
        return sum(len(group) * max(row.size for row in group) for group in groups) <= self.max_tokens

    def _drop_empty(self) -> None:
        """Forget batches whose rows have all left."""
        self._running = [batch for batch in self._running if batch.rows]
        if self._joining and not self._joining.rows:
            self._joining = None
