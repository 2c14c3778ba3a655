"""Evaluation at the end of a training run: rows that the temperature is fitted on, and ties."""

from __future__ import annotations

import json

import pytest
from conftest import write_csv

NAME = "my_bert_finetuned_model_hf_format"


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
