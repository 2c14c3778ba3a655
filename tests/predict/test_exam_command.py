"""An exam from the command line, and the gates that any honest examiner must pass."""

from __future__ import annotations

import json
import random
import statistics

import pytest
from conftest import SUBJECTS, make_exam_dir, random_text, write_csv
from forked import run_ranks

import inference
from finetune.data.exam import read_exam
from finetune.data.question import LETTERS, Question
from finetune.evaluation.scores import best
from finetune.models.run_card import RunCard
from finetune.predict.predictor import MaskedLMPredictor
from finetune.prompts.scoring_methods import TEXT

MODEL = "my_bert_finetuned_model_hf_format"


@pytest.fixture
def run_exam(tmp_path, model_dir, monkeypatch, capsys):
    """Runs --exam in a folder of its own; returns (exit code, results.json, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(source, *more, model=model_dir):
        words = ["--model_path", model, "--cpu", "--exam", source, "--report", "r", *more]
        code = inference.main(list(map(str, words)))
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        path = tmp_path / "r/results.json"
        return code, json.loads(path.read_text()) if path.exists() else {}, seen.out, seen.err

    return run


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "r/predictions.jsonl").read_text().splitlines()]


def test_an_exam_leaves_answers_figures_and_a_report_that_agree(run_exam, tmp_path, exam_dir):
    code, results, out, _ = run_exam(exam_dir, "--scoring", "letter", "--compare_with", exam_model(tmp_path))
    found, answers = results["test"], records(tmp_path)
    assert code == 0 and "正式測驗 40 題" in out
    for name in ("results.json", "predictions.jsonl", "report.md", "index.html"):
        assert (tmp_path / "r" / name).stat().st_size > 0
    questions = read_exam(str(exam_dir)).questions["test"]
    assert [a["id"] for a in answers] == [q.id for q in questions]
    assert [a["gold"] for a in answers] == [LETTERS[q.answer] for q in questions]
    right = [a["gold"] == a["prediction"] for a in answers]
    assert found["model"]["accuracy"] == pytest.approx(statistics.fmean(right))
    assert found["other"]["right"] == sum(a["gold"] == a["other_prediction"] for a in answers)
    assert found["order_bias"]["flips"] == pytest.approx(
        statistics.fmean(a["flips"] for a in answers if "flips" in a)
    )
    for answer in answers:
        assert max(answer["scores"]) == answer["scores"][LETTERS.index(answer["prediction"])]
        assert len(answer["answers_by_order"]) in (1, 3, 4) or "flips" not in answer
    assert {"n", "accuracy", "interval_95", "chance", "majority_letter", "longest_option"} <= found[
        "model"
    ].keys()
    assert found["option_only"]["n"] == 40 and found["calibration"]["fitted_on"] == 52
    assert found["paired"]["p_value"] <= 1 and len(found["subjects"]) == len(SUBJECTS)


def exam_model(tmp_path):
    from conftest import make_model_dir

    return make_model_dir(tmp_path / "second", hidden_size=16)


def test_an_own_file_is_an_exam_too_and_its_splits_are_named_when_one_is_missing(
    run_exam, tmp_path, exam_dir
):
    rows = [["天？", "地", "玄", "黃", "宇", "A"], ["日？", "月", "盈", "昃", "辰", "B"]]
    code, results, *_ = run_exam(write_csv(tmp_path / "own.csv", rows))
    assert code == 0 and results["all"]["model"]["n"] == 2
    only = make_exam_dir(tmp_path / "only", dev=2, val=0, test=0)
    code, _, _, err = run_exam(only)
    assert code == 2 and "有的是 train（8 題）" in err
    code, results, _, err = run_exam(write_csv(tmp_path / "own_val.csv", rows))
    assert code == 0 and results["validation"]["model"]["n"] == 2 and "只有 validation 這一部分" in err
    assert run_exam(exam_dir, "--subjects", "phisics")[0] == 2
    assert run_exam(tmp_path / "gone")[0] == 2
    assert run_exam(exam_dir, "--compare_with", "base")[0] == 2  # the tiny model has no run card


def test_bad_rows_stop_an_exam_or_are_left_out_and_said(run_exam, tmp_path):
    rows = [["天？", "地", "玄", "黃", "宇", "A"], ["日？", "月", "盈", "昃", "辰", "Z"]]
    source = write_csv(tmp_path / "own.csv", rows)
    assert run_exam(source)[0] == 2
    code, results, out, _ = run_exam(source, "--on_bad_rows", "skip")
    assert code == 0 and results["all"]["model"]["n"] == 1 and "1 列無法讀取" in out


def test_subjects_that_are_not_there_are_refused_whatever_the_source(run_exam, tmp_path):
    code, _, _, err = run_exam("demo", "--subjects", "數學")
    assert code == 2 and "有的是：" in err and "首都" in err
    code, results, *_ = run_exam("demo", "--subjects", "首都", "--skip_option_only")
    assert code == 0 and list(results["test"]["subjects"]) == ["首都"]
    source = write_csv(tmp_path / "own.csv", [["天？", "地", "玄", "黃", "宇", "A"]])
    code, _, _, err = run_exam(source, "--subjects", "數學")
    assert code == 2 and "沒有註明科目" in err


def test_files_of_a_folder_that_are_no_split_are_named_and_an_earlier_report_is_not_replaced_silently(
    run_exam, tmp_path
):
    folder = make_exam_dir(tmp_path / "mixed", dev=2, val=2, test=2)
    write_csv(folder / "notes.csv", [["天？", "地", "玄", "黃", "宇", "A"]])
    _, results, _, err = run_exam(folder)
    assert "略過 notes.csv" in err and results["test"]["model"]["n"] == 8 and "換掉" not in err
    assert "換掉 r 裡先前的報告" in run_exam(folder)[3]


def test_a_prior_is_used_in_the_order_as_written_where_it_does_not_cancel(run_exam, exam_dir):
    _, plain, *_ = run_exam(exam_dir, "--scoring", "letter", "--orders", "1")
    _, mended, *_ = run_exam(exam_dir, "--scoring", "prior")
    assert mended["test"]["orders"] == "1" and mended["test"]["method"] == "letter+prior"
    assert sum(mended["test"]["prior"]["ABCD"]) == pytest.approx(1) and not plain["test"]["prior"]


def test_two_models_are_compared_by_one_method_and_the_options_alone_in_the_same_orders(
    run_exam, train, tmp_path, exam_dir, monkeypatch
):
    from finetune.evaluation import evaluator
    from finetune.predict import exam as exam_command

    assert train("--objective", "answer", "--max_steps", 1, "--exam_limit", 2) == 0
    asked = []
    evaluate = evaluator.run_exam
    monkeypatch.setattr(exam_command, "run_exam", lambda *a: asked.append((a[2], a[3])) or evaluate(*a))
    code, *_ = run_exam(exam_dir, "--compare_with", exam_model(tmp_path), model=tmp_path / MODEL)
    assert code == 0 and asked == [("letter", "cyclic")] * 4


def test_questions_that_were_shortened_are_counted(run_exam, tmp_path):
    rows = [["天" * 300, "地", "玄", "黃", "宇", "A"], ["日？", "月", "盈", "昃", "辰", "B"]]
    _, results, out, _ = run_exam(write_csv(tmp_path / "own.csv", rows))
    assert results["all"]["shortened"] == 1 and "1 題太長，縮短了題幹的中段" in out


def test_json_is_one_object_on_stdout(run_exam, exam_dir):
    code, results, out, _ = run_exam(exam_dir, "--json", "--exam_limit", "10")
    assert code == 0 and json.loads(out)["test"] == results["test"]


@pytest.mark.slow
def test_two_processes_hold_the_same_exam(run_exam, tmp_path, model_dir, exam_dir):
    from conftest import ROOT

    _, alone, *_ = run_exam(exam_dir, "--scoring", "letter")
    words = ["--model_path", model_dir, "--cpu", "--exam", exam_dir, "--scoring", "letter", "--report", "two"]
    done = run_ranks(tmp_path, ROOT / "inference.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("正式測驗 40 題") == 1
    together = json.loads((tmp_path / "two/results.json").read_text())
    assert together["test"]["model"] == alone["test"]["model"]


@pytest.mark.slow
def test_the_base_of_a_model_trained_from_scratch_is_made_again(train, tmp_path, exam_dir, capsys):
    assert train("--max_steps", 2, "--from_scratch", "--seed", 7, "--objective", "mlm") == 0
    after = json.loads((tmp_path / "report/results.json").read_text())
    words = ["--model_path", MODEL, "--cpu", "--exam", str(exam_dir), "--compare_with", "base"]
    assert inference.main([*words, "--report", "r", "--skip_option_only"]) == 0
    now = json.loads((tmp_path / "r/results.json").read_text())
    for name in ("model", "other", "paired"):
        assert now["test"][name] == after["test"][name]
    assert "微調前" in capsys.readouterr().out
    known, exam = set(RunCard.read(MODEL).fingerprints), read_exam(str(exam_dir))
    apart = [
        q for name in ("train", "validation") for q in exam.questions[name] if q.fingerprint not in known
    ]
    assert 0 < now["test"]["calibration"]["fitted_on"] == len(apart) < 52


# ---- the gates ---------------------------------------------------------------------------------------------


def balanced(count: int, seed=3) -> list[Question]:
    rng = random.Random(seed)

    def one(number: int) -> Question:
        options = tuple(random_text(rng, 2, 4) for _ in range(4))
        return Question(random_text(rng, 8, 30), options, number % 4, "physics", str(number))

    return [one(number) for number in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["letter", "letter+prior", "joint+pmi", *TEXT])
def test_an_untrained_model_scores_a_quarter_on_balanced_questions(loaded, method):
    predictor, questions = MaskedLMPredictor.of(*loaded), balanced(1000)
    scores = predictor.score(questions, method, "1")
    right = statistics.fmean(best(row) == q.answer for row, q in zip(scores, questions, strict=True))
    assert 0.22 <= right <= 0.28


CUES = {"天": "玄黃", "地": "宇宙", "日": "洪荒", "月": "盈昃"}  # what the exam asks for, and its answer


def learnable(folder, shuffled: bool, count=480):
    """Questions with a cue among noise that has one answer; `shuffled` keys have nothing to learn."""
    rng = random.Random(8)
    for split, size in (("dev", count), ("val", 60), ("test", 400)):
        rows = []
        for _ in range(size):
            cue, noise = rng.choice(list(CUES)), rng.sample("寒來暑往秋收冬藏閏餘成歲", 5)
            noise.insert(rng.randrange(6), cue)
            options = rng.sample(list(CUES.values()), 4)
            right = options.index(CUES[cue])
            key = "ABCD"[rng.randrange(4) if shuffled and split != "test" else right]
            rows.append(["".join(noise) + "？", *options, key])
        write_csv(folder / f"physics_{split}.csv", rows)
    return folder


LEARN = ["--objective", "mlm", "--learning_rate", "3e-3", "--num_epochs", "30", "--max_length", "64"]


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_what_can_be_learnt_is_and_shuffled_keys_give_chance_on_unseen_questions(train, tmp_path, shuffled):
    source = learnable(tmp_path / "exam", shuffled)
    assert train("--dataset", source, *LEARN, "--early_stopping_patience", 0) == 0
    found = json.loads((tmp_path / "report/results.json").read_text())["test"]["model"]
    if shuffled:
        assert 0.19 <= found["accuracy"] <= 0.31 and found["n"] == 400
    else:
        assert found["accuracy"] > 0.9


@pytest.mark.slow
def test_64_questions_can_be_learnt_by_heart(train, tmp_path, monkeypatch):
    rows = [[q.stem, *q.options, LETTERS[q.answer]] for q in balanced(64, seed=11)]
    source = write_csv(tmp_path / "q/physics_dev.csv", rows).parent
    words = ["--dataset", source, "--split_ratio", "1,0,0", "--num_epochs", 60, "--learning_rate", "5e-3"]
    assert train(*words, "--objective", "mlm", "--max_length", 64, "--train_batch_size", 16) == 0
    argv = ["--model_path", MODEL, "--cpu", "--exam", source, "--split", "train", "--report", "r"]
    assert inference.main(list(map(str, argv))) == 0
    found = json.loads((tmp_path / "r/results.json").read_text())["train"]
    assert found["model"]["accuracy"] == 1.0 and found["model"]["n"] == 64
    assert found["contamination"]["same"] == 64 and found["contamination"]["without"] == {}


def test_questions_without_an_answer_are_answered_counted_and_not_scored(run_exam, tmp_path, model_dir):
    from conftest import random_text

    rng = random.Random(5)
    rows = [[f"{random_text(rng, 3, 9)}？", *(random_text(rng, 1, 3) for _ in "ABCD"), "A"] for _ in range(6)]
    header = ("question", "A", "B", "C", "D", "answer")
    write_csv(tmp_path / "e/x_dev.csv", rows, header)
    write_csv(tmp_path / "e/x_test.csv", [row[:-1] for row in rows[:4]], header[:-1])
    code, results, _, err = run_exam(tmp_path / "e")
    answers = records(tmp_path)
    assert code == 0 and {*results} == {"facts", "notes"} and "4 題都沒有答案：作答了，不計分" in err
    assert [(a["gold"], a["prediction"] in "ABCD", a["set"]) for a in answers] == [
        (None, True, "unscored")
    ] * 4
    write_csv(tmp_path / "e/x_test.csv", [*rows[:2], [*rows[2][:-1], "-"]], header)
    code, results, out, _ = run_exam(tmp_path / "e", "--skip_option_only")
    assert code == 0 and results["test"]["model"]["n"] == 2 and "另有 1 題沒有答案" in out
    assert [a["gold"] for a in records(tmp_path)] == ["A", "A", None]
