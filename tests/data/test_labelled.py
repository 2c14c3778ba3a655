"""Labelled texts: every layout read alike, columns and classes told or asked for, splits that share no
text."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT, random_text, run_process, write_rows
from loopback_hub import COMMIT, LoopbackHub

from finetune.data.labelled import Labelled, LabelledDataset, LabelledOptions, class_weights, read_labelled
from finetune.data.splits import describe_labels, split_labelled
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import SUFFIXES

RATIO = (0.7, 0.25, 0.05)


def write(path, rows: list, features: dict | None = None) -> str:
    """The path as a command line has it."""
    return str(write_rows(path, rows, features))


def rows_of(*labels, seed=0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {"text": f"{random_text(rng, 8, 20)}{seed}甲{n}", "label": label} for n, label in enumerate(labels)
    ]


def found(catalogue: LabelledDataset, split: str = "") -> list[tuple]:
    """(text, names of the labels) of each row."""
    names = catalogue.names
    return [(row.text, *(names[label] for label in row.labels)) for row in catalogue.rows[split]]


def refused(source, *words: str, flag: str = "--dataset", **options) -> None:
    with pytest.raises(UserError) as error:
        read_labelled(str(source), options=LabelledOptions(**options), flag=flag)
    message = "\n".join(error.value.problems)
    assert all(word in message for word in words), message


def labelled(*labels: tuple[int, ...], seed=0) -> list[Labelled]:
    rng = random.Random(seed)
    return [Labelled(f"{random_text(rng, 8, 20)}甲{seed}甲{n}", labels=one) for n, one in enumerate(labels)]


def catalogue_of(rows: dict[str, list[Labelled]], classes: int, multi=False) -> LabelledDataset:
    return LabelledDataset(rows, [f"類{n}" for n in range(classes)], multi, "here", "text", "", ("label",))


# ---- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_holds_the_same_rows(tmp_path, suffix):
    rows = [
        {"text": '含 "引號"，逗號,\t定位\n與換行', "label": "NA"},
        {"text": "NA", "label": "None"},
        {"text": "1.0", "label": "無"},
        {"text": "天地", "label": " NA "},
    ]
    catalogue = read_labelled(write(tmp_path / f"rows{suffix}", rows))
    assert catalogue.names == ["NA", "None", "無"] and not catalogue.multi and len(catalogue) == 4
    assert found(catalogue) == [(row["text"], row["label"].strip()) for row in rows]
    first = 2 if suffix in (".csv", ".tsv") else 1
    assert catalogue.rows[""][0].id == f"rows{suffix}:{first}"


def test_text_that_looks_like_a_number_stays_text_and_numbers_and_truths_become_text(tmp_path):
    rows = rows_of("1.0", "007", "true", "True")
    assert read_labelled(write(tmp_path / "a.csv", rows)).names == ["007", "1.0", "True", "true"]
    rows = rows_of(True, 7, 1.0, False)
    assert read_labelled(write(tmp_path / "a.jsonl", rows)).names == ["1", "7", "false", "true"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whole_numbers_are_in_order_of_their_value_and_names_of_their_text_whatever_the_rows_order(
    tmp_path, suffix
):
    for labels, names in ((["10", "9", "-1"], ["-1", "9", "10"]), (["丙", "10", "9"], ["10", "9", "丙"])):
        for order in (labels, labels[::-1]):
            assert read_labelled(write(tmp_path / f"a{suffix}", rows_of(*order))).names == names


def test_a_row_keeps_the_id_it_has(tmp_path):
    rows = [{**row, "id": f"第{n}"} for n, row in enumerate(rows_of("甲", "乙"))]
    catalogue = read_labelled(write(tmp_path / "a.csv", rows))
    assert [row.id for row in catalogue.rows[""]] == ["第0", "第1"]


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train.csv", "dev.csv", "test.csv"), "validation"),
        (("x_train.tsv", "x_val.tsv", "x_test.tsv"), "validation"),
        (("data/train.jsonl", "data/valid.jsonl", "data/test.jsonl"), "validation"),
        (("train1.csv", "dev1.csv", "test1.csv"), "validation"),
        (("train/0.json", "validation/0.json", "test/0.json"), "validation"),
        (("plain/train-00000-of-00001.parquet", "plain/dev-0.parquet", "plain/test-0.parquet"), "validation"),
        (("m/train-0.parquet", "m/validation_matched-0.parquet", "m/test_matched-0.parquet"), "validation"),
        (("a/training.csv", "b/測試.csv", "c/驗證.csv"), "validation"),
    ],
)
def test_the_names_of_files_and_folders_tell_the_splits(tmp_path, names, split):
    wanted = {}
    for name, seed in zip(names, range(3), strict=True):
        rows = rows_of("甲", "乙", seed=seed)
        write(tmp_path / name, rows)
        place = {"測": "test", "驗": "validation"}.get(name.split("/")[-1][0], ("train", split, "test")[seed])
        wanted[place] = [(row["text"], row["label"]) for row in rows]
    catalogue = read_labelled(str(tmp_path))
    assert {place: found(catalogue, place) for place in catalogue.rows} == wanted


def test_shards_of_a_split_are_one_and_files_without_any_split_are_all_read(tmp_path):
    for number in range(3):
        write(tmp_path / f"a/train-0000{number}-of-00003.parquet", rows_of("甲", "乙", seed=number))
        write(tmp_path / f"b/inner{number}/contest.csv", rows_of("甲", "乙", seed=number))
    assert len(read_labelled(str(tmp_path / "a")).rows["train"]) == 6
    assert len({row.id for row in read_labelled(str(tmp_path / "a")).rows["train"]}) == 6
    assert {split: len(rows) for split, rows in read_labelled(str(tmp_path / "b")).rows.items()} == {"": 6}


def test_files_that_fit_no_split_are_left_out_and_said_where_others_do(tmp_path, capsys):
    write(tmp_path / "train.csv", rows_of("甲", "乙"))
    write(tmp_path / "notes.csv", rows_of("丙", "丁", seed=1))
    write(tmp_path / "dataset_infos.json", [{"no": "rows"}])
    write(tmp_path / ".cache/train.csv", rows_of("戊", "己", seed=2))
    (tmp_path / "README.md").write_text("no data")
    catalogue = read_labelled(str(tmp_path))
    assert catalogue.names == ["乙", "甲"] and list(catalogue.rows) == ["train"]
    assert "略過 notes.csv" in capsys.readouterr().err


def test_a_folder_that_holds_only_a_test_split_is_read_and_not_trained_on(tmp_path):
    write(tmp_path / "test.csv", rows_of("甲", "乙"))
    catalogue = read_labelled(str(tmp_path))
    assert list(catalogue.rows) == ["test"]
    with pytest.raises(UserError, match="0 列"):
        split_labelled(catalogue, RATIO, 0)


def test_one_file_has_no_official_split_whatever_its_name(tmp_path):
    assert list(read_labelled(write(tmp_path / "test.csv", rows_of("甲", "乙"))).rows) == [""]


# ---- configurations ----------------------------------------------------------------------------------------


def two_configurations(folder):
    for number, name in enumerate(("sst2", "cola")):
        for seed, split in enumerate(("train", "test")):
            rows = rows_of(f"{name}甲", f"{name}乙", seed=10 * number + seed)
            write(folder / name / f"{split}-00000-of-00001.parquet", rows)
    return folder


def test_of_several_configurations_one_is_chosen_by_name(tmp_path):
    two_configurations(tmp_path)
    refused(tmp_path, "--dataset", "2 個設定", "cola、sst2", "--dataset_config_name")
    catalogue = read_labelled(str(tmp_path), options=LabelledOptions(config_name="cola"))
    assert catalogue.names == ["cola乙", "cola甲"] and list(catalogue.rows) == ["train", "test"]
    assert "cola" in catalogue.origin
    refused(tmp_path, "--dataset_config_name ssst", "是不是 sst2", config_name="ssst")
    refused(tmp_path, "--dataset_config_name zzz", "cola、sst2", config_name="zzz")
    refused(write(tmp_path / "a.csv", rows_of("甲", "乙")), "--dataset_config_name x", config_name="x")


def test_a_folder_named_data_is_no_configuration(tmp_path):
    two_configurations(tmp_path / "data")
    refused(tmp_path, "2 個設定", "：cola、sst2")
    options = LabelledOptions(config_name="cola")
    assert read_labelled(str(tmp_path), options=options).names == ["cola乙", "cola甲"]


def test_a_folders_own_splits_come_before_those_of_its_sub_folders_and_it_is_said(tmp_path, capsys):
    two_configurations(tmp_path)
    write(tmp_path / "train.csv", rows_of("甲", "乙"))
    assert read_labelled(str(tmp_path)).names == ["乙", "甲"]
    assert "略過" in (said := capsys.readouterr().err) and "sst2/train" in said


def test_a_folders_own_test_is_no_reason_to_lose_the_rows_to_train_on(tmp_path):
    two_configurations(tmp_path)
    write(tmp_path / "test.csv", rows_of("甲", "乙"))
    refused(tmp_path, "2 個設定", "cola、sst2")


@pytest.mark.slow
def test_a_hub_name_with_two_configurations_asks_which_and_then_reads_it(tmp_path):
    folder = two_configurations(tmp_path / "glue")
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from finetune.runtime.console import run
from finetune.data.labelled import LabelledOptions, read_labelled
def body():
    catalogue = read_labelled("nyu-mll/glue", None, options=LabelledOptions(config_name=sys.argv[1]))
    print(catalogue.origin, catalogue.names, len(catalogue))
sys.exit(run(body))
"""
    with LoopbackHub({}, {"nyu-mll/glue": folder}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        asked = run_process([sys.executable, "-c", code, ""], tmp_path, **env, HF_HUB_DISABLE_XET="1")
        read = run_process([sys.executable, "-c", code, "sst2"], tmp_path, **env, HF_HUB_DISABLE_XET="1")
    assert asked.returncode == 2 and "--dataset nyu-mll/glue" in asked.stderr, asked.stderr
    assert "cola、sst2" in asked.stderr and "--dataset_config_name" in asked.stderr
    assert read.stdout.strip() == f"nyu-mll/glue main ({COMMIT[:12]}) sst2 ['sst2乙', 'sst2甲'] 4", (
        read.stderr
    )


# ---- columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "text", "pair", "label"),
    [
        (("text", "label"), "text", "", "label"),
        (("idx", "Sentence", "Label"), "Sentence", "", "Label"),
        (("content", "title", "category"), "content", "", "category"),
        (("title", "類別"), "title", "", "類別"),
        (("內容", "標籤"), "內容", "", "標籤"),
        (("sentence1", "sentence2", "label"), "sentence1", "sentence2", "label"),
        (("premise", "hypothesis", "label"), "premise", "hypothesis", "label"),
        (("question", "sentence", "label"), "question", "sentence", "label"),
        (("question1", "question2", "class"), "question1", "question2", "class"),
        (("text_a", "text_b", "labels"), "text_a", "text_b", "labels"),
        (("句子1", "句子2", "分類"), "句子1", "句子2", "分類"),
    ],
)
def test_columns_with_the_usual_names_are_found(tmp_path, columns, text, pair, label):
    rows = [{name: f"{name}{n}" for name in columns} for n in range(2)]
    catalogue = read_labelled(write(tmp_path / "a.csv", rows))
    assert (catalogue.text_column, catalogue.pair_column) == (text, pair)
    assert catalogue.label_columns == (label,)
    first = catalogue.rows[""][0]
    assert (first.text, first.pair) == (f"{text}0", f"{pair}0" if pair else "")


