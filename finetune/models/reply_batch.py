"""Replies that are written side by side, a token of each in a step; those that have ended leave the batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from finetune.models.decoding import Decoding
from finetune.models.kv_cache import Reader, TokenReader
from finetune.models.logits import Choice, TokenLogprob, chosen, failure, generator_of, token_logprobs
from finetune.models.streaming import Writer
from finetune.runtime.errors import UserError

STOP, LENGTH = "stop", "length"  # why a reply ended


@dataclass(eq=False)
class ReplyRow:
    """A prompt and its reply.

    Attributes:
        ids: token ids of the prompt.
        decoding: how its tokens are chosen.
        limit: new tokens at most, as the model has room for them.
        number: of the row in its call, see `logits.generator_of`.
        writer: converts the new tokens to text; None where token ids are wanted.
        top_logprobs: so many alternatives are returned with each token, with log-probabilities; None for no
            log-probabilities.
        count: new tokens so far.
    """

    ids: Sequence[int]
    decoding: Decoding
    limit: int
    number: int = 0
    writer: Writer | None = None
    top_logprobs: int | None = None
    count: int = 0

    @property
    def size(self) -> int:
        """Tokens of prompt and reply at most."""
        return len(self.ids) + self.limit

    @cached_property
    def _generator(self) -> torch.Generator:
        return generator_of(self.decoding.seed, self.number)

    @cached_property
    def _choice(self) -> Choice:
        return Choice.of(self.decoding)

    def choice(self, end_ids: frozenset[int], forced: Iterable[int]) -> Choice:
        """Return how the next token is chosen.

        Args:
            end_ids: tokens that end a reply.
            forced: tokens of which the reader wants one; none where any may come.
        """
        banned = end_ids if self.count < self.decoding.min_new_tokens else frozenset()
        forced = frozenset(forced)
        return replace(self._choice, banned=banned, forced=forced) if banned or forced else self._choice

    def uniform(self) -> float:
        """Draw the random number of the next token, in [0, 1)."""
        return torch.rand(1, generator=self._generator).item()

    def write(self, token: int, is_end: bool) -> tuple[str, str]:
        """Append a token; return the text that became certain, and why the reply ended, "" if it goes on.

        Args:
            is_end: the token ends a reply.
        """
        self.count += 1
        text = self.writer.write(token) if self.writer else ""
        reason = STOP if is_end else LENGTH if self.count == self.limit else ""
        if self.writer and (reason or self.writer.over):
            text += self.writer.finish()
            reason = STOP if self.writer.over else reason
        return text, reason


@dataclass(frozen=True)
class ReplyEvent:
    """What a step did to a row.

    Attributes:
        row: the row.
        token: its new token; negative where there is an error.
        text: what became certain of its text.
        reason: STOP or LENGTH for a reply that has ended; "" for one that goes on.
        logprob: of the token, where the row asked for it.
        error: why the row cannot go on; it has left the batch.
    """

    row: ReplyRow
    token: int
    text: str = ""
    reason: str = ""
    logprob: TokenLogprob | None = None
    error: UserError | None = None


class ReplyBatch:
    """Rows that one reader reads together.

    Args:
        reader: the reader of their prompts, which has read nothing yet.
        rows: in the reader's order.
        end_ids: tokens that end a reply.
    """

    def __init__(self, reader: TokenReader, rows: Sequence[ReplyRow], end_ids: Iterable[int]):
        self.rows = list(rows)
        self._reader, self._end_ids = reader, frozenset(end_ids)
        self._ids = reader.ids  # (B, n) to be read next

    @torch.inference_mode()
    def step(self, most: int = 1 << 30) -> list[ReplyEvent]:
        """Return the next token of every row; nothing while there is more of the prompts to read.

        Args:
            most: columns that are read at most.
        """
        if self._ids.shape[1] > most:
            self._reader.logits(self._ids[:, :most])
            self._ids = self._ids[:, most:]
            return []
        logits = self._reader.logits(self._ids)
        tokens = self._choose(logits)
        logprobs = self._logprobs(logits, tokens)
        new_ids = tokens.tolist()
        events = [self._write(*each) for each in zip(self.rows, new_ids, logprobs, strict=True)]
        going = [at for at, event in enumerate(events) if not (event.reason or event.error)]
        self._ids = tokens[:, None]
        self._reader.previous = torch.cat((self._reader.previous, self._ids), 1)
        self._keep(going)
        return events

    def remove(self, row: ReplyRow) -> None:
        """Take a row out."""
        self._keep([at for at, other in enumerate(self.rows) if other is not row])

    def join(self, other: ReplyBatch) -> None:
        """Append the rows of another batch; both have read their prompts, in a mode that joins."""
        assert isinstance(self._reader, Reader) and isinstance(other._reader, Reader)
        self._reader.join(other._reader)
        self._ids = torch.cat((self._ids, other._ids))
        self.rows += other.rows

    def _choose(self, logits: Tensor) -> Tensor:
        """Return the next token (B,) of every row, see `logits.chosen`."""
        groups: dict[Choice, list[int]] = {}
        for at, row in enumerate(self.rows):
            choice = row.choice(self._end_ids, self._reader.forced(row.count, row.limit))
            groups.setdefault(choice, []).append(at)
        previous = self._reader.previous
        tokens = torch.empty(len(self.rows), dtype=torch.long, device=logits.device)
        for choice, places in groups.items():
            uniform = None
            if choice.decoding.samples:
                numbers = [[self.rows[at].uniform()] for at in places]
                uniform = torch.tensor(numbers, device=logits.device)
            if len(groups) == 1:
                return chosen(logits, previous, choice, uniform)
            tokens[places] = chosen(logits[places], previous[places], choice, uniform)
        return tokens

    def _logprobs(self, logits: Tensor, tokens: Tensor) -> list[TokenLogprob | None]:
        """Return the log-probabilities of the new tokens of the rows that ask for them."""
        found: list[TokenLogprob | None] = [None] * len(self.rows)
        if places := [at for at, row in enumerate(self.rows) if row.top_logprobs is not None]:
            most = max(self.rows[at].top_logprobs or 0 for at in places)
            listed = token_logprobs(logits[places], tokens[places].clamp(min=0), most)
            for at, one in zip(places, listed, strict=True):
                found[at] = replace(one, top=one.top[: self.rows[at].top_logprobs])
        return found

    def _write(self, row: ReplyRow, token: int, logprob: TokenLogprob | None) -> ReplyEvent:
        """Append a token to a row."""
        if token < 0:
            return ReplyEvent(row, token, error=failure(token, row.decoding))
        # An EOS that had to come, since there was no more room, tells nothing.
        had_to = self._reader.forces_end and row.count + 1 == row.limit
        text, reason = row.write(token, token in self._end_ids and not had_to)
        return ReplyEvent(row, token, text, reason, logprob)

    def _keep(self, places: list[int]) -> None:
        """Go on with the rows at these places."""
        if 0 < len(places) < len(self.rows):
            index = torch.tensor(places, device=self._ids.device)
            self._reader.select(index)
            self._ids = self._ids[index]
        self.rows = [self.rows[at] for at in places]
