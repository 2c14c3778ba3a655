"""--revisions: two revisions of a hub's exam, what changed, and the scores on what they share."""

from __future__ import annotations

import json

import pytest
from conftest import random_text, write_csv
from loopback_hub import LoopbackHub, commit_of, use_in_process

import inference
from finetune.data.question import LETTERS
from finetune.evaluation import metrics

SUBJECTS = ("physics", "taxation", "trade", "education")
REVISIONS = ("--revisions", "v1.0", "v1.1")


def rows_of(subject: str, count: int, seed: int) -> list[list[str]]:
    import random

    rng = random.Random(f"{subject}{seed}")
    return [
        [random_text(rng, 20, 30), *(random_text(rng, 5, 9) for _ in range(4)), rng.choice("ABCD")]
        for _ in range(count)
    ]


def other_letter(letter: str) -> str:
    return LETTERS[(LETTERS.index(letter) + 1) % 4]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two revisions: of each subject the second has 3 other keys, 2 other stems, 1 row less and 1 more."""
    root = tmp_path_factory.mktemp("revisions")
    shared = []
    for subject in SUBJECTS:
        old = rows_of(subject, 12, 0)
        new = [[*row[:5], other_letter(row[5])] if n < 3 else list(row) for n, row in enumerate(old)]
        for row in new[3:5]:
            row[0] += "改"
        new = new[:11] + rows_of(subject, 1, 1)
        shared += [
            (subject, a, b) for n, (a, b) in enumerate(zip(old, new, strict=True)) if n < 3 or 5 <= n < 11
        ]
        new.reverse()  # no row keeps its number
        for revision, rows in (("v1.0", old), ("v1.1", new)):
            write_csv(root / revision / f"data/{subject}_test.csv", rows)
            write_csv(root / revision / f"data/{subject}_val.csv", rows_of(subject, 4, 2))
    return root, shared


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys, folders, spread_model_dir):
    """Runs --exam on the hub's two revisions; returns (exit code, results.json, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    root, _ = folders
    served = {name: root / name for name in ("v1.0", "v1.1")}
    with LoopbackHub({}, {"ikala/tmmluplus": {**served, "main": root / "v1.1"}}) as hub:
        use_in_process(hub, monkeypatch, tmp_path / "cache")

        def run(*more, exam="ikala/tmmluplus"):
            words = ["--model_path", spread_model_dir, "--cpu", "--exam", exam, "--report", "r", *more]
            code = inference.main([*map(str, words), "--skip_option_only", "--scoring", "letter"])
            seen = capsys.readouterr()
            assert "Traceback" not in seen.err
            path = tmp_path / "r/results.json"
            return code, json.loads(path.read_text()) if path.exists() else {}, seen.out, seen.err

        yield run


