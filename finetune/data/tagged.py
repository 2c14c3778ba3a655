"""Tagged texts: named entities, words or parts of speech, read from files of many layouts into spans.

A row is a text and its spans. Of data in tokens the text is the tokens joined, with a space between words of
scripts that are written so. How tags and ends of spans are to be read is decided over the whole dataset.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data import conll
from finetune.data.bad_rows import Unreadable, where
from finetune.data.cells import is_blank
from finetune.data.data_files import DataFile
from finetune.data.dataset_card import card_classes
from finetune.data.label_columns import LOOKED, class_names
from finetune.data.labelled import sorted_names
from finetune.data.question import normalised
from finetune.data.row_dataset import RowDataset, check_rows, find_row_files
from finetune.data.tag_schemes import BIO, BIOES, IOB1, OUTSIDE, PLAIN, spans_of, style_of, tag_names
from finetune.data.tagged_columns import (
    RawSpan,
    TaggedColumns,
    as_object,
    checked_spans,
    find_columns,
    left_out,
    same_text,
    spans_in,
    tags_of,
    tokens_of,
)
from finetune.data.tagged_files import file_rows, in_columns
from finetune.data.text_units import Span
from finetune.data.token_tags import TagReading, TokenJoiner, letters_of
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed, shown
from finetune.runtime.strict_json import too_long

TRIMMED = "標記頭尾的空白不算在標記裡"
INCLUSIVE = "標記的結尾是最後一個字的位置（依檔案裡標記的文字判斷）"
ONE_BASED = "B- 只用來分開相鄰的兩個標記（IOB1），已改讀成 BIO"


@dataclass(frozen=True)
class TaggedRow:
    """A text and its spans, in order; none of them overlap.

    Attributes:
        tokens: (start, end) of the tokens that were tagged one by one, of plain tags; () of spans.
        number: which row of its dataset it is, from 1, those that cannot be used counted too.
    """

    text: str
    spans: tuple[Span, ...] = ()
    id: str = ""
    tokens: tuple[tuple[int, int], ...] = ()
    group: str = ""
    number: int = 0

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the normalised text, 16 hex digits; a text of punctuation alone counts as it stands."""
        text = normalised(self.text) or self.text.strip()
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


@dataclass
class TaggedDataset(RowDataset[TaggedRow]):
    """Tagged texts by official split.

    Attributes:
        names: names of the tags that write the spans, by number.
        scheme: BIO, BIOES or plain.
        text_column, label_column: columns that were read; "" of files of columns.
    """

    names: list[str] = field(default_factory=list)
    scheme: str = BIO
    text_column: str = ""
    label_column: str = ""

    @property
    def labels(self) -> list[str]:
        """Labels of the spans, in order of their names."""
        return sorted_names({span.label for rows in self.rows.values() for row in rows for span in row.spans})


@dataclass(frozen=True)
class TaggedOptions:
    """Columns and configuration of tagged texts to read; "" finds them.

    Attributes:
        text_column, label_column: names or, of files of columns, numbers from 1.
        config_name: the sub-folder to read where several hold the same splits.
    """

    text_column: str = ""
    label_column: str = ""
    config_name: str = ""


def read_tagged(
    source: str,
    revision: str | None = None,
    options: TaggedOptions | None = None,
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
    learn: bool = True,
) -> TaggedDataset:
    """Read tagged texts from the hub, a folder (all files in it and below) or one file.

    Args:
        revision: revision of a dataset on the hub; None is `main`.
        options: columns and configuration; None finds the columns.
        on_bad_rows: `fail` raises with every bad row; `skip` leaves them out and keeps their reasons.
        flag: the flag that named the source, for messages.
        learn: the rows are for training; False for a model that is only evaluated.

    Raises:
        UserError: nothing to read, no such columns, bad rows, no span at all, or labels in an evaluation
            split that the training rows do not have.
    """
    options, named = options or TaggedOptions(), f"{flag} {source}"
    folder, files, origin = find_row_files(source, revision, options.config_name, flag, conll.SUFFIXES)
    reader = _Reader(folder, options, named)
    for file in files:
        reader.read(file)
    dataset = reader.dataset(f"{origin} {options.config_name}".rstrip())
    check_rows(dataset, on_bad_rows, named)
    if learn:
        _check(dataset, named)
    return dataset


class _UntaggedError(ValueError):
    """A row has a text, and nothing about its spans."""


@dataclass
class _Draft:
    """A row before the whole dataset is known.

    Attributes:
        place: file:line.
        number: which row of all it is.
        text: of spans.
        tokens, tags: of tokens.
    """

    place: str
    number: int
    id: str = ""
    text: str = ""
    spans: Sequence[RawSpan] = ()
    tokens: Sequence[str] = ()
    tags: Sequence[str] = ()


