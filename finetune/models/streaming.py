"""Decode generated token ids to text incrementally, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Decode = Callable[[list[int]], str]
STOPS = ("<|im_end|>", "\nUser:")  # strings that end a reply where the model did not stop


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop string."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class Reply(str):
    """The text of a generated reply.

    Attributes:
        truncated: it was ended by `max_new_tokens` or by the model's room, not by an end token or a stop
            string.
    """

    truncated: bool

    def __new__(cls, text: str = "", truncated: bool = False) -> Reply:
        """Make a reply of a text."""
        reply = super().__new__(cls, text)
        reply.truncated = truncated
        return reply


class ReplyStream(Iterator[str]):
    """The text of a reply in pieces, each as soon as it is certain.

    Args:
        pieces: the pieces.
        is_truncated: returns `Reply.truncated`, once there are no more pieces.
    """

    def __init__(self, pieces: Iterable[str], is_truncated: Callable[[], bool] = lambda: False):
        self._pieces, self._is_truncated = iter(pieces), is_truncated

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def truncated(self) -> bool:
        """As of `Reply`; it is known once the last piece has been taken."""
        return self._is_truncated()

    def through(self, change: Callable[[Iterable[str]], Iterable[str]]) -> ReplyStream:
        """Return this stream with its pieces changed."""
        return ReplyStream(change(self._pieces), self._is_truncated)


class PieceFilter(Protocol):
    """A change of a text that comes in pieces."""

    def write(self, piece: str) -> str:
        """Return what a piece makes certain of the changed text."""

    def finish(self) -> str:
        """Return the rest, when no piece follows."""


class Stripper:
    """Removes the white space around a text, which waits until more text follows."""

    def __init__(self) -> None:
        self._begun, self._held = False, ""

    def write(self, piece: str) -> str:
        """Return what a piece makes certain of the stripped text."""
        held = self._held + piece
        shown = held.rstrip() if self._begun else held.strip()
        self._begun |= bool(shown)
        self._held = held[len(held.rstrip()) :] if shown else held
        return shown

    def finish(self) -> str:
        """Return "": what waits is white space."""
        return ""


class FilterChain:
    """Filters one after another."""

    def __init__(self, filters: Sequence[PieceFilter] = ()):
        self._filters = filters

    def write(self, piece: str) -> str:
        """Return what a piece makes certain of the changed text."""
        for each in self._filters:
            piece = each.write(piece)
        return piece

    def finish(self) -> str:
        """Return the rest, when no piece follows."""
        rest = ""
        for each in self._filters:
            rest = each.write(rest) + each.finish()
        return rest


def through(pieces: Iterable[str], change: PieceFilter) -> Iterator[str]:
    """Yield the pieces of a changed text."""
    for piece in pieces:
        if shown := change.write(piece):
            yield shown
    if rest := change.finish():
        yield rest


def stripped(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a text without the white space around it."""
    return through(pieces, Stripper())


class Writer:
    """Convert token ids to text, piece by piece.

    Two things are held back: bytes of an incomplete character, and text that may begin a stop string. A copy
    (`copy.copy`) goes on by itself.

    Args:
        stops: strings that end the text.
        decode: returns the text of token ids; None is the tokenizer's own.

    Attributes:
        over: a stop string has been written; it and what follows are dropped.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], decode: Decode | None = None
    ):
        self.stops = stops
        self.over = False
        self._decode: Decode = decode or tokenizer.decode  # type: ignore[assignment]  # one text
        self._special = special_tokens(tokenizer)
        # Replaced, never changed in place: copies share it.
        self._ids: list[int] = []  # the last tokens: first those whose text is known, as context for the next
        self._context_length = 0
        self._context_text = ""
        self._held = ""

    def with_stops(self, stops: Sequence[str]) -> Writer:
        """Return a copy that ends its text with these strings."""
        writer = copy(self)
        writer.stops = stops
        return writer

    def write(self, token: int) -> str:
        """Return the text that this token makes certain."""
        if self.over:
            return ""
        if token in self._special:  # it has no text, so no stop string would be found in it
            self.over = self._special[token] in self.stops
            return self.finish() if self.over else ""
        self._ids = [*self._ids, token]
        text = self._decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        self._held += text[len(self._context_text) :]
        # The last tokens stay as context: a tokenizer may drop the space before a first word.
        self._ids = self._ids[self._context_length :]
        self._context_length, self._context_text = len(self._ids), self._decode(self._ids)
        return self._release()

    def finish(self) -> str:
        """Return the text that was held back, when no token follows."""
        text = self._held + self._decode(self._ids)[len(self._context_text) :]
        self._clear()
        cut = cut_at_stops(text, self.stops)
        self.over |= cut != text
        return cut

    def _release(self) -> str:
        """Return the part of the held text that no stop string can remove any more."""
        held = self._held
        stop_at = len(cut_at_stops(held, self.stops))
        longest = max(map(len, self.stops), default=0)
        tails = range(max(0, len(held) + 1 - longest), len(held))
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


def chinese_decoder(tokenizer: PreTrainedTokenizerBase) -> Decode | None:
    """Return what decodes texts without the spaces that BERT's tokenizer puts between Chinese characters.

    None for a tokenizer that puts none there: spaces in its texts were written.
    """
    from finetune.prompts.exam import read_back

    probe = tokenizer("一一", add_special_tokens=False)["input_ids"]
    if " " not in str(tokenizer.decode(probe)).strip():
        return None
    return lambda ids: read_back(tokenizer, ids)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tokens that `decode(skip_special_tokens=True)` leaves out, by id."""
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
