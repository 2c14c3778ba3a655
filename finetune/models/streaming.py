"""Token ids on their way to a reader: text as soon as nothing can change it any more, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

STOPS = ("<|im_end|>", "\nUser:")  # what ends an answer where the model went on


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class Writer:
    """Token ids become text, piece by piece.

    Two things are held back: bytes of a character that is not complete, and what may begin a stop string.
    `over`: a stop string has been written; it and what follows are dropped.
    """

    def __init__(self, tokenizer, stops: Sequence[str]):
        self.decode, self.stops = tokenizer.decode, stops
        self.longest = max(map(len, stops), default=0)
        self.special = special_tokens(tokenizer)
        self._clear()
        self.over = False

    def write(self, token: int) -> str:
        """The text that this token makes certain."""
        if self.over:
            return ""
        if token in self.special:  # it has no text, so no stop string would be found in its place
            self.over = self.special[token] in self.stops
            return self.finish() if self.over else ""
        self.ids.append(token)
        text = self.decode(self.ids)
        if text.endswith("\ufffd"):
            return ""
        self.held += text[len(self.known) :]
        # The last tokens stay as context: a tokenizer may drop the space before a first word.
        del self.ids[: self.context]
        self.context, self.known = len(self.ids), self.decode(self.ids)
        return self._release()

    def finish(self) -> str:
        """What was held back, when no token follows."""
        text = self.held + self.decode(self.ids)[len(self.known) :]
        self._clear()
        return cut_at_stops(text, self.stops)

    def _release(self) -> str:
        held = self.held
        found = len(cut_at_stops(held, self.stops))
        tails = range(max(0, len(held) + 1 - self.longest), len(held))
        begun = (at for at in tails if any(stop.startswith(held[at:]) for stop in self.stops))
        opening = next(begun, len(held))
        # A stop string that began earlier may still be completed: then that one is the first.
        self.over = found < len(held) and found <= opening
        safe = min(found, opening)
        self.held = held[safe:]
        if self.over:
            self._clear()
        return held[:safe]

    def _clear(self) -> None:
        self.ids: list[int] = []  # the last tokens,
        self.context = 0  # of which so many are written:
        self.known = ""
        self.held = ""


def special_tokens(tokenizer) -> dict[int, str]:
    """The tokens that `decode(skip_special_tokens=True)` leaves out."""
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
