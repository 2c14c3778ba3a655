"""Pairs of texts, one written from the other: summaries, translations, answers; reading and checks.

Rows hold two texts in columns of many names (`input,output`, `article,highlights`, `原文,譯文`), an
instruction with an input that may be empty (Alpaca), or one text in several languages (`translation`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune.data.bad_rows import summarize_problems
from finetune.data.cells import column_key, is_blank, narrowed, written_list
from finetune.data.label_columns import first_rows, missing_columns
from finetune.data.row_dataset import RowDataset, check_rows, find_row_files, rows_of
from finetune.data.turns import INSTRUCTIONS
from finetune.runtime.errors import UserError, listed, nearest
from finetune.runtime.strict_json import too_long

PAIRS = (  # (source, target), names in small letters
    ("input", "output"), ("inputs", "outputs"), ("inputs", "targets"), ("input", "target"),
    ("input_text", "target_text"), ("input_text", "output_text"), ("source", "target"),
    ("source_text", "target_text"), ("src", "tgt"), ("src", "trg"), ("article", "highlights"),
    ("article", "summary"), ("document", "summary"), ("dialogue", "summary"), ("text", "summary"),
    ("content", "summary"), ("text", "target"), ("question", "answer"), ("prompt", "completion"),
    ("prompt", "response"), ("輸入", "輸出"), ("輸入", "目標"), ("文章", "摘要"), ("內容", "摘要"),
    ("內文", "摘要"), ("原文", "摘要"), ("原文", "譯文"), ("來源", "目標"), ("問題", "答案"),
    ("問題", "回答"), ("输入", "输出"), ("内容", "摘要"), ("原文", "译文"), ("问题", "答案"),
)  # fmt: skip
SOURCES, TARGETS = ({pair[side] for pair in PAIRS} for side in (0, 1))
QUESTIONS = ("question", "問題", "问题")  # sources that may be about a passage in a column of its own
PASSAGES = ("context", "passage", "文章", "段落", "短文", "上下文")
INPUTS = ("input", "輸入", "输入")  # columns beside an instruction, which may be empty
OUTPUTS = ("output", "response", "輸出", "输出")
TRANSLATION = "translation"  # the column of a dict: language -> text
LANGUAGE = re.compile(r"[a-z]{2}(?:[-_][A-Za-z]{2,4})?", re.ASCII)  # a column named by its language
WAY = "用 --text_column 指出輸入的欄、--label_column 指出輸出的欄"
SAME_SOURCE = "輸入與別列相同、輸出不同：只用先讀到的（同一個輸入不會又訓練又評測）"


@dataclass(frozen=True)
class TextPair:
    """A text and the one that is to be written from it."""

    id: str
    source: str
    target: str
    group: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the source without regard to white space, 16 hex digits: what the model reads."""
        text = " ".join(self.source.split())
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


@dataclass(frozen=True)
class PairColumns:
    """Columns of a pair.

    Attributes:
        source: columns whose texts make the source: one, or an instruction and its input, which may be empty.
        target: the column of the target; "" where none is needed and none was found.
        inside: the column that holds both as a dict, language -> text; "" for plain columns.
    """

    source: tuple[str, ...]
    target: str
    inside: str = ""

    @property
    def named(self) -> tuple[str, str]:
        """The columns as --text_column and --label_column name them; "" for those of an instruction."""
        return (self.source[0], self.target) if len(self.source) == 1 else ("", "")


@dataclass
class TextPairDataset(RowDataset[TextPair]):
    """Pairs of texts by official split, and their columns."""

    columns: PairColumns = PairColumns((), "")


@dataclass(frozen=True)
class PairOptions:
    """Columns and configuration of a dataset to read; "" finds them.

    Attributes:
        text_column: the source, or of a `translation` its language.
        label_column: the target, or its language.
        config_name: the sub-folder to read where several hold the same splits.
    """

    text_column: str = ""
    label_column: str = ""
    config_name: str = ""


