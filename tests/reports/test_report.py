"""Figures against scikit-learn and statsmodels; the curve, the cards, the files a run leaves."""

from __future__ import annotations

import json
import random

import pytest
import sklearn.metrics
import statsmodels.stats.contingency_tables
import statsmodels.stats.proportion
from conftest import losses

import inference
from finetune.data.exam import read_exam
from finetune.data.question import Question
from finetune.data.subjects import category_of
from finetune.evaluation import metrics
from finetune.models.run_card import RunCard
from finetune.reports.plots import LABELS, chinese_font, plot_curve

pytestmark = pytest.mark.pictures

MODEL = "my_bert_finetuned_model_hf_format"


def answered(count=300, subjects=("physics", "taxation", "trade", "education_(profession_level)"), seed=0):
    rng = random.Random(seed)
    questions = [
        Question(f"q{i}", tuple("abcd"[: rng.randint(2, 4)]), rng.randrange(2), rng.choice(subjects), str(i))
        for i in range(count)
    ]
    return questions, [rng.randrange(2) for _ in questions], [rng.randrange(2) for _ in questions]


def test_accuracy_and_its_interval_are_those_of_scikit_learn_and_statsmodels():
    questions, predictions, _ = answered()
    found = metrics.accuracy(questions, predictions)
    assert found["accuracy"] == pytest.approx(
        sklearn.metrics.accuracy_score([q.answer for q in questions], predictions), abs=1e-12
    )
    expected = statsmodels.stats.proportion.proportion_confint(found["right"], found["n"], method="wilson")
    assert found["interval_95"] == pytest.approx(expected, abs=1e-9)
    assert found["chance"] == pytest.approx(sum(1 / len(q.options) for q in questions) / len(questions))


def test_baselines_are_what_one_scores_without_reading():
    rows = [("a", "bb", 0), ("aa", "b", 0), ("a", "b", 1), ("a", "b", 0)]
    questions = [Question("q", (first, second), answer) for first, second, answer in rows]
    found = metrics.accuracy(questions, [0, 1, 1, 1])
    assert (found["majority_letter_is"], found["majority_letter"]) == ("A", 0.75)
    assert found["longest_option"] == 0.5  # the first of equals


def test_mcnemar_is_that_of_statsmodels():
    questions, first, second = answered(seed=3)
    table = [[0, 0], [0, 0]]
    for q, a, b in zip(questions, first, second, strict=True):
        table[a != q.answer][b != q.answer] += 1
    expected = statsmodels.stats.contingency_tables.mcnemar(table, exact=True)
    assert metrics.mcnemar(questions, first, second)["p_value"] == pytest.approx(expected.pvalue, abs=1e-9)
    assert metrics.mcnemar(questions, first, first)["p_value"] == 1.0


def test_macro_4_is_the_mean_of_category_means_of_subject_means():
    questions, predictions, _ = answered(subjects=("physics", "taxation", "trade", "music", "education"))
    found = metrics.macro_4(metrics.by_subject(questions, predictions))
    means = {}
    for subject in {q.subject for q in questions}:
        hits = [q.answer == p for q, p in zip(questions, predictions, strict=True) if q.subject == subject]
        means.setdefault(category_of(subject), []).append(sum(hits) / len(hits))
    expected = sum(sum(values) / len(values) for values in means.values()) / 4
    assert found["macro_4"] == pytest.approx(expected, abs=1e-12)
    some = [q for q in questions if q.subject != "physics"]
    assert (
        metrics.macro_4(metrics.by_subject(some, [0] * len(some))) is None
    )  # without STEM it would be another figure