def test_columns_that_cannot_be_detected_are_asked_for_both_at_once(tmp_path):
    source = write(tmp_path / "a.csv", [{"一": "天", "二": "甲"}, {"一": "地", "二": "乙"}])
    refused(source, "--dataset", "--text_column", "--label_column", "一、二")
    options = LabelledOptions(text_column="一", label_column="二")
    assert found(read_labelled(source, options=options)) == [("天", "甲"), ("地", "乙")]


def test_of_several_likely_columns_one_is_asked_for(tmp_path):
    rows = [{"text": f"天{n}", "content": f"地{n}", "label": n, "category": n} for n in range(2)]
    source = write(tmp_path / "a.csv", rows)
    refused(
        source, "text、content 都像文字欄", "--text_column", "label、category 都像標籤欄", "--label_column"
    )
    refused(source, "都像文字欄", label_column="label")
    options = LabelledOptions(text_column="content", label_column="category")
    assert read_labelled(source, options=options).rows[""][0].text == "地0"
    rows = [{"sentence1": f"天{n}", "sentence2": f"地{n}", "text": "玄", "label": n} for n in range(2)]
    refused(write(tmp_path / "b.csv", rows), "sentence1,sentence2、text 都像文字欄")


def test_a_column_that_is_not_there_is_reported_with_those_that_are_and_the_nearest(tmp_path):
    source = write(tmp_path / "a.csv", rows_of("甲", "乙"))
    refused(source, "--text_column txet", "text、label", "是不是 text", text_column="txet")
    refused(source, "--label_column labels", "是不是 label", label_column="labels")
    refused(source, "--text_column", "--label_column", "都是 text", text_column="text", label_column="text")
    refused(source, "--text_column", "最多兩欄", text_column="text,label,text")