class _Reader:
    """Collects the rows of all files, then decides how they are to be read."""

    def __init__(self, folder: Path, options: TaggedOptions, named: str):
        self.folder, self.options, self.named = folder, options, named
        self.drafts: dict[str, list[_Draft]] = {}
        self.untagged: dict[str, list[tuple[_Draft, str]]] = {}  # rows without tags, by split
        self.count = 0
        self.problems: list[tuple[int, str]] = []  # number of the row, reason
        self.left_out: Counter[str] = Counter()  # rows that their annotation tool says not to use, by reason
        self.remarks: Counter[str] = Counter()
        self.columns: TaggedColumns | None = None
        self.classes: dict[str, None] = {}  # names that `datasets` gave, in their order

    # ---- files ---------------------------------------------------------------------------------------------

    def read(self, file: DataFile) -> None:
        """Add the rows of one file, and the reason of each row that cannot be used."""
        by_column = in_columns(file)
        columns = TaggedColumns(conll.TOKENS, conll.TAGS) if by_column else self._columns_of(file)
        classes: Sequence[str] = ()
        if not by_column:
            column = columns.tags
            classes = class_names(file.path, column) or card_classes(
                self.folder, column, self.options.config_name
            )
        self.classes |= dict.fromkeys(classes)
        drafts = self.drafts.setdefault(file.split, [])
        for line, row in file_rows(file, self.options.text_column, self.options.label_column):
            self.count += 1
            if reason := left_out(row):
                self.left_out[reason] += 1
                continue
            draft = _Draft(where(file.path, line), self.count)
            try:
                if isinstance(row, Unreadable):
                    raise ValueError(row)
                fields = as_object(row)
                name = fields.get("id", fields.get("ID"))
                if not isinstance(name, (str, int)) or name == "":
                    name = f"{file.path.relative_to(self.folder)}:{line}"
                draft.id = str(name)
                _fill(draft, fields, columns, classes)
                drafts.append(draft)
            except _UntaggedError as error:
                self.untagged.setdefault(file.split, []).append((draft, str(error)))
            except ValueError as error:
                self._bad(draft, error)

    def _columns_of(self, file: DataFile) -> TaggedColumns:
        """Return the columns of the tables, found by the first of them that has rows."""
        if self.columns:
            return self.columns
        rows, problems = [], []
        for line, row in islice(file_rows(file, self.options.text_column, self.options.label_column), LOOKED):
            try:
                if isinstance(row, Unreadable):
                    raise ValueError(row)
                rows.append(as_object(row))
            except ValueError as error:
                problems.append(f"{where(file.path, line)}：{error}")
        if not rows:
            raise UserError([*problems[:3], f"{self.named}：一列也讀不到"])
        text, label = self.options.text_column, self.options.label_column
        self.columns, remark = find_columns(rows, text, label, self.named)
        if remark:
            log(f"{self.named}：{remark}")
        return self.columns

    def _bad(self, draft: _Draft, error: object) -> None:
        self.problems.append((draft.number, f"{draft.place}：{error}"))

    # ---- the whole dataset ---------------------------------------------------------------------------------

    def dataset(self, origin: str) -> TaggedDataset:
        """Interpret all rows together."""
        self._drop_untagged()
        every = [draft for drafts in self.drafts.values() for draft in drafts]
        by_token = [draft for draft in every if draft.tokens]
        counts = Counter(tag for draft in by_token for tag in draft.tags)
        tags = TagReading(style_of(counts) if by_token else PLAIN, [draft.tags for draft in by_token])
        rows = self._rows(_is_inclusive(every), tags, TokenJoiner(draft.tokens for draft in by_token))
        if tags.scheme == IOB1:
            self.remarks[ONE_BASED] = len(by_token)
        problems = [problem for _, problem in sorted(self.problems)]
        columns = self.columns or TaggedColumns("", "")
        found = TaggedDataset(rows, origin, "句", problems, +self.remarks)
        found.text_column, found.label_column = columns.text, columns.tags
        letters, outside = {"B": "B", "I": "I"}, True
        if by_token:
            letters = letters_of(counts, tags.style)
            outside = OUTSIDE in counts or len(by_token) < len(every)
            found.scheme = tags.scheme if tags.scheme in (PLAIN, BIOES) else BIO
        found.names = tag_names(found.labels, letters, outside)
        if {*self.classes} >= {*found.names}:  # their order is the one that people know
            found.names = [name for name in self.classes if name in found.names]
        elif by_token and tags.style == PLAIN and all(name.isdecimal() for name in counts):
            log(f"⚠️ {self.named}：標記是編號（{listed(found.names, 5)}），沒有它們的名稱，就以編號當名稱")
        return found

    def _drop_untagged(self) -> None:
        """Drop splits without any tag, as competitions have for their test; elsewhere such rows are bad."""
        for reason, count in self.left_out.items():
            log(f"略過 {count} 句：{reason}")
        for split, rows in self.untagged.items():
            if self.drafts[split]:
                self.problems += [(draft.number, f"{draft.place}：{reason}") for draft, reason in rows]
            else:
                log(f"略過 {split or '資料'}：{len(rows)} 句都沒有標記")

    def _rows(self, inclusive: bool, tags: TagReading, joiner: TokenJoiner) -> dict[str, list[TaggedRow]]:
        """Return the rows by split; note the reason of each that cannot be used."""
        rows: dict[str, list[TaggedRow]] = {}
        for split, drafts in self.drafts.items():
            part = rows.setdefault(split, [])
            for draft in drafts:
                try:
                    row = self._row(draft, inclusive, tags, joiner)
                    if reason := too_long(row.text):
                        raise ValueError(f"文字{reason}")
                    part.append(row)
                except ValueError as error:
                    self._bad(draft, error)
                else:
                    self.remarks[INCLUSIVE] += inclusive and bool(draft.spans)
        return {split: part for split, part in rows.items() if part}

    def _row(self, draft: _Draft, inclusive: bool, tags: TagReading, joiner: TokenJoiner) -> TaggedRow:
        """Return a row.

        Raises:
            ValueError: it cannot be used; in Chinese.
        """
        if not draft.tokens:
            spans, trimmed = checked_spans(draft.text, draft.spans, inclusive)
            self.remarks[TRIMMED] += trimmed
            return TaggedRow(draft.text, spans, draft.id, number=draft.number)
        parsed = tags.parse(draft.tags)
        text, places = joiner.join(draft.tokens)
        if not text.strip():
            raise ValueError("只有空白")
        if tags.scheme == PLAIN:
            tokens = [(place, tag.label) for place, tag in zip(places, parsed, strict=True)]
            visible = [(place, label) for place, label in tokens if text[slice(*place)].strip()]
            spans = tuple(Span(*place, label) for place, label in visible if label != OUTSIDE)
            return TaggedRow(text, spans, draft.id, tuple(at for at, _ in visible), number=draft.number)
        raw = [
            RawSpan(places[start][0], places[end - 1][1], label, "") for start, end, label in spans_of(parsed)
        ]
        spans, trimmed = checked_spans(text, raw, inclusive=False)
        self.remarks[TRIMMED] += trimmed
        return TaggedRow(text, spans, draft.id, number=draft.number)


