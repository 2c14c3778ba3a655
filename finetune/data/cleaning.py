"""Texts made fit for continued pre-training: each step a switch, each with a count of what it did and a few
places before and after.

Nothing here strips a combining mark: tsi̍t (Tâi-lô, POJ) is another word than tsit.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune.data.contamination import NEAR, TrainedQuestions, minhash_sketch
from finetune.data.question import normalised
from finetune.runtime.errors import UserError

CLEANING = ("urls", "numbering", "punctuation", "titles", "length", "duplicates", "near_duplicates")
EXAMPLES = 3  # kept of each step
EXCERPT, LEAD = 200, 16  # characters kept of an example, and those of them before its first change


@dataclass(frozen=True)
class Text:
    """A document, or a part of one: `whole` is then the same for all parts. `id`: file:line#part."""

    text: str
    title: str = ""
    id: str = ""
    whole: str = ""


@dataclass(frozen=True)
class Cleaning:
    """Which steps are done, always in the order of CLEANING.

    Raises:
        UserError: an unknown step, or lengths that exclude each other.
    """

    steps: tuple[str, ...] = CLEANING
    min_chars: int = 100
    max_chars: int = 2048

    def __post_init__(self):
        unknown = [step for step in self.steps if step not in CLEANING]
        problems = [f"--clean：不認得 {step!r}，有的是 {'、'.join(CLEANING)}" for step in unknown]
        if self.min_chars > self.max_chars:
            problems.append(f"--min_chars {self.min_chars} 大於 --max_chars {self.max_chars}")
        if problems:
            raise UserError(problems)


@dataclass
class Draft:
    """A document while it is worked on: its paragraphs, each one or more lines."""

    lines: list[str]
    title: str = ""
    id: str = ""
    whole: str = ""

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip()


