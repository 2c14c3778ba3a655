"""Chinese punctuation among Chinese characters, letters and digits of one width, nothing invisible."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

HAN = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_LEFT = rf"{HAN}「」『』《》〈〉【】，。；：？！、"  # a mark after one of these is a Chinese one
_RIGHT = rf"{HAN}「『《〈【"
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\x00-\x08\x0b-\x1f\x7f-\x9f]|(?<![\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])\u200d"  # joins emoji
)
_NARROW = {chr(c): chr(c - 0xFEE0) for c in range(0xFF10, 0xFF5B) if chr(c - 0xFEE0).isalnum()}
_NARROWED = re.compile("[" + "".join(_NARROW) + "]")
_DOTS = re.compile(r"。{3,}|\.{3,}|…{3,}|(?<!…)…(?!…)")
_MARKS = re.compile(rf"(?:(?<=[{_LEFT}])|(?<=……)) *([,;:?!]+) *|([,;:?!]+) *(?=[{_RIGHT}])")
_WIDE = str.maketrans(",;:?!()", "，；：？！（）")
_REPEATED = re.compile(r"([，、；：？！。!?])\1+")
_SPACES = re.compile(r"[ \t\u00a0\u2000-\u200a\u202f\u205f\u3000]+")
_BESIDE_LEFT, _BESIDE_RIGHT = re.compile(f"[{_LEFT}]"), re.compile(f"[{_RIGHT}]")


def tidy(line: str) -> tuple[str, int]:
    """Write Chinese punctuation among Chinese characters.

    Returns:
        the line, and the number of places changed.
    """
    total, changed = 0, 1
    while changed:  # a mark made wide can make its neighbour a Chinese one
        line, changed = _tidy_once(line)
        total += changed
    return line, total


def _tidy_once(line: str) -> tuple[str, int]:
    """Apply each rule of punctuation once; see `tidy`."""
    composed = unicodedata.normalize("NFC", line)
    total = int(composed != line)
    line = composed
    for pattern, replacement in (
        (_INVISIBLE, lambda match: ""),
        (_NARROWED, lambda match: _NARROW[match[0]]),
        (_SPACES, lambda match: " "),
        (_DOTS, _ellipsis),
        (_MARKS, lambda match: (match[1] or match[2]).translate(_WIDE)),
    ):
        line, changed = _substitute(pattern, replacement, line)
        total += changed
    line, changed = _wide_brackets(line)
    total += changed
    line, changed = _substitute(_REPEATED, lambda match: match[1], line)
    return line.strip(), total + changed + (line != line.strip())


def _ellipsis(match: re.Match) -> str:
    """Return …… for dots beside Chinese; between Latin words three points stay as they are."""
    around = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    chinese = "。" in match[0] or _BESIDE_LEFT.match(around[0]) or _BESIDE_RIGHT.match(around[1])
    return "……" if chinese else match[0]


def _wide_brackets(line: str) -> tuple[str, int]:
    """Widen half-width brackets beside a Chinese character, inside or outside, always in pairs."""
    if "(" not in line and ")" not in line:
        return line, 0
    groups: list[tuple[int, ...]] = []  # places of a pair of brackets, or of one without its other half
    opened: list[int] = []
    for at, character in enumerate(line):
        if character in "(（":
            opened.append(at)
        elif character in ")）":
            groups.append((opened.pop(), at) if opened else (at,))
    groups += [(at,) for at in opened]
    characters = list(line)
    changed = 0
    for group in groups:
        if not any(_beside_chinese(line, at) for at in group):
            continue
        for at in group:
            if line[at] in "()":
                changed += 1
                characters[at] = line[at].translate(_WIDE)
                for beside in (at - 1, at + 1):
                    if 0 <= beside < len(line) and line[beside] == " ":
                        characters[beside] = ""
    return "".join(characters), changed


def _beside_chinese(line: str, at: int) -> bool:
    """Return whether a Chinese character precedes or follows the place, at most one space away."""
    before, after = line[max(0, at - 2) : at].rstrip()[-1:], line[at + 1 : at + 3].lstrip()[:1]
    return bool(_BESIDE_LEFT.match(before) or _BESIDE_RIGHT.match(after))


def _substitute(
    pattern: re.Pattern, replacement_for: Callable[[re.Match], str], text: str
) -> tuple[str, int]:
    """Substitute each match, and count the matches that changed."""
    changed = 0

    def replace(match: re.Match) -> str:
        nonlocal changed
        replacement = replacement_for(match)
        changed += replacement != match[0]
        return replacement

    return pattern.sub(replace, text), changed
