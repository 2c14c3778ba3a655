"""Trackers, for real: what a service was told is read back from what it wrote. A service that is not
installed is skipped; `pip install -r requirements-wandb.txt` (-mlflow, -trackio) lets its tests run."""

import contextlib
import http.server
import json
import sqlite3
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, losses
from forked import run_ranks

from finetune.models.run_card import RunCard
from finetune.runtime.errors import Stopped, UserError
from finetune.training import trackers
from finetune.training.trackers import FILE, Tracker, check_tracker, flatten
from finetune.training.train_log import TrainLog

LOSSES = {1: 3.5, 2: 2.5, 3: 1.5}  # by step
RESULTS = {
    "test": {"model": {"accuracy": 0.75, "n": 4}, "method": "pll", "subjects": {"law_(基礎)": {"n": 2}}},
    "held_back": {},
}
FLAT = {"test/model/accuracy": 0.75, "test/model/n": 4, "test/subjects/law_基礎/n": 2}
VALIDATED = {"validation/loss": 1.25, "validation/accuracy": 0.5, "validation/questions": 8}
AT_THE_END = {**VALIDATED, **FLAT, "train/epoch_loss": 2.5}
FINGERPRINTS = ["f1", "f2"]


def run(name: str, folder: Path, first: int = 1, fail: Exception | None = None, enabled: bool = True) -> None:
    """A run of three steps, from `first` on, with all that is logged of one; with `fail`, it ends so, and
    not with the examination."""
    flags = {"learning_rate": 1e-3, "resume": first > 1, "cpu": True, "split": (0.7, 0.3), "seed": 7}
    progress = SimpleNamespace(step=first - 1, epoch=0)
    with Tracker(name, folder, flags) as tracker:
        log = TrainLog(folder / "train_log.jsonl", progress, 3, tracker, enabled)
        try:
            for step in range(first, 4):
                report = SimpleNamespace(loss=LOSSES[step], grad_norm=0.25, tokens=100, skipped=())
                log.step(step, report, 1e-3, seconds=0.5)
            validated = {name.replace("/", "_"): value for name, value in VALIDATED.items()}
            log.epoch({"epoch": 1, "step": 3, "train_loss": 2.5, **validated, "best": True})
        finally:
            log.close()
        if fail:
            raise fail
        RunCard(objective="mlm", fingerprints=FINGERPRINTS).write(folder)
        tracker.finish(folder / "run_card.json", RESULTS)


def run_apart(name: str, folder: Path, first: int = 1, fail: str = "None") -> None:
    """The same in a process of its own, as trackers keep to one; nothing may reach its stdout."""
    paths = [str(ROOT / "tests/training"), str(ROOT / "tests"), str(ROOT)]
    (folder / "apart.py").write_text(
        f"import pathlib, sys\nsys.path[:0] = {paths}\nimport test_trackers as t\n"
        f"t.run({name!r}, pathlib.Path({str(folder)!r}), {first}, {fail})\n"
    )
    env = {"HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio"), "HF_HOME": str(folder / "hf")}
    done = run_ranks(folder, folder / "apart.py", ranks=0, **env)
    assert (done.returncode == 0) == (fail == "None"), done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) < 30, done.stderr