def _fill(draft: _Draft, fields: dict[str, Any], columns: TaggedColumns, classes: Sequence[str]) -> None:
    """Read one row into its draft.

    Raises:
        ValueError: why it cannot be used; in Chinese.
    """
    for column in (columns.text, columns.tags):
        if is_blank(fields.get(column)):
            reason = f"{column} 是空的" if column in fields else f"沒有 {column} 這一欄"
            if column == columns.text:
                raise ValueError(reason)
            raise _UntaggedError(f"{reason}；沒有標記請寫 []")
    text, tags = fields[columns.text], fields[columns.tags]
    text = str(text) if isinstance(text, (int, float)) else text
    if columns.spans:
        if not isinstance(text, str):
            raise ValueError(f"{columns.text} 應該是文字，得到 {type(text).__name__}")
        draft.text, draft.spans = _encodable(text), spans_in(tags, columns.tags)
        return
    draft.tags = tags_of(tags, columns.tags, classes)
    draft.tokens = tokens_of(text, columns.text)
    if isinstance(text, str) and len(draft.tokens) != len(draft.tags) == len(text):
        draft.tokens = list(text)  # a tag for each character
    if len(draft.tokens) != len(draft.tags):
        raise ValueError(
            f"{columns.text} 有 {len(draft.tokens)} 個，{columns.tags} 有 {len(draft.tags)} 個，要一樣多"
        )
    for at, (token, tag) in enumerate(zip(draft.tokens, draft.tags, strict=True), 1):
        if not token and tag != OUTSIDE:
            raise ValueError(f"第 {at} 個字是空的，標記卻是 {shown(tag)}")
    _encodable("".join(draft.tokens))


def _encodable(text: str) -> str:
    """Return a text. Raises ValueError: it holds half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("有落單的代理字元（surrogate），不是合法的 UTF-8") from None
    return text


def _is_inclusive(drafts: Iterable[_Draft]) -> bool:
    """Return whether ends are the last character, by the spans that say what their text is."""
    votes = Counter(
        inclusive
        for draft in drafts
        for span in draft.spans
        if span.mention
        for inclusive in (False, True)
        if same_text(draft.text[max(span.start, 0) : span.end + inclusive], span.mention)
    )
    return votes[True] > votes[False]


def _check(dataset: TaggedDataset, named: str) -> None:
    """Check that there are spans, and that training covers every label that is evaluated.

    Raises:
        UserError: there are none, or it does not.
    """
    used = {
        split: Counter(label for row in rows for label in {span.label for span in row.spans})
        for split, rows in dataset.rows.items()
    }
    trained = {label for split in ("train", "") for label in used.get(split, ())}
    if not trained and not {*dataset.rows} & {"train", ""}:
        trained = {label for counts in used.values() for label in counts}
    if not trained:
        raise UserError(f"{named}：訓練的句子裡一個標記也沒有（{len(dataset)} 句都沒有）；請確認標記欄")
    problems = [
        f"{named}：{split} 有 {sum(counts[label] for label in unseen)} 句的標籤是訓練資料裡沒有的："
        f"{listed(unseen, 5)}；補上它們的訓練句子，或從 {split} 拿掉"
        for split, counts in used.items()
        if (unseen := sorted({*counts} - trained))
    ]
    if problems:
        raise UserError(problems)