def test_two_text_columns_are_a_pair_that_no_other_text_equals(tmp_path):
    rows = [{"a": "天", "b": "地玄", "label": "是"}, {"a": "天地", "b": "玄", "label": "否"}]
    for suffix in SUFFIXES:
        source = write(tmp_path / f"a{suffix}", rows)
        for columns in ("a,b", "a，b", " a 、 b "):
            catalogue = read_labelled(source, options=LabelledOptions(text_column=columns))
            assert [(row.text, row.pair) for row in catalogue.rows[""]] == [("天", "地玄"), ("天地", "玄")]
    first, second = catalogue.rows[""]
    assert first.fingerprint != second.fingerprint


def test_the_fingerprint_is_that_of_what_is_said_and_of_signs_where_nothing_else_is():
    def same(first, second):
        return Labelled(*first).fingerprint == Labelled(*second).fingerprint

    assert same(["Ａ天，地！"], ["a天 地"]) and same(["天", "地"], ["天。", "地。"])
    assert (
        not same(["天", "地"], ["地", "天"]) and not same([":-)"], [":-("]) and not same(["天"], ["天", "天"])
    )


# ---- the names of datasets ---------------------------------------------------------------------------------

CLASS = {"names": ["壞", "好", "沒有"], "_type": "ClassLabel"}
VALUE = {"dtype": "string", "_type": "Value"}


