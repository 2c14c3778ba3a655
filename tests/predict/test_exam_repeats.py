"""--repeat and --audit_keys from the command line: several runs of an exam, and keys that may be wrong."""

from __future__ import annotations

import json
import shutil
import statistics

import pytest
from conftest import make_exam_dir, write_csv

import inference
from finetune.cli.inference_checks import parse_args
from finetune.data.exam import read_exam
from finetune.data.question import LETTERS
from finetune.evaluation.repeats import order_of_run, reordered
from finetune.evaluation.scores import best
from finetune.evaluation.scoring import score_options
from finetune.reports.number_format import percent
from finetune.runtime.errors import UserError

HEADER = ("id", "subject", "question", "A", "B", "C", "D", "answer")


@pytest.fixture
def folders(spread_model_dir, qwen_dir):
    return {"masked": spread_model_dir, "causal": qwen_dir}


@pytest.fixture
def exam(run, tmp_path):
    """Runs --exam on a model; returns (exit code, results.json, stdout, stderr)."""

    def ask(which: str, source, *words) -> tuple[int, dict, str, str]:
        code, out, err = run(which, "--exam", source, "--report", "r", "--skip_option_only", *words)
        assert "Traceback" not in err
        path = tmp_path / "r/results.json"
        return code, json.loads(path.read_text()) if path.exists() else {}, out, err

    return ask


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two questions of each of four subjects: one of each category."""
    return make_exam_dir(tmp_path_factory.mktemp("small"), dev=0, val=0, test=3)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_runs_of_letters_are_those_of_the_shuffled_questions(exam, tmp_path, small, spread_model_dir):
    code, results, out, _ = exam("masked", small, "--scoring", "letter", "--repeat", 4)
    assert code == 0
    found, answers = results["test"], lines(tmp_path / "r/predictions.jsonl")
    questions = read_exam(str(small)).questions["test"]
    model, tokenizer, _ = inference.load_model(spread_model_dir, "cpu")
    for run in range(1, 5):
        orders = [order_of_run(question, run) for question in questions]
        shown = [reordered(question, order) for question, order in zip(questions, orders, strict=True)]
        chosen = [best(row) for row in score_options(model, tokenizer, shown, "letter")]
        expected = [LETTERS[order[place]] for order, place in zip(orders, chosen, strict=True)]
        assert [answer["runs"][run - 1] for answer in answers] == expected
        right = [answer["runs"][run - 1] == answer["gold"] for answer in answers]
        assert found["repeats"]["accuracies"][run - 1] == pytest.approx(statistics.fmean(right))
    assert found["model"]["accuracy"] == pytest.approx(found["repeats"]["mean"])
    assert found["repeats"]["sd"] == pytest.approx(statistics.stdev(found["repeats"]["accuracies"]))
    assert found["repeats"]["changed"] == statistics.fmean(len(set(a["runs"])) > 1 for a in answers) > 0
    assert [a["prediction"] for a in answers] == [a["runs"][0] for a in answers]
    assert "評測 4 次，第 2 次起打亂選項" in results["facts"]["作答方式"] and "標準差" in out
    report, page = (tmp_path / "r/report.md").read_text(), (tmp_path / "r/index.html").read_text()
    for text in (report, page.replace("\u00a0", " ")):
        assert "重複評測" in text and "不是模型能力的不確定程度" in text and "第 1 次（照原順序）" in text
        assert percent(found["repeats"]["mean"]) in text and "四大類平均（macro-4）" in text


def test_a_single_run_is_an_exam_without_repeat(exam, tmp_path, small):
    files = []
    for words in ((), ("--repeat", 1)):
        assert exam("masked", small, "--scoring", "letter", *words)[0] == 0
        files.append(
            [
                (tmp_path / "r" / name).read_bytes()
                for name in ("results.json", "predictions.jsonl", "report.md")
            ]
        )
    assert files[0] == files[1] and b"repeats" not in files[0][0]


def test_replies_are_repeated_too_and_two_models_are_compared_by_their_means(exam, tmp_path, small, qwen_dir):
    shutil.copytree(qwen_dir, tmp_path / "twin")
    words = ("--scoring", "generate", "--max_new_tokens", 4, "--repeat", 2, "--json")
    code, results, *_ = exam("causal", small, *words, "--compare_with", tmp_path / "twin")
    found, answers = results["test"], lines(tmp_path / "r/predictions.jsonl")
    assert code == 0 and found["repeats"]["runs"] == 2 and len(found["repeats"]["unreadable"]) == 2
    for answer in answers:
        assert len(answer["runs"]) == len(answer["replies"]) == 2 and answer["reply"] == answer["replies"][0]
        assert answer["other_runs"] == answer["runs"]
    assert (
        found["paired"]["difference"] == 0 and found["repeats"]["other"]["mean"] == found["model"]["accuracy"]
    )


def test_each_run_samples_anew_and_a_seed_makes_all_runs_the_same_again(exam, tmp_path):
    """By questions whose options may not move: their prompts are the same in every run."""
    rows = [[f"{stem}？", "地", "玄", "黃", "A與B", "A"] for stem in "天日月"]
    source = write_csv(tmp_path / "own.csv", rows)
    words = ("--scoring", "generate", "--repeat", 3, "--do_sample", "--temperature", 3, "--max_new_tokens", 4)
    replies = []
    for seed in (1, 1, 2):
        assert exam("causal", source, *words, "--seed", seed)[0] == 0
        replies.append([answer["replies"] for answer in lines(tmp_path / "r/predictions.jsonl")])
    assert replies[0] == replies[1] != replies[2]
    assert all(len(set(of_question)) == 3 for of_question in replies[0])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--repeat", 3), "不在題目裡列出選項"),  # by its text, as a masked model is scored by default
        (("--repeat", 3, "--scoring", "pll"), "--repeat 3：作答方式 pll"),
        (("--repeat", 3, "--scoring", "letter", "--orders", "cyclic"), "--repeat 3 與 --orders cyclic"),
        (("--audit_keys",), "每題只有一票"),
        (("--audit_keys", "--scoring", "letter", "--orders", "1"), "請加 --orders cyclic 或 --repeat 5"),
    ],
)
def test_runs_that_would_be_the_same_and_audits_by_one_vote_are_refused(exam, small, words, reason):
    code, results, _, err = exam("masked", small, *words)
    assert code == 2 and reason in err and not results


def test_what_the_flags_alone_contradict_is_said_before_a_model_is_looked_for():
    for words in (("--scoring", "pll"), ("--orders", "all")):
        with pytest.raises(UserError, match="--repeat 2"):
            parse_args(["--exam", "nowhere", "--repeat", "2", *words])


def test_repeat_and_audit_need_an_exam(run):
    for words in (("--repeat", 2), ("--audit_keys",)):
        code, _, err = run("masked", "--prompt", "天[MASK]", *words)
        assert code == 2 and f"{words[0]} 要與 --exam 一起給" in err


def test_keys_that_the_votes_contradict_are_listed_and_the_others_are_not(exam, tmp_path, spread_model_dir):
    """The keys are what the model answers, but for every eighth."""
    shutil.copytree(spread_model_dir, tmp_path / "twin")
    asked = read_exam(str(make_exam_dir(tmp_path / "asked", dev=0, val=0, test=6))).questions["test"]
    model, tokenizer, _ = inference.load_model(spread_model_dir, "cpu")
    answers = [best(row) for row in score_options(model, tokenizer, asked, "pll")]
    keys = [LETTERS[(answer + (i % 8 == 3)) % 4] for i, answer in enumerate(answers)]
    rows = [
        [f"第{i}題", q.subject, q.stem, *q.options, key]
        for i, (q, key) in enumerate(zip(asked, keys, strict=True))
    ]
    source = write_csv(tmp_path / "own.csv", rows, HEADER)
    words = ("--scoring", "pll", "--compare_with", tmp_path / "twin", "--audit_keys")
    code, results, out, _ = exam("masked", source, *words)
    listed, summary = lines(tmp_path / "r/doubtful_keys.jsonl"), results["all"]["doubtful_keys"]
    assert code == 0 and {row["id"] for row in listed} == {f"第{i}題" for i in range(3, 24, 8)}
    for row in listed:
        i = int(row["id"][1:-1])
        assert (row["key"], row["alternative"]) == (keys[i], LETTERS[answers[i]])
        assert row["question"] == asked[i].stem and row["subject"] == asked[i].subject
        assert list(row["votes"].values()) == [[LETTERS[answers[i]]]] * 2
    assert summary["listed"] == summary["unanimous"] == 3 and summary["top"] == listed
    assert "答案可能有誤的題目：3 題（3 題每一票都一樣），要由人查證" in out and "1. 第" in out
    report, page = (tmp_path / "r/report.md").read_text(), (tmp_path / "r/index.html").read_text()
    for text in (report, page):
        assert "答案可能有誤的題目" in text and "要由人查證，不能直接改答案" in text
        assert all(row["id"] in text for row in listed)
    assert exam("masked", source, "--scoring", "pll")[0] == 0
    assert not (tmp_path / "r/doubtful_keys.jsonl").exists()  # the former report has gone as a whole


def test_questions_without_a_key_are_answered_as_often(exam, tmp_path):
    rows = [["天？", "地", "玄", "黃", "宇", "A"], ["日？", "月", "盈", "昃", "辰", "-"]]
    source = write_csv(tmp_path / "own.csv", rows)
    assert exam("masked", source, "--scoring", "letter", "--repeat", 3)[0] == 0
    keyed, keyless = lines(tmp_path / "r/predictions.jsonl")
    assert keyless["gold"] is None and len(keyed["runs"]) == len(keyless["runs"]) == 3


def test_an_audit_by_a_model_that_guesses_says_that_its_votes_do_not_count(exam, tmp_path, small):
    code, results, out, _ = exam("masked", small, "--scoring", "letter", "--audit_keys")
    assert code == 0 and results["test"]["doubtful_keys"]["listed"] == 0
    assert (tmp_path / "r/doubtful_keys.jsonl").read_text() == "" and "沒有可信的票" in out