def test_what_changed_between_two_revisions_is_counted_and_said(evaluate, tmp_path):
    code, results, out, err = evaluate(*REVISIONS)
    assert code == 0, err
    found = results["revisions"]
    assert (found["old"], found["new"]) == (
        {"revision": "v1.0", "rows": 48, "duplicates": 0}, {"revision": "v1.1", "rows": 48, "duplicates": 0},
    )  # fmt: skip
    counts = {"unchanged": 24, "key_changed": 12, "text_changed": 8, "gone": 4, "added": 4}
    assert found["counts"] == counts and found["text_changes"]["stem"] == 8
    each = {"old_rows": 12, "new_rows": 12, **{kind: n // 4 for kind, n in counts.items()}}
    assert found["subjects"] == dict.fromkeys(sorted(SUBJECTS), each)
    rows = found["rows"]
    assert [len(rows[kind]) for kind in ("key_changed", "text_changed", "gone", "added")] == [12, 8, 4, 4]
    assert all(other_letter(row["old_answer"]) == row["new_answer"] for row in rows["key_changed"])
    sentence = (
        "v1.0 有 48 題，v1.1 有 48 題：沒變 24 題、改了答案 12 題、改了題目或選項 8 題、刪去 4 題、新增 4 題"
    )
    assert sentence in out and sentence in err
    for name in ("report.md", "index.html"):
        text = (tmp_path / "r" / name).read_text().replace("\u00a0", " ")
        assert sentence in text and "題庫的兩個版本：v1.0 與 v1.1" in text
        assert "正確率差" in text and "四大類平均（macro-4）：照 v1.0 的答案" in text
        assert all(name in text for name in ("物理", "稅務", "改了題目或選項"))
    origin = results["facts"]["題庫"]
    assert all(commit_of(name)[:12] in origin for name in ("v1.0", "v1.1"))


def test_the_scores_are_those_of_the_shared_questions_by_the_key_of_either_revision(
    evaluate, tmp_path, folders
):
    _, results, *_ = evaluate(*REVISIONS)
    found, (_, shared) = results["revisions"]["scored"]["model"], folders
    header = ("question", "A", "B", "C", "D", "answer", "subject")
    # by hand: a file of the shared rows alone, with the newer key; the older one is held against the answers
    write_csv(tmp_path / "shared.csv", [[*new, subject] for subject, _, new in shared], header)
    code, by_hand, *_ = evaluate(exam=tmp_path / "shared.csv")
    answers = [json.loads(line) for line in (tmp_path / "r/predictions.jsonl").read_text().splitlines()]
    chosen = [answer["prediction"] for answer in answers]
    new_hits, old_hits = (
        [row[side][-1] == c for row, c in zip(shared, chosen, strict=True)] for side in (2, 1)
    )
    assert code == 0 and len(shared) == found["n"] == 36 and sum(new_hits) != sum(old_hits)
    assert results["test"]["model"] == by_hand["all"]["model"]
    assert found["new_key"] == {name: by_hand["all"]["model"][name] for name in found["new_key"]}
    assert found["new_key_macro_4"] == by_hand["all"]["macro_4"]
    assert (found["old_key"]["right"], found["old_key"]["n"]) == (sum(old_hits), 36)
    assert found["old_key"]["interval_95"] == list(metrics.wilson(sum(old_hits), 36))
    by_subject = [
        sum(hit for hit, row in zip(old_hits, shared, strict=True) if row[0] == subject) / 9
        for subject in SUBJECTS
    ]
    assert found["old_key_macro_4"]["macro_4"] == pytest.approx(sum(by_subject) / 4)
    differences = [new - old for new, old in zip(new_hits, old_hits, strict=True)]
    assert found["difference"] == pytest.approx(sum(differences) / 36)
    assert (found["only_new_right"], found["only_old_right"]) == (differences.count(1), differences.count(-1))
    low, high = found["difference_interval_95"]
    assert low <= found["difference"] <= high
    assert found["p_value"] == metrics.paired_test(new_hits, old_hits)["p_value"]


def test_a_sample_a_subject_and_another_model_are_scored_by_both_keys_too(evaluate, spread_model_dir):
    code, results, *_ = evaluate(
        *REVISIONS, "--exam_limit", 7, "--subjects", "taxation,trade", "--compare_with", spread_model_dir
    )
    found = results["revisions"]
    assert code == 0 and found["old"]["rows"] == 24 and found["scored"]["model"]["n"] == 7
    assert found["scored"]["other"] == found["scored"]["model"]
    assert found["scored"]["model"]["new_key"]["right"] == results["test"]["model"]["right"]


def test_json_has_the_revisions_and_the_second_revision_given_decides_the_key(evaluate):
    _, _, out, _ = evaluate("--revisions", "v1.1", "v1.0", "--json")
    found = json.loads(out)["revisions"]
    assert [found[side]["revision"] for side in ("old", "new")] == ["v1.1", "v1.0"]
    back = found["scored"]["model"]
    by_key = [back[key]["accuracy"] for key in ("new_key", "old_key")]
    assert back["difference"] == pytest.approx(by_key[0] - by_key[1])
    answers = {row["old"]: row for row in found["rows"]["key_changed"]}
    assert len(answers) == 12 and all(
        other_letter(row["new_answer"]) == row["old_answer"] for row in answers.values()
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--revisions", "v1.0"], "要兩個版本（得到 1 個）"),
        (["--revisions", "v1.0", "v1.1", "main"], "要兩個版本（得到 3 個）"),
        (["--revisions", "v1.1", "v1.1"], "同一個版本給了兩次"),
        ([*REVISIONS, "--revision", "v1.0"], "只能給一個"),
        ([*REVISIONS, "--exam", "demo"], "內建示範，沒有版本"),
        ([*REVISIONS, "--exam", "./my.csv"], "本機的檔案或資料夾，沒有版本"),
        (["--revisions", "v1.0", "v9"], "--revision v9"),
        ([*REVISIONS, "--split", "train"], "--split train：這份題庫沒有這一部分"),
    ],
)
def test_what_cannot_be_joined_is_refused_with_exit_code_2(evaluate, more, said):
    code, results, _, err = evaluate(*more)
    assert code == 2 and said in err and not results


def test_two_names_of_one_commit_and_revisions_without_an_exam_are_refused(
    tmp_path, monkeypatch, capsys, folders
):
    monkeypatch.chdir(tmp_path)
    with LoopbackHub({}, {"ikala/tmmluplus": folders[0] / "v1.1"}) as hub:
        use_in_process(hub, monkeypatch, tmp_path / "cache")
        assert inference.main(["--exam", "ikala/tmmluplus", "--revisions", "main", "v1.1", "--cpu"]) == 2
    assert "是同一個版本（commit c0ffee000000）" in capsys.readouterr().err
    assert inference.main([*REVISIONS, "--prompt", "天"]) == 2
    assert "--revisions 要與 --exam 一起給" in capsys.readouterr().err
