"""--task span: runs from the flags to the saved model, what it remembers, and what it reports."""

from __future__ import annotations

import json
import re

import pytest
from conftest import read_log, write_rows
from span_rows import make_spans, nested, write_json

NAME = "my_bert_finetuned_model_hf_format"


def span(train, source, *more):
    words = [
        "--task",
        "span",
        "--dataset",
        source,
        "--learning_rate",
        5e-3,
        "--max_length",
        64,
        "--stride",
        8,
    ]
    return train(*words, *more)


@pytest.mark.slow
def test_a_run_learns_logs_and_reports_what_it_measured(train, tmp_path, capsys):
    source = write_json(tmp_path / "x.json", nested(make_spans(240, unanswerable=6)))
    assert span(train, source, "--num_epochs", 4, "--train_batch_size", 8) == 0
    out = capsys.readouterr().out
    card = json.loads((tmp_path / NAME / "run_card.json").read_text(encoding="utf-8"))
    held = card["metrics"]["held_back"]
    assert held["f1"] > held["baselines"]["most_shared_sentence"]["f1"] and held["n"] == 24
    assert held["has_answer"]["n"] + held["no_answer"]["n"] == 24 and held["no_answer"]["exact_match"] > 0.5
    assert json.loads((tmp_path / NAME / "config.json").read_text())["finds_no_answer"] is True
    verdict = "模型明顯較好" if held["articles"] >= 10 else "文章太少，看不出差別"
    assert re.search(rf"保留：F1 .*一句的 F1 是 .*{verdict}。", out)
    epochs = [entry for entry in read_log(tmp_path) if "validation_f1" in entry]
    assert {"validation_f1", "validation_exact_match", "validation_loss", "validation_rows"} <= epochs[
        -1
    ].keys()
    best = max(epochs, key=lambda entry: (entry["validation_f1"], -entry["validation_loss"]))
    assert card["step"] == best["step"]
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "CMRC 2018" in page and "正解" in page
    results = json.loads((tmp_path / NAME / "all_results.json").read_text(encoding="utf-8"))
    assert any(key.endswith("f1") for key in results)
    records = [
        json.loads(line) for line in (tmp_path / "report" / "predictions.jsonl").open(encoding="utf-8")
    ]
    ours = [record for record in records if record["set"] == "held_back"]
    assert sum(record["f1"] for record in ours) / 24 == pytest.approx(held["f1"])


def test_an_article_stays_in_one_split_and_bad_rows_stop_the_run_together(train, tmp_path, capsys):
    rows = make_spans(30)
    source = write_rows(tmp_path / "x.jsonl", rows)
    assert span(train, source, "--dry_run") == 0
    assert "30 題" in capsys.readouterr().err
    write_rows(source, [*rows, {**rows[0], "answer": "不在這裡"}, {**rows[1], "context": ""}])
    assert span(train, source, "--dry_run") == 2
    err = capsys.readouterr().err
    assert f"{source}:31：答案 '不在這裡' 不在文章裡" in err and f"{source}:32：文章是空的" in err
    assert span(train, source, "--dry_run", "--on_bad_rows", "skip") == 0


def test_data_without_any_answer_are_refused_with_the_way_out(train, tmp_path, capsys):
    source = write_rows(
        tmp_path / "x.csv", [{"context": "天地", "question": "何？", "answer": "", "y": "天"}]
    )
    assert span(train, source, "--dry_run") == 2
    assert "1 題都沒有答案" in (err := capsys.readouterr().err) and "--label_column" in err


def test_a_question_without_room_is_left_out_and_counted(train, tmp_path, capsys):
    rows = make_spans(30)
    rows[4]["question"] = "天" * 70
    assert span(train, write_rows(tmp_path / "x.jsonl", rows), "--dry_run", "--show_examples", 1) == 0
    err = capsys.readouterr().err
    assert "1 列問題太長，放不下文章" in err
    assert "問：" in err and "→" in err
