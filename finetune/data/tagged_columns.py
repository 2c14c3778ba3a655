"""Layouts of a row of tagged text: spans with their places, or tokens with a tag each.

Spans are read as annotation tools and libraries write them: objects with a start, an end and a label
(doccano, Prodigy, Label Studio, spaCy's `ents`, pipelines of transformers), lists [start, end, label] (spaCy,
doccano), or labels with their texts and places (CLUENER). Whether an end is included is decided for the whole
dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune.data.cells import is_blank, written_list
from finetune.data.label_columns import TEXTS
from finetune.data.text_units import Span
from finetune.runtime.errors import UserError, listed, nearest, shown

TOKENS = ("tokens", "words", "chars", "characters", "token", "word", "字", "詞", "字元")
SPANS = (
    "entities",
    "ents",
    "spans",
    "annotations",
    "label",
    "labels",
    "entity",
    "result",
    "實體",
    "标注",
    "標註",
)
TAGS = (
    "ner_tags", "labels", "label", "tags", "ner", "bio_tags", "tag", "word_labels", "pos_tags", "upos", "pos",
    "xpos", "chunk_tags", "標記", "標籤",
)  # fmt: skip
STARTS = (
    "start",
    "start_offset",
    "start_char",
    "startOffset",
    "start_idx",
    "start_index",
    "begin",
    "from",
    "s",
)
ENDS = ("end", "end_offset", "end_char", "endOffset", "end_idx", "end_index", "stop", "to", "e")
LABELS = (
    "label", "type", "entity_group", "entity_type", "tag", "category", "labels", "entity", "class", "類別",
    "標籤", "標記",
)  # fmt: skip
MENTIONS = ("text", "mention", "word", "name", "value", "surface", "entity", "文字")


CANCELLED = "was_cancelled"  # Label Studio's mark of an annotation that was skipped
ANSWER, REFUSED = "answer", ("reject", "ignore")  # Prodigy's verdict on the spans of a row


class RawSpan(NamedTuple):
    """A span as it is written: `mention` is the text that it says to be, "" where it says none."""

    start: int
    end: int
    label: str
    mention: str


@dataclass(frozen=True)
class TaggedColumns:
    """Columns of tagged text.

    Attributes:
        text: the column of the text, or of its tokens.
        tags: the column of the spans, or of the tags.
        spans: it is spans.
    """

    text: str
    tags: str
    spans: bool = False


def find_columns(
    rows: Sequence[dict], text_column: str, label_column: str, named: str
) -> tuple[TaggedColumns, str]:
    """Find the columns of the text and of its tags by the first rows.

    Args:
        text_column, label_column: values of the flags; "" finds the column.
        named: flag and source, for messages.

    Returns:
        the columns, and a remark where there were several to choose from.

    Raises:
        UserError: a column is missing.
    """
    present = list(dict.fromkeys(str(name) for row in rows for name in row))
    problems = []
    for flag, column in (("--text_column", text_column), ("--label_column", label_column)):
        if column and column not in present:
            guess = nearest(column, present)
            hint = f"；是不是 {guess[0]}？" if guess else ""
            problems.append(f"{named} {flag} {column}：沒有這一欄，有的是 {listed(present)}{hint}")
    if problems:
        raise UserError(problems)
    cells = {name: [row[name] for row in rows if not is_blank(row.get(name))] for name in present}
    tokens = _named(TOKENS, present)
    tokens = [name for name in tokens if any(map(is_tokens, cells[name]))]
    spans = [name for name in _named(SPANS, present) if any(map(is_spans, cells[name]))]
    tags = [name for name in _named(TAGS, present) if name not in spans and any(map(_is_tags, cells[name]))]
    texts = [name for name in _named(TEXTS, present) if name not in tokens]
    label = label_column or next(iter(tags if tokens and tags else spans or tags), "")
    # tokens go with tags; spans, whose tools may write tokens too, with the text
    by_token = bool(tokens) and (label not in spans or not texts)
    text = text_column or next(iter((tokens if by_token else texts) or tokens), "")
    if not text and not label and (token_a_row := _token_a_row(present, cells)):
        raise UserError(f"{named}：{token_a_row}")
    if not text:
        problems.append(
            f"{named}：看不出哪一欄是文字，有的是 {listed(present)}；要有 text（文字）或 tokens（一串字），"
            "或用 --text_column 指出來"
        )
    if not label:
        problems.append(
            f"{named}：看不出哪一欄是標記，有的是 {listed(present)}；要有 entities（[{{start, end, label}}]）"
            f"或 tags（每個字一個標記），或用 --label_column 指出來{_classification_hint(present, cells)}"
        )
    if not problems and text == label:
        problems.append(f"{named}：文字欄與標記欄都是 {text}，要是不同的欄")
    if problems:
        raise UserError(problems)
    others = [name for name in (tags if by_token else spans) if name != label]
    remark = f"標記欄用 {label}；另有 {'、'.join(others)}，要用的話給 --label_column" if others else ""
    written = [value for cell in cells[label] if (value := cell_value(cell))]
    has_spans = any(map(is_spans, written)) if written else text not in tokens
    return TaggedColumns(text, label, has_spans), "" if label_column else remark


def _classification_hint(present: Sequence[str], cells: dict[str, list[Any]]) -> str:
    """Return a hint where a column holds one value a row, as the label of a whole text."""
    single = [name for name in _named(TAGS, present) if cells[name] and all(map(_is_single, cells[name]))]
    return f"。{single[0]} 一列只有一個值，像是整段文字的類別：那是 --task classify" if single else ""


def _token_a_row(present: Sequence[str], cells: dict[str, list[Any]]) -> str:
    """Return what to do with a table that has a token and its tag a row; "" for another one."""
    tokens, tags = (
        [name for name in _named(known, present) if cells[name] and all(map(_is_single, cells[name]))]
        for known in (TOKENS, TAGS)
    )
    if not tokens or not tags:
        return ""
    return (
        f"一列只有一個字（{tokens[0]}）與它的標記（{tags[0]}），看不出一句到哪裡；"
        "請存成 .conll：一行寫「字 標記」，兩句之間空一行"
    )


def _is_single(cell: object) -> bool:
    return isinstance(cell, (int, float)) or (
        isinstance(cell, str) and not isinstance(cell_value(cell), (list, dict))
    )


def _named(known: Sequence[str], present: Sequence[str]) -> list[str]:
    """Return the columns with a known name, the best known first."""
    plain = {name.strip().lower(): name for name in reversed(present)}
    return [plain[name] for name in known if name in plain]


def cell_value(cell: object) -> object:
    """Return a cell, or the list that it writes out."""
    if isinstance(cell, str) and (value := written_list(cell)) is not None:
        return value
    return cell


def is_tokens(cell: object) -> bool:
    """Return whether a cell holds a list of tokens."""
    value = cell_value(cell)
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def is_spans(cell: object) -> bool:
    """Return whether a cell holds spans: objects, lists, labels with their places, or none at all."""
    value = cell_value(cell)
    if isinstance(value, list):
        return not value or any(isinstance(item, (dict, list, tuple)) for item in value)
    return isinstance(value, dict)


def _is_tags(cell: object) -> bool:
    value = cell_value(cell)
    if isinstance(value, str):
        return len(value.split()) > 1
    return isinstance(value, list) and all(isinstance(item, (str, int)) for item in value)


# ---- rows --------------------------------------------------------------------------------------------------


def as_object(row: object) -> dict[str, Any]:
    """Return a row as an object: spaCy's ["text", {"entities": …}] and Label Studio's task too.

    Raises:
        ValueError: it is none; in Chinese.
    """
    if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], dict):
        return {"text": row[0], **row[1]}
    if not isinstance(row, dict):
        raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
    data, annotations = row.get("data"), row.get("annotations")
    if isinstance(data, dict) and isinstance(annotations, list):  # Label Studio
        results = [
            part["result"]
            for part in annotations
            if isinstance(part, dict) and isinstance(part.get("result"), list) and not part.get(CANCELLED)
        ]
        items = [item.get("value") for item in (results or [[]])[0] if isinstance(item, dict)]
        values = [value for value in items if isinstance(value, dict) and {"start", "end"} <= value.keys()]
        return {**data, "id": row.get("id"), "entities": values}
    return row


def left_out(row: object) -> str:
    """Return why a row is not meant to be used, by what its annotation tool says; "" for one that is."""
    if not isinstance(row, dict):
        return ""
    if row.get(ANSWER) in REFUSED and isinstance(row.get("text"), str):
        return "answer 是 reject 或 ignore（Prodigy 裡沒有採用的）"
    annotations = row.get("annotations")
    if isinstance(row.get("data"), dict) and isinstance(annotations, list):
        done = [part for part in annotations if not (isinstance(part, dict) and part.get(CANCELLED))]
        return "" if done else "沒有人標註過（Label Studio 的 annotations 是空的，或都取消了）"
    return ""


def tokens_of(cell: object, column: str) -> list[str]:
    """Return the tokens in a cell: a list, a written list, or a text divided by spaces.

    Raises:
        ValueError: there are none; in Chinese.
    """
    value = cell_value(cell)
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list):
        raise ValueError(f"{column} 應該是一串字，得到 {type(value).__name__}")
    if not value:
        raise ValueError(f"{column} 是空的")
    if wrong := [item for item in value if isinstance(item, bool) or not isinstance(item, (str, int, float))]:
        raise ValueError(f"{column} 裡的 {shown(wrong[0])} 不是字")
    return [str(item) for item in value]


def tags_of(cell: object, column: str, classes: Sequence[str]) -> list[str]:
    """Return the tags in a cell by name.

    Args:
        classes: names of the tags that are numbers; none where that is not known.

    Raises:
        ValueError: a tag that is none; in Chinese.
    """
    value = cell_value(cell)
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list):
        raise ValueError(f"{column} 應該是一串標記，得到 {type(value).__name__}")
    return [_tag(item, column, classes) for item in value]


def _tag(value: object, column: str, classes: Sequence[str]) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and classes and value not in classes and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"{column} 裡的 {shown(value)} 不是標記")
    if isinstance(value, int):
        if classes and not 0 <= value < len(classes):
            raise ValueError(f"{column} 裡有 {value}，檔案裡的類別是 0 到 {len(classes) - 1}")
        return classes[value] if classes else str(value)
    if not value.strip():
        raise ValueError(f"{column} 裡有空的標記")
    return value.strip()


def spans_in(cell: object, column: str) -> list[RawSpan]:
    """Return the spans that a cell writes, as they stand there.

    Raises:
        ValueError: a span that cannot be read; in Chinese.
    """
    value = cell_value(cell)
    if isinstance(value, dict):
        return [span for label, inside in value.items() for span in _by_label(str(label), inside, column)]
    if not isinstance(value, list):
        raise ValueError(f"{column} 應該是一串標記（[{{start, end, label}}]），得到 {shown(cell)}")
    return [_span(item, column) for item in value]


def _by_label(label: str, inside: object, column: str) -> list[RawSpan]:
    """Return the spans of one label: {"葉老桂": [[9, 11]]} as CLUENER has them, or [[9, 11]]."""
    mentions = inside if isinstance(inside, dict) else {"": inside}
    spans = []
    for mention, places in mentions.items():
        places = [places] if _is_place(places) else places
        if not isinstance(places, list) or not all(map(_is_place, places)):
            raise ValueError(f"{column} 的 {shown(label)} 應是 [[起, 迄], …]，得到 {shown(places)}")
        spans += [
            RawSpan(_whole(start), _whole(end), _label(label, column), str(mention)) for start, end in places
        ]
    return spans


def _is_place(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and not isinstance(value[0], (list, tuple))


def _span(item: object, column: str) -> RawSpan:
    if isinstance(item, dict):
        return _span_of_object(item, column)
    if isinstance(item, (list, tuple)) and len(item) >= 3:
        start, end, label = item[:3]
        if isinstance(start, str) and not start.strip().isdecimal():  # [label, start, end]
            start, end, label = item[1], item[2], item[0]
        mention = item[3] if len(item) > 3 and isinstance(item[3], str) else ""
        return RawSpan(_whole(start), _whole(end), _label(label, column), mention)
    raise ValueError(
        f"{column} 裡的 {shown(item)} 看不懂；每一項應是 {{start, end, label}} 或 [起, 迄, 標籤]"
    )


def _span_of_object(item: dict, column: str) -> RawSpan:
    start_key = next((key for key in STARTS if item.get(key) is not None), None)
    end_key = next((key for key in ENDS if item.get(key) is not None), None)
    label_key = next((key for key in LABELS if not is_blank(item.get(key))), None)
    for key, what in ((start_key, "start"), (end_key, "end"), (label_key, "label")):
        if key is None:
            raise ValueError(f"{column} 裡的 {shown(item)} 沒有 {what}")
    mention = next(
        (item[key] for key in MENTIONS if key != label_key and isinstance(item.get(key), str) and item[key]),
        "",
    )
    label = item[label_key]
    if isinstance(label, list) and len(label) == 1:  # Label Studio's
        label = label[0]
    return RawSpan(_whole(item[start_key]), _whole(item[end_key]), _label(label, column), mention)


def _whole(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"位置 {shown(value)} 應是整數")
    return value


def _label(value: object, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise ValueError(f"{column} 裡的標籤 {shown(value)} 應是文字")
    return " ".join(str(value).split())


def checked_spans(text: str, spans: Sequence[RawSpan], inclusive: bool) -> tuple[tuple[Span, ...], bool]:
    """Return the spans in order, without the white space at their ends, and whether there was any.

    A span that is written twice counts once.

    Args:
        inclusive: ends are the last character, not the one after it.

    Raises:
        ValueError: a span that is empty or outside the text, or that is not the text it says to be; two that
            overlap. In Chinese.
    """
    found, trimmed = set(), False
    for raw in spans:
        start, end = raw.start, raw.end + inclusive
        name = f"標記 {shown(raw.label)}（{raw.start}–{raw.end}）"
        if start < 0 or end > len(text):
            raise ValueError(f"{name}超出文字：文字有 {len(text)} 個字")
        if start >= end:
            raise ValueError(f"{name}{'起迄顛倒' if start > end else '是空的'}")
        if raw.mention and not same_text(text[start:end], raw.mention):
            raise ValueError(f"{name}的文字應是 {shown(raw.mention)}，那個位置卻是 {shown(text[start:end])}")
        inside = text[start:end]
        if not inside.strip():
            raise ValueError(f"{name}只有空白")
        trimmed |= inside != inside.strip()
        start, end = start + len(inside) - len(inside.lstrip()), end - (len(inside) - len(inside.rstrip()))
        found.add(Span(start, end, raw.label))
    ordered = sorted(found)
    for first, second in zip(ordered, ordered[1:], strict=False):
        if second.start < first.end:
            how = "交錯" if second.start > first.start and second.end > first.end else "重疊"
            pair = f"{_named_span(text, first)}與{_named_span(text, second)}"
            raise ValueError(f"{pair}{how}；一個字只能屬於一個標記")
    return tuple(ordered), trimmed


def same_text(one: str, other: str) -> bool:
    """Return whether two texts differ in white space and case alone: tokenizers change both."""
    return "".join(one.split()).casefold() == "".join(other.split()).casefold()


def _named_span(text: str, span: Span) -> str:
    return f"{shown(text[span.start : span.end])}（{span.label}，{span.start}–{span.end}）"
