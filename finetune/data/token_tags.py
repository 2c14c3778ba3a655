"""Interpretation of tokens and tags over a whole dataset: the scheme, and the texts that tokens make."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from finetune.data.tag_schemes import BIOES, PLAIN, ROLES, SCHEMES, Tag, fault, letter_of, parse_tag
from finetune.runtime.errors import shown

MOSTLY = 0.5  # share of the tokens with a wide character from which on texts are Chinese


def letters_of(counts: Counter[str], style: str) -> dict[str, str]:
    """Return role -> letter as the tags write it; B and I where only I, or a few of both, occur."""
    if style == PLAIN:
        return {}
    letters: dict[str, str] = {}
    for name, _ in counts.most_common():
        if letter := letter_of(name, style):
            letters.setdefault(ROLES[letter], letter)
    letters = {"B": "B", "I": letters.get("I", "I"), **letters}
    if "E" in letters or "S" in letters:  # a span of one unit needs an S, a longer one an E
        letters = {"S": "S", "E": "E", **letters}
    return {role: letters[role] for role in "BIES" if role in letters}


class TagReading:
    """How the tags of a dataset are to be read: the scheme that the fewest rows contradict.

    Args:
        style: see `tag_schemes.style_of`.
        rows: the tags of each row.

    Attributes:
        scheme: one of SCHEMES, or PLAIN.
    """

    def __init__(self, style: str, rows: Sequence[Sequence[str]]):
        self.style, self.scheme, self.inner = style, PLAIN, ""
        if style == PLAIN:
            return
        letters = Counter(letter_of(tag, style) for row in rows for tag in row)
        # `I` and `M` together are two schemes: the rarer is a fault
        self.inner = "M" if letters["M"] > letters["I"] else "I"
        readable = [parsed for row in rows if (parsed := self._try(row))]
        faults = {scheme: sum(fault(parsed, scheme) is not None for parsed in readable) for scheme in SCHEMES}
        self.scheme = min(SCHEMES, key=faults.__getitem__)

    @property
    def shown(self) -> str:
        """Name of the scheme for messages."""
        return "BMES" if self.scheme == BIOES and self.inner == "M" else self.scheme

    def _try(self, tags: Sequence[str]) -> list[Tag]:
        try:
            return [parse_tag(tag, self.style) for tag in tags]
        except ValueError:
            return []

    def parse(self, tags: Sequence[str]) -> list[Tag]:
        """Return the tags of a row.

        Raises:
            ValueError: one that is written otherwise than those of other rows, or that cannot stand where it
                does.
        """
        parsed = [parse_tag(tag, self.style) for tag in tags]
        if self.scheme == PLAIN:
            return parsed
        other = "I" if self.inner == "M" else "M"
        if wrong := [tag for tag in tags if letter_of(tag, self.style) == other]:
            raise ValueError(
                f"標記 {shown(wrong[0])} 與其他列的寫法混用：別的列寫 {self.inner}，不寫 {other}"
            )
        if (place := fault(parsed, self.scheme)) is not None:
            before = f"接在 {shown(tags[place - 1])} 後面" if place else "在開頭"
            after = f"、後面是 {shown(tags[place + 1])}" if place + 1 < len(tags) else "、在結尾"
            raise ValueError(
                f"第 {place + 1} 個標記 {shown(tags[place])} {before}{after}，不合 {self.shown} 的寫法"
            )
        return parsed


class TokenJoiner:
    """Joins tokens into a text: Chinese without spaces, words of other scripts with one between them.

    Args:
        rows: the tokens of each row: what most of them are decides for Latin letters between Han.
    """

    def __init__(self, rows: Iterable[Sequence[str]]):
        counts = Counter(any(map(_is_wide, token)) for row in rows for token in row)
        self.chinese = counts[True] >= MOSTLY * max(1, counts.total())

    def join(self, tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and (start, end) of each token in it."""
        text, places, before = "", [], ""
        for token in tokens:
            if before and token and self._apart(before, token):
                text += " "
            places.append((len(text), len(text) + len(token)))
            text += token
            before = token
        return text, places

    def _apart(self, one: str, other: str) -> bool:
        """Return whether a space stands between two tokens."""
        if _is_wide(one[-1]) or _is_wide(other[0]) or one[-1].isspace() or other[0].isspace():
            return False
        if not self.chinese:
            return True
        return one[-1].isalnum() and other[0].isalnum() and len(one) + len(other) > 2


def _is_wide(character: str) -> bool:
    """Return whether a character is of a script without spaces: Han, kana, full-width forms."""
    return unicodedata.east_asian_width(character) in "WF" and not "\uac00" <= character <= "\ud7a3"