def test_the_integers_of_a_class_label_become_its_names_in_its_order(tmp_path):
    source = write(tmp_path / "a.parquet", rows_of(1, 0, 1), {"text": VALUE, "label": CLASS})
    catalogue = read_labelled(source)
    assert catalogue.names == ["壞", "好", "沒有"]
    assert [row.labels for row in catalogue.rows[""]] == [(1,), (0,), (1,)]


@pytest.mark.parametrize("kind", ["List", "Sequence", "old"])
def test_a_list_of_a_class_label_is_several_names(tmp_path, kind):
    feature = [CLASS] if kind == "old" else {"feature": CLASS, "_type": kind}
    source = write(tmp_path / "a.parquet", rows_of([2, 0], [], [1]), {"text": VALUE, "label": feature})
    catalogue = read_labelled(source)
    assert catalogue.multi and catalogue.names == CLASS["names"]
    assert [row.labels for row in catalogue.rows[""]] == [(0, 2), (), (1,)]


def test_many_classes_that_are_named_are_classes_however_few_the_rows(tmp_path):
    names = [f"類{n}" for n in range(60)]
    feature = {"names": names, "_type": "ClassLabel"}
    source = write(tmp_path / "a.parquet", rows_of(*range(60)), {"text": VALUE, "label": feature})
    assert read_labelled(source).names == names


def test_rows_marked_unlabelled_are_dropped_and_counted_and_a_split_of_them_is_left_out(tmp_path, capsys):
    features = {"text": VALUE, "label": CLASS}
    write(tmp_path / "train.parquet", rows_of(0, 1, -1, -1), features)
    write(tmp_path / "test.parquet", rows_of(-1, -1, -1, seed=1), features)
    catalogue = read_labelled(str(tmp_path))
    assert {split: len(rows) for split, rows in catalogue.rows.items()} == {"train": 2}
    said = capsys.readouterr().err
    assert "略過 train 的 2 列" in said and "略過 test：3 列都沒有標籤" in said


def test_minus_one_is_a_class_like_any_where_nothing_says_otherwise(tmp_path):
    for suffix in SUFFIXES:
        assert read_labelled(write(tmp_path / f"a{suffix}", rows_of(-1, 0, 1))).names == ["-1", "0", "1"]


def test_a_class_that_the_file_does_not_name_is_a_bad_row(tmp_path):
    source = write(tmp_path / "a.parquet", rows_of(0, 1, 3), {"text": VALUE, "label": CLASS})
    refused(source, "a.parquet:3：label 是 3", "0 到 2")


