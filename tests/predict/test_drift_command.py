"""--drift: requests beside a run card's snapshot or an earlier file; exit codes, page and JSON."""

from __future__ import annotations

import json
import random
import re

import pytest

import inference
from finetune.evaluation.request_features import FeatureSample
from finetune.evaluation.watched_rows import line_of
from finetune.models.run_card import RunCard
from finetune.runtime.errors import UserError

WEIGHTS, FOREIGN = "abcdef012345", "999999999999"
DAY = 86_400.0
ODD = "<script>alert(1)</script>\x1b[31m"  # a label of an untrusted model


def features(count: int, seed: int, length: int = 20, share: float = 0.5, **more) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "characters": rng.randint(1, length), "tokens": rng.randint(1, length), "han": 1.0,
            "unknown": 0.0, "confidence": round(rng.uniform(0.4, 1), 6),
            "answer": "甲" if rng.random() < share else ODD, **more,
        }
        for _ in range(count)
    ]  # fmt: skip


def lines(rows: list[dict], path="/v1/classify", weights=WEIGHTS, first=0.0, status=200) -> str:
    model = {"model": "m", "weights": weights}
    return "".join(line_of(first + number, path, status, 0.01, model, row) for number, row in enumerate(rows))


@pytest.fixture
def world(tmp_path, monkeypatch, capsys):
    """Writes files, and runs --drift on them: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    sample = FeatureSample.of(features(300, 1))
    snapshot = {"set": "validation", "way": "", **sample.as_dict()}
    lineage = [{"stage": "classify", "dataset": "d.csv", "steps": 1, "sha256": WEIGHTS + "0" * 52}]
    (tmp_path / "model").mkdir()
    RunCard(task="classify", scoring="", dataset="d.csv", snapshot=snapshot, lineage=lineage).write(
        tmp_path / "model"
    )

    def run(*argv: str, **files: str):
        for name, text in files.items():
            (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
        capsys.readouterr()
        code = inference.main(["--model_path", "model", "--drift", "use.jsonl", *argv])
        return code, *capsys.readouterr()

    return run


def test_requests_like_the_validation_rows_are_no_drift(world):
    code, out, _ = world(use=lines(features(300, 2)))
    assert code == 0 and "長度（字）：" in out and "變了" not in out


def test_a_drift_ends_with_3_and_says_what_changed_by_how_much_and_what_to_do(world):
    code, out, _ = world(use=lines(features(200, 2, length=60, share=0.1)))
    assert code == 3
    verdict = out.splitlines()[0]
    assert "文字變長（平均 10." in verdict and "答案的比例變了" in verdict and "10 %" in verdict
    assert "信心變" not in verdict and "--exam" in out
    assert "\x1b" not in out


def test_a_wider_bound_is_no_drift_any_more(world):
    changed = lines(features(200, 2, length=30))
    assert world(use=changed)[0] == 3 and world("--drift_bound", "0.9", use=changed)[0] == 0


def test_the_days_of_a_file_are_named_whatever_the_order_of_its_lines(world):
    later, earlier = lines(features(100, 2), first=3 * DAY), lines(features(100, 3), first=DAY)
    assert "1970-01-02 到 1970-01-04" in world(use=later + earlier)[1]


def test_few_requests_are_too_few_to_tell(world):
    code, out, _ = world(use=lines(features(10, 2, length=900)))
    assert code == 0 and "只有 10 筆" in out


def test_the_page_and_the_json_say_what_the_screen_says_and_nothing_in_them_is_executed(world, tmp_path):
    changed = lines(features(150, 2, length=60, share=0.1)) + lines(
        features(150, 3, length=60), first=2 * DAY
    )
    code, out, err = world("--json", "--report", "page", use=changed + lines([{}], status=422))
    assert code == 3
    shown, kept = json.loads(out), json.loads((tmp_path / "page/drift.json").read_text(encoding="utf-8"))
    assert {**kept, "report": "page"} == shown
    assert kept["changed"] and kept["statuses"] == {"200": 300, "422": 1} and len(kept["days"]) == 2
    page = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]*>", "", page)
    assert "文字變長" in text and "怎麼辦" in text and "1970-01-03" in text and "HTTP 422" in text
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page
    assert world("--report", "page", use=changed)[0] == 3  # a report of its kind is replaced


def test_a_folder_with_another_report_is_refused(world, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page/index.html").write_text("mine")
    code, _, err = world("--report", "page", use=lines(features(40, 2)))
    assert code == 2 and "index.html" in err and (tmp_path / "page/index.html").read_text() == "mine"


def test_torn_lines_other_paths_and_other_models_are_left_out_and_counted(world):
    far = features(100, 5, length=900)
    file = lines(features(300, 2)) + lines(far, "/v1/embeddings") + lines(far, weights=FOREIGN)
    code, out, _ = world(use=file + '{"time": "2026-11')
    assert code == 0 and "1 行讀不懂" in out
    assert "/v1/embeddings 100 個" in out and f"m（{FOREIGN}） 100 個" in out


def test_a_line_with_a_number_beyond_all_bounds_is_no_line(world):
    odd = "".join(
        lines([{**features(1, 2)[0], **wrong}])
        for wrong in ({"characters": 10**400}, {"tokens": -1}, {"answer": {"天文": 10**400}})
    )
    code, out, _ = world(use=lines(features(300, 2)) + odd)
    assert code == 0 and "3 行讀不懂" in out


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("", "是空的"), ("天地\n[1]\n{}\n", "3 行都不是"),
        (lines([{}] * 9, "/v1/fill"), "沒有 /v1/classify、/predict 答成的請求"),
        (lines([{}] * 9, status=422), "沒有 /v1/classify"),
        (lines(features(9, 1), weights=FOREIGN), FOREIGN),
    ],
)  # fmt: skip
def test_a_file_with_nothing_to_compare_is_refused(world, file, words):
    code, _, err = world(use=file)
    assert code == 2 and "--drift use.jsonl" in err and words in err


def test_a_model_without_a_snapshot_is_compared_with_an_earlier_file(world, tmp_path):
    RunCard(task="classify", scoring="").write(tmp_path / "model")
    usual, changed = lines(features(200, 1)), lines(features(200, 2, length=60))
    code, _, err = world(use=usual)
    assert code == 2 and "--drift_reference" in err
    assert world("--drift_reference", "before.jsonl", use=usual, before=lines(features(200, 3)))[0] == 0
    code, out, _ = world("--drift_reference", "before.jsonl", use=changed, before=usual)
    assert code == 3 and "先前的請求" in out and "before.jsonl" in out
    (tmp_path / "model/run_card.json").unlink()
    assert world("--drift_reference", "before.jsonl", use=changed)[0] == 3
    code, _, err = world("--drift_reference", "use.jsonl", use=usual)
    assert code == 2 and "同一個檔案" in err
    assert inference.main(["--drift_reference", "before.jsonl"]) == 2


def test_answers_that_were_scored_in_another_way_are_not_compared(world, tmp_path):
    sample = FeatureSample.of(features(300, 1))
    snapshot = {"set": "validation", "way": "letter 1", **sample.as_dict()}
    RunCard(task="exam", scoring="letter", snapshot=snapshot).write(tmp_path / "model")
    other = lines(features(200, 2, share=0.0, way="letter cyclic"), "/v1/answer")
    code, out, _ = world(use=other)
    assert code == 0 and "letter cyclic 200 個" in out and "信心：" not in out
    assert world(use=lines(features(200, 2, share=0.0, way="letter 1"), "/v1/answer"))[0] == 3


@pytest.mark.parametrize(
    "spoilt",
    [
        {"rows": 1}, {"rows": -1, "set": "", "way": "", "numbers": {}, "answers": {}},
        {"rows": 1, "set": "", "way": "", "numbers": {"tokens": ["1"]}, "answers": {}},
        {"rows": 1, "set": "", "way": "", "numbers": {"tokens": [None]}, "answers": {}},
        {"rows": 1, "set": "", "way": "", "numbers": {}, "answers": {"n": 1, "exclusive": True}},
        {"rows": 1, "set": "", "way": "", "numbers": {}, "answers": {"n": 1, "counts": {}}},
        [],
    ],
)  # fmt: skip
def test_a_run_card_with_a_spoilt_snapshot_is_refused(tmp_path, spoilt):
    card = RunCard()
    card.snapshot = spoilt
    card.write(tmp_path)
    with pytest.raises(UserError, match="snapshot"):
        RunCard.read(tmp_path)
