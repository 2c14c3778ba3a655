"""--inspect of labelled texts."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest

import inference
from finetune.data.labelled import read_labelled

ROWS = [
    ("天地", "正"),
    ("玄黃", "負"),
    ("宇宙", "正"),
    ("洪荒", "正"),
    ("天地", "正"),
    ("日月", "負"),
    ("日月", "正"),
]


def write(path, rows, header=("text", "label")):
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def inspect(source, capsys, *more) -> tuple[int, str]:
    code = inference.main(["--inspect", str(source), *more])
    return code, capsys.readouterr().out


def test_labelled_texts_are_counted_by_class_and_split_and_what_stands_twice_is_named(tmp_path, capsys):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "test.csv", [("玄黃", "負"), ("盈昃", "正")])
    code, out = inspect(tmp_path, capsys, "--json")
    found = json.loads(out)
    assert code == 0 and found["splits"] == {"train": 7, "test": 2} and not found["unusable"]
    counts = Counter(label for _, label in ROWS)
    assert found["classes"] == {label: {"train": counts[label], "test": 1} for label in "正負"}
    assert [len(group) for group in found["same_within"]] == [2, 2] and len(found["same_across"]) == 1
    assert len(found["contradict"]) == 1 and "train.csv:7" in found["contradict"][0][0]
    _, out = inspect(tmp_path, capsys)
    assert "| 負   | 2     | 1    |" in out and "文字相同、標籤不同" in out


def test_a_row_without_a_text_is_named_and_ends_with_2(tmp_path, capsys):
    code, out = inspect(write(tmp_path / "a.csv", [*ROWS, ("", "正")]), capsys)
    assert code == 2 and "a.csv:9：text 是空的" in out


@pytest.mark.parametrize("name", ["text_a", "sentence1", "text1"])
def test_one_text_of_a_pair_alone_is_a_text(tmp_path, capsys, name):
    source = write(tmp_path / "a.tsv", [], ())
    source.write_text(f"label\t{name}\n正\t天地\n負\t玄黃\n", encoding="utf-8")
    assert read_labelled(source).text_column == name and inspect(source, capsys)[0] == 0


def test_news_with_a_category_are_texts_still(tmp_path, capsys):
    rows = [(f"{n}" + "天地玄黃宇宙洪荒" * 20, "政治") for n in range(3)]
    code, out = inspect(write(tmp_path / "a.csv", rows, ("content", "category")), capsys)
    assert code == 0 and out.startswith("語料")


def test_columns_of_other_names_are_looked_at_when_a_flag_names_them(tmp_path, capsys):
    rows = [(f"{n}", f"{n}" + "天地玄黃宇宙洪荒" * 20, "正負"[n % 2]) for n in range(6)]
    source = str(write(tmp_path / "a.csv", rows, ("title", "body", "kind")))
    named = ["--text_column", "body"]
    for more, seen in ((named, "語料"), ([*named, "--label_column", "kind"], "文字欄 body，標籤欄 kind")):
        assert inference.main(["--inspect", source, *more]) == 0
        assert seen in capsys.readouterr().out
    for flag in ("--text_column", "--label_column"):  # the names that are there are told
        assert inference.main(["--inspect", source, *named, flag, "boody"]) == 2
        seen = capsys.readouterr()
        assert "body" in seen.out + seen.err and "boody" in seen.out + seen.err
