"""Cells of answers: which option is right.

People write a letter (`A`, `(a)`, `A.`, 答案：A, `A. 東京`), a label of their own data (ARC's `1`, a column's
name), the place in words (①, 甲, 一, Ⅲ, 第二個), a number that counts from 0 or from 1, or the option's text.
A single cell may mean more than one of these: `2` beside options of numbers, 四 beside 二、三、四、五. So a
cell is first read in every way it can be (`Key`); the unambiguous rows of the data then decide
(`AnswerConvention`), and where they do not, the row is refused: a gold answer is never guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune.data.cells import NO_GOLD, NO_VALUE, is_blank, narrowed, without_spaces, written_list
from finetune.data.option_syntax import STEMS
from finetune.data.question import LETTERS
from finetune.runtime.errors import UserError, shown

LONGEST_KEY = 1000  # characters; a longer cell can only be an option's text
LETTER, ORDINAL, NUMBER, TEXT = "letter", "ordinal", "number", "text"
_ORDINALS = {
    c: place
    for series in ("①②③④⑤⑥⑦⑧⑨⑩", "❶❷❸❹❺❻❼❽❾❿", "➀➁➂➃➄➅➆➇➈➉", "➊➋➌➍➎➏➐➑➒➓", "ⅠⅡⅢⅣⅤⅥⅦⅧⅨⅩ", "ⅰⅱⅲⅳⅴⅵⅶⅷⅸⅹ",
                   "㈠㈡㈢㈣㈤㈥㈦㈧㈨㈩", "㊀㊁㊂㊃㊄㊅㊆㊇㊈㊉", "一二三四五六七八九十", STEMS)
    for place, c in enumerate(series)
}  # fmt: skip
_SIGNS: dict[int, int | None] = {
    base + i: ord("A") + i for base in (0x1F130, 0x1F150, 0x1F170) for i in range(26)
}  # 🄰 🅐 🅰
_SIGNS |= {0xFE0F: None, 0x20E3: None}  # the invisible parts of 1️⃣
_LEAD = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|right\s+)?(?:answer|ans|option|choice|key)(?:\s+is)?"
    r"|(?:正確|正确|標準|参考|參考)?(?:答案|解答|選項|选项)(?:是|為|为)?|正解|答|選|选)\s*[:=]?\s*",
    re.IGNORECASE,
)
_TOKEN = rf"[A-Ka-k]|\d{{1,3}}(?:\.0+)?|[{''.join(_ORDINALS)}]"
_WRITTEN = re.compile(
    rf"(?P<open>[(\[【「〔<]*)\s*(?P<nth>第?)\s*(?P<token>{_TOKEN})\s*(?P<close>[)\]】」〕>]*)"
    r"\s*(?P<unit>個選項|个选项|選項|选项|個|个|項|项)?\s*(?P<mark>[.、,:;。]*)\s*(?P<rest>.*)",
    re.DOTALL,
)
_SEVERAL = re.compile(
    r"[(\[]?(?:[A-K](?:[\s,、;/|&+和與及或]*[A-K])+|\d{1,2}(?:\s*[,、;/|&+和與及或]\s*\d{1,2})+)[)\]]?"
)


@dataclass(frozen=True)
class Key:
    """All readings of a cell of answers.

    Attributes:
        kind: LETTER, ORDINAL or NUMBER where it names a place; "" where it names none.
        place: for LETTER and ORDINAL an index; for NUMBER the number as written.
        texts: indices of the options whose text it is.
        blank: the cell is empty.
        no_gold: it says that there is no answer (`-`, `-1`).
        dressed: it is more than a bare letter or number: `(A)`, `A.`, 答案：A.
        reason: why it cannot be an answer, in Chinese.
    """

    value: Any = None
    kind: str = ""
    place: int = -1
    texts: tuple[int, ...] = ()
    blank: bool = False
    no_gold: bool = False
    dressed: bool = False
    reason: str = ""


def read_key(
    value: Any, options: Sequence[str], bare: Sequence[str] = (), labels: Sequence[str] = (),
    typed: bool = False,
) -> Key:  # fmt: skip
    """Read a cell in every way it can be read.

    Args:
        options: texts of the options.
        bare: the same without the labels that they may carry.
        labels: what the data itself calls the options, if it does.
        typed: the options are text, so a number that is not text (json, parquet) is no option's text.
    """
    is_letter = isinstance(value, str) and len(value) == 1 and value in LETTERS
    if is_letter and not labels and all(len(option) > 3 for option in options):
        return Key(value, LETTER, LETTERS.index(value))
    parsed = written_list(value) if isinstance(value, str) else value
    if isinstance(parsed, list):
        cells = [cell for cell in parsed if not is_blank(cell)]
        if len(cells) > 1:
            return Key(value, reason=_several_answers(value, len(cells)))
        key = read_key(cells[0] if cells else None, options, bare, labels, typed)
        return replace(key, value=value, dressed=True)
    if isinstance(value, dict):
        return Key(value, reason=f"答案應該是一個值，得到 {type(value).__name__}")
    if is_blank(value):
        return Key(value, blank=True)
    plain = str(value).strip()
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    texts = () if number and typed else _matches(plain, options) or _matches(plain, bare)
    label = _label_index(plain, labels)
    if label is not None:
        return Key(value, LETTER, label, texts)
    if number:
        if value != value or value in (float("inf"), float("-inf")) or int(value) != value:
            return Key(value, texts=texts, reason="" if texts else f"答案 {shown(value)} 不是整數")
        if value == -1 and not texts:
            return Key(value, no_gold=True)
        return Key(value, NUMBER, int(value), texts)
    if not texts and plain in NO_GOLD | {"－", "—", "？"}:
        return Key(value, no_gold=True)
    if not texts and plain.casefold() in NO_VALUE:
        return Key(value, blank=True)
    if isinstance(value, bool) and not texts:
        return Key(value, reason=f"答案 {value} 是布林值，不是選項的代號或文字")
    return _parse_written(value, plain, [*bare] or options, labels, texts)


def _parse_written(
    value: Any, plain: str, options: Sequence[str], labels: Sequence[str], texts: tuple[int, ...]
) -> Key:
    """Parse a text as a letter, an ordinal or a number.

    It may be decorated with brackets, a mark, a word before it, or the option's text after it.
    """
    if len(plain) > LONGEST_KEY:
        return Key(value, texts=texts)
    bare = "".join(c if c in _ORDINALS else _plain_character(c) for c in plain).strip()
    while (lead := _LEAD.match(bare)) and lead.end() < len(bare):
        bare = bare[lead.end() :].strip()
    match = _WRITTEN.fullmatch(bare)
    if match is None:
        return Key(value, texts=texts)
    token, rest = match["token"], match["rest"].strip()
    kind, place = _parse_token(token, bool(match["nth"]))
    dressed = bare != token or narrowed(plain) != token
    if rest:
        if not texts and (several := _SEVERAL.fullmatch(re.sub(r"[()\[\]【】]", "", bare))):
            return Key(value, reason=_several_answers(plain, len({*re.findall(r"[A-K]|\d+", several[0])})))
        separated = match["close"] or match["mark"] or re.match(rf"\s*{re.escape(token)}\s", bare)
        rest_matches = _matches(rest, options) if separated and not texts else ()
        possible = {place, place - 1} if kind == NUMBER else {place}
        if rest_matches and not possible & {*rest_matches}:
            return Key(value, reason=f"答案 {shown(plain)} 的代號和文字指的不是同一個選項")
        if rest_matches:
            return Key(value, LETTER, next(i for i in rest_matches if i in possible), dressed=True)
        return Key(value, texts=texts)
    label = _label_index(token, labels) if dressed else None
    return Key(
        value,
        LETTER if label is not None else kind,
        label if label is not None else place,
        texts,
        dressed=dressed,
    )


def _plain_character(character: str) -> str:
    """Return a character without width, circle or box."""
    return unicodedata.normalize("NFKC", character.translate(_SIGNS))


def _parse_token(token: str, nth: bool) -> tuple[str, int]:
    """Return the kind and place of a letter, ordinal or number; `nth`: 第 stands before it."""
    if token[0].isdecimal():
        number = int(float(token))
        return (ORDINAL, number - 1) if nth else (NUMBER, number)
    if token in _ORDINALS:
        return ORDINAL, _ORDINALS[token]
    return LETTER, (LETTERS + "K").index(token.upper())


def _several_answers(value: object, count: int) -> str:
    """Return the message for a cell with several answers."""
    return f"答案 {shown(value)} 有 {count} 個；這裡只收單選題（一題一個正確答案）"


def _label_index(text: str, labels: Sequence[str]) -> int | None:
    """Return the index of the option that the data labels so, None without one."""
    for normalise in (str.strip, lambda one: narrowed(one).casefold().removesuffix(".0")):
        matching = [i for i, label in enumerate(labels) if normalise(str(label)) == normalise(text)]
        if len(matching) == 1:
            return matching[0]
    return None


def _matches(text: str, options: Sequence[str]) -> tuple[int, ...]:
    """Return the options whose text it is.

    It is compared letter for letter; else regardless of width and spaces; else also of case, and of a full
    stop at the end.
    """
    normalisers = (str.strip, without_spaces, lambda one: without_spaces(one).casefold().rstrip("。."))
    for normalise in normalisers:
        wanted = normalise(text)
        if wanted and (
            matching := tuple(i for i, option in enumerate(options) if normalise(option) == wanted)
        ):
            return matching
    return ()


# ---- all of the rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerConvention:
    """Conventions of the answers of a dataset.

    Attributes:
        first: the number of the first option, 0 or 1; None where no answer is a number.
        texts: kinds of cells that are texts where they could also name a place.
        places: kinds that name a place where they could also be a text.
    """

    first: int | None = None
    texts: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset({LETTER})


@dataclass
class Survey:
    """Counts of what the answers of many rows can mean.

    Attributes:
        certain: rows with one possible reading, by kind.
        ambiguous: rows that may be a place or a text, by kind.
        dressed: rows of `certain` that are more than a bare letter or number.
        zeros, tops: examples of rows whose number is 0, or the number of options.
        weak: zeros and tops among the ambiguous rows.
    """

    certain: Counter[str] = field(default_factory=Counter)
    dressed: Counter[str] = field(default_factory=Counter)
    ambiguous: Counter[str] = field(default_factory=Counter)
    numbers: Counter[int] = field(default_factory=Counter)
    examples: dict[str, Any] = field(default_factory=dict)
    zeros: list[str] = field(default_factory=list)
    tops: list[str] = field(default_factory=list)
    weak: Counter[str] = field(default_factory=Counter)

    def add(self, key: Key, count: int, where: str) -> None:
        """Count the key of a row with `count` options."""
        if key.kind in (LETTER, ORDINAL) and key.place < count and not key.texts:
            self._count_certain(key.kind, key)
        elif key.kind == NUMBER and 0 <= key.place <= count:
            if not key.texts:
                self._count_certain(NUMBER, key)
                self.numbers[key.place] += 1
                self._note_extremes(key.place, count, where)
            else:
                self.ambiguous[NUMBER] += 1
                self.weak["zeros"] += key.place == 0
                self.weak["tops"] += key.place == count
        elif key.kind in (LETTER, ORDINAL) and key.place < count:
            self.ambiguous[key.kind] += key.texts != (key.place,)
        elif key.texts:
            self._count_certain(TEXT, key)

    def _count_certain(self, kind: str, key: Key) -> None:
        """Count a row with one possible reading."""
        self.certain[kind] += 1
        if key.dressed:
            self.dressed[kind] += 1
            self.examples.setdefault("dressed", key.value)
        self.examples.setdefault(kind, key.value)

    def _note_extremes(self, number: int, count: int, where: str) -> None:
        """Note a number that is 0 or the number of options: it shows where the numbers start."""
        if number == 0 and len(self.zeros) < 3:
            self.zeros.append(where)
        if number == count and len(self.tops) < 3:
            self.tops.append(where)

    def convention(
        self, named: str, answers_from: int | None = None, by_name: int | None = None
    ) -> AnswerConvention:
        """Return how the answers are written.

        Args:
            named: flag and source, for messages.
            answers_from: the number in --answers_from, 0 or 1.
            by_name: the number of the first option by its column's name.

        Raises:
            UserError: numbers that may count from 0 or from 1.
        """
        texts: set[str] = set()
        places = {LETTER}
        for kind in (LETTER, ORDINAL, NUMBER):
            if self.ambiguous[kind] and self.certain[TEXT] and not self.certain[kind]:
                texts.add(kind)
                places.discard(kind)
            elif self.ambiguous[kind] and self.certain[kind] and not self.certain[TEXT]:
                places.add(kind)
            elif self.ambiguous[kind] and self.certain[kind]:
                places.discard(kind)
        return AnswerConvention(
            self._first_number(named, answers_from, by_name), frozenset(texts), frozenset(places)
        )

    def _first_number(self, named: str, answers_from: int | None, by_name: int | None) -> int | None:
        """Return the number of the first option; see `convention`."""
        if answers_from is not None:
            return answers_from
        if not self.certain[NUMBER]:
            zeros, tops = self.weak["zeros"], self.weak["tops"]
            if by_name is not None:
                return by_name
            if zeros > tops == 0:
                return 0
            return 1 if tops > zeros == 0 else None
        numbers = "、".join(map(str, sorted(self.numbers)))
        ask = "請用 --answers_from 0 或 --answers_from 1 指明，或改寫成字母"
        if self.zeros and self.tops:
            if by_name is not None:
                return by_name
            raise UserError(
                f"{named}：答案是整數 {numbers}，有 0（{self.zeros[0]}）也有等於選項個數的"
                f"（{self.tops[0]}），看不出從 0 還是從 1 算起；{ask}"
            )
        if self.zeros or self.tops:
            return 0 if self.zeros else 1
        if by_name is not None:
            return by_name
        raise UserError(
            f"{named}：答案是整數 {numbers}，沒有 0 也沒有等於選項個數的，看不出從 0 還是從 1 算起；{ask}"
        )

    def notes(self, convention: AnswerConvention, answers_from: int | None, by_name: int | None) -> list[str]:
        """Return how the answers were read, in words."""
        notes = []
        if (
            self.certain[NUMBER]
            and convention.first is not None
            and convention.first != by_name
            and answers_from is None
        ):
            lowest, highest = min(self.numbers), max(self.numbers)
            evidence = f"有 {lowest}" if convention.first == 0 else f"有 {highest}、沒有 0"
            notes.append(f"整數答案從 {convention.first} 算起（{evidence}；不對就用 --answers_from 指明）")
        if count := self.dressed.total():
            notes.append(f"{count} 列的答案寫成 {shown(self.examples['dressed'])} 這樣，讀出其中的代號")
        if count := self.certain[ORDINAL] - self.dressed[ORDINAL]:
            notes.append(f"{count} 列的答案寫成 {shown(self.examples[ORDINAL])} 這樣，照次序讀")
        if count := self.certain[TEXT]:
            notes.append(f"{count} 列的答案是選項的文字（例如 {shown(self.examples[TEXT])}），對回選項")
        if self.ambiguous[NUMBER] and NUMBER not in convention.texts | convention.places:
            notes.append(
                f"{self.ambiguous[NUMBER]} 列的答案既像編號也像選項的文字，兩種讀法不一致的視為有問題的列"
            )
        for kind, kind_name in ((LETTER, "字母"), (ORDINAL, "次序"), (NUMBER, "編號")):
            if self.ambiguous[kind] and kind in convention.texts | convention.places:
                meaning = "選項的文字" if kind in convention.texts else kind_name
                notes.append(
                    f"{self.ambiguous[kind]} 列的答案既像{kind_name}也像選項的文字，照其他列讀成{meaning}"
                )
        return notes


def resolve_answer(key: Key, options: Sequence[str], convention: AnswerConvention) -> int | None:
    """Return the index of the right option; None where the row has no key.

    Raises:
        ValueError: a key that cannot be read, or that is ambiguous; in Chinese.
    """
    if key.blank or key.no_gold:
        return None
    if key.reason:
        raise ValueError(key.reason)
    count = len(options)
    place = key.place
    if key.kind == NUMBER and convention.first is not None:
        place = key.place - convention.first
    elif key.kind == NUMBER:  # unknown first number: usable only where place and text agree
        place = max(0, key.place - 1) if key.texts else -1
    if key.kind in ("", TEXT):
        place = -1
    if not 0 <= place < count:
        place = -1
    if len(key.texts) > 1 and (place < 0 or key.kind in convention.texts):
        same = "、".join(LETTERS[i] for i in key.texts)
        raise ValueError(f"答案 {shown(key.value)} 是選項 {same} 的文字，它們相同，看不出是哪一個")
    if place < 0 and not key.texts:
        last = LETTERS[count - 1]
        raise ValueError(f"答案 {shown(key.value)} 沒有對應的選項（選項是 {LETTERS[0]} 到 {last}）")
    if place < 0 or not key.texts or place in key.texts:
        return key.texts[0] if place < 0 else place
    if key.kind in convention.texts:
        return key.texts[0]
    if key.kind in convention.places:
        return place
    one, other = LETTERS[place], LETTERS[key.texts[0]]
    raise ValueError(f"答案 {shown(key.value)} 可能是選項 {one}，也可能是選項 {other} 的文字；請寫成字母")