def read_text_pairs(
    source: str,
    revision: str | None = None,
    options: PairOptions | None = None,
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
) -> TextPairDataset:
    """Read pairs of texts from the hub, a folder (all files in it and below) or one file.

    Args:
        revision: revision of a dataset on the hub; None is `main`.
        options: columns and configuration; None finds the columns.
        on_bad_rows: `fail` raises with every bad row; `skip` leaves them out and keeps their reasons.
        flag: the flag that named the source, for messages.

    Raises:
        UserError: nothing to read, ambiguous columns, bad rows.
    """
    options = options or PairOptions()
    folder, files, origin = find_row_files(source, revision, options.config_name, flag)
    named = f"{flag} {source}"
    columns = find_pair_columns(first_rows(files, named), options.text_column, options.label_column, named)
    problems: list[str] = []

    def parse(row: Any, name: str) -> Iterator[TextPair]:
        yield parse_pair(row, columns, name)

    rows = rows_of(files, folder, problems, parse)
    dataset = TextPairDataset(rows, f"{origin} {options.config_name}".rstrip(), columns=columns)
    dataset.skipped = problems
    if problems and not len(dataset):
        hint = f"輸入欄 {'＋'.join(columns.source)}、輸出欄 {columns.target}；{WAY}"
        raise UserError([*summarize_problems(problems), f"{named}：沒有一列可用（{hint}）"])
    check_rows(dataset, on_bad_rows, named)
    if count := _contradictions(dataset):
        dataset.remarks[SAME_SOURCE] = count
    return dataset


def _contradictions(dataset: TextPairDataset) -> int:
    """Return the number of rows whose source stood before with another target."""
    targets: dict[str, str] = {}
    rows = (row for part in dataset.rows.values() for row in part)
    return sum(targets.setdefault(row.fingerprint, row.target) != row.target for row in rows)


# ---- columns -----------------------------------------------------------------------------------------------


def find_pair_columns(
    rows: Sequence[dict], text_column: str, label_column: str, named: str, need_target: bool = True
) -> PairColumns:
    """Find the columns of source and target.

    Args:
        rows: the first rows.
        text_column, label_column: values of the flags; "" chooses the obvious column.
        named: flag and source, for messages.
        need_target: False for texts that are to be written from, whose targets need not be there.

    Raises:
        UserError: a column is missing or ambiguous.
    """
    present = [str(name) for name in dict.fromkeys(name for row in rows for name in row)]
    languages = _languages(rows)
    if languages and not {text_column, label_column} - {""} <= {*present}:
        return _direction(languages, text_column, label_column, named, need_target)
    problems = [
        problem
        for flag, column in (("--text_column", text_column), ("--label_column", label_column))
        for problem in missing_columns(named, flag, column, present)
    ]
    if text_column and text_column == label_column:
        problems.append(f"--text_column 與 --label_column 都是 {text_column}，要是不同的欄")
    if problems:
        raise UserError(problems)
    if text_column and label_column:
        return PairColumns((text_column,), label_column)
    if not text_column and (alpaca := _alpaca(present, label_column)):
        return alpaca
    by_name = {narrowed(name).lower(): name for name in present}
    found = [
        (by_name[a], by_name[b])
        for a, b in PAIRS
        if a in by_name
        and b in by_name
        and text_column in ("", by_name[a])
        and label_column in ("", by_name[b])
    ]
    if len(found) > 1:
        ways = "、".join(f"{a} → {b}" for a, b in found)
        raise UserError(f"{named}：{ways} 都像一對文字，{WAY}")
    if found:
        source, target = found[0]
        if not text_column and narrowed(source).lower() in QUESTIONS and (beside := _passage(present)):
            raise UserError(
                f"{named}：有 {beside}、{source} 與 {target}，像是在文章裡找答案：那是 --task span；"
                f"真的只用 {source} 寫 {target}，就給 --text_column {source} --label_column {target}"
            )
        return PairColumns((source,), target)
    if languages:
        return _direction(languages, text_column, label_column, named, need_target)
    sources = [text_column] if text_column else _known(by_name, SOURCES, label_column)
    targets = [label_column] if label_column else _known(by_name, TARGETS, text_column)
    if len(sources) == 1 and (not need_target or len(targets) == 1):
        return PairColumns((sources[0],), targets[0] if len(targets) == 1 else "")
    way = WAY
    if len(codes := [name for name in present if LANGUAGE.fullmatch(name) and name not in ("id", "ID")]) > 1:
        way += f"，例如 --text_column {codes[0]} --label_column {codes[1]}（由 {codes[0]} 譯成 {codes[1]}）"
    raise UserError(f"{named}：看不出哪兩欄是輸入與輸出，有的是 {listed(present)}；{way}")