@pytest.mark.parametrize("rows", [rows_of(None, "", " "), [{"text": "天"}, {"text": "地"}, {"text": "玄"}]])
def test_a_split_without_any_label_is_left_out_and_said(tmp_path, rows, capsys):
    write(tmp_path / "train.csv", rows_of("甲", "乙"))
    write(tmp_path / "test.csv", rows)
    assert list(read_labelled(str(tmp_path)).rows) == ["train"]
    assert "略過 test：3 列都沒有標籤" in capsys.readouterr().err
    write(tmp_path / "multi/train.jsonl", rows_of(["甲"], ["乙"]))
    write(tmp_path / "multi/test.jsonl", rows_of([], [], seed=1))
    assert list(read_labelled(str(tmp_path / "multi")).rows) == ["train"]
    refused(write(tmp_path / "b.csv", rows_of("", "")), "--dataset", "沒有一列有標籤", "--label_column")


# ---- several labels ----------------------------------------------------------------------------------------

SETS = [("天", "玄"), (), ("地",), ("地", "天", "玄")]


def sets_of(catalogue: LabelledDataset) -> list[set[str]]:
    return [{catalogue.names[label] for label in row.labels} for row in catalogue.rows[""]]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_list_is_several_labels(tmp_path, suffix):
    catalogue = read_labelled(write(tmp_path / f"a{suffix}", rows_of(*map(list, SETS))))
    assert catalogue.multi and catalogue.names == ["地", "天", "玄"]
    assert sets_of(catalogue) == [set(one) for one in SETS]
    assert all(list(row.labels) == sorted(row.labels) for row in catalogue.rows[""])


