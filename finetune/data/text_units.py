"""Units of a text: what gets one tag each, whatever the tokenizer of a model makes of it.

A run of letters of a script that is written with spaces (Latin, Greek, Cyrillic, Korean …) is a unit, and so
is a run of the digits 0 to 9; every other character that is no white space is one by itself: Han, kana,
punctuation, full-width letters and digits, emoji and the joiners within them. White space belongs to no unit.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Letters of scripts with spaces between words, and the accents that stand on them.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f"
    "\u0670\u1ab0-\u1aff\u1dc0-\u1dff"
)
_LETTERS = (
    "A-Za-zªµºÀ-ÖØ-öø-ˁ\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u0481\u048a-\u0556"
    "\u0561-\u0587\u05d0-\u05ea\u0620-\u064a\u066e\u066f\u0671-\u06d3\u1d00-\u1dbf\u1e00-\u1fff"
    "\uac00-\ud7a3ⁿ"
)
_UNIT = re.compile(rf"[{_LETTERS}][{_LETTERS}{_MARKS}]*|[0-9]+|\S")


class Span(NamedTuple):
    """A part of a text and what it is: `text[start:end]` is a `label`."""

    start: int
    end: int
    label: str


def text_units(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each unit in order; only white space lies between them."""
    return [match.span() for match in _UNIT.finditer(text)]
