"""Decode generated token ids to text incrementally, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STOPS = ("<|im_end|>", "\nUser:")  # strings that end a reply where the model did not stop


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop string."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class Writer:
    """Convert token ids to text, piece by piece.

    Two things are held back: bytes of an incomplete character, and text that may begin a stop string.

    Attributes:
        over: a stop string has been written; it and what follows are dropped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]):
        self.stops = stops
        self.over = False
        self._decode: Callable[[list[int]], str] = tokenizer.decode  # type: ignore[assignment]  # one text
        self._longest_stop = max(map(len, stops), default=0)
        self._special = special_tokens(tokenizer)
        self._ids: list[int] = []  # the last tokens: first those whose text is known, as context for the next
        self._context_length = 0
        self._context_text = ""
        self._held = ""

    def write(self, token: int) -> str:
        """Return the text that this token makes certain."""
        if self.over:
            return ""
        if token in self._special:  # it has no text, so no stop string would be found in it
            self.over = self._special[token] in self.stops
            return self.finish() if self.over else ""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        self._held += text[len(self._context_text) :]
        # The last tokens stay as context: a tokenizer may drop the space before a first word.
        del self._ids[: self._context_length]
        self._context_length, self._context_text = len(self._ids), self._decode(self._ids)
        return self._release()

    def finish(self) -> str:
        """Return the text that was held back, when no token follows."""
        text = self._held + self._decode(self._ids)[len(self._context_text) :]
        self._clear()
        return cut_at_stops(text, self.stops)

    def _release(self) -> str:
        """Return the part of the held text that no stop string can remove any more."""
        held = self._held
        stop_at = len(cut_at_stops(held, self.stops))
        tails = range(max(0, len(held) + 1 - self._longest_stop), len(held))
        partial = (at for at in tails if any(stop.startswith(held[at:]) for stop in self.stops))
        partial_at = next(partial, len(held))
        # A stop string that began earlier may still be completed: then that one is the first.
        self.over = stop_at < len(held) and stop_at <= partial_at
        safe = min(stop_at, partial_at)
        self._held = held[safe:]
        if self.over:
            self._clear()
        return held[:safe]

    def _clear(self) -> None:
        self._ids, self._context_length, self._context_text, self._held = [], 0, "", ""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tokens that `decode(skip_special_tokens=True)` leaves out, by id."""
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