@pytest.mark.parametrize("mark", ["|", ";", "；", "、", ", ", "，"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_text_is_split_into_labels_where_asked_for(tmp_path, mark, suffix):
    source = write(tmp_path / f"a{suffix}", rows_of(*map(mark.join, SETS)))
    catalogue = read_labelled(source, options=LabelledOptions(multi_label=True))
    assert catalogue.names == ["地", "天", "玄"] and sets_of(catalogue) == [set(one) for one in SETS]
    source = write(tmp_path / f"b{suffix}", rows_of(*[mark.join(one) for one in SETS if one]))
    assert not read_labelled(source).multi


@pytest.mark.parametrize(("no", "yes"), [(0, 1), (False, True), ("false", "True"), (0.0, 1.0), ("0", "1")])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_label_columns_are_a_label_each_in_the_order_given(tmp_path, no, yes, suffix):
    columns = ("玄", "天", "地")
    rows = [
        {"text": row["text"], **{name: yes if name in one else no for name in columns}}
        for row, one in zip(rows_of(*SETS), SETS, strict=True)
    ]
    options = LabelledOptions(label_column="玄,天，地")
    catalogue = read_labelled(write(tmp_path / f"a{suffix}", rows), options=options)
    assert catalogue.multi and catalogue.names == list(columns)
    assert sets_of(catalogue) == [set(one) for one in SETS]


# ---- bad input ---------------------------------------------------------------------------------------------

BAD = [
    ({"text": " ", "label": "甲"}, "text 是空的"),
    ({"text": None, "label": "甲"}, "text 是空的"),
    ({"label": "甲"}, "沒有 text 這一欄"),
    ({"text": ["天"], "label": "甲"}, "text 應該是文字，得到 list"),
    ({"text": {"天": 1}, "label": "甲"}, "text 應該是文字，得到 dict"),
    ({"text": "天", "label": ""}, "label 是空的，沒有標籤"),
    ({"text": "天"}, "label 是空的，沒有標籤"),
    ({"text": "天", "label": math.nan}, "label 是空的，沒有標籤"),
    ({"text": "天", "label": {"甲": 1}}, "label 應該是文字或整數，得到 dict"),
    ({"text": "天", "label": 0.5}, "label 是小數"),
    ({"text": "天", "label": math.inf}, "label 是小數"),
    ({"text": "天", "label": ["甲"]}, "label 是一串標籤"),
    (["天", "甲"], "應該是一個物件，得到 list"),
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_all_bad_rows_are_reported_at_once_and_can_be_skipped(tmp_path, suffix, capsys):
    nowhere = [math.nan, math.inf]  # no value, to JSON
    bad = [(row, why) for row, why in BAD if not isinstance(row, dict) or row.get("label") not in nowhere]
    rows = [row for row, _ in bad]
    good = rows_of(*["甲", "乙"] * 50)
    source = write(tmp_path / f"a{suffix}", [*good, *rows])
    with pytest.raises(UserError) as error:
        read_labelled(source)
    reasons = sorted(reason for _, reason in bad)
    told = sorted(error.value.problems[:-1])
    assert len(told) == len(reasons) and "--on_bad_rows skip" in error.value.problems[-1]
    for number, (_, reason) in enumerate(bad, len(good) + 1):
        assert any(line.startswith(f"{source}:{number}：{reason}") for line in told), reason
    catalogue = read_labelled(source, on_bad_rows="skip")
    assert len(catalogue) == len(good) and len(catalogue.skipped) == len(bad)
    describe_labels(catalogue, split_labelled(catalogue, RATIO, 0))
    assert f"略過 {len(bad)} 列" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "reason"),
    [(["甲", ""], "空的標籤"), (["甲", ["乙"]], "得到 list"), (None, "沒有標籤"), ([0.5], "小數")],
)
def test_bad_labels_among_several_are_reported(tmp_path, label, reason):
    source = write(tmp_path / "a.jsonl", rows_of(["甲"], ["乙"], label))
    refused(source, "a.jsonl:3", reason)


def test_a_column_of_yes_and_no_that_holds_something_else_is_reported(tmp_path):
    rows = [
        {"text": f"天{n}", "a": a, "b": b} for n, (a, b) in enumerate([(1, 0), (2, 0), ("", ""), ("", 1)])
    ]
    source = write(tmp_path / "a.csv", rows)
    refused(source, "a.csv:3：a 是 '2'", "a.csv:4：a、b 都是空的", "a.csv:5：a 是 ''", label_column="a,b")


def test_the_same_reason_is_reported_ten_times_and_then_counted(tmp_path):
    source = write(tmp_path / "a.csv", [*rows_of("甲", "乙"), *rows_of(*[""] * 25, seed=1)])
    with pytest.raises(UserError) as error:
        read_labelled(source)
    assert len(error.value.problems) == 12 and "另有 15 列也是：label 是空的" in error.value.problems[10]


def test_files_that_cannot_be_read_are_reported(tmp_path):
    gbk = tmp_path / "a.csv"
    gbk.write_bytes("text,label\n好,吃\n".encode("gbk"))
    refused(gbk, f"{gbk}：不是 UTF-8", "「好,吃」", "--encoding gb18030", "--dataset")
    for name, words in (("a.jsonl", "空的檔案"), ("a.parquet", "不是 parquet"), ("a.xlsx", "不是 Excel")):
        (tmp_path / name).write_bytes(b"")
        refused(tmp_path / name, f"--dataset {tmp_path / name}", words)
    (tmp_path / "b.csv").write_text("text,label\n")
    refused(tmp_path / "b.csv", "--dataset", "一列也沒有")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "--dataset", "裡面沒有")
    refused(tmp_path / "none.csv", "--exam", "沒有這個檔案", flag="--exam")
    write(tmp_path / "strings.json", ["天", "地"])
    refused(tmp_path / "strings.json", "strings.json:1：應該是一個物件，得到 str", "--dataset")


def test_a_single_class_is_none(tmp_path):
    refused(
        write(tmp_path / "a.csv", rows_of("甲", "甲")), "--dataset", "只有一種標籤（甲）", "--label_column"
    )
    write(tmp_path / "b/train.csv", rows_of("甲", "甲"))
    write(tmp_path / "b/test.csv", rows_of("甲", "乙", seed=1))
    refused(tmp_path / "b", "只有一種標籤（甲）")


def test_labels_to_be_scored_on_that_training_never_saw_are_named_and_counted(tmp_path):
    write(tmp_path / "train.csv", rows_of("甲", "乙"))
    write(tmp_path / "dev.csv", rows_of("甲", "丙", "丙", "丁", seed=1))
    write(tmp_path / "test.csv", rows_of("戊", "乙", seed=2))
    refused(tmp_path, "--dataset", "validation 有 3 列", "丁、丙", "test 有 1 列", "戊")


