"""--compare: two files of answers in any of the known layouts, joined by what the questions say."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from itertools import combinations

import pytest
from conftest import ROOT

import inference
from finetune.data.question import LETTERS, Question
from finetune.evaluation.answer_comparison import holm
from finetune.evaluation.answer_layouts import layout_of, read_answer, split_twinkle_question

HAN = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏"
SUBJECTS = ("physics", "taxation", "trade", "geography_of_taiwan")


def make_questions(count: int = 40, seed: int = 0) -> list[Question]:
    rng = random.Random(seed)

    def text(length: int) -> str:
        return "".join(rng.choice(HAN) for _ in range(length))

    return [
        Question(
            f"{text(12)}第{i}題？", tuple(f"{text(6)}{k}" for k in range(4)), rng.randrange(4),
            SUBJECTS[i % 4], f"{SUBJECTS[i % 4]}/test/{i}",
        )
        for i in range(count)
    ]  # fmt: skip


def our_row(question: Question, chosen: int | None, **more) -> dict:
    return {
        "set": "test", "id": question.id, "subject": question.subject, "fingerprint": question.fingerprint,
        "question": question.stem, "options": dict(zip(LETTERS, question.options, strict=False)),
        "gold": LETTERS[question.answer], "prediction": None if chosen is None else LETTERS[chosen],
        "scores": [-1.0] * 4, **more,
    }  # fmt: skip


def lm_eval_row(question: Question, chosen: int, number: int, **more) -> dict:
    """As lm-eval 0.4.13 wrote a row of a multiple-choice task."""
    options = dict(zip(LETTERS, question.options, strict=False))
    prompt = question.stem + "".join(f"\n{letter}. {text}" for letter, text in options.items()) + "\nAnswer:"
    likelihoods = [[str(-11.25 - (place != chosen)), "False"] for place in range(len(options))]
    return {
        "doc_id": number,
        "doc": {
            "question": question.stem, **options, "answer": LETTERS[question.answer],
            "questions": question.stem, "choices": list(question.options), "goal": question.answer,
        },
        "target": LETTERS[question.answer],
        "arguments": {
            f"gen_args_{place}": {"arg_0": prompt, "arg_1": f" {letter}"}
            for place, letter in enumerate(options)
        },
        "resps": [[pair] for pair in likelihoods], "filtered_resps": likelihoods, "filter": "none",
        "metrics": ["acc"], "doc_hash": "b4", "prompt_hash": "37", "target_hash": "6b",
        "acc": float(chosen == question.answer), **more,
    }  # fmt: skip


def twinkle_row(question: Question, chosen: int | None, number: int, order=(2, 0, 3, 1), sample: int = 0):
    """As Twinkle Eval writes an answer; its options were shuffled."""
    shuffled = [question.options[place] for place in order]
    options = "\n".join(f"{letter}: {text}" for letter, text in zip(LETTERS, shuffled, strict=False))
    return {
        "question_id": number, "sample_id": sample, "question": f"{question.stem}\n{options}",
        "correct_answer": LETTERS[order.index(question.answer)], "llm_output": "…",
        "predicted_answer": None if chosen is None else LETTERS[order.index(chosen)],
        "is_correct": chosen == question.answer, "usage_total_tokens": 9,
    }  # fmt: skip


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(questions, share: float, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [q.answer if rng.random() < share else (q.answer + rng.randrange(1, 4)) % 4 for q in questions]


@pytest.fixture
def compare(capsys, monkeypatch, tmp_path):
    """Runs --compare; returns (exit code, the object of --json or None, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = inference.main(["--compare", *map(str, words), "--json"])
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return code, json.loads(seen.out) if seen.out else None, seen.err

    return run


QUESTIONS = make_questions()
FIRST, SECOND = answers(QUESTIONS, 0.8, 1), answers(QUESTIONS, 0.5, 2)


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided sign test, summed up term by term."""
    n, k = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def test_three_layouts_of_the_same_answers_give_the_figures_of_a_plain_count(compare, tmp_path):
    rows = list(zip(QUESTIONS, FIRST, SECOND, strict=True))
    only_first = sum(a == q.answer != b for q, a, b in rows)
    only_second = sum(b == q.answer != a for q, a, b in rows)
    ours = write(tmp_path / "ours/predictions.jsonl", [our_row(q, a) for q, a, _ in rows])
    by_subject = tmp_path / "lm/__model"  # a group writes a file for each subject
    for subject in SUBJECTS:
        write(
            by_subject / f"samples_tmmluplus_{subject}_2026-11-30T08-59-23.058138.jsonl",
            [lm_eval_row(q, b, i) for i, (q, _, b) in enumerate(rows) if q.subject == subject],
        )
    (by_subject / "results_2026-11-30T08-59-23.058138.json").write_text("{}")
    write(
        tmp_path / "results/eval_results_20261130_0859_run0.jsonl",
        [twinkle_row(q, b, i) for i, (q, _, b) in enumerate(rows)],
    )
    for one, other in (
        (ours, tmp_path / "lm"), (ours.parent, tmp_path / "results"), (ours.parent, by_subject),
    ):  # fmt: skip
        code, found, _ = compare(one, other)
        assert code == 0 and found["joined"] == 40 and not found["key_changed"]["n"]
        assert found["first"]["right"] == sum(a == q.answer for q, a, _ in rows)
        assert found["second"]["right"] == sum(b == q.answer for q, _, b in rows)
        pair = found["paired"]
        assert (pair["only_first_right"], pair["only_second_right"]) == (only_first, only_second)
        assert pair["p_value"] == pytest.approx(exact_mcnemar(only_first, only_second))
        assert pair["difference"] == pytest.approx((only_first - only_second) / 40)
        low, high = pair["difference_interval_95"]
        spread = 1.96 * math.sqrt(only_first + only_second - (only_first - only_second) ** 2 / 40) / 40
        assert (high - low) / 2 == pytest.approx(spread, rel=0.1)  # a bootstrap against the normal formula
        assert found["moved"] == {"only_first": only_first, "only_second": only_second}
        for subject in SUBJECTS:  # Twinkle's rows say no subject: it comes from the other file
            of = [(q, a, b) for q, a, b in rows if q.subject == subject]
            gap = sum((a == q.answer) - (b == q.answer) for q, a, b in of) / len(of)
            assert found["subjects"][subject]["difference"] == pytest.approx(gap)
        assert found["macro_4"]["first"]["macro_4"] == pytest.approx(found["first"]["accuracy"])


def test_repeated_answers_count_with_their_mean_and_ties_in_part(compare, tmp_path):
    few = QUESTIONS[:4]
    ours = [our_row(few[0], few[0].answer, tied=[LETTERS[few[0].answer], LETTERS[few[0].answer - 1]])]
    ours += [our_row(q, None, outcome="truncated") for q in few[1:]]
    write(tmp_path / "a.jsonl", ours)
    for run, order in enumerate([(0, 1, 2, 3), (3, 1, 0, 2)]):
        right = [q.answer if run or i < 2 else (q.answer + 1) % 4 for i, q in enumerate(few)]
        write(
            tmp_path / f"results/eval_results_t_run{run}.jsonl",
            [twinkle_row(q, chosen, i, order) for i, (q, chosen) in enumerate(zip(few, right, strict=True))],
        )
    _, found, _ = compare("a.jsonl", "results", "--report", "r")
    assert found["first"]["right"] == 0.5 and found["second"]["right"] == 1 + 1 + 0.5 + 0.5
    assert found["second_file"]["answers"] == 8 and found["joined"] == 4
    assert found["outcomes"]["truncated"] == {"right": 1, "partly": 2, "truncated": 0}
    moved = [json.loads(line) for line in (tmp_path / "r/moved.jsonl").read_text().splitlines()]
    by_question = {row["question"]: row for row in moved}
    wrong, right = LETTERS[(few[2].answer + 1) % 4], LETTERS[few[2].answer]
    assert by_question[few[2].stem]["second"]["prediction"] == [
        wrong,
        right,
    ]  # letters as A's file shows them


def test_keys_that_differ_are_left_out_and_counted_by_either_key(compare, tmp_path):
    changed = [
        Question(q.stem, q.options, (q.answer + 1) % 4, q.subject, q.id) if i < 3 else q
        for i, q in enumerate(QUESTIONS)
    ]
    write(tmp_path / "a.jsonl", [our_row(q, q.answer) for q in QUESTIONS])
    write(tmp_path / "b.jsonl", [our_row(q, old.answer) for q, old in zip(changed, QUESTIONS, strict=True)])
    code, found, _ = compare("a.jsonl", "b.jsonl")
    assert code == 0 and found["joined"] == 37 and found["key_changed"]["n"] == 3
    assert found["key_changed"]["accuracy_by_key_of_first"] == {"first": 1, "second": 1}
    assert found["key_changed"]["accuracy_by_key_of_second"] == {"first": 0, "second": 0}
    assert [row["first"]["id"] for row in found["key_changed"]["questions"]] == [q.id for q in QUESTIONS[:3]]
    assert found["paired"]["p_value"] == 1 and found["first"]["accuracy"] == found["second"]["accuracy"] == 1


def test_rows_of_one_file_alone_are_counted_and_a_question_that_stands_twice_is_matched_in_order(
    compare, tmp_path
):
    q, rest = QUESTIONS[0], QUESTIONS[1:]
    twice = [our_row(q, q.answer, id="one"), our_row(q, (q.answer + 1) % 4, id="two")]
    write(tmp_path / "a.jsonl", [*twice, *(our_row(other, 0) for other in rest[:30])])
    write(
        tmp_path / "samples_x_2026-11-30T08-59-23.0.jsonl",
        [lm_eval_row(q, q.answer, 0), lm_eval_row(q, q.answer, 1)]
        + [lm_eval_row(other, 0, i + 2) for i, other in enumerate(rest[20:])],
    )
    _, found, _ = compare("a.jsonl", "samples_x_2026-11-30T08-59-23.0.jsonl")
    assert found["joined"] == 12 and found["repeated_questions"] == 2
    assert (found["only_first"]["n"], found["only_second"]["n"]) == (20, 9)
    assert found["only_first"]["ids"] == [other.id for other in rest[:20]]
    assert found["moved"] == {"only_second": 1}


def test_old_files_of_ours_are_joined_by_id_and_with_others_ask_for_a_new_evaluation(compare, tmp_path):
    new = ("fingerprint", "question", "options")

    def old(question, chosen):
        return {key: value for key, value in our_row(question, chosen).items() if key not in new}

    pairs = list(zip(QUESTIONS, FIRST, SECOND, strict=True))
    write(tmp_path / "a.jsonl", [old(q, a) for q, a, _ in pairs])
    write(tmp_path / "b.jsonl", [our_row(q, b) for q, _, b in reversed(pairs)])
    code, found, _ = compare("a.jsonl", "b.jsonl")
    assert code == 0 and found["joined_by"] == "id" and found["joined"] == 40
    assert found["second"]["right"] == sum(b == q.answer for q, _, b in pairs)
    write(tmp_path / "c.jsonl", [twinkle_row(q, b, i) for i, (q, _, b) in enumerate(pairs)])
    code, _, err = compare("a.jsonl", "c.jsonl")
    assert code == 2 and "a.jsonl" in err and "--exam" in err
    other = [Question(q.stem, q.options, (q.answer + 1) % 4, q.subject, q.id) for q in QUESTIONS]
    write(tmp_path / "d.jsonl", [our_row(q, 0) for q in other])
    assert compare("a.jsonl", "d.jsonl")[0] == 2  # the same ids, another exam


def test_several_sets_are_compared_by_the_most_trustworthy_or_the_one_asked_for(compare, tmp_path):
    for name, chosen in (("a", FIRST), ("b", SECOND)):
        rows = [our_row(q, c) for q, c in zip(QUESTIONS, chosen, strict=True)]
        for row in rows[:10]:
            row["set"] = "validation"
        write(tmp_path / f"{name}.jsonl", rows)
    _, found, _ = compare("a.jsonl", "b.jsonl")
    assert found["joined"] == 30 and found["sets_left_out"] == {"validation": 20}
    assert compare("a.jsonl", "b.jsonl", "--split", "validation")[1]["joined"] == 10
    assert compare("a.jsonl", "b.jsonl", "--split", "all")[1]["joined"] == 40
    code, _, err = compare("a.jsonl", "b.jsonl", "--split", "train")
    assert code == 2 and "--split train" in err
    write(tmp_path / "c.jsonl", [our_row(q, 0, set="train") for q in QUESTIONS])
    code, _, err = compare("a.jsonl", "c.jsonl", "--split", "train")
    assert code == 2 and "沒有共同的題目" in err


def test_a_killed_run_a_bom_and_figures_that_are_no_numbers_are_read_as_far_as_they_go(compare, tmp_path):
    rows = [lm_eval_row(q, a, i) for i, (q, a) in enumerate(zip(QUESTIONS, FIRST, strict=True))]
    rows[0] |= {"acc": math.nan, "filtered_resps": [["nan", "False"]] * 4}
    path = write(tmp_path / "samples_x_2026-11-30T08-59-23.1.jsonl", rows)
    text = "\ufeff" + path.read_text(encoding="utf-8")
    path.write_text(text[: text.rindex('"doc_hash"')], encoding="utf-8")
    write(tmp_path / "b.jsonl", [our_row(q, b) for q, b in zip(QUESTIONS, SECOND, strict=True)])
    code, found, _ = compare(path, "b.jsonl")
    assert code == 0 and found["joined"] == 39 and len(found["first_file"]["unreadable_rows"]) == 1
    right = sum(a == q.answer for q, a in list(zip(QUESTIONS, FIRST, strict=True))[1:39])
    assert found["first"]["right"] == right and sum(found["outcomes"]["unreadable"].values()) == 1


def test_each_filter_of_lm_eval_counts_a_reply_again_and_only_the_first_is_taken(compare, tmp_path):
    def generated(question, chosen, number, name):
        row = lm_eval_row(question, chosen, number, filter=name, metrics=["exact_match"])
        row |= {"filtered_resps": [LETTERS[chosen]], "resps": [[f"答案是 {LETTERS[chosen]}"]]}
        return {key: value for key, value in row.items() if key != "acc"} | {
            "exact_match": float(chosen == question.answer)
        }

    pairs = list(zip(QUESTIONS, FIRST, SECOND, strict=True))
    strict = [generated(q, a, i, "strict-match") for i, (q, a, _) in enumerate(pairs)]
    flexible = [generated(q, b, i, "flexible-extract") for i, (q, _, b) in enumerate(pairs)]
    write(tmp_path / "a.jsonl", [*strict, *flexible])
    write(tmp_path / "b.jsonl", [our_row(q, a) for q, a, _ in pairs])
    _, found, _ = compare("a.jsonl", "b.jsonl")
    assert found["first_file"]["answers"] == 40 and found["moved"] == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "沒有這個檔案或資料夾"),
        ("", "空的檔案"),
        ('{"text": "x", "label": 1}\n', "認得的有"),
        ("\x00\x01\x02", "--compare"),
        (json.dumps(our_row(make_questions(1, seed=9)[0], 0)) + "\n", "沒有共同的題目"),
    ],
    ids=["missing", "empty", "labels", "binary", "another exam"],
)
def test_what_cannot_be_compared_is_refused_with_the_file_and_the_way_out(compare, tmp_path, content, said):
    write(tmp_path / "a.jsonl", [our_row(q, 0) for q in QUESTIONS])
    if content is not None:
        (tmp_path / "b.jsonl").write_text(content)
    code, found, err = compare("a.jsonl", "b.jsonl")
    assert code == 2 and found is None and said in err and "b.jsonl" in err


def test_a_folder_must_hold_one_candidate(compare, tmp_path):
    one = write(tmp_path / "a/predictions.jsonl", [our_row(q, 0) for q in QUESTIONS])
    write(tmp_path / "runs/x/predictions.jsonl", [our_row(q, 1) for q in QUESTIONS])
    assert compare(one, "runs")[0] == 0
    write(tmp_path / "runs/y/predictions.jsonl", [our_row(q, 1) for q in QUESTIONS])
    code, _, err = compare(one, "runs")
    assert code == 2 and "x/predictions.jsonl" in err and "y/predictions.jsonl" in err
    for day in ("29", "30"):
        write(
            tmp_path / f"lm/samples_physics_2026-11-{day}T08-59-23.1.jsonl", [lm_eval_row(QUESTIONS[0], 0, 0)]
        )
    code, _, err = compare(one, "lm")
    assert code == 2 and "physics" in err
    assert compare(one, tmp_path / "a")[0] == 2  # the same answers
    (tmp_path / "empty").mkdir()
    assert compare(one, "empty")[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compare", "a"], "剛好兩份"),
        (["--compare", "a", "b", "c"], "剛好兩份"),
        (["--compare", "a", "b", "--exam", "demo"], "一次只能做一件"),
        (["--compare", "a", "b", "--prompt", "x"], "一次只能做一件"),
        (["--report", "r"], "--compare"),
    ],
)
def test_flags_that_do_not_fit_are_refused(words, said, capsys):
    assert inference.main(words) == 2
    assert said in capsys.readouterr().err


def test_texts_from_outside_are_escaped_on_the_page_and_on_the_screen(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = "<script>alert(1)</script>\x1b[31m|`x`"
    question = Question(f"題{bad}", (f"甲{bad}", "乙", "丙", "丁"), 0, f"科{bad}", f"id{bad}")
    write(tmp_path / "a.jsonl", [our_row(question, 0)])
    write(tmp_path / "b.jsonl", [our_row(question, 1, outcome=bad), our_row(QUESTIONS[0], 0, id=f"i{bad}")])
    assert inference.main(["--compare", "a.jsonl", "b.jsonl", "--report", "r"]) == 0
    seen = capsys.readouterr()
    assert "\x1b" not in seen.out + seen.err and "id<script>" not in seen.err
    page, text = ((tmp_path / "r" / name).read_text() for name in ("index.html", "report.md"))
    assert "<script" not in page and "&lt;script&gt;" in page and "<script" not in text
    assert {path.name for path in (tmp_path / "r").iterdir()} >= {"compare.json", "moved.jsonl"}
    assert (
        inference.main(["--compare", "b.jsonl", "a.jsonl", "--report", "r"]) == 0
    )  # replaces its own report
    (tmp_path / "other").mkdir()
    (tmp_path / "other/index.html").write_text("mine")
    assert inference.main(["--compare", "a.jsonl", "b.jsonl", "--report", "other"]) == 2
    assert (tmp_path / "other/index.html").read_text() == "mine"


def test_the_screen_says_who_is_better_or_that_nobody_can_tell(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    many = make_questions(200, seed=5)
    for name, share in (("a", 0.9), ("b", 0.4), ("c", 0.41)):
        chosen = answers(many, share, seed=ord(name))
        write(tmp_path / f"{name}.jsonl", [our_row(q, c) for q, c in zip(many, chosen, strict=True)])
    assert inference.main(["--compare", "b.jsonl", "a.jsonl"]) == 0
    assert "乙高於甲" in capsys.readouterr().out
    assert inference.main(["--compare", "b.jsonl", "c.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "分不出高下" in out and "Holm" in out


def test_an_exam_writes_what_a_comparison_needs(compare, capsys, model_dir, exam_dir):
    for folder, scoring in (("one", "letter"), ("two", "pll")):
        words = ["--exam", exam_dir, "--exam_limit", 8, "--skip_option_only", "--scoring", scoring]
        words += ["--report", folder, "--model_path", model_dir, "--cpu"]
        assert inference.main(list(map(str, words))) == 0
    rights = [json.loads(open(f"{folder}/results.json").read())["test"]["model"] for folder in ("one", "two")]
    capsys.readouterr()
    _, found, _ = compare("one", "two")
    assert found["joined_by"] == "fingerprint" and found["joined"] == 8
    assert [found["first"]["right"], found["second"]["right"]] == pytest.approx([r["right"] for r in rights])


ODD = (None, 5, -1, 1e308, True, "", "Z", "AB", "A", [], [None], [["x"]], [[[]]], {}, {"A": None}, {"x": [1]})


def odd_rows(row: dict) -> list[dict]:
    """The row with each value in it replaced by each odd one, at the top and one level below."""
    rows = [{**row, key: odd} for key in row for odd in ODD]
    for key, inner in row.items():
        if isinstance(inner, dict):
            rows += [{**row, key: {**inner, name: odd}} for name in inner for odd in ODD]
        if isinstance(inner, list):
            rows += [{**row, key: [odd, *inner[1:]]} for odd in ODD]
    return rows


def test_whatever_stands_in_a_row_it_is_read_or_refused_with_a_reason():
    question = QUESTIONS[0]
    whole = [
        our_row(question, 0, tied=["A", "B"], runs=["A", None], outcome="answered"),
        lm_eval_row(question, 0, 0),
        {**lm_eval_row(question, 0, 0), "arguments": [["p", " A"], ["p", " B"]]},
        {**lm_eval_row(question, 0, 0), "filtered_resps": ["A"]},
        twinkle_row(question, 0, 0),
    ]
    for row in whole:
        for odd in odd_rows(row):
            if not (layout := layout_of(odd)):
                continue
            try:
                answer = read_answer(odd, layout, "physics")
            except ValueError as error:
                assert str(error)
            else:
                assert 0 <= answer.credit <= 1 and answer.chosen


def test_holm_is_the_closed_test_of_bonferroni():
    """By the closure principle: the largest Bonferroni p-value over all sets that hold the hypothesis."""
    rng = random.Random(3)
    for _ in range(20):
        p = {str(i): rng.random() ** 3 for i in range(5)}
        for name, adjusted in holm(p).items():
            sets = [s for size in range(1, 6) for s in combinations(p, size) if name in s]
            closed = max(min(1.0, len(s) * min(p[one] for one in s)) for s in sets)
            assert adjusted == pytest.approx(closed)


@pytest.mark.parametrize(
    ("text", "stem", "options", "columns"),
    [
        ("題\nA: 甲\nB: 乙", "題", ("甲", "乙"), {}),
        ("A: 你好\nB: 嗨\n接什麼？\nA: 甲\nB: 乙\nC: 丙", "A: 你好\nB: 嗨\n接什麼？", ("甲", "乙", "丙"), {}),
        ("說\nA: 你好\nB: 嗨\n接\nA: 甲\nB: 乙\nC: 丙", "說\nA: 你好\nB: 嗨\n接", ("甲", "乙", "丙"), {}),
        ("題\nid: 7\nA: 一\n二\nB: 乙\nsubject: x", "題", ("一\n二", "乙"), {"id": "7", "subject": "x"}),
        ("題\nA: 甲\nB: 乙\nC: 丙\nD: 丁\nE: None", "題", ("甲", "乙", "丙", "丁"), {}),
        ("題\nA: 甲\nB: None", "題", ("甲", "None"), {}),
    ],
)
def test_the_text_of_a_question_of_twinkle_is_split_as_it_was_joined(text, stem, options, columns):
    assert split_twinkle_question(text) == (stem, options, columns)


@pytest.mark.slow
def test_comparing_loads_no_torch_and_takes_little_time(tmp_path):
    for name, chosen in (("a", FIRST), ("b", SECOND)):
        write(tmp_path / f"{name}.jsonl", [our_row(q, c) for q, c in zip(QUESTIONS, chosen, strict=True)])
    code = (
        "import sys, inference; code = inference.main(['--compare', 'a.jsonl', 'b.jsonl']);"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, timeout=60
    )
    assert done.returncode == 0
