"""Cleaning of texts for continued pre-training.

Each step can be switched off; each has a count of what it did and a few examples before and after. No step
removes a combining mark: tsi̍t (Tâi-lô, POJ) is another word than tsit.
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
from finetune.data.punctuation import HAN, tidy
from finetune.data.question import normalised
from finetune.runtime.errors import UserError

CLEANING = ("urls", "numbering", "punctuation", "titles", "length", "duplicates", "near_duplicates")
EXAMPLES = 3  # examples kept of each step
EXCERPT, LEAD = 200, 16  # characters of an excerpt, and how many of them precede the first change


@dataclass(frozen=True)
class Text:
    """A document, or a part of one.

    Attributes:
        id: file:line#part.
        whole: the same for all parts of one document.
    """

    text: str
    title: str = ""
    id: str = ""
    whole: str = ""


@dataclass(frozen=True)
class Cleaning:
    """The cleaning steps to run, always in the order of CLEANING.

    Raises:
        UserError: an unknown step, or lengths that exclude each other.
    """

    steps: tuple[str, ...] = CLEANING
    min_chars: int = 100
    max_chars: int = 2048

    def __post_init__(self) -> None:
        unknown = [step for step in self.steps if step not in CLEANING]
        problems = [f"--clean：不認得 {step!r}，有的是 {'、'.join(CLEANING)}" for step in unknown]
        if self.min_chars > self.max_chars:
            problems.append(f"--min_chars {self.min_chars} 大於 --max_chars {self.max_chars}")
        if problems:
            raise UserError(problems)


@dataclass
class Draft:
    """A document during cleaning: its paragraphs, each one or more lines."""

    lines: list[str]
    title: str = ""
    id: str = ""
    whole: str = ""

    @property
    def text(self) -> str:
        """The document as one text."""
        return "\n".join(self.lines).strip()


@dataclass
class Log:
    """Counts and examples of what the steps did.

    Attributes:
        examples: step -> (before, after); after is "" where a text was dropped.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))

    def note(self, step: str, before: str, after: str = "") -> None:
        """Keep an example of a step, unless there are enough."""
        if len(self.examples[step]) < EXAMPLES:
            self.examples[step].append(excerpts(before, after))


Step = Callable[[list[Draft], Cleaning, Log], list[Draft]]


def excerpts(before: str, after: str) -> tuple[str, str]:
    """Return EXCERPT characters of both texts, from LEAD characters before their first difference."""
    start = max(0, len(os.path.commonprefix([before, after])) - LEAD)
    while start and _joins_previous(before[start]):
        start -= 1
    cut = [("…" if start else "") + text[start : start + EXCERPT] for text in (before, after)]
    return cut[0], cut[1] if after else ""


def clean(drafts: list[Draft], cleaning: Cleaning) -> tuple[list[Text], Log]:
    """Run the cleaning steps.

    Returns:
        the remaining texts, in order, and what each step did.
    """
    report = Log()
    report.counts["read"] = len(drafts)
    report.counts["read_characters"] = sum(len(draft.text) for draft in drafts)
    for step in CLEANING:
        if step in cleaning.steps:
            for key in COUNTED.get(step, (step,)):
                report.counts[key] = 0
            drafts = _STEPS[step](drafts, cleaning, report)
    texts = [Text(draft.text, draft.title, draft.id, draft.whole) for draft in drafts]
    return [text for text in texts if text.text], report


def _per_line(step: str, change: Callable[[str], tuple[str, int]]) -> Step:
    """Return a step that changes each line by itself, and drops a line of which nothing is left."""

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
    """Remove addresses and the brackets around them from a line.

    Returns:
        the line, and the number of addresses removed.
    """
    if "://" not in line and "www." not in line.lower():
        return line, 0
    cleaned = _URLS.sub("", line)
    return (cleaned.strip(), len(_URL.findall(line))) if cleaned != line else (line, 0)


# ---- paragraph numbers -------------------------------------------------------------------------------------

_DIGITS = "一二三四五六七八九"
_CHINESE = rf"[{_DIGITS}]?十[{_DIGITS}]?|[{_DIGITS}]"
_NUMBERS = {  # kind -> a number at the start of a paragraph; 3.14, 1、2 月 and 一、二年級 do not match
    "point": re.compile(r"\s*(\d{1,5})\s?[.．](?![\d.．])\s*"),
    "comma": re.compile(r"\s*(\d{1,5})、(?!\d)\s*"),
    "bracket": re.compile(r"\s*[(（]?(\d{1,5})[)）]\s*"),
    "chinese": re.compile(rf"\s*({_CHINESE})、(?![{_DIGITS}十])\s*"),
    "chinese_bracket": re.compile(rf"\s*[(（]({_CHINESE})[)）]、?\s*"),
    "circle": re.compile(r"\s*([\u2460-\u2473\u3251-\u325f])[.、]?\s*"),
}


def _number_value(number: str) -> int:
    """Return the value of a number in digits, in Chinese or in a circle."""
    tens, ten, ones = number.rpartition("十")
    if ten:
        return 10 * int(unicodedata.numeric(tens or "一")) + int(unicodedata.numeric(ones) if ones else 0)
    return int(number) if number.isdecimal() else int(unicodedata.numeric(number))


