"""Order of the sets wherever they are listed; rows that a temperature is fitted on after training; ties; the
name of a text that was cut."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from test_classification_report import card as classifier_card
from test_html import full

from finetune.data.labelled import Labelled
from finetune.evaluation.set_names import ORDER, in_order
from finetune.objectives.classification import ClassificationObjective
from finetune.objectives.preview import log_row_lengths
from finetune.reports import model_card, perplexity, report
from finetune.reports.classification import verdict
from finetune.reports.html import render

NAME = "my_bert_finetuned_model_hf_format"


def order_of(text: str, words) -> list[str]:
    """The words by where they first stand."""
    return sorted(words, key=text.index)


def test_the_official_test_comes_first_then_held_out_rows_then_validation():
    found = dict.fromkeys(("validation", "odd", "held_back", "test"), 0)
    assert [*in_order(found)] == [*ORDER, "odd"] == ["test", "held_back", "validation", "odd"]
    told = full()
    assert [*told.results] == ["held_back", "test"] == [*told.exam_sets()][::-1]
    html = render(told)
    assert re.findall(r'data-set="(\w+)"', html) == ["test", "held_back"]
    assert order_of("\n".join(report.verdict(told)), ("正式測驗：", "保留題：")) == ["正式測驗：", "保留題："]
    assert order_of(report.markdown(told, {}), ("## 正式測驗", "## 保留題"))[0] == "## 正式測驗"
    assert [*model_card.FIRST] == [*ORDER]


def test_so_it_does_for_labels_and_texts():
    card = classifier_card()
    assert [*card.labels] == ["validation", "held_back", "test"]
    titles = ["測試", "保留", "驗證"]
    told = report.Report({}, {}, {}, labels=card.labels)
    assert re.findall(r'data-set="(\w+)"', render(told)) == [*ORDER]
    assert order_of(report.markdown(told, {}), [f"## {title}" for title in titles])[0] == "## 測試"
    assert order_of(model_card.model_card(card), [f"### {title}" for title in titles]) == [
        f"### {title}" for title in titles
    ]
    assert [line[:2] for line in verdict(card.labels) if line[2:3] == "："] == titles
    one = {"loss": 1.0, "perplexity": 2.7, "tokens": 9}
    sets = {name: {"tuned": one, "untuned": one} for name in ("validation", "held_back")}
    assert [cells[0] for cells in perplexity.rows({"sets": sets, "samples": []})] == ["保留", "驗證"]


@pytest.mark.parametrize(("ratio", "fitted"), [("0.7,0.25,0.05", True), ("0.95,0,0.05", False)])
def test_a_training_report_fits_its_temperature_on_validation_questions_or_says_that_there_are_none(
    train, tmp_path, ratio, fitted
):
    words = ["--max_steps", 2, "--learning_rate", "1e-3", "--exam_limit", 6, "--objective", "answer"]
    assert train(*words, "--split_ratio", ratio) == 0
    found = json.loads((tmp_path / "report/results.json").read_text(encoding="utf-8"))["test"]["calibration"]
    told = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    assert (found["fitted_on"] == 13) == fitted == ("以 13 題未用於訓練與評測的題目調整溫度" in told)
    assert fitted or ("這次沒有留下驗證題" in found["not_fitted"] and found["not_fitted"] in told)


def test_training_validation_exam_and_report_agree_on_questions_of_ties(train, tmp_path, exam_dir):
    """Options of characters that the tokenizer does not know are one token to it: each question counts a
    quarter, wherever its answer stands."""
    from conftest import write_csv

    for split, count in (("dev", 6), ("val", 6), ("test", 8)):
        rows = [[f"第{n}天地玄黃{split}？", "龘", "靐", "齉", "龖", "A"] for n in range(count)]
        write_csv(tmp_path / f"ties/physics_{split}.csv", rows)
    words = ["--max_steps", 1, "--dataset", tmp_path / "ties", "--objective", "choice"]
    assert train(*words, "--split_ratio", "0.5,0.5,0") == 0
    found = json.loads((tmp_path / "report/results.json").read_text(encoding="utf-8"))["test"]
    card = json.loads((tmp_path / NAME / "run_card.json").read_text(encoding="utf-8"))
    assert found["model"]["accuracy"] == found["other"]["accuracy"] == 0.25 and found["ties"] == 1
    assert found["subjects"]["physics"]["accuracy"] == 0.25 and found["paired"]["p_value"] == 1
    assert {entry["validation_accuracy"] for entry in card["history"]} == {0.25}
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "8 題答對 2 題" in html and "8 題有並列最高分的選項" in html
    answers = (tmp_path / "report/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["tied"] == ["A", "B", "C", "D"] for line in answers)


def test_a_text_that_is_cut_is_called_a_text(loaded, capsys):
    rows = [Labelled("天地玄黃" * 20, labels=(0,)), Labelled("天", labels=(1,))]
    log_row_lengths("訓練", ClassificationObjective(loaded[1], rows, 16, 2, False))
    assert "1 列太長，縮短了文字的尾端" in capsys.readouterr().err
    replies = SimpleNamespace(rows=rows, name="sft", truncated=1, too_long=[], refused=[], remarks={})
    log_row_lengths("訓練", replies)
    assert "縮短了回答的尾端" in capsys.readouterr().err
