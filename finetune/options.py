"""Options as people type them: `A:地球 B:木星 C:火星` on one line, or one a line."""

from __future__ import annotations

import re

from .errors import UserError
from .questions import LETTERS, MAX_OPTIONS, MIN_OPTIONS

EXAMPLE = "A:地球 B:木星 C:火星"
_LABEL = r"(?:[A-Z]|[a-z]|[0-9]{1,2})"
# The ways of writing a label; that of the first option is that of all, so `f(b)` inside `A:f(b)` is text.
_STYLES = (
    re.compile(rf"(?:^|(?<=[\s,，;；、]))({_LABEL})\s*[:：]"),  # A:
    re.compile(r"(?:^|(?<=[\s,，;；]))([A-Z]|[a-z])\s*[.．、]"),  # A.
    re.compile(rf"（({_LABEL})）\s*[:：]?"),  # （A）
    re.compile(rf"\(({_LABEL})\)\s*[:：]?"),  # (A)
)


def parse_options(text: str) -> dict[str, str]:
    """`A:地球 B:木星 C: a b:c` -> {"A": "地球", "B": "木星", "C": "a b:c"}.

    Raises:
        UserError: fewer than two options, or an empty one.
    """
    options = labelled(text)
    if len(options) < 2:
        raise UserError(f"選項看不懂：{text.strip()!r}；請寫成 {EXAMPLE}")
    if empty := [label for label, option in options.items() if not option]:
        raise UserError(f"選項 {'、'.join(empty)} 是空的；請寫成 {EXAMPLE}")
    return options


def labelled(text: str) -> dict[str, str]:
    """The options that carry a label, however many there are; {} when the text does not begin with one.

    Labels follow one another in one style and one case, so a colon or a bracket inside an option starts no
    new one.
    """
    text = text.strip()
    style = next((style for style in _STYLES if style.match(text)), None)
    found: list[tuple[str, int, int]] = []  # label, where it starts, where its text starts
    for match in style.finditer(text) if style else ():
        label = match[1]
        if label == (_after(found[-1][0]) if found else label) and (found or match.start() == 0):
            found.append((label, match.start(), match.end()))
    ends = [*(start for _, start, _ in found[1:]), len(text)][: len(found)]
    return {
        label.upper(): text[start:end].strip(" \t\r\n,，;；、")
        for (label, _, start), end in zip(found, ends, strict=True)
    }


def from_lines(lines: list[str]) -> dict[str, str]:
    """Options given one a line, with labels or without (A, B, C … then). A label is looked for at the start
    of a line alone.

    Raises:
        UserError: fewer than two, more than MAX_OPTIONS, an empty one, or labels that do not follow.
    """
    texts = [line.strip() for line in lines if line.strip()]
    style = next((style for style in _STYLES if texts and style.match(texts[0])), None)
    starts = [style.match(text) for text in texts] if style else []
    labels = [match[1] if match else "" for match in starts] or list(LETTERS[: len(texts)])
    if starts:
        expected = labels[:1]
        while len(expected) < len(texts):
            expected.append(_after(expected[-1]))
        if labels != expected:
            raise UserError(f"選項要照順序標成 {'、'.join(expected)}，或都不標；得到 {'、'.join(labels)}")
        texts = [text[match.end() :].strip() for text, match in zip(texts, starts, strict=True)]
    if not MIN_OPTIONS <= len(texts) <= MAX_OPTIONS:
        raise UserError(f"有 {len(texts)} 個選項，應為 2 到 {MAX_OPTIONS} 個；一行一個，或寫成 {EXAMPLE}")
    if empty := [label for label, text in zip(labels, texts, strict=True) if not text]:
        raise UserError(f"選項 {'、'.join(empty)} 是空的；請寫成 {EXAMPLE}")
    return {label.upper(): text for label, text in zip(labels, texts, strict=True)}


def _after(label: str) -> str:
    return str(int(label) + 1) if label.isdigit() else chr(ord(label) + 1)
