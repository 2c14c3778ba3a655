"""What a cell of answers says: which option is right.

People write a letter (`A`, `(a)`, `A.`, 答案：A, `A. 東京`), a label of their own data (ARC's `1`, a column's
name), the place in words (①, 甲, 一, Ⅲ, 第二個), a number that counts from 0 or from 1, or the option's text.
A single cell may mean more than one of these: `2` beside options of numbers, 四 beside 二、三、四、五. So a
cell is first read in every way it can be (`Key`); what the other rows of the data can only mean then decides
(`Manner`), and where they do not, the row is refused: a gold answer is never guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from finetune.data.cells import NO_GOLD, NO_VALUE, is_blank, narrowed, written_list
from finetune.data.option_syntax import STEMS
from finetune.data.question import LETTERS
from finetune.runtime.errors import UserError, shown

LONGEST_KEY = 1000  # characters; a longer one can only be an option's text
LETTER, ORDINAL, NUMBER, TEXT = "letter", "ordinal", "number", "text"
_ORDINALS = {
    c: place
    for series in ("①②③④⑤⑥⑦⑧⑨⑩", "❶❷❸❹❺❻❼❽❾❿", "➀➁➂➃➄➅➆➇➈➉", "➊➋➌➍➎➏➐➑➒➓", "ⅠⅡⅢⅣⅤⅥⅦⅧⅨⅩ", "ⅰⅱⅲⅳⅴⅵⅶⅷⅸⅹ",
                   "㈠㈡㈢㈣㈤㈥㈦㈧㈨㈩", "㊀㊁㊂㊃㊄㊅㊆㊇㊈㊉", "一二三四五六七八九十", STEMS)
    for place, c in enumerate(series)
}  # fmt: skip
_SIGNS = {base + i: ord("A") + i for base in (0x1F130, 0x1F150, 0x1F170) for i in range(26)}  # 🄰 🅐 🅰
_SIGNS |= {0xFE0F: None, 0x20E3: None}  # of 1️⃣
_LEAD = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|right\s+)?(?:answer|ans|option|choice|key)(?:\s+is)?"
    r"|(?:正確|正确|標準|参考|參考)?(?:答案|解答|選項|选项)(?:是|為|为)?|正解|答|選|选)\s*[:=]?\s*",
    re.IGNORECASE,
)
_TOKEN = rf"[A-Ka-k]|\d{{1,3}}(?:\.0+)?|[{''.join(_ORDINALS)}]"
_SAID = re.compile(
    rf"(?P<open>[(\[【「〔<]*)\s*(?P<nth>第?)\s*(?P<token>{_TOKEN})\s*(?P<close>[)\]】」〕>]*)"
    r"\s*(?P<unit>個選項|个选项|選項|选项|個|个|項|项)?\s*(?P<mark>[.、,:;。]*)\s*(?P<rest>.*)",
    re.DOTALL,
)
_SEVERAL = re.compile(
    r"[(\[]?(?:[A-K](?:[\s,、;/|&+和與及或]*[A-K])+|\d{1,2}(?:\s*[,、;/|&+和與及或]\s*\d{1,2})+)[)\]]?"
)


@dataclass(frozen=True)
class Key:
    """All that a cell of answers may mean.

    Attributes:
        kind: LETTER, ORDINAL or NUMBER where it names a place; "" where it names none.
        place: an index of LETTER and ORDINAL; of NUMBER the number as written.
        texts: indices of the options whose text it is.
        blank: nothing stands there. no_gold: it says that there is no answer (`-`, `-1`).
        dressed: it is more than a bare letter or number: `(A)`, `A.`, 答案：A.
        reason: why it cannot be an answer, in Chinese.
    """

    value: object = None
    kind: str = ""
    place: int = -1
    texts: tuple[int, ...] = ()
    blank: bool = False
    no_gold: bool = False
    dressed: bool = False
    reason: str = ""


def read_key(
    value: object, options: Sequence[str], bare: Sequence[str] = (), labels: Sequence[str] = (),
    typed: bool = False,
) -> Key:  # fmt: skip
    """Reads a cell in every way it can be read.

    Args:
        options, bare: their texts, and without the labels that they may carry.
        labels: what the data itself calls the options, if it does.
        typed: the options are text and a number is a number (json, parquet): it is no option's text.
    """
    if isinstance(value, str) and len(value) == 1 and value in LETTERS and not labels:
        if all(len(option) > 3 for option in options):
            return Key(value, LETTER, LETTERS.index(value))
    written = written_list(value) if isinstance(value, str) else value
    if isinstance(written, list):
        cells = [cell for cell in written if not is_blank(cell)]
        if len(cells) > 1:
            return Key(value, reason=_several(value, len(cells)))
        key = read_key(cells[0] if cells else None, options, bare, labels, typed)
        return replace(key, value=value, dressed=True)
    if isinstance(value, dict):
        return Key(value, reason=f"答案應該是一個值，得到 {type(value).__name__}")
    if is_blank(value):
        return Key(value, blank=True)
    plain = str(value).strip()
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    texts = () if number and typed else _matches(plain, options) or _matches(plain, bare)
    own = _own_label(plain, labels)
    if own is not None:
        return Key(value, LETTER, own, texts)
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
    return _said(value, plain, [*bare] or options, labels, texts)


def _said(value: object, plain: str, options: Sequence[str], labels: Sequence[str], texts: tuple) -> Key:
    """A text as a letter, an ordinal or a number, maybe dressed: with brackets, a mark, a word before it, the
    option's text after it.
    """
    if len(plain) > LONGEST_KEY:
        return Key(value, texts=texts)
    bare = "".join(c if c in _ORDINALS else _wide(c) for c in plain).strip()
    while (lead := _LEAD.match(bare)) and lead.end() < len(bare):
        bare = bare[lead.end() :].strip()
    match = _SAID.fullmatch(bare)
    if match is None:
        return Key(value, texts=texts)
    token, rest = match["token"], match["rest"].strip()
    kind, place = _token(token, bool(match["nth"]))
    dressed = bare != token or narrowed(plain) != token
    if rest:
        if not texts and (several := _SEVERAL.fullmatch(re.sub(r"[()\[\]【】]", "", bare))):
            return Key(value, reason=_several(plain, len({*re.findall(r"[A-K]|\d+", several[0])})))
        apart = match["close"] or match["mark"] or re.match(rf"\s*{re.escape(token)}\s", bare)
        also = _matches(rest, options) if apart and not texts else ()
        meant = {place, place - 1} if kind == NUMBER else {place}
        if also and not meant & {*also}:
            return Key(value, reason=f"答案 {shown(plain)} 的代號和文字指的不是同一個選項")
        if also:
            return Key(value, LETTER, next(i for i in also if i in meant), dressed=True)
        return Key(value, texts=texts)
    own = _own_label(token, labels) if dressed else None
    return Key(
        value, LETTER if own is not None else kind, own if own is not None else place, texts, dressed=dressed
    )


def _wide(character: str) -> str:
    return unicodedata.normalize("NFKC", character.translate(_SIGNS))


def _token(token: str, nth: bool) -> tuple[str, int]:
    if token[0].isdecimal():
        number = int(float(token))
        return (ORDINAL, number - 1) if nth else (NUMBER, number)
    if token in _ORDINALS:
        return ORDINAL, _ORDINALS[token]
    return LETTER, (LETTERS + "K").index(token.upper())


def _several(value: object, count: int) -> str:
    return f"答案 {shown(value)} 有 {count} 個；這裡只收單選題（一題一個正確答案）"


def _own_label(text: str, labels: Sequence[str]) -> int | None:
    """Which option the data calls so."""
    for same in (str.strip, lambda one: narrowed(one).casefold().removesuffix(".0")):
        found = [i for i, label in enumerate(labels) if same(str(label)) == same(text)]
        if len(found) == 1:
            return found[0]
    return None


def _squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _matches(text: str, options: Sequence[str]) -> tuple[int, ...]:
    """The options whose text it is: letter for letter; else whatever the width and the spaces; else whatever
    the case, and a stop at the end.
    """
    ways = (str.strip, _squeezed, lambda one: _squeezed(one).casefold().rstrip("。."))
    for way in ways:
        wanted = way(text)
        if wanted and (found := tuple(i for i, option in enumerate(options) if way(option) == wanted)):
            return found
    return ()


# ---- all of the rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manner:
    """How the answers of a data set are meant.

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
    """What the answers of many rows can mean. `only` counts rows that can be meant in one way alone."""

    only: Counter = field(default_factory=Counter)
    dressed: Counter = field(default_factory=Counter)
    both: Counter = field(default_factory=Counter)
    numbers: Counter = field(default_factory=Counter)
    examples: dict[str, object] = field(default_factory=dict)
    zeros: list[str] = field(default_factory=list)  # where a number is 0, and where it is that of all options
    tops: list[str] = field(default_factory=list)
    weak: Counter = field(default_factory=Counter)  # zeros and tops among the rows that may also be texts

    def add(self, key: Key, count: int, where: str) -> None:
        """A row's key; `count` options."""
        if key.kind in (LETTER, ORDINAL) and key.place < count and not key.texts:
            self._one(key.kind, key)
        elif key.kind == NUMBER and 0 <= key.place <= count:
            if not key.texts:
                self._one(NUMBER, key)
                self.numbers[key.place] += 1
                self._ends(key.place, count, where)
            else:
                self.both[NUMBER] += 1
                self.weak["zeros"] += key.place == 0
                self.weak["tops"] += key.place == count
        elif key.kind in (LETTER, ORDINAL) and key.place < count:
            self.both[key.kind] += key.texts != (key.place,)
        elif key.texts:
            self._one(TEXT, key)

    def _one(self, kind: str, key: Key) -> None:
        self.only[kind] += 1
        if key.dressed:
            self.dressed[kind] += 1
            self.examples.setdefault("dressed", key.value)
        self.examples.setdefault(kind, key.value)

    def _ends(self, number: int, count: int, where: str) -> None:
        if number == 0 and len(self.zeros) < 3:
            self.zeros.append(where)
        if number == count and len(self.tops) < 3:
            self.tops.append(where)

    def manner(self, named: str, told: int | None = None, by_name: int | None = None) -> Manner:
        """How the answers are meant.

        Args:
            named: flag and source, for messages.
            told: what --answers_from says: 0 or 1.
            by_name: the number of the first option by its column's name.

        Raises:
            UserError: numbers that may count from 0 or from 1.
        """
        texts, places = set(), {LETTER}
        for kind in (LETTER, ORDINAL, NUMBER):
            if self.both[kind] and self.only[TEXT] and not self.only[kind]:
                texts.add(kind)
                places.discard(kind)
            elif self.both[kind] and self.only[kind] and not self.only[TEXT]:
                places.add(kind)
            elif self.both[kind] and self.only[kind]:
                places.discard(kind)
        return Manner(self._first(named, told, by_name), frozenset(texts), frozenset(places))

    def _first(self, named: str, told: int | None, by_name: int | None) -> int | None:
        if told is not None:
            return told
        if not self.only[NUMBER]:
            zeros, tops = self.weak["zeros"], self.weak["tops"]
            return (
                by_name
                if by_name is not None
                else 0
                if zeros > tops == 0
                else 1
                if tops > zeros == 0
                else None
            )
        seen = "、".join(map(str, sorted(self.numbers)))
        ask = "請用 --answers_from 0 或 --answers_from 1 指明，或改寫成字母"
        if self.zeros and self.tops:
            if by_name is not None:
                return by_name
            raise UserError(
                f"{named}：答案是整數 {seen}，有 0（{self.zeros[0]}）也有等於選項個數的"
                f"（{self.tops[0]}），看不出從 0 還是從 1 算起；{ask}"
            )
        if self.zeros or self.tops:
            return 0 if self.zeros else 1
        if by_name is not None:
            return by_name
        raise UserError(
            f"{named}：答案是整數 {seen}，沒有 0 也沒有等於選項個數的，看不出從 0 還是從 1 算起；{ask}"
        )

    def notes(self, manner: Manner, told: int | None, by_name: int | None) -> list[str]:
        """What was interpreted, in words."""
        found = []
        if self.only[NUMBER] and manner.first is not None and manner.first != by_name and told is None:
            seen = f"有 {min(self.numbers)}" if manner.first == 0 else f"有 {max(self.numbers)}、沒有 0"
            found.append(f"整數答案從 {manner.first} 算起（{seen}；不對就用 --answers_from 指明）")
        if count := self.dressed.total():
            found.append(f"{count} 列的答案寫成 {shown(self.examples['dressed'])} 這樣，讀出其中的代號")
        if count := self.only[ORDINAL] - self.dressed[ORDINAL]:
            found.append(f"{count} 列的答案寫成 {shown(self.examples[ORDINAL])} 這樣，照次序讀")
        if count := self.only[TEXT]:
            found.append(f"{count} 列的答案是選項的文字（例如 {shown(self.examples[TEXT])}），對回選項")
        if self.both[NUMBER] and NUMBER not in manner.texts | manner.places:
            found.append(f"{self.both[NUMBER]} 列的答案既像編號也像選項的文字，兩種讀法不同的算壞列")
        for kind, called in ((LETTER, "字母"), (ORDINAL, "次序"), (NUMBER, "編號")):
            if self.both[kind] and kind in manner.texts | manner.places:
                how = "選項的文字" if kind in manner.texts else called
                found.append(f"{self.both[kind]} 列的答案既像{called}也像選項的文字，照其他列讀成{how}")
        return found


