"""Options: as people type them (`A:地球 B:木星 C:火星` on one line, or one a line), as one cell of a table
holds all of them, as they stand at the end of a question's text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune.data.cells import as_text, is_blank, plain_name, written_list
from finetune.data.question import LETTERS, MAX_OPTIONS, MIN_OPTIONS
from finetune.runtime.errors import UserError

EXAMPLE = "A:地球 B:木星 C:火星"
STEMS = "甲乙丙丁戊己庚辛壬癸"
CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩"
MOST_CHAINED = 100  # what looks like a label and does not follow, between two that do
STARTS = 4  # first labels in a question that are tried from its start, and from its end
SERIES = (LETTERS + "K", (LETTERS + "K").lower(), STEMS, CIRCLED)  # of labels of one character
_LABEL = r"(?:[A-Z]|[a-z]|[0-9]{1,2})"
_OPEN = r"(?:^|(?<=[\s,，;；、。？?！!]))"
# The ways of writing a label; that of the first option is that of all, so `f(b)` inside `A:f(b)` is text.
_STYLES = (
    re.compile(rf"(?:^|(?<=[\s,，;；、]))({_LABEL})\s*[:：]"),  # A:
    re.compile(rf"{_OPEN}([A-Z]|[a-z]|[Ａ-Ｚ])\s*[.．、]"),  # A.
    re.compile(rf"（({_LABEL}|[Ａ-Ｚ]|[{STEMS}])）\s*[:：.．、]?"),  # （A）
    re.compile(rf"\(({_LABEL}|[Ａ-Ｚ]|[{STEMS}])\)\s*[:：.．、]?"),  # (A)
    re.compile(rf"(?:\[({_LABEL})\]|【({_LABEL})】)\s*"),  # [A]
    re.compile(rf"{_OPEN}([A-Z]|[a-z])\s*[)）]"),  # A)
    re.compile(rf"{_OPEN}([0-9]{{1,2}})\s*[.．、)）](?!\d)"),  # 1.
    re.compile(rf"{_OPEN}([{STEMS}])\s*[.．、:：]"),  # 甲、
    re.compile(rf"([{CIRCLED}])"),
)
_BESIDE = " \t\r\n\u3000,，;；、"
_WIDE = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20}  # one character for one
_BORNE = re.compile(  # a label at the start of an option's own text
    rf"\s*(?:[(\[【]\s*([A-Ka-k]|\d{{1,2}}|[{STEMS}])\s*[)\]】]\s*[:.、]?"
    rf"|([A-Ka-k]|\d{{1,2}}|[{STEMS}])\s*(?:[.、:)])(?!\d)|([{CIRCLED}]))\s*"
)

# What follows such a label where the option speaks of others: `甲、乙`, `A:B`, ①②, `(A)(B)`.
_OF_OTHERS = re.compile(
    rf"([A-Ka-k]|[{STEMS}]|[{CIRCLED}]|\d(?=\d*[、,:])|[(\[【]([A-Ka-k]|\d|[{STEMS}])[)\]】])"
    rf"([\s,、.:;與和及或]*([A-Ka-k]|\d|[{STEMS}]|[{CIRCLED}]|[(\[【]([A-Ka-k]|\d|[{STEMS}])[)\]】]))*"
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
    return _cut(text, _chain(text, style, 0)) if style else {}


def _chain(text: str, style: re.Pattern, start: int) -> list[tuple[str, int, int]]:
    """(label, where it starts, where its text starts) of labels that follow one another, from `start` on."""
    found: list[tuple[str, int, int]] = []
    for seen, match in enumerate(style.finditer(text, start)):
        label = next(filter(None, match.groups())).translate(_WIDE)
        if label == (_after(found[-1][0]) if found else label) and (found or match.start() == start):
            found.append((label, match.start(), match.end()))
        if seen > MOST_CHAINED * (1 + len(found)):
            break
    return found


def _cut(text: str, found: list[tuple[str, int, int]]) -> dict[str, str]:
    ends = [*(start for _, start, _ in found[1:]), len(text)][: len(found)]
    return {
        label.upper(): text[start:end].strip(_BESIDE)
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
    labels = [next(filter(None, match.groups())) if match else "" for match in starts]
    labels = labels or list(LETTERS[: len(texts)])
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
    """The label that follows; "" after the last of its series."""
    if label.isdecimal():
        return str(int(label) + 1)
    series = next((series for series in SERIES if label in series), "")
    return (series[series.index(label) + 1 :] + " ")[0].strip() if series else chr(ord(label) + 1)


# ---- of a table --------------------------------------------------------------------------------------------

TEXT_KEYS = ("text", "content", "value", "option", "choice", "選項", "内容", "內容")  # of a list of objects
LABEL_KEYS = ("label", "key", "id", "letter", "option_id", "name", "代號")


def held_together(value: object) -> tuple[list[str], list[str]]:
    """The texts and the labels of options that one cell holds: a list (of texts, or of objects such as
    {label, text}), an object (letter -> text, or {text: […], label: […]}), or a text that writes out either,
    or that parts them by labels, line breaks, | or ;. No label where there is none.

    Raises:
        ValueError: with the reason in Chinese.
    """
    if isinstance(value, str):
        written = written_list(value)
        value = _parted(value) if written is None else written
    if isinstance(value, dict):
        return _of_object(value)
    if not isinstance(value, list):
        raise ValueError(f"choices 應該是一串選項，得到 {type(value).__name__}")
    if value and all(isinstance(one, dict) for one in value):
        named = [{str(name).strip().lower(): cell for name, cell in one.items()} for one in value]
        texts = [next((one[key] for key in TEXT_KEYS if key in one), None) for one in named]
        labels = [next((one[key] for key in LABEL_KEYS if key in one), None) for one in named]
        if None in texts:
            raise ValueError(f"選項是物件，看不出哪一項是文字，有的是 {'、'.join(map(str, value[0]))}")
        return list(map(as_text, texts)), [] if None in labels else list(map(as_text, labels))
    return list(map(as_text, value)), []


def _of_object(value: dict) -> tuple[list[str], list[str]]:
    named = {plain_name(name): cell for name, cell in value.items()}
    texts = named.get("text", named.get("texts"))
    if isinstance(texts, list):
        labels = named.get("label", named.get("labels"))
        if isinstance(labels, list) and len(labels) != len(texts):
            raise ValueError(f"選項有 {len(texts)} 個，代號卻有 {len(labels)} 個")
        return list(map(as_text, texts)), list(map(as_text, labels)) if isinstance(labels, list) else []
    for series in SERIES:
        if value and all(str(name).strip() in series and str(name).strip() for name in value):
            given = {str(name).strip(): as_text(cell) for name, cell in value.items()}
            names = series[: series.index(max(given, key=series.index)) + 1]
            return [given.get(name, "") for name in names], list(names)
    return list(map(as_text, value.values())), [str(name).strip() for name in value]


def _parted(text: str) -> object:
    """What a text parts by labels, lines, | or ;. Raises ValueError."""
    if len(options := labelled(text)) >= MIN_OPTIONS:
        return options
    lines = text if "\n" in text.strip() else text.replace("\\n", "\n")
    for mark in ("\n", "|", "｜", "\t", ";", "；"):
        parts = [part.strip() for part in (lines if mark == "\n" else text).split(mark)]
        if mark == "\n":
            parts = [part for part in parts if part]
        if len(parts) >= MIN_OPTIONS and any(parts):
            spaced = [re.match(rf"{LETTERS[i : i + 1]}\s+", part) for i, part in enumerate(parts)]
            if all(spaced):  # `A 玉山`, each on its line
                return [part[match.end() :] for part, match in zip(parts, spaced, strict=True)]
            return parts
    raise ValueError('看不出選項怎麼分；寫成一串 ["…", "…"]，或用 |、換行、(A)(B) 隔開')


def in_stem(text: str) -> tuple[str, dict[str, str]]:
    """A question's text and the options at its end: `… (A) 東京 (B) 首爾` on one line or on several. {} where
    there are none. Labels that are letters come before numbers: ①② may be statements that are asked about.
    """
    best: list[tuple[str, int, int]] = []
    begin = len(text) - len(text.lstrip())
    for style in _STYLES:
        starts = [
            (match.start(), label)
            for match in style.finditer(text)
            if (label := next(filter(None, match.groups())).translate(_WIDE)) in "Aa1甲①"
            and match.start() > begin
            and not (text[match.start() - 1].isascii() and text[match.start() - 1].isalnum())  # `f(a)`
        ]
        for start, label in dict.fromkeys([*starts[:STARTS], *starts[-STARTS:]]):
            found = _chain(text, style, start)
            letters = bool(best) and best[0][0] in "Aa" and label not in "Aa"
            if len(found) >= MIN_OPTIONS and not letters and len(found) >= len(best):
                best = found
    if not best:
        return text, {}
    return text[: best[0][1]].rstrip(), _cut(text, best)


def without_labels(options: Sequence[str]) -> tuple[str, ...] | None:
    """The options without the label that each carries in its own text, `(A) 玉山` -> 玉山; None unless all of
    them do, each its own.
    """
    bare = []
    for place, option in enumerate(options):
        match = _BORNE.match(option.translate(_WIDE))
        if match is None or is_blank(option[match.end() :]):
            return None
        label = next(filter(None, match.groups()))
        if label != str(place + 1) and place not in (series.find(label) for series in SERIES):
            return None
        bare.append(option[match.end() :])
    bracketed = all(option.lstrip()[:1] in "(（[【" for option in options)
    rests = [text.translate(_WIDE) for text in bare]
    if all(_OF_OTHERS.fullmatch(rest) for rest in rests) and not (
        bracketed and all(rest.isalnum() for rest in rests)  # `(A) B` is labelled, whatever it says
    ):
        return None
    return tuple(bare) or None