def events(folder: Path):
    """Events that tensorboard reads of the one run below `folder`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = {path.parent for path in (folder / "runs").glob("*/events*")}
    found = EventAccumulator(str(place))
    found.Reload()
    return found


def scalars(found) -> dict[str, dict[int, float]]:
    """{name: {step: value}}; fails on a step that is there twice."""
    by_name = {}
    for name in found.Tags()["scalars"]:
        steps = [(event.step, event.value) for event in found.Scalars(name)]
        assert len(steps) == len(dict(steps)), name
        by_name[name] = dict(steps)
    return by_name


def test_every_step_every_epoch_and_the_evaluation_reach_the_tracker(tmp_path):
    run("tensorboard", tmp_path)
    found = events(tmp_path)
    seen = scalars(found)
    assert seen.pop("train/loss") == LOSSES
    assert seen.pop("train/learning_rate") == pytest.approx(dict.fromkeys(LOSSES, 1e-3))
    assert seen.pop("train/grad_norm") == dict.fromkeys(LOSSES, 0.25)
    assert seen.pop("train/tokens_per_second") == dict.fromkeys(LOSSES, 200.0)
    assert seen == {name: {3: value} for name, value in AT_THE_END.items()}
    (text,) = found.Tensors("run_card/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert '"objective": "mlm"' in shown and "2 題" in shown and "f1" not in shown
    (whole,) = (tmp_path / "runs").glob("*/run_card.json")
    assert json.loads(whole.read_text())["fingerprints"] == FINGERPRINTS


def test_a_resumed_run_goes_on_where_it_was_and_a_new_one_stands_apart(tmp_path):
    run("tensorboard", tmp_path)
    first = json.loads((tmp_path / FILE).read_text())
    run("tensorboard", tmp_path, first=3)  # the third step is taken again
    assert json.loads((tmp_path / FILE).read_text()) == first
    assert scalars(events(tmp_path))["train/loss"] == LOSSES
    run("tensorboard", tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) != first
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"tracker": "wandb", "id": "x"}', '{"tracker": "tensorboard"}'])
def test_a_run_that_was_not_tracked_here_begins_anew_when_resumed(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    run("tensorboard", tmp_path, first=2)
    id = json.loads((tmp_path / FILE).read_text())["id"]
    assert id != "x" and [path.name for path in (tmp_path / "runs").iterdir()] == [id]


def test_only_the_main_process_tracks(tmp_path):
    run("tensorboard", tmp_path, enabled=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run_card.json"]


def test_a_service_that_breaks_is_given_up_and_the_run_goes_on(tmp_path, capsys, monkeypatch):
    from accelerate.tracking import TensorBoardTracker

    def broken(self, values, step=None):
        raise ConnectionError("no route")

    monkeypatch.setattr(TensorBoardTracker, "log", broken)
    run("tensorboard", tmp_path)
    assert capsys.readouterr().err.count("no route") == 1
    assert losses(tmp_path) == list(LOSSES.values())


def test_a_service_that_cannot_begin_stops_the_run_before_its_first_step(tmp_path):
    (tmp_path / "runs").write_text("a file where a folder is wanted")
    with pytest.raises(UserError, match="--report_to tensorboard"):
        run("tensorboard", tmp_path)
    assert losses(tmp_path) == []


def test_figures_are_named_with_characters_that_every_tracker_takes():
    figures = {"a (b)": 1, "c": {"d/e": 0.5, "f": True, "g": None, "h": [1], "i": {"法律": 2}}}
    assert flatten(figures) == {"a_b": 1, "c/d_e": 0.5, "c/i/法律": 2}


def test_a_tracker_that_is_not_installed_is_named_with_its_install_line(train, tmp_path, capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else find(name))
    assert train("--report_to", "mlflow", "--ckpt_id", "step1") == 2
    said = capsys.readouterr().err
    assert "pip install -r requirements-mlflow.txt" in said and "--ckpt_id" in said
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_with_a_trackers_name_is_no_tracker(tmp_path, monkeypatch):
    (tmp_path / "trackio_like").mkdir()  # wandb writes into wandb/, which Python takes for a package
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="requirements-trackio_like.txt"):
        check_tracker("trackio_like")


def test_each_tracker_has_its_install_line():
    from finetune.cli.train_args import TRACKERS

    for name in TRACKERS:
        lines = (ROOT / f"requirements-{name}.txt").read_text().splitlines()
        assert [line.split("==")[0] for line in lines if not line.startswith("#")] == [name]


def test_a_stopped_training_closes_its_tracker(train, tmp_path, monkeypatch, capsys):
    from accelerate.tracking import TensorBoardTracker
    from test_checkpoints import stop_at

    closed, finish = [], TensorBoardTracker.finish
    monkeypatch.setattr(TensorBoardTracker, "finish", lambda self: (closed.append(self), finish(self)))
    stop_at(monkeypatch, step=1)
    assert train("--max_steps", 5, "--report_to", "tensorboard") == 143
    assert len(closed) == 1
    assert list(scalars(events(tmp_path))["train/loss"]) == [1, 2]
    assert str(tmp_path / "runs") in capsys.readouterr().err


def test_a_tracker_ends_as_the_run_ended(tmp_path, monkeypatch):
    from finetune.training.trackers import SERVICES

    ends = []
    monkeypatch.setattr(SERVICES["tensorboard"], "end", lambda self, *how: ends.append(how))
    for error in (None, ValueError(), Stopped(15, "")):
        with contextlib.suppress(ValueError, Stopped), Tracker("tensorboard", tmp_path, {}) as tracker:
            tracker.start(0)
            if error:
                raise error
    assert ends == [(0, False), (1, False), (143, True)]


def wandb_records(folder: Path) -> list:
    """The records of an offline run. Its file is 7 bytes of header and then a LevelDB log: blocks of 32 KiB
    that hold chunks of crc32 (4 bytes), length (2), type (1; 1 whole, 2 first, 3 middle, 4 last), data."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    data, place, parts, records = path.read_bytes(), 7, b"", []
    while place < len(data):
        if 32768 - place % 32768 < 7:  # too little of the block is left for a chunk
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(parts))
            parts = b""
    return records


def wandb_history(records) -> dict[str, dict[int, float]]:
    seen: dict[str, dict[int, float]] = {}
    for record in records:
        if record.HasField("history"):
            items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            for name, value in items.items():
                seen.setdefault(name, {})[items["_step"]] = value
    return seen