def chosen(key: Key, options: Sequence[str], manner: Manner) -> int | None:
    """The index of the right option; None where the row has no key.

    Raises:
        ValueError: a key that cannot be read, or that means two things; in Chinese.
    """
    if key.blank or key.no_gold:
        return None
    if key.reason:
        raise ValueError(key.reason)
    count = len(options)
    place = key.place
    if key.kind == NUMBER and manner.first is not None:
        place = key.place - manner.first
    elif key.kind == NUMBER:  # no row tells what it counts from: as a text it is read where both say the same
        place = max(0, key.place - 1) if key.texts else -1
    if key.kind in ("", TEXT):
        place = -1
    if not 0 <= place < count:
        place = -1
    if len(key.texts) > 1 and (place < 0 or key.kind in manner.texts):
        same = "、".join(LETTERS[i] for i in key.texts)
        raise ValueError(f"答案 {shown(key.value)} 是選項 {same} 的文字，它們相同，看不出是哪一個")
    if place < 0 and not key.texts:
        last = LETTERS[count - 1]
        raise ValueError(f"答案 {shown(key.value)} 沒有對應的選項（選項是 {LETTERS[0]} 到 {last}）")
    if place < 0 or not key.texts or place in key.texts:
        return key.texts[0] if place < 0 else place
    if key.kind in manner.texts:
        return key.texts[0]
    if key.kind in manner.places:
        return place
    one, other = LETTERS[place], LETTERS[key.texts[0]]
    raise ValueError(f"答案 {shown(key.value)} 可能是選項 {one}，也可能是選項 {other} 的文字；請寫成字母")
