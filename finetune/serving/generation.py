"""The decoding loop: replies of many requests are written side by side, a token of each in a step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedTokenizerBase

from finetune.models.decoding import Decoding
from finetune.models.reply_batch import ReplyEvent, ReplyRow
from finetune.models.room import reply_room
from finetune.models.running_batch import RunningBatch
from finetune.runtime.errors import RunError, UserError, reason
from finetune.serving.compute import ComputeThread
from finetune.serving.metrics import Pass


@dataclass(frozen=True)
class Prompt:
    """A prompt to be continued.

    Attributes:
        ids: token ids.
        decoding: how tokens are chosen.
        top_logprobs: as of `ReplyRow`.
    """

    ids: Sequence[int]
    decoding: Decoding
    top_logprobs: int | None = None


Update = tuple[int, ReplyEvent | Exception]  # number of the prompt in its request, what became of it


@dataclass(eq=False)
class _Pending:
    """A prompt whose reply is wanted.

    Attributes:
        prompt: the prompt.
        number: in its request.
        updates: where what becomes of it goes, in the thread of `loop`.
        row: in the running batch, once it is there.
    """

    prompt: Prompt
    number: int
    updates: asyncio.Queue[Update]
    loop: asyncio.AbstractEventLoop
    row: ReplyRow | None = None


@dataclass
class DecodingLoop:
    """A source of work for the compute thread: a step of all replies at a time.

    Attributes:
        model: a model that writes.
        stops: strings that end every reply.
        end_ids: tokens that end a reply; None for the model's own.
        compute: the thread that runs it.
        num_steps, num_tokens: steps that were taken, and tokens written in them.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    stops: Sequence[str]
    end_ids: set[int] | None
    compute: ComputeThread
    num_steps: int = field(default=0, init=False)
    num_tokens: int = field(default=0, init=False)
    _batch: RunningBatch | None = field(default=None, init=False)
    _new: list[_Pending] = field(default_factory=list, init=False)
    _given_up: list[_Pending] = field(default_factory=list, init=False)
    _by_row: dict[ReplyRow, _Pending] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.compute.add(self)

    @property
    def num_running(self) -> int:
        """Replies that are being written."""
        return self._batch.num_running if self._batch else 0

    @property
    def num_waiting(self) -> int:
        """Prompts that wait for room."""
        return len(self._new) + (self._batch.num_waiting if self._batch else 0)

    def check(self, prompt: Prompt) -> None:
        """Raise UserError for a prompt that leaves the model no room."""
        reply_room(self.model, [prompt.ids], prompt.decoding)

    async def write(
        self, prompts: Sequence[Prompt], seconds: float
    ) -> AsyncGenerator[tuple[int, ReplyEvent]]:
        """Yield (number of the prompt, event) of the replies of a request, as they are written.

        The replies are given up when the iterator is closed before their end.

        Args:
            prompts: each was checked.
            seconds: that they may take.

        Raises:
            UserError: a reply that cannot go on.
            RunError: the model failed.
            TimeoutError: time is up.
        """
        loop, updates = asyncio.get_running_loop(), asyncio.Queue[Update]()
        timer = loop.call_later(seconds, updates.put_nowait, (0, TimeoutError()))
        going = [_Pending(prompt, number, updates, loop) for number, prompt in enumerate(prompts)]
        self._note(new=going)
        try:
            while going:
                number, event = await updates.get()
                if isinstance(event, Exception):
                    raise event
                if event.reason:
                    going = [pending for pending in going if pending.number != number]
                yield number, event
        finally:
            timer.cancel()
            if going:
                self._note(given_up=going)

    def _note(self, new: Sequence[_Pending] = (), given_up: Sequence[_Pending] = ()) -> None:
        with self.compute.changed:
            self._new += new
            self._given_up += given_up
            self.compute.changed.notify_all()

    def has_work(self) -> bool:
        """Return whether replies are being written, or somebody came or left."""
        return bool(self._new or self._given_up or self.num_running or self.num_waiting)

    def work(self) -> None:
        """Take in who came, let go who left, and write a token of every reply."""
        with self.compute.changed:
            new, self._new = self._new, []
            given_up, self._given_up = self._given_up, []
        try:
            if self._batch is None:  # tries how the model can be decoded
                self._batch = RunningBatch(self.model, self.tokenizer, self.stops, self.end_ids)
            self._take_in(self._batch, [pending for pending in new if pending not in given_up])
            for pending in given_up:
                if pending.row:
                    self._by_row.pop(pending.row, None)
                    self._batch.remove(pending.row)
            rows, begun = self._batch.num_running, time.perf_counter()
            events = self._batch.step()
        except (
            Exception
        ) as error:  # of the model: what it was at is lost, the next requests are none the worse
            self._fail_all(new, error)
            return
        if events:
            rows = max(rows, len(events))
            self.compute.passed(Pass(rows, rows, (), time.perf_counter() - begun))
        self.num_steps += 1
        self.num_tokens += sum(not event.error for event in events)
        self._deliver([(self._by_row[event.row], event.error or event) for event in events])

    def _take_in(self, batch: RunningBatch, new: Sequence[_Pending]) -> None:
        for pending in new:
            prompt = pending.prompt
            try:
                pending.row = batch.add(prompt.ids, prompt.decoding, prompt.top_logprobs)
                self._by_row[pending.row] = pending
            except UserError as error:
                self._deliver([(pending, error)])

    def _fail_all(self, new: Sequence[_Pending], error: Exception) -> None:
        """Give up all replies."""
        if not isinstance(error, UserError):
            error = RunError(f"模型計算失敗：{reason(error)}")
        if self._batch:
            self._batch.clear()
        self._deliver([(pending, error) for pending in {*self._by_row.values(), *new}])

    def _deliver(self, updates: Sequence[tuple[_Pending, ReplyEvent | Exception]]) -> None:
        """Hand updates to the threads of their requests, all of a step at once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Pending, ReplyEvent | Exception]]] = {}
        for pending, update in updates:
            by_loop.setdefault(pending.loop, []).append((pending, update))
            if pending.row and (isinstance(update, Exception) or update.reason):
                self._by_row.pop(pending.row, None)
        for loop, of_loop in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_put, of_loop)


def _put(updates: Sequence[tuple[_Pending, ReplyEvent | Exception]]) -> None:
    for pending, update in updates:
        pending.updates.put_nowait((pending.number, update))