@dataclass
class Log:
    """What the steps did. `examples`: step -> (before, after), after "" where a text was dropped."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))

    def note(self, step: str, before: str, after: str = "") -> None:
        if len(self.examples[step]) < EXAMPLES:
            self.examples[step].append(excerpts(before, after))


def excerpts(before: str, after: str) -> tuple[str, str]:
    """EXCERPT characters of both texts, from LEAD characters before the place where they part."""
    start = max(0, len(os.path.commonprefix([before, after])) - LEAD)
    while start and _clings(before[start]):
        start -= 1
    cut = [("…" if start else "") + text[start : start + EXCERPT] for text in (before, after)]
    return cut[0], cut[1] if after else ""


def clean(drafts: list[Draft], cleaning: Cleaning) -> tuple[list[Text], Log]:
    """The texts that are left, in order, and what each step did."""
    log = Log()
    log.counts["read"] = len(drafts)
    log.counts["read_characters"] = sum(len(draft.text) for draft in drafts)
    for step in CLEANING:
        if step in cleaning.steps:
            for key in COUNTED.get(step, (step,)):
                log.counts[key] = 0
            drafts = _STEPS[step](drafts, cleaning, log)
    texts = [Text(draft.text, draft.title, draft.id, draft.whole) for draft in drafts]
    return [text for text in texts if text.text], log


def _replaced(pattern: re.Pattern, new: Callable[[re.Match], str], text: str) -> tuple[str, int]:
    """The text with `new` of each match, and how many of them are not what they were."""
    changed = 0

    def one(match: re.Match) -> str:
        nonlocal changed
        instead = new(match)
        changed += instead != match[0]
        return instead

    return pattern.sub(one, text), changed


def _line_by_line(step: str, change: Callable[[str], tuple[str, int]]):
    """A step that changes each line by itself; a line of which nothing is left goes."""

    def apply(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
        for draft in drafts:
            lines = []
            for line in draft.lines:
                changed, count = change(line)
                if count:
                    log.counts[step] += count
                    log.note(step, line, changed)
                if changed or not line:
                    lines.append(changed)
            draft.lines = lines
        return drafts

    return apply


# ---- addresses ---------------------------------------------------------------------------------------------

HAN = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_OUTSIDE = rf"\s{HAN}\u3000-\u303f\ufe30-\ufe4f\uff00-\uffef“”‘’…—"  # ends an address
_ROUND = rf"\([^()<>\"{_OUTSIDE}]*\)"  # an address may hold brackets, but in pairs
_ADDRESS = (
    rf"(?:https?://|(?<![A-Za-z0-9.@])www\.)(?:{_ROUND}|[^()\[\]<>\"{_OUTSIDE}])*"
    rf"(?:{_ROUND}|[^()\[\]<>\"'.,;:!?{_OUTSIDE}])"
)
_ADDRESSES = rf"{_ADDRESS}(?:[\s,、，;；]+{_ADDRESS})*"
_URLS = re.compile(
    rf" *(?:\(\s*{_ADDRESSES}\s*\)|（\s*{_ADDRESSES}\s*）|\[\s*{_ADDRESSES}\s*\]|{_ADDRESSES})", re.IGNORECASE
)
_URL = re.compile(_ADDRESS, re.IGNORECASE)


def without_urls(line: str) -> tuple[str, int]:
    """A line without addresses and the brackets that held nothing else, and how many they were."""
    if "://" not in line and "www." not in line.lower():
        return line, 0
    cleaned = _URLS.sub("", line)
    return (cleaned.strip(), len(_URL.findall(line))) if cleaned != line else (line, 0)


# ---- paragraph numbers -------------------------------------------------------------------------------------

_DIGITS = "一二三四五六七八九"
_CHINESE = rf"[{_DIGITS}]?十[{_DIGITS}]?|[{_DIGITS}]"
_NUMBERS = {  # kind -> a number at the start of a paragraph; 3.14, 1、2 月 and 一、二年級 are none
    "point": re.compile(r"\s*(\d{1,5})\s?[.．](?![\d.．])\s*"),
    "comma": re.compile(r"\s*(\d{1,5})、(?!\d)\s*"),
    "bracket": re.compile(r"\s*[(（]?(\d{1,5})[)）]\s*"),
    "chinese": re.compile(rf"\s*({_CHINESE})、(?![{_DIGITS}十])\s*"),
    "chinese_bracket": re.compile(rf"\s*[(（]({_CHINESE})[)）]、?\s*"),
    "circle": re.compile(r"\s*([\u2460-\u2473\u3251-\u325f])[.、]?\s*"),
}


def _value(number: str) -> int:
    tens, ten, ones = number.rpartition("十")
    if ten:
        return 10 * int(unicodedata.numeric(tens or "一")) + int(unicodedata.numeric(ones) if ones else 0)
    return int(number) if number.isdecimal() else int(unicodedata.numeric(number))


def _without_numbering(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
    """Rows of one title are looked at together: each may hold one paragraph of a numbered document."""
    groups: dict[object, list[Draft]] = defaultdict(list)
    for place, draft in enumerate(drafts):
        groups[draft.title or place].append(draft)
    for group in groups.values():
        places = [(draft, at) for draft in group for at in range(len(draft.lines))]
        cuts = numbered([draft.lines[at] for draft, at in places])
        for number, length in cuts.items():
            draft, at = places[number]
            line = draft.lines[at]
            log.note("numbering", line, line[length:])
            draft.lines[at] = line[length:]
        log.counts["numbering"] += len(cuts)
    return drafts


def numbered(lines: list[str]) -> dict[int, int]:
    """Index of each line whose number is one of a sequence -> length of that number.

    A sequence: numbers of one kind, each one more than the last, two or more of them from 0 or 1, three or
    more from anywhere. Lines without a number may stand between.
    """
    found: dict[int, int] = {}
    for pattern in _NUMBERS.values():
        run: list[tuple[int, int]] = []
        last = None
        matches = [(at, match) for at, line in enumerate(lines) if (match := pattern.match(line))]
        for at, match in [*matches, (None, None)]:
            value = _value(match[1]) if match else None
            if run and (match is None or value != last + 1):
                first = last - len(run) + 1
                if len(run) >= (2 if first in (0, 1) else 3):
                    found.update(run)
                run = []
            if match:
                run.append((at, match.end()))
            last = value
    return found


# ---- punctuation -------------------------------------------------------------------------------------------

_LEFT = rf"{HAN}「」『』《》〈〉【】，。；：？！、"  # what makes the mark after it a Chinese one
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
    """A line with Chinese punctuation among Chinese, and how many places are not what they were."""
    total, changed = 0, 1
    while changed:  # a mark made wide can make its neighbour a Chinese one
        line, changed = _tidied(line)
        total += changed
    return line, total


def _tidied(line: str) -> tuple[str, int]:
    composed = unicodedata.normalize("NFC", line)
    total = int(composed != line)
    line = composed
    for pattern, new in (
        (_INVISIBLE, lambda match: ""),
        (_NARROWED, lambda match: _NARROW[match[0]]),
        (_SPACES, lambda match: " "),
        (_DOTS, _dots),
        (_MARKS, lambda match: (match[1] or match[2]).translate(_WIDE)),
    ):
        line, changed = _replaced(pattern, new, line)
        total += changed
    line, changed = _wide_brackets(line)
    total += changed
    line, changed = _replaced(_REPEATED, lambda match: match[1], line)
    return line.strip(), total + changed + (line != line.strip())


def _dots(match: re.Match) -> str:
    """Between Latin words three points are left as they are."""
    around = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    chinese = "。" in match[0] or _BESIDE_LEFT.match(around[0]) or _BESIDE_RIGHT.match(around[1])
    return "……" if chinese else match[0]


def _wide_brackets(line: str) -> tuple[str, int]:
    """Half-width brackets beside a Chinese character, inside or outside, become wide, always in pairs."""
    if "(" not in line and ")" not in line:
        return line, 0
    pairs, opened = [], []
    for at, character in enumerate(line):
        if character in "(（":
            opened.append(at)
        elif character in ")）":
            pairs.append((opened.pop(), at) if opened else (at,))
    pairs += [(at,) for at in opened]
    characters = list(line)
    changed = 0
    for pair in pairs:
        if not any(_by_chinese(line, at) for at in pair):
            continue
        for at in pair:
            if line[at] in "()":
                changed += 1
                characters[at] = line[at].translate(_WIDE)
                for beside in (at - 1, at + 1):
                    if 0 <= beside < len(line) and line[beside] == " ":
                        characters[beside] = ""
    return "".join(characters), changed


def _by_chinese(line: str, at: int) -> bool:
    before, after = line[max(0, at - 2) : at].rstrip()[-1:], line[at + 1 : at + 3].lstrip()[:1]
    return bool(_BESIDE_LEFT.match(before) or _BESIDE_RIGHT.match(after))


# ---- documents ---------------------------------------------------------------------------------------------


def _merged(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
    """Rows of one title as one document, at the place of the first."""
    found: dict[object, Draft] = {}
    for place, draft in enumerate(drafts):
        first = found.setdefault(draft.title or place, draft)
        if first is not draft:
            if first.lines and draft.lines:
                before, after = f"{draft.title}：{first.lines[-1]}\n", draft.lines[0]
                log.note("titles", f"{before}{draft.title}：{after}", before + after)
            first.lines += draft.lines
            log.counts["titles"] += 1
    return list(found.values())


def _of_length(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
    kept = []
    for draft in drafts:
        text = draft.text
        if len(text) < cleaning.min_chars:
            log.counts["too_short"] += 1
            log.note("too_short", text)
        elif len(text) <= cleaning.max_chars:
            kept.append(draft)
        else:
            parts = parts_of(text, cleaning.min_chars, cleaning.max_chars)
            log.counts["cut"] += 1
            log.counts["parts"] += len(parts)
            log.note("cut", text, " ✂ ".join(parts))
            whole = hashlib.sha256(normalised(text).encode()).hexdigest()[:16]
            kept += [Draft([part], draft.title, f"{draft.id}#{n}", whole) for n, part in enumerate(parts, 1)]
    return kept


_CLOSING = "」』）》〉】”’)\\]\"'"
_BREAKS = (  # where a text may be cut, best first
    re.compile(rf"[。！？!?…]+[{_CLOSING}]*|\.(?=\s)|(?<=\S)(?=\n)"),
    re.compile(rf"[，、；：][{_CLOSING}]*|[,;:](?=\s)"),
    re.compile(r"(?<=\S)(?=\s)"),
)
_SPACE = re.compile(r"\s*")
_SLACK = 16  # closing marks that are looked for behind the last character that fits


def parts_of(text: str, min_chars: int, max_chars: int) -> list[str]:
    """A text in few parts, of about one length, none above `max_chars` characters: cut at the end of
    sentences or lines; within a longer sentence at commas, then at spaces, then anywhere but before a
    combining mark. Together they are the whole text, less the white space at the cuts.
    """
    parts, start, text = [], 0, text.strip()
    while len(text) - start > max_chars:
        end = _cut(text, start, min_chars, max_chars)
        parts.append(text[start:end].rstrip())
        start = _SPACE.match(text, end).end()
    return [*parts, text[start:]]


def _cut(text: str, start: int, min_chars: int, max_chars: int) -> int:
    """Where the part that begins at `start` ends."""
    left, min_chars = len(text) - start, min(min_chars, max_chars // 2)
    count = -(-left // max_chars)
    aim, last = start + left / count, start + max_chars
    few = max(start + min_chars, len(text) - (count - 1) * max_chars)  # from there no further part is needed
    not_tiny = min(last, len(text) - min_chars)  # up to there the rest is a part of its own
    windows = [(few, not_tiny), (start + min_chars, not_tiny), (start, last)]
    for breaks in _BREAKS:
        ends = [match.end() for match in breaks.finditer(text, start, last + _SLACK)]
        ends = [end for end in ends if start < end <= last]
        for low, high in windows:
            if fit := [end for end in ends if low <= end <= high]:
                return min(fit, key=lambda end: abs(end - aim))
        windows = windows[:2]  # rather a tiny part than a sentence in two, but no tiny piece of a sentence
    end = int(aim)
    while end > start and _clings(text[end]):
        end -= 1
    if end == start:  # marks alone, more of them than fit
        end = last
    return end


def _clings(character: str) -> bool:
    """Belongs to the character before it: a combining mark, a joiner or a variation selector."""
    return unicodedata.category(character)[0] == "M" or character == "\u200d"


def _once(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
    kept: dict[str, Draft] = {}
    for draft in drafts:
        if kept.setdefault(normalised(draft.text), draft) is not draft:
            log.counts["duplicates"] += 1
            log.note("duplicates", draft.text)
    return list(kept.values())


def _unlike(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
    kept, known = [], TrainedQuestions({})
    for draft in drafts:
        hashes = minhash_sketch([normalised(draft.text)])
        if known.closest(hashes) >= NEAR:
            log.counts["near_duplicates"] += 1
            log.note("near_duplicates", draft.text)
        else:
            known.add(str(len(kept)), hashes)
            kept.append(draft)
    return kept


COUNTED = {"length": ("too_short", "cut", "parts")}  # steps that count more than one thing
_STEPS = {
    "urls": _line_by_line("urls", without_urls), "numbering": _without_numbering,
    "punctuation": _line_by_line("punctuation", tidy), "titles": _merged, "length": _of_length,
    "duplicates": _once, "near_duplicates": _unlike,
}  # fmt: skip
