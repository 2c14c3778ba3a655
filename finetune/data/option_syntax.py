"""Options as people write them.

They are typed (`A:地球 B:木星 C:火星` on one line, or one a line), written in one cell of a table, or stand
at the end of a question's text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune.data.cells import cell_text, column_key, is_blank, written_list
from finetune.data.question import LETTERS, MAX_OPTIONS, MIN_OPTIONS
from finetune.runtime.errors import UserError, listed

EXAMPLE = "A:地球 B:木星 C:火星"
STEMS = "甲乙丙丁戊己庚辛壬癸"
CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩"
MOST_CHAINED = 100  # label-like strings out of sequence allowed between two labels in sequence
STARTS = 4  # candidates for the first label tried from the start of a question, and from its end
SERIES = (LETTERS + "K", (LETTERS + "K").lower(), STEMS, CIRCLED)  # series of one-character labels
_LABEL = r"(?:[A-Z]|[a-z]|[0-9]{1,2})"
_OPEN = r"(?:^|(?<=[\s,，;；、。？?！!]))"
# Styles of labels; the style of the first option holds for all, so `f(b)` inside `A:f(b)` is text.
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
_AROUND = " \t\r\n\u3000,，;；、"
_WIDE = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20}  # each wide character has one narrow one
_OWN_LABEL = re.compile(  # a label at the start of an option's own text
    rf"\s*(?:[(\[【]\s*([A-Ka-k]|\d{{1,2}}|[{STEMS}])\s*[)\]】]\s*[:.、]?"
    rf"|([A-Ka-k]|\d{{1,2}}|[{STEMS}])\s*(?:[.、:)])(?!\d)|([{CIRCLED}]))\s*"
)

# The text after such a label where the option refers to other options: `甲、乙`, `A:B`, ①②, `(A)(B)`.
_REFERENCE = re.compile(
    rf"([A-Ka-k]|[{STEMS}]|[{CIRCLED}]|\d(?=\d*[、,:])|[(\[【]([A-Ka-k]|\d|[{STEMS}])[)\]】])"
    rf"([\s,、.:;與和及或]*([A-Ka-k]|\d|[{STEMS}]|[{CIRCLED}]|[(\[【]([A-Ka-k]|\d|[{STEMS}])[)\]】]))*"
)


def parse_options(text: str) -> dict[str, str]:
    """Parse options typed on one line.

    `A:地球 B:木星 C: a b:c` becomes {"A": "地球", "B": "木星", "C": "a b:c"}.

    Raises:
        UserError: fewer than two options, or an empty one.
    """
    options = labelled(text)
    if len(options) < 2:
        raise UserError(f"選項無法解析：{text.strip()!r}；請寫成 {EXAMPLE}")
    if empty := [label for label, option in options.items() if not option]:
        raise UserError(f"選項 {'、'.join(empty)} 是空的；請寫成 {EXAMPLE}")
    return options


def labelled(text: str) -> dict[str, str]:
    """Return the options that carry a label, however many; {} when the text does not begin with one.

    Labels follow one another in one style and one case, so a colon or a bracket inside an option starts no
    new one.
    """
    text = text.strip()
    style = next((style for style in _STYLES if style.match(text)), None)
    return _cut_options(text, _find_labels(text, style, 0)) if style else {}


def _find_labels(text: str, style: re.Pattern[str], start: int) -> list[tuple[str, int, int]]:
    """Find labels that follow one another, from `start` on.

    Returns:
        (label, where it starts, where its text starts) of each.
    """
    labels: list[tuple[str, int, int]] = []
    for count, match in enumerate(style.finditer(text, start)):
        label = next(filter(None, match.groups())).translate(_WIDE)
        if label == (_next_label(labels[-1][0]) if labels else label) and (labels or match.start() == start):
            labels.append((label, match.start(), match.end()))
        if count > MOST_CHAINED * (1 + len(labels)):
            break
    return labels


def _cut_options(text: str, labels: list[tuple[str, int, int]]) -> dict[str, str]:
    """Cut a text at its labels, as `_find_labels` returns them."""
    ends = [*(start for _, start, _ in labels[1:]), len(text)][: len(labels)]
    return {
        label.upper(): text[start:end].strip(_AROUND)
        for (label, _, start), end in zip(labels, ends, strict=True)
    }


def from_lines(lines: list[str]) -> dict[str, str]:
    """Parse options given one a line, with labels or without (then A, B, C …).

    A label is looked for at the start of a line alone.

    Raises:
        UserError: fewer than two options, more than MAX_OPTIONS, an empty one, or labels out of sequence.
    """
    texts = [line.strip() for line in lines if line.strip()]
    style = next((style for style in _STYLES if texts and style.match(texts[0])), None)
    starts = [style.match(text) for text in texts] if style else []
    labels = [next(filter(None, match.groups())) if match else "" for match in starts]
    labels = labels or list(LETTERS[: len(texts)])
    if starts:
        expected = labels[:1]
        while len(expected) < len(texts) and (following := _next_label(expected[-1])):
            expected.append(following)
        if labels != expected:
            given = listed((label or "（沒標）" for label in labels), MAX_OPTIONS)
            raise UserError(f"選項要照順序標成 {listed(expected, MAX_OPTIONS)}，或都不標；得到 {given}")
        texts = [_after_match(text, match) for text, match in zip(texts, starts, strict=True)]
    if not MIN_OPTIONS <= len(texts) <= MAX_OPTIONS:
        raise UserError(f"有 {len(texts)} 個選項，應為 2 到 {MAX_OPTIONS} 個；一行一個，或寫成 {EXAMPLE}")
    if empty := [label for label, text in zip(labels, texts, strict=True) if not text]:
        raise UserError(f"選項 {'、'.join(empty)} 是空的；請寫成 {EXAMPLE}")
    return {label.upper(): text for label, text in zip(labels, texts, strict=True)}


def _after_match(text: str, match: re.Match[str] | None) -> str:
    """Return the text behind a match; all of it without one."""
    return text[match.end() if match else 0 :].strip()


def _next_label(label: str) -> str:
    """Return the label that follows; "" after the last of its series."""
    if label.isdecimal():
        return str(int(label) + 1)
    series = next((series for series in SERIES if label in series), "")
    return (series[series.index(label) + 1 :] + " ")[0].strip() if series else chr(ord(label) + 1)


# ---- options in a table ------------------------------------------------------------------------------------

# keys of options written as objects
TEXT_KEYS = ("text", "content", "value", "option", "choice", "選項", "内容", "內容")
LABEL_KEYS = ("label", "key", "id", "letter", "option_id", "name", "代號")


def parse_together(value: object) -> tuple[list[str], list[str]]:
    """Parse options that one cell holds together.

    It is a list (of texts, or of objects such as {label, text}), an object (letter -> text, or {text: […],
    label: […]}), or a text that writes out either, or that separates them by labels, line breaks, | or ;.

    Returns:
        the texts, and the labels, [] without any.

    Raises:
        ValueError: with the reason in Chinese.
    """
    if isinstance(value, str):
        parsed = written_list(value)
        value = _parse_text(value) if parsed is None else parsed
    if isinstance(value, dict):
        return _parse_object(value)
    if not isinstance(value, list):
        raise ValueError(f"choices 應該是一串選項，得到 {type(value).__name__}")
    if value and all(isinstance(option, dict) for option in value):
        objects = [{str(name).strip().lower(): cell for name, cell in option.items()} for option in value]
        texts = [next((option[key] for key in TEXT_KEYS if key in option), None) for option in objects]
        labels = [next((option[key] for key in LABEL_KEYS if key in option), None) for option in objects]
        if None in texts:
            raise ValueError(f"選項是物件，看不出哪一項是文字，有的是 {'、'.join(map(str, value[0]))}")
        return list(map(cell_text, texts)), [] if None in labels else list(map(cell_text, labels))
    return list(map(cell_text, value)), []


def _parse_object(value: dict) -> tuple[list[str], list[str]]:
    """Return the texts and labels of options that an object holds."""
    named = {column_key(name): cell for name, cell in value.items()}
    texts = named.get("text", named.get("texts"))
    if isinstance(texts, list):
        labels = named.get("label", named.get("labels"))
        if isinstance(labels, list) and len(labels) != len(texts):
            raise ValueError(f"選項有 {len(texts)} 個，代號卻有 {len(labels)} 個")
        return list(map(cell_text, texts)), list(map(cell_text, labels)) if isinstance(labels, list) else []
    for series in SERIES:
        if value and all(str(name).strip() in series and str(name).strip() for name in value):
            by_label = {str(name).strip(): cell_text(cell) for name, cell in value.items()}
            names = series[: series.index(max(by_label, key=series.index)) + 1]
            return [by_label.get(name, "") for name in names], list(names)
    return list(map(cell_text, value.values())), [str(name).strip() for name in value]


def _parse_text(text: str) -> object:
    """Split a text by labels, lines, | or ;.

    Raises:
        ValueError: it is not separated in any of these ways.
    """
    if len(options := labelled(text)) >= MIN_OPTIONS:
        return options
    lines = text if "\n" in text.strip() else text.replace("\\n", "\n")
    for mark in ("\n", "|", "｜", "\t", ";", "；"):
        parts = [part.strip() for part in (lines if mark == "\n" else text).split(mark)]
        if mark == "\n":
            parts = [part for part in parts if part]
        if len(parts) >= MIN_OPTIONS and any(parts):
            letters = [re.match(rf"{LETTERS[i : i + 1]}\s+", part) for i, part in enumerate(parts)]
            matches = [match for match in letters if match]
            if len(matches) == len(parts):  # `A 玉山`, each on its line
                return [part[match.end() :] for part, match in zip(parts, matches, strict=True)]
            return parts
    raise ValueError('看不出選項怎麼分；寫成一串 ["…", "…"]，或用 |、換行、(A)(B) 隔開')


def split_stem(text: str) -> tuple[str, dict[str, str]]:
    """Split a question's text from the options at its end; {} where there are none.

    `… (A) 東京 (B) 首爾` may stand on one line or on several. Letters are preferred to numbers as labels: ①②
    may be statements that the question is about.
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
            labels = _find_labels(text, style, start)
            letters = bool(best) and best[0][0] in "Aa" and label not in "Aa"
            if len(labels) >= MIN_OPTIONS and not letters and len(labels) >= len(best):
                best = labels
    if not best:
        return text, {}
    return text[: best[0][1]].rstrip(), _cut_options(text, best)


def without_labels(options: Sequence[str]) -> tuple[str, ...] | None:
    """Return the options without the labels in their own texts: `(A) 玉山` becomes 玉山.

    None unless all of them carry a label, each its own.
    """
    bare = []
    for place, option in enumerate(options):
        match = _OWN_LABEL.match(option.translate(_WIDE))
        if match is None or is_blank(option[match.end() :]):
            return None
        label = next(filter(None, match.groups()))
        if label != str(place + 1) and place not in (series.find(label) for series in SERIES):
            return None
        bare.append(option[match.end() :])
    bracketed = all(option.lstrip()[:1] in "(（[【" for option in options)
    plain_texts = [text.translate(_WIDE) for text in bare]
    if all(_REFERENCE.fullmatch(plain) for plain in plain_texts) and not (
        bracketed
        and all(plain.isalnum() for plain in plain_texts)  # `(A) B` is labelled, even if B is a label too
    ):
        return None
    return tuple(bare) or None
