"""Where an answer stands in its passage: offsets in characters, whatever unit they were written in."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import NamedTuple

from finetune.data.cells import is_blank, without_spaces
from finetune.runtime.errors import shown

FOUND = "沒有 answer_start：取文章裡第一次出現的地方"
SEVERAL = "沒有 answer_start，而答案在文章裡出現好幾次：取第一次"
UTF16 = "answer_start 是 UTF-16 的位置，換算成字元"
UTF8 = "answer_start 是 UTF-8 的位元組，換算成字元"
MOVED = "answer_start 對不上答案的文字：取最近的一處"
SPACED = "答案前後的空白不算在內"


class Answer(NamedTuple):
    """An answer and its first character in the passage; its end is `start + len(text)`."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """The character after its last one."""
        return self.start + len(self.text)


def parse_start(value: object) -> int | None:
    """Return an answer_start; None where there is none: nothing, NaN, or a negative number.

    Raises:
        ValueError: it is no whole number.
    """
    if is_blank(value):
        return None
    number = math.nan
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not number.is_integer():
        raise ValueError(f"answer_start 應是整數，得到 {shown(value)}")
    return None if number < 0 else int(number)


def place_answer(context: str, text: str, start: int | None) -> tuple[Answer, str]:
    """Return an answer at the place where its very text stands in the passage, and a remark, "" for none.

    `start` may count UTF-16 units or bytes of UTF-8, as other languages do, or be off by the white space that
    someone removed: then the nearest place counts.

    Args:
        text: not blank.
        start: as the data have it; None where they have none.

    Raises:
        ValueError: the text is not in the passage.
    """
    bare = text.strip()
    spaces = len(text) - len(text.lstrip())
    if start is not None and context.startswith(text, start):
        return Answer(bare, start + spaces), SPACED if bare != text else ""
    first = context.find(bare)
    if first < 0:
        raise ValueError(_not_found(context, bare))
    if start is None:
        return Answer(bare, first), SEVERAL if context.find(bare, first + 1) >= 0 else FOUND
    for encoding, unit, remark in (("utf-16-le", 2, UTF16), ("utf-8", 1, UTF8)):
        counted = _characters(context, start * unit, encoding)
        if counted is not None and counted != start and context.startswith(text, counted):
            return Answer(bare, counted + spaces), remark
    return Answer(bare, _nearest(context, bare, start)), MOVED


def _characters(context: str, units: int, encoding: str) -> int | None:
    """Return how many characters the first bytes of an encoding are; None where they end within one."""
    data = context.encode(encoding, "surrogatepass")
    if units > len(data):
        return None
    try:
        return len(data[:units].decode(encoding, "surrogatepass"))
    except UnicodeDecodeError:
        return None


def _nearest(context: str, text: str, start: int) -> int:
    """Return the occurrence of a text that is nearest to a place, the first of equals."""
    after = context.find(text, max(0, min(start, len(context))))
    before = context.rfind(text, 0, max(0, min(start, len(context))) + len(text) - 1)
    places = [place for place in (before, after) if place >= 0] or [context.find(text)]
    return min(places, key=lambda place: (abs(place - start), place))


def _not_found(context: str, text: str) -> str:
    """Return why an answer is not in its passage."""
    if without_spaces(text).lower() in without_spaces(context).lower():
        return f"答案 {shown(text)} 在文章裡的寫法不同（空白、大小寫、全形或半形），請照抄文章的寫法"
    return f"答案 {shown(text)} 不在文章裡"
