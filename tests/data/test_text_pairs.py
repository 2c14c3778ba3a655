"""Pairs of texts: columns of many tools, what is refused, and no source in two splits."""

from __future__ import annotations

import json
import random

import pytest
from conftest import random_text, write_rows

from finetune.data.splits import split_rows
from finetune.data.text_pairs import PAIRS, PairOptions, read_text_pairs
from finetune.runtime.errors import UserError


def read(path, **options):
    return read_text_pairs(str(path), options=PairOptions(**options))


def pairs_of(dataset):
    return [(row.source, row.target) for part in dataset.rows.values() for row in part]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_columns_of_other_tools_are_found(tmp_path, pair):
    rows = [{"id": "7", pair[0]: " 甲 ", pair[1]: "乙"}, {"id": "8", pair[0]: "丙\n丁", pair[1]: "1.0"}]
    dataset = read(write_rows(tmp_path / "a.jsonl", rows))
    assert pairs_of(dataset) == [("甲", "乙"), ("丙\n丁", "1.0")]
    assert [row.id for row in dataset.rows[""]] == ["7", "8"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx"])
def test_every_format_is_read_alike(tmp_path, suffix):
    rows = [{"Input": "NA", "Output": "無"}, {"Input": "甲,乙", "Output": "1.0"}]
    path = tmp_path / f"a{suffix}"
    if suffix == ".xlsx":
        from openpyxl import Workbook

        book = Workbook()
        for row in (["Input", "Output"], *([*row.values()] for row in rows)):
            book.active.append(row)
        book.save(path)
    else:
        write_rows(path, rows)
    assert pairs_of(read(path)) == [("NA", "無"), ("甲,乙", "1.0")]


def test_an_instruction_goes_before_its_input_which_may_be_empty(tmp_path):
    rows = [
        {"instruction": "翻譯", "input": "甲", "output": "乙"},
        {"instruction": "寫詩", "input": "", "output": "丙"},
    ]
    dataset = read(write_rows(tmp_path / "a.csv", rows))
    assert pairs_of(dataset) == [("翻譯\n甲", "乙"), ("寫詩", "丙")]
    assert dataset.columns.named == ("", "")


@pytest.mark.parametrize("written", [False, True])
def test_the_direction_of_a_translation_is_asked_for(tmp_path, written):
    texts = {"en": "A", "zh": "甲"}
    rows = [{"id": "1", "translation": json.dumps(texts) if written else texts}]
    path = write_rows(tmp_path / ("a.csv" if written else "a.parquet"), rows)
    with pytest.raises(UserError, match="--text_column en --label_column zh"):
        read(path)
    with pytest.raises(UserError, match="zh"):
        read(path, text_column="en", label_column="de")
    assert pairs_of(read(path, text_column="zh", label_column="en")) == [("甲", "A")]


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        (("text", "document", "summary"), {}, "document → summary"),
        (("foo", "bar"), {}, "--text_column"),
        (("foo", "bar"), {"text_column": "fo", "label_column": "bar"}, "是不是 foo"),
        (("foo", "bar"), {"text_column": "foo", "label_column": "foo"}, "不同的欄"),
        (("en", "zh"), {}, "由 en 譯成 zh"),
        (("text", "label"), {}, "--label_column"),
    ],
)
def test_ambiguous_columns_are_refused_with_the_way_out(tmp_path, columns, options, said):
    path = write_rows(tmp_path / "a.jsonl", [{name: f"{name}1" for name in columns}])
    with pytest.raises(UserError, match=said):
        read(path, **options)


def test_flags_choose_both_columns_or_one_of_them(tmp_path):
    row = {"text": "甲", "document": "乙", "summary": "丙"}
    path = write_rows(tmp_path / "a.jsonl", [row])
    assert pairs_of(read(path, text_column="document")) == [("乙", "丙")]
    assert pairs_of(read(path, text_column="summary", label_column="text")) == [("丙", "甲")]


def test_bad_rows_are_reported_together_and_may_be_skipped(tmp_path):
    bad = [{"input": "", "output": "乙"}, {"input": "甲", "output": None}, {"input": ["甲"], "output": "乙"}]
    bad += [{"output": "乙"}, {"input": "\ud800", "output": "乙"}, {"input": True, "output": "乙"}]
    path = write_rows(tmp_path / "a.jsonl", [{"input": "好", "output": "行"}, *bad])
    with pytest.raises(UserError) as refused:
        read(path)
    told = "\n".join(refused.value.problems)
    assert all(f"a.jsonl:{line}" in told for line in range(2, 8)), told
    skipped = read_text_pairs(str(path), on_bad_rows="skip")
    assert pairs_of(skipped) == [("好", "行")] and len(skipped.skipped) == 6


def test_no_source_stands_in_two_splits(tmp_path):
    rng = random.Random(0)
    sources = [random_text(rng, 3, 4) for _ in range(40)]
    for name in ("train", "test"):
        rows = [{"input": rng.choice(sources), "output": random_text(rng, 1, 3)} for _ in range(60)]
        write_rows(tmp_path / "set" / f"{name}.jsonl", rows)
    dataset = read(tmp_path / "set")
    assert [*dataset.remarks.values()][0] > 0  # rows with the source of another and another target
    splits = split_rows(dataset, (0.6, 0.2, 0.2), 1)
    parts = [{row.source for row in part} for part in (splits.fit, splits.validation, splits.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert len(splits.fit) == len(parts[0])


def test_a_question_with_its_passage_beside_is_not_read_without_it(tmp_path):
    row = {"context": "天地玄黃", "question": "什麼色？", "answer": "玄黃"}
    file = write_rows(tmp_path / "x.jsonl", [row] * 2)
    with pytest.raises(UserError, match="--task span"):
        read_text_pairs(str(file))
    pairs = read_text_pairs(str(file), options=PairOptions("question", "answer"))
    assert pairs.rows[""][0].source == "什麼色？"
    assert (
        len(read_text_pairs(str(write_rows(tmp_path / "y.jsonl", [{"question": "a", "answer": "b"}])))) == 1
    )