@pytest.mark.slow
def test_wandb_writes_offline_without_an_account(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    run_apart("wandb", tmp_path)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    records = wandb_records(folder)
    seen = wandb_history(records)
    assert seen["train/loss"] == {1: 3.5, 2: 2.5, 3: 1.5}
    for name, value in AT_THE_END.items():
        assert seen[name] == {3: value}
    assert json.loads((folder / "files/run_card.json").read_text())["fingerprints"] == FINGERPRINTS
    assert not (folder / "files/run_card.json").is_symlink()
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    id = json.loads((tmp_path / FILE).read_text())["id"]
    run_apart("wandb", tmp_path, first=3, fail="t.Stopped(15, '')")
    (again,) = [other for other in (tmp_path / "wandb").glob(f"offline-run-*-{id}") if other != folder]
    assert [record.exit.exit_code for record in wandb_records(again) if record.HasField("exit")] == [143]


@pytest.mark.slow
def test_mlflow_keeps_its_runs_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow import MlflowClient

    run_apart("mlflow", tmp_path)
    id = json.loads((tmp_path / FILE).read_text())["id"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.get_run(id)
    assert found.info.status == "FINISHED" and found.data.params["seed"] == "7"
    assert {m.step: m.value for m in client.get_metric_history(id, "train/loss")} == LOSSES
    assert {name: found.data.metrics[name] for name in AT_THE_END} == AT_THE_END
    (card,) = (tmp_path / "mlruns").rglob("run_card.json")
    assert json.loads(card.read_text())["fingerprints"] == FINGERPRINTS
    run_apart("mlflow", tmp_path, first=3, fail="t.Stopped(15, '')")
    assert client.get_run(id).info.status == "KILLED"
    run_apart("mlflow", tmp_path, fail="ValueError()")
    other = json.loads((tmp_path / FILE).read_text())["id"]
    assert other != id and client.get_run(other).info.status == "FAILED"
    (tmp_path / "mlflow.db").unlink()
    with pytest.raises(AssertionError, match="刪掉這個檔案就另開一個"):
        run_apart("mlflow", tmp_path, first=2)


@pytest.mark.slow
def test_trackio_keeps_runs_figures_and_cards(tmp_path, monkeypatch):
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    run_apart("trackio", tmp_path)
    run_apart("trackio", tmp_path, first=3, fail="t.Stopped(15, '')")
    with sqlite3.connect(tmp_path / "trackio/tmmluplus.db") as base:
        rows = base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        (config,) = base.execute("SELECT config FROM configs").fetchone()
        alerts = base.execute("SELECT run_name, title FROM alerts").fetchall()
    (name,) = {row[0] for row in rows}
    assert json.loads((tmp_path / FILE).read_text())["id"] == name
    assert alerts == [(name, "中斷")] and json.loads(config)["seed"] == 7
    seen = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, m["train/loss"]) for step, m in seen if "train/loss" in m] == [*LOSSES.items(), (3, 1.5)]
    told = {}
    for step, metrics in seen:
        told |= metrics if step == 3 else {}
    assert {name: told[name] for name in AT_THE_END} == AT_THE_END
    assert '"objective": "mlm"' in json.dumps(told["run_card"]).replace('\\"', '"')
    blobs = [path.read_text() for path in (tmp_path / "trackio/artifacts").rglob("*") if path.is_file()]
    assert any('"f1"' in blob for blob in blobs)


class _Served(http.server.BaseHTTPRequestHandler):
    """As much of an MLflow server as a run needs."""

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer()

    def answer(self):
        self.server.asked.append(self.path.split("?")[0].rsplit("mlflow/")[-1])
        place = {
            "experiment_id": "1",
            "lifecycle_stage": "active",
            "artifact_location": "mlflow-artifacts:/1",
        }
        info = {
            "run_id": "r1",
            "run_uuid": "r1",
            "status": "RUNNING",
            "artifact_uri": "mlflow-artifacts:/1/r1",
        }
        found = {"experiment": {"name": "tmmluplus", **place}, "run": {"info": {**info, **place}, "data": {}}}
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle_of_a_run_does_not_hold_it_up(
    train, tmp_path, monkeypatch, capsys
):
    """A real client over a real connection: training goes on without it, and does not wait for minutes."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Served)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
    for name in trackers._MLflow.defaults:
        monkeypatch.delenv(name, raising=False)
    step, went = TrainLog.step, []

    def and_gone(self, number, *rest, **named):
        step(self, number, *rest, **named)
        if number == 3:
            server.shutdown()
            server.server_close()
            went.append(time.monotonic())

    monkeypatch.setattr(TrainLog, "step", and_gone)
    try:
        words = ["--max_steps", 8, "--train_batch_size", 8, "--exam_limit", 2, "--report_to", "mlflow"]
        assert train(*words) == 0
    finally:
        if not went:
            server.shutdown()
            server.server_close()
    assert "runs/create" in server.asked and any("log" in path for path in server.asked)
    assert time.monotonic() - went[0] < 60
    assert capsys.readouterr().err.count("--report_to mlflow 失敗，這次執行不再記到那裡") == 1
    assert (
        len([line for line in (tmp_path / "train_log.jsonl").read_text().splitlines() if "loss" in line]) >= 8
    )