def _drop_numbering(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
    """Remove paragraph numbers.

    Rows of one title are treated together: each may hold one paragraph of a numbered document.
    """
    groups: dict[object, list[Draft]] = defaultdict(list)
    for place, draft in enumerate(drafts):
        groups[draft.title or place].append(draft)
    for group in groups.values():
        places = [(draft, at) for draft in group for at in range(len(draft.lines))]
        prefixes = numbered([draft.lines[at] for draft, at in places])
        for number, length in prefixes.items():
            draft, at = places[number]
            line = draft.lines[at]
            log.note("numbering", line, line[length:])
            draft.lines[at] = line[length:]
        log.counts["numbering"] += len(prefixes)
    return drafts


def numbered(lines: list[str]) -> dict[int, int]:
    """Return the length of the number at the start of each line whose number belongs to a sequence.

    In a sequence the numbers are of one kind, and each is one more than the last: two or more numbers from 0
    or 1, or three or more from anywhere. Lines without a number may stand between.

    Returns:
        index of the line -> number of characters.
    """
    lengths: dict[int, int] = {}
    for pattern in _NUMBERS.values():
        run: list[tuple[int, int]] = []
        last = 0
        for at, line in enumerate(lines):
            if not (match := pattern.match(line)):
                continue
            value = _number_value(match[1])
            if run and value != last + 1:
                lengths.update(_long_enough(run, last))
                run = []
            run.append((at, match.end()))
            last = value
        lengths.update(_long_enough(run, last))
    return lengths


def _long_enough(run: list[tuple[int, int]], last: int) -> list[tuple[int, int]]:
    """Return the run if it is a sequence, else []; `last` is its highest number."""
    first = last - len(run) + 1
    return run if len(run) >= (2 if first in (0, 1) else 3) else []


# ---- documents ---------------------------------------------------------------------------------------------


def _merge_titles(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
    """Merge rows of one title into one document, at the place of the first."""
    documents: dict[object, Draft] = {}
    for place, draft in enumerate(drafts):
        first = documents.setdefault(draft.title or place, draft)
        if first is not draft:
            if first.lines and draft.lines:
                before, after = f"{draft.title}：{first.lines[-1]}\n", draft.lines[0]
                log.note("titles", f"{before}{draft.title}：{after}", before + after)
            first.lines += draft.lines
            log.counts["titles"] += 1
    return list(documents.values())


def _fit_length(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
    """Drop texts that are too short and cut those that are too long."""
    kept: list[Draft] = []
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
_NOT_SPACE = re.compile(r"\S")
_SLACK = 16  # closing marks looked for behind the last character that fits


def parts_of(text: str, min_chars: int, max_chars: int) -> list[str]:
    """Cut a text into few parts of about equal length, none above `max_chars` characters.

    It is cut at the end of sentences or lines; within a longer sentence at commas, then at spaces, then
    anywhere but before a combining mark. Together the parts are the whole text, without the white space at
    the cuts.
    """
    text = text.strip()
    parts: list[str] = []
    start = 0
    while len(text) - start > max_chars:
        end = _cut(text, start, min_chars, max_chars)
        parts.append(text[start:end].rstrip())
        following = _NOT_SPACE.search(text, end)
        start = following.start() if following else len(text)
    return [*parts, text[start:]]


def _cut(text: str, start: int, min_chars: int, max_chars: int) -> int:
    """Return the end of the part that begins at `start`."""
    remaining, min_chars = len(text) - start, min(min_chars, max_chars // 2)
    count = -(-remaining // max_chars)
    target, last = start + remaining / count, start + max_chars
    # from the first place on the rest needs no further part; up to the second it is not tiny
    fewest_parts_from = max(start + min_chars, len(text) - (count - 1) * max_chars)
    not_tiny_up_to = min(last, len(text) - min_chars)
    windows = [(fewest_parts_from, not_tiny_up_to), (start + min_chars, not_tiny_up_to), (start, last)]
    for breaks in _BREAKS:
        ends = [match.end() for match in breaks.finditer(text, start, last + _SLACK)]
        ends = [end for end in ends if start < end <= last]
        for low, high in windows:
            if fitting := [end for end in ends if low <= end <= high]:
                return min(fitting, key=lambda end: abs(end - target))
        # a tiny part is better than a split sentence, but not a tiny piece of a sentence
        windows = windows[:2]
    end = int(target)
    while end > start and _joins_previous(text[end]):
        end -= 1
    if end == start:  # marks alone, more of them than fit
        end = last
    return end


def _joins_previous(character: str) -> bool:
    """Return whether it is a combining mark, a joiner or a variation selector."""
    return unicodedata.category(character)[0] == "M" or character == "\u200d"


def _drop_duplicates(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
    """Keep the first of equal texts."""
    kept: dict[str, Draft] = {}
    for draft in drafts:
        if kept.setdefault(normalised(draft.text), draft) is not draft:
            log.counts["duplicates"] += 1
            log.note("duplicates", draft.text)
    return list(kept.values())


def _drop_near_duplicates(drafts: list[Draft], cleaning: Cleaning, log: Log) -> list[Draft]:
    """Keep the first of texts that share most of their 5-grams."""
    kept: list[Draft] = []
    kept_sketches = TrainedQuestions({})
    for draft in drafts:
        hashes = minhash_sketch([normalised(draft.text)])
        if kept_sketches.closest(hashes) >= NEAR:
            log.counts["near_duplicates"] += 1
            log.note("near_duplicates", draft.text)
        else:
            kept_sketches.add(str(len(kept)), hashes)
            kept.append(draft)
    return kept


COUNTED = {"length": ("too_short", "cut", "parts")}  # steps that count more than one thing
_STEPS: dict[str, Step] = {
    "urls": _per_line("urls", without_urls), "numbering": _drop_numbering,
    "punctuation": _per_line("punctuation", tidy), "titles": _merge_titles, "length": _fit_length,
    "duplicates": _drop_duplicates, "near_duplicates": _drop_near_duplicates,
}  # fmt: skip