@pytest.mark.slow
def test_a_run_leaves_all_its_files_and_the_figures_agree(train, tmp_path, exam_dir):
    assert train("--max_steps", 3) == 0
    model = tmp_path / MODEL
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
        "run_card.json",
        "README.md",
        "all_results.json",
    ):
        assert (model / name).stat().st_size > 0, name
    for name in ("test_qa_data.json", "train_log.jsonl", "validation_loss_curve.png", "report/report.md"):
        assert (tmp_path / name).stat().st_size > 0, name
    results = json.loads((model / "all_results.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "report/predictions.jsonl").read_text().splitlines()]
    test = [r for r in records if r["set"] == "test"]
    assert len(test) == results["test_questions"] == 40
    assert sum(r["gold"] == r["prediction"] for r in test) / 40 == results["test_accuracy"]
    assert sum(r["gold"] == r["untuned_prediction"] for r in test) / 40 == results["untuned_test_accuracy"]
    assert results["train_runtime"] > 0 and len(losses(tmp_path)) == 3
    handed = json.loads((tmp_path / "test_qa_data.json").read_text())
    assert {row["id"] for row in handed} == {r["id"] for r in test}
    assert all(row["options"][row["answer"]] == row["answer_text"] for row in handed)


@pytest.mark.slow
def test_what_is_reported_is_what_inference_answers(train, tmp_path):
    assert train("--max_steps", 3, "--objective", "mlm") == 0
    model, tokenizer, device = inference.load_model(tmp_path / MODEL, "cpu")
    records = {
        r["id"]: r for r in map(json.loads, (tmp_path / "report/predictions.jsonl").read_text().splitlines())
    }
    for row in json.loads((tmp_path / "test_qa_data.json").read_text()):
        ranked = inference.qa_inference(model, tokenizer, row["question"], row["options"], device, top_k=4)
        assert sorted(records[row["id"]]["scores"], reverse=True) == pytest.approx(
            [score for *_, score in ranked], abs=1e-4
        )


@pytest.mark.slow
def test_the_run_card_keeps_the_fingerprints_of_what_was_fitted_on(train, tmp_path, exam_dir):
    assert train("--max_steps", 1, "--exam_limit", 2) == 0
    card = RunCard.read(tmp_path / MODEL)
    exam = read_exam(str(exam_dir))
    pool = {q.fingerprint for split in ("train", "validation") for q in exam.questions[split]}
    test = {q.fingerprint for q in exam.questions["test"]}
    assert card.fingerprints and set(card.fingerprints) <= pool and not test & set(card.fingerprints)


@pytest.mark.slow
def test_a_pool_with_test_rows_says_everywhere_that_it_is_not_comparable(train, tmp_path, capsys):
    assert train("--max_steps", 1, "--pool", "all") == 0
    assert "不可與公布的 TMMLU+ 成績比較" in capsys.readouterr().out
    assert "不可與公布的 TMMLU+ 成績比較" in (tmp_path / MODEL / "README.md").read_text()
    assert "不可與公布的 TMMLU+ 成績比較" in (tmp_path / "report/report.md").read_text()
    assert RunCard.read(tmp_path / MODEL).pool == "all"


@pytest.mark.parametrize(
    "spoil", [{"format": 99}, {"scoring": "exec"}, {"template": []}, {"max_length": "x"}]
)
def test_a_run_card_that_makes_no_sense_is_refused(tmp_path, spoil, capsys):
    from finetune.runtime.errors import UserError

    RunCard().write(tmp_path)
    card = json.loads((tmp_path / "run_card.json").read_text())
    assert RunCard.read(tmp_path).scoring == "pll"
    (tmp_path / "run_card.json").write_text(json.dumps(card | spoil))
    with pytest.raises(UserError, match="run_card.json"):
        RunCard.read(tmp_path)


def test_the_labels_of_the_curve_are_chinese_with_every_glyph_there(tmp_path, recwarn):
    assert chinese_font("".join(chinese for chinese, _ in LABELS.values()))
    assert chinese_font("\U0010fffd") is None  # no font has it: English labels then
    history = [
        {"step": s, "train_loss": 3 / s, "validation_loss": 4 / s, "validation_accuracy": 1 - 1 / s}
        for s in range(1, 9)
    ]
    for rows in (history, history[:1], [{"step": 1, "train_loss": 2.0}]):
        plot_curve(tmp_path / "curve.png", rows, best_step=5)
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