def test_a_column_where_nearly_every_row_differs_is_no_label(tmp_path):
    few = write(tmp_path / "few.csv", rows_of(*range(50)))
    assert len(read_labelled(few).names) == 50
    many = write(tmp_path / "many.csv", rows_of(*range(60), *range(59)))
    refused(many, "--dataset", "119 列有 60 種值", "--label_column")
    half = write(tmp_path / "half.csv", rows_of(*range(60), *range(60)))
    assert len(read_labelled(half).names) == 60


# ---- splitting ---------------------------------------------------------------------------------------------


def test_a_text_never_stands_on_both_sides_whatever_its_width_or_punctuation(capsys):
    rng = random.Random(0)
    bodies = [random_text(rng, 8, 20) + str(n) for n in range(60)]
    rows = {
        split: [
            Labelled(rng.choice("！。 ").join(rng.choice(bodies)) + "。", labels=(rng.randrange(3),))
            for _ in range(count)
        ]
        for split, count in (("train", 200), ("validation", 30), ("test", 20))
    }
    for kept in (("train", "validation", "test"), ("train", "test"), ("train",)):
        catalogue = catalogue_of({split: rows[split] for split in kept}, 3)
        splits = split_labelled(catalogue, RATIO, 1)
        sides = [splits.fit, splits.validation, splits.held_out, splits.test]
        prints = [{row.fingerprint for row in side} for side in sides]
        assert sum(map(len, prints)) == len(set().union(*prints))
        assert splits.test == rows["test"] * ("test" in kept)
        unique = [row for side in sides[:3] for row in side]
        assert len(unique) == len({row.fingerprint for row in unique})
        assert splits.duplicates == len(catalogue) - len(splits.test) - len(unique) > 0
    assert "標籤卻不同" in capsys.readouterr().err


def test_of_the_same_text_with_other_labels_the_first_is_kept_and_the_others_counted(capsys):
    rows = [Labelled("天地", labels=(0,)), Labelled("天，地", labels=(1,)), Labelled("天 地", labels=(0,))]
    rows += labelled((0,), (1,))
    splits = split_labelled(catalogue_of({"": rows}, 2), (1, 0, 0), 0)
    assert splits.duplicates == 2 and rows[0] in splits.fit and len(splits.fit) == 3
    assert "有 1 列的文字與別列相同、標籤卻不同" in capsys.readouterr().err


def test_an_official_validation_split_is_the_one_to_choose_by(capsys):
    parts = {split: labelled(*[(0,), (1,)] * 9, seed=seed) for seed, split in enumerate(("train", "test"))}
    official = labelled((0,), (1,), seed=7)
    splits = split_labelled(catalogue_of({**parts, "validation": official}, 2), RATIO, 0)
    assert splits.validation == official and not splits.held_out and splits.test == parts["test"]
    assert sorted(splits.fit, key=str) == sorted(parts["train"], key=str)
    assert "⚠️" not in capsys.readouterr().err
    splits = split_labelled(
        catalogue_of({"train": parts["train"] + official, "validation": official}, 2), RATIO, 0
    )
    assert splits.validation == official and len(splits.fit) == 18 and splits.duplicates == 2
    with pytest.raises(UserError, match="0 列"):
        split_labelled(catalogue_of({"test": official, "train": official}, 2), RATIO, 0)


def test_where_there_is_an_official_test_nothing_more_is_held_out_from_training(capsys):
    parts = {split: labelled(*[(0,), (1,)] * 50, seed=seed) for seed, split in enumerate(("train", "test"))}
    splits = split_labelled(catalogue_of(parts, 2), (0.7, 0.2, 0.1), 0)
    assert [len(splits.fit), len(splits.validation), len(splits.held_out)] == [80, 20, 0]
    assert splits.test == parts["test"] and "保留 0.1 併入訓練" in capsys.readouterr().err
    splits = split_labelled(catalogue_of({"train": parts["train"]}, 2), (0.7, 0.2, 0.1), 0)
    assert [len(splits.fit), len(splits.validation), len(splits.held_out)] == [70, 20, 10]


