"""--watch: what is written of requests, that no text is among it, and that it troubles no request."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from conftest import write_rows
from live_server import LiveServer
from test_classifier import make_head, trained_card
from test_tagger import make_tagger

import fine_tuning_llm
from finetune.evaluation.drift import compare
from finetune.evaluation.request_features import ANSWER, NUMBERS, FeatureSample
from finetune.evaluation.watched_rows import line_of, read_rows
from finetune.models.run_card import RunCard
from finetune.serving.watch import WAITING, Answered, AppendedFile, Watch

SECRET, OTHER = "王小明0912", "臺北市zq"  # stand in every request, and in no answer of a closed set
BODIES = {  # path -> a request that is answered, one that is refused
    "/v1/fill": ({"prompt": f"{SECRET}[MASK]{OTHER}", "candidates": ["天", "地"]}, {"prompt": 5, SECRET: 1}),
    "/v1/answer": ({"question": SECRET, "options": {OTHER: SECRET, SECRET: "天"}}, {"question": SECRET}),
    "/v1/embeddings": ({"input": [SECRET, OTHER]}, {"input": [], SECRET: OTHER}),
    "/v1/classify": ({"text": SECRET, "pair": OTHER}, {"text": SECRET, OTHER: 1}),
    "/predict": ({"inputs": [[SECRET], [OTHER, SECRET]]}, {"inputs": SECRET, "truncate": OTHER}),
    "/v1/tag": ({"text": SECRET + OTHER}, {"text": [SECRET]}),
    "/v1/span": ({"question": SECRET, "context": OTHER}, {"question": SECRET}),
}
WRITING = {"max_tokens": 4, "temperature": 0}
BODIES |= {
    "/v1/completions": ({"prompt": [SECRET, OTHER], "echo": True, **WRITING}, {"prompt": SECRET, OTHER: 1}),
    "/v1/chat/completions": (
        {"messages": [{"role": "user", "content": SECRET + OTHER}], "stream": True, **WRITING},
        {"messages": [{"role": OTHER, "content": SECRET}]},
    ),
}
LINES = {"/predict": 2, "/v1/embeddings": 2, "/v1/completions": 2}  # of the requests of several texts
KINDS = {
    "masked": ("/v1/fill", "/v1/answer", "/v1/embeddings"),
    "classifier": ("/v1/classify", "/predict", "/v1/embeddings"),
    "tagger": ("/v1/tag", "/v1/embeddings"),
    "extractor": ("/v1/span", "/v1/embeddings"),
    "causal": ("/v1/completions", "/v1/chat/completions"),
}
KEYS = {"time", "path", "status", "seconds", "model", "weights", "way", ANSWER, *NUMBERS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model_dir, qwen_dir):
    home = tmp_path_factory.mktemp("watched")
    return {
        "masked": model_dir,
        "causal": qwen_dir,
        "classifier": make_head(
            home / "c", model_dir, "AutoModelForSequenceClassification", card=trained_card()
        ),
        "tagger": make_tagger(home / "t", model_dir),
        "extractor": make_head(home / "e", model_dir, "AutoModelForQuestionAnswering"),
    }


def watched(folder: Path, file: Path, *requests: tuple[str, object]) -> list[dict]:
    """The rows of a server that answered some requests."""
    with LiveServer(folder, watch=file) as server:
        for path, body in requests:
            server.request(path, body)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_of_a_request_or_of_its_answer_is_in_the_file(folders, tmp_path, kind):
    file = tmp_path / "use.jsonl"
    asked = [(path, body) for path in KINDS[kind] for body in BODIES[path]]
    asked += [(f"/v1/{SECRET.encode().hex()}", {}), (KINDS[kind][0], SECRET.encode())]
    rows = watched(folders[kind], file, *asked)
    text = file.read_text(encoding="utf-8")
    for secret in (SECRET, OTHER, *SECRET, *OTHER, SECRET.encode().hex()):
        if not secret.isascii() or len(secret) > 1:  # a digit may stand in a number
            assert secret not in text and json.dumps(secret)[1:-1] not in text
    assert all(row.keys() <= KEYS for row in rows)
    for path in KINDS[kind]:
        answered = [row for row in rows if row["path"] == path and row["status"] == 200]
        refused = [row for row in rows if row["path"] == path and row["status"] != 200]
        assert len(answered) == LINES.get(path, 1), (path, rows)
        assert kind != "causal" or all(row["reply"] <= 8 for row in answered)
        assert all(row["characters"] > 0 and row["tokens"] > 0 for row in answered)
        assert refused and all(
            row.keys() == {"time", "path", "status", "seconds", "model", "weights"} for row in refused
        )
    assert len(rows) == sum(LINES.get(path, 1) for path in KINDS[kind]) + len(KINDS[kind]) + 1


def test_a_blank_is_no_text_and_options_are_named_by_their_place(folders, tmp_path):
    options = {"甲": "地", "乙": "玄"}
    rows = watched(
        folders["masked"], tmp_path / "use.jsonl", ("/v1/fill", {"prompt": "天[MASK]地"}),
        ("/v1/answer", {"question": "天", "options": options, "scoring": "letter"}),
    )  # fmt: skip
    assert rows[0]["characters"] == rows[0]["tokens"] == 2 and 0 < rows[0]["confidence"] < 1
    assert (
        rows[1]["characters"] == 3 and rows[1]["answer"] in ("A", "B") and rows[1]["way"] == "letter cyclic"
    )


def test_a_file_that_is_moved_away_is_begun_anew_and_no_line_is_lost(folders, tmp_path):
    file, moved = tmp_path / "use.jsonl", tmp_path / "use.jsonl.1"
    with LiveServer(folders["tagger"], watch=file) as server:
        for _ in range(3):
            server.request("/v1/tag", {"text": "天地"})
        server.service.watch.flush()
        file.rename(moved)
        for _ in range(2):
            server.request("/v1/tag", {"text": "天地"})
    assert [len(read_rows(path, "--drift").rows) for path in (moved, file)] == [3, 2]


def test_a_full_disk_is_told_once_and_requests_are_answered_as_before(folders):
    with LiveServer(folders["tagger"], watch=Path("/dev/full")) as server:
        for _ in range(3):
            assert server.request("/v1/tag", {"text": "天地"})[0] == 200
            server.service.watch.flush()
        server.service.log.close()
        assert sum('"watch"' in line for line in server.lines) == 1


def test_a_line_that_a_killed_server_left_torn_spoils_no_other_line(folders, tmp_path):
    file = tmp_path / "use.jsonl"
    whole = line_of(0, "/v1/tag", 200, 0.1, {"model": "m", "weights": ""}, {"tokens": 3})
    file.write_text(whole + whole[:20], encoding="utf-8")
    with LiveServer(folders["tagger"], watch=file) as server:
        server.request("/v1/tag", {"text": "天地"})
    found = read_rows(file, "--drift")
    assert len(found.rows) == 2 and found.unreadable == 1


def test_a_request_never_waits_for_the_file(folders, tmp_path):
    from finetune.predict.loading import load_for_use, predictor_for

    predictor = predictor_for(*load_for_use(str(folders["tagger"]), "cpu", "--model_path"))
    told: list[str] = []
    watch = Watch(tmp_path / "use.jsonl", predictor, "m", told.append)  # whose thread has not begun
    for _ in range(WAITING + 5):
        watch.add(Answered("/v1/tag", 503, 0.1, 0.0))
    assert watch.dropped == 5 and len(told) == 1
    watch.start()
    watch.close()
    assert len(read_rows(tmp_path / "use.jsonl", "--drift").rows) == WAITING


def test_lines_of_two_processes_stand_whole_beside_each_other(tmp_path):
    one, other = AppendedFile(tmp_path / "use.jsonl"), AppendedFile(tmp_path / "use.jsonl")
    for number in range(50):
        (one, other)[number % 2].append(f"{number}\n".encode())
    assert (tmp_path / "use.jsonl").read_text().split() == [str(number) for number in range(50)]


TASKS = {  # --task -> (rows of a dataset, path and body of a row)
    "classify": ("/v1/classify", lambda row: {"text": row["text"]}),
    "tag": ("/v1/tag", lambda row: {"text": row["text"]}),
    "span": ("/v1/span", lambda row: {"question": row["question"], "context": row["context"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_validation_rows_when_they_are_served_have_the_features_of_the_snapshot(
    task, tmp_path, model_dir
):
    from test_task_laws import asked_rows, labelled_rows, tagged_rows

    rng = random.Random(1)
    rows = {"classify": labelled_rows, "tag": tagged_rows, "span": asked_rows}[task](rng, 60)
    for name, part in (("train", rows[:20]), ("dev", rows[20:])):
        write_rows(tmp_path / f"data/{name}.jsonl", part)
    model = tmp_path / "model"
    words = f"--task {task} --dataset {tmp_path}/data --model {model_dir} --max_steps 2 --max_length 32 --cpu"
    words += f" --train_batch_size 4 --save_dir {tmp_path}/ck --output_dir {model} --learning_rate 1e-3"
    assert fine_tuning_llm.main(words.split()) == 0
    card = RunCard.read(model)
    path, body = TASKS[task]
    file = tmp_path / "use.jsonl"
    served = watched(model, file, *[(path, body(row)) for row in rows[20:]])
    assert {row["weights"] for row in served} == {card.lineage[-1]["sha256"][:12]}
    before, now = FeatureSample.from_dict(card.snapshot), FeatureSample.of(served)
    assert before.rows == now.rows == 40 and before.answers == now.answers
    assert before.numbers.keys() == now.numbers.keys()
    for name, values in before.numbers.items():
        assert values == pytest.approx(now.numbers[name], abs=2e-6), name
    assert compare(before, now, 0.1)["changed"] == []