def _passage(present: Sequence[str]) -> str:
    """Return the column that holds what a question is about; "" without one."""
    return next((name for name in present if column_key(name) in PASSAGES), "")


def _known(by_name: dict[str, str], known: set[str], other: str) -> list[str]:
    """Return the columns with a known name, without the other column of the pair."""
    return [name for key, name in by_name.items() if key in known and name != other]


def _alpaca(present: Sequence[str], label_column: str) -> PairColumns | None:
    """Return the columns of an instruction, its input and its output; None where there are none."""
    by_name = {narrowed(name).lower(): name for name in present}
    instruction, extra, output = (
        next((by_name[name] for name in names if name in by_name), "")
        for names in (INSTRUCTIONS, INPUTS, OUTPUTS)
    )
    if not instruction or not (output or label_column):
        return None
    return PairColumns(tuple(filter(None, (instruction, extra))), label_column or output)


def _languages(rows: Sequence[dict]) -> list[str]:
    """Return the languages of `translation`, a dict of texts or one that is written out; [] without any."""
    found: dict[str, None] = {}
    for row in rows:
        value = row.get(TRANSLATION)
        value = written_list(value) if isinstance(value, str) else value
        if isinstance(value, dict):
            found |= dict.fromkeys(map(str, value))
    return list(found)


def _direction(
    languages: list[str], text_column: str, label_column: str, named: str, need_target: bool
) -> PairColumns:
    """Return the columns of a translation, from one language into another. Raises UserError."""
    first, second = (*languages, *["zh"] * 2)[:2]
    example = f"例如 --text_column {first} --label_column {second}（由 {first} 譯成 {second}）"
    problems = []
    for flag, language in (("--text_column", text_column), ("--label_column", label_column)):
        if language and language not in languages:
            guess = nearest(language, languages)
            hint = f"；是不是 {guess[0]}？" if guess else ""
            problems.append(
                f"{named} {flag} {language}：{TRANSLATION} 裡沒有，有的是 {listed(languages)}{hint}"
            )
    if text_column and text_column == label_column:
        problems.append(f"--text_column 與 --label_column 都是 {text_column}，要是不同的語言")
    if not problems and (not text_column or (need_target and not label_column)):
        problems.append(
            f"{named}：{TRANSLATION} 裡有 {listed(languages)}，看不出由哪一種譯成哪一種；"
            f"請兩個旗標都給，{example}"
        )
    if problems:
        raise UserError(problems)
    return PairColumns((text_column,), label_column, TRANSLATION)


# ---- rows --------------------------------------------------------------------------------------------------


def parse_pair(row: object, columns: PairColumns, name: str) -> TextPair:
    """Return the pair of a row.

    Raises:
        ValueError: with the reason in Chinese.
    """
    texts = _texts_of(row, columns)
    return TextPair(name, source_of(row, columns), _text(texts, columns.target))


def source_of(row: object, columns: PairColumns) -> str:
    """Return the source of a row: a text, or an instruction with its input on a line of its own.

    Raises:
        ValueError: with the reason in Chinese.
    """
    texts = _texts_of(row, columns)
    first, *others = columns.source
    parts = [
        _text(texts, first),
        *(_text(texts, other) for other in others if not is_blank(texts.get(other))),
    ]
    return "\n".join(parts)


def target_of(row: object, columns: PairColumns) -> str:
    """Return the target of a row that may have none: "" then."""
    try:
        return _text(_texts_of(row, columns), columns.target) if columns.target else ""
    except ValueError:
        return ""


def _texts_of(row: object, columns: PairColumns) -> dict[str, Any]:
    """Return the dict that holds the texts. Raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
    if not columns.inside:
        return row
    value = row.get(columns.inside)
    value = written_list(value) if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise ValueError(f"{columns.inside} 應該是「語言: 文字」的物件，得到 {type(value).__name__}")
    return value


def _text(texts: dict[str, Any], column: str) -> str:
    """Return the text of a cell. Raises ValueError: it has none, or no tokenizer could read it."""
    value = texts.get(column)
    if is_blank(value):
        raise ValueError(f"{column} 是空的" if column in texts else f"沒有 {column} 這一欄")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{column} 應該是文字，得到 {type(value).__name__}")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{column} 有落單的代理字元（surrogate），不是合法的 UTF-8") from None
    if reason := too_long(text):
        raise ValueError(f"{column} {reason}")
    return text