@pytest.mark.parametrize(
    "ratio", [RATIO, (0.8, 0.2, 0.0), (0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (0.05, 0.9, 0.05)]
)
def test_every_class_is_within_one_row_of_its_shares_and_so_is_the_whole_of_three(ratio):
    rng = random.Random(int(100 * ratio[0]))
    for trial in range(20):
        sizes = [rng.choice((1, 2, 3, 5, 8, 40, 133)) for _ in range(rng.randint(2, 12))]
        rows = labelled(*[(label,) for label, size in enumerate(sizes) for _ in range(size)], seed=trial)
        rng.shuffle(rows)
        splits = split_labelled(catalogue_of({"": rows}, len(sizes)), ratio, trial)
        sides = (splits.fit, splits.validation, splits.held_out)
        assert sorted(map(str, rows)) == sorted(str(row) for side in sides for row in side)
        for share, side in zip(ratio, sides, strict=True):
            counts = Counter(row.labels[0] for row in side)
            for label, size in enumerate(sizes):
                assert abs(counts[label] - share * size) < 1 + 1e-9
            assert share or not side
        assert {row.labels[0] for row in splits.fit} == {*range(len(sizes))}
        if ratio == RATIO and min(sizes) > 1:
            assert all(
                abs(len(side) - share * len(rows)) <= 2 for share, side in zip(ratio, sides, strict=True)
            )


def test_rows_whose_sets_of_labels_are_all_different_are_still_dealt_by_the_shares():
    sets = [tuple(label for label in range(8) if number >> label & 1) for number in range(256)]
    splits = split_labelled(catalogue_of({"": labelled(*sets)}, 8, multi=True), RATIO, 0)
    sizes = [len(splits.fit), len(splits.validation), len(splits.held_out)]
    assert all(abs(size - 256 * share) <= 2 for size, share in zip(sizes, RATIO, strict=True)), sizes
    assert {label for row in splits.fit for label in row.labels} == {*range(8)}


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_rows():
    rows = labelled(*[(n % 3,) for n in range(90)])
    first = split_labelled(catalogue_of({"": rows}, 3), RATIO, 0)
    again = split_labelled(catalogue_of({"": rows[::-1]}, 3), RATIO, 0)
    other = split_labelled(catalogue_of({"": rows}, 3), RATIO, 1)
    assert first.fit == again.fit and first.validation == again.validation
    assert {row.id for row in first.fit} == {""} and {*first.validation} != {*other.validation}


def test_a_class_with_too_few_rows_is_reported(capsys):
    rows = labelled(*[(0,)] * 20, *[(1,)] * 20, (2,))
    split_labelled(catalogue_of({"": rows}, 4), RATIO, 0)
    said = capsys.readouterr().err
    assert "訓練裡沒有這些類別：類3（" in said and "驗證裡沒有這些類別：類2、類3（" in said


# ---- telling and weighing ----------------------------------------------------------------------------------


def test_what_was_read_is_reported_with_the_ten_largest_classes_and_how_uneven_they_are(tmp_path, capsys):
    labels = [f"類{n:02}" for n in range(12) for _ in range(n + 1)]
    rows = rows_of(*labels)
    catalogue = read_labelled(write(tmp_path / "a.csv", [*rows, rows[0]]))
    describe_labels(catalogue, split_labelled(catalogue, (1, 0, 0), 0))
    said = capsys.readouterr().err
    for words in (
        f"{tmp_path / 'a.csv'}：79 列",
        "12 類",
        "文字欄 text，標籤欄 label",
        "訓練 78、",
        "1 列重複",
    ):
        assert words in said
    assert "類11 12、類10 11" in said and "類02 3" in said and "類01" not in said
    assert "共 12 類" in said and "最多是最少的 12.0 倍" in said


def test_the_weights_of_single_labels_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    rng = random.Random(0)
    labels = [0, 1, 2, *(min(rng.randrange(3), rng.randrange(3)) for _ in range(100))]
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights(labelled(*[(label,) for label in labels]), 3) == pytest.approx(wanted.tolist())


def test_with_the_weights_of_several_labels_rows_with_and_without_one_weigh_the_same():
    import torch

    rng = random.Random(0)
    rows = labelled(*[tuple(k for k in range(3) if rng.random() < (k + 1) / 5) for _ in range(100)])
    weights = torch.tensor(class_weights(rows, 3, multi=True))
    there = torch.tensor([[float(k in row.labels) for k in range(3)] for row in rows])
    logits = torch.zeros_like(there, requires_grad=True)
    torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, there).backward()
    assert logits.grad.sum(0).tolist() == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("multi", [False, True])
def test_a_class_without_a_row_has_no_weight(multi):
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        class_weights(labelled((0,), (2,)), 4, multi)
