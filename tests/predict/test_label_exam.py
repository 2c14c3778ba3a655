"""A saved classifier before labelled texts: --exam, and --input whose rows say what is true."""

from __future__ import annotations

import csv
import json

import pytest
import sklearn.metrics
from conftest import random_text, write_csv, write_rows
from test_classifier import NAMES, make_head, some_texts, trained_card

import inference


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model_dir):
    home, kind = tmp_path_factory.mktemp("heads"), "AutoModelForSequenceClassification"
    return {
        "single": make_head(home / "single", model_dir, kind, card=trained_card()),
        "multi": make_head(home / "multi", model_dir, kind, multi=True, card=trained_card()),
    }


def said(folders, which: str, texts) -> list:
    """The model's labels of each text."""
    found = inference.classify(*inference.load_model(folders[which], "cpu")[:2], texts, "cpu")
    if which == "multi":
        return [sorted(label for label, share in ranked if share >= 0.5) for ranked in found]
    return [ranked[0][0] for ranked in found]


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_exam_of_labelled_texts_has_scikit_learns_figures_answers_and_a_page(run, tmp_path, folders):
    texts = [f"{text}{n}" for n, text in enumerate(some_texts(40, 5))]
    true = [NAMES[n % len(NAMES)] for n in range(40)]
    write_csv(tmp_path / "x.csv", list(zip(texts, true, strict=True)), ("text", "label"))
    code, out, err = run("single", "--exam", "x.csv", "--report", "r")
    assert code == 0, err
    answers, told = said(folders, "single", texts), rows_of(tmp_path / "r/predictions.jsonl")
    found = json.loads((tmp_path / "r/results.json").read_text(encoding="utf-8"))["labels"]["all"]
    assert [row["true_label"] for row in told] == true and [row["label"] for row in told] == answers
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(true, answers))
    f1 = sklearn.metrics.f1_score(true, answers, labels=NAMES, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1) and len(found["interval_95"]) == 2
    assert found["confusion"] == sklearn.metrics.confusion_matrix(true, answers, labels=NAMES).tolist()
    assert found["majority"] == pytest.approx(max(map(true.count, NAMES)) / 40)
    assert f"全部 40 列：正確率 {found['accuracy']:.3f}" in out
    for name in ("report.md", "index.html"):
        assert "一律答最多的一類" in (tmp_path / "r" / name).read_text(encoding="utf-8")


def test_labels_the_model_has_not_are_counted_and_named_and_alone_they_are_refused(run, tmp_path):
    rows = [[f"天{n}", NAMES[0]] for n in range(6)] + [["地", "外星"], ["玄", "外星"]]
    write_csv(tmp_path / "x.csv", rows, ("text", "label"))
    code, out, _ = run("single", "--exam", "x.csv", "--report", "r")
    found = json.loads((tmp_path / "r/results.json").read_text(encoding="utf-8"))["labels"]["all"]
    assert code == 0 and found["n"] == 6 and "2 列的標籤是模型沒有的（外星 2）" in out
    assert len(rows_of(tmp_path / "r/predictions.jsonl")) == 8
    write_csv(tmp_path / "y.csv", rows[-2:], ("text", "label"))
    code, _, err = run("single", "--exam", "y.csv", "--report", "s")
    assert code == 2 and "外星" in err and NAMES[0] in err and not (tmp_path / "s").exists()


def test_numbers_that_no_class_is_called_are_places_and_several_labels_and_splits_are_read_too(
    run, tmp_path, folders
):
    texts = [f"{text}{n}" for n, text in enumerate(some_texts(12, 6))]
    write_csv(tmp_path / "x.csv", [[t, n % 2] for n, t in enumerate(texts)], ("text", "label"))
    code, out, _ = run("single", "--exam", "x.csv", "--report", "r")
    told = json.loads((tmp_path / "r/results.json").read_text(encoding="utf-8"))["labels"]["all"]
    right = [NAMES[n % 2] == label for n, label in enumerate(said(folders, "single", texts))]
    assert code == 0 and told["right"] == sum(right) and f"1 = {NAMES[1]}" in out
    for split in ("train", "test"):
        rows = [{"text": split + text, "labels": [NAMES[0], NAMES[1]]} for text in texts]
        write_rows(tmp_path / f"data/{split}.jsonl", rows)
    code, out, _ = run("multi", "--exam", "data", "--report", "r", "--json")
    answers = said(folders, "multi", ["test" + text for text in texts])
    assert code == 0
    assert json.loads(out)["test"]["right"] == sum(labels == sorted(NAMES[:2]) for labels in answers)
    assert run("multi", "--exam", "data", "--split", "validation", "--report", "r")[0] == 2
    assert run("single", "--exam", "x.csv", "--compare_with", "base")[0] == 2


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_keeps_every_column_and_its_true_label_and_the_accuracy_is_reported(
    run, tmp_path, folders, suffix
):
    texts = [f"{text}{n}" for n, text in enumerate(some_texts(9, 7))]
    answers = said(folders, "single", texts)
    true = [*answers[:5], *["外星"] * 2, *(next(n for n in NAMES if n != a) for a in answers[7:])]
    rows = [[f"n{i}", t, label, f"店{i}", "高"] for i, (t, label) in enumerate(zip(texts, true, strict=True))]
    write_csv(tmp_path / "x.csv", rows, ("id", "review", "label", "商店", "error"))
    code, out, _ = run("single", "--input", "x.csv", "--output", f"y{suffix}")
    assert code == 0 and f"正確率 {5 / 7:.3f}：7 列答對 5 列" in out
    assert "2 列的標籤是模型沒有的，沒有列入：外星 2" in out
    if suffix == ".csv":
        with (tmp_path / "y.csv").open(encoding="utf-8-sig", newline="") as stream:
            found = list(csv.DictReader(stream))
    elif suffix == ".jsonl":
        found = rows_of(tmp_path / "y.jsonl")
    else:
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(tmp_path / "y.parquet").to_pylist()
    for row, given, label in zip(found, rows, answers, strict=True):
        kept = row["id"], row["text"], row["true_label"], row["商店"], row["input_error"]
        assert list(kept) == given and row["review"] == given[1] and row["label"] == label
    code, out, _ = run("single", "--input", "x.csv", "--output", "z.csv", "--json", "--label_column", "商店")
    assert code == 0 and "accuracy" not in json.loads(out)
    code, _, err = run("single", "--input", "x.csv", "--output", "w.csv", "--label_column", "類")
    assert code == 2 and "--label_column 類：沒有這一欄" in err


def test_several_labels_are_kept_and_counted_whole(run, tmp_path, folders):
    texts = [random_text(__import__("random").Random(n), 5, 9) + str(n) for n in range(8)]
    answers = said(folders, "multi", texts)
    rows = [[t, "|".join(labels) or NAMES[0]] for t, labels in zip(texts, answers, strict=True)]
    write_csv(tmp_path / "x.csv", rows, ("text", "tags"))
    code, out, _ = run("multi", "--input", "x.csv", "--output", "y.jsonl", "--label_column", "tags", "--json")
    right = sum(bool(labels) for labels in answers)
    assert code == 0 and json.loads(out)["right"] == right
    assert [row["tags"] for row in rows_of(tmp_path / "y.jsonl")] == [row[1] for row in rows]
