"""Stopping and going on: a resumed run ends where the straight run ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import losses
from safetensors.torch import load_file

from finetune.checkpoints import Checkpoints, Progress, find
from finetune.errors import RunError, UserError
from finetune.tracking import TrainLog
from finetune.world import World

NAME = "my_bert_finetuned_model_hf_format"
STEPS = "--max_steps 7 --learning_rate 1e-3 --train_batch_size 8 --exam_limit 4".split()  # 5 to 6 an epoch
ONE = World(0, 1, torch.device("cpu"))


def weights(folder: Path) -> dict:
    return load_file(folder / NAME / "model.safetensors")


def stop_at(monkeypatch, step: int, signum=signal.SIGTERM):
    """A signal arrives while the log is written for `step`; it is granted one step later."""
    write = TrainLog.step

    def log_and_signal(self, number, *rest, **named):
        write(self, number, *rest, **named)
        if number == step:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(TrainLog, "step", log_and_signal)


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resumed_run_ends_where_the_straight_run_ends(train, tmp_path, monkeypatch, capsys, stop):
    """In the middle of an epoch and at its end, dropout and all: bit for bit."""
    for name in ("straight", "broken"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    assert train(*STEPS) == 0
    monkeypatch.chdir(tmp_path / "broken")
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        assert train(*STEPS) == 143
    assert f"step{stop + 1}" in capsys.readouterr().err
    assert not (tmp_path / "broken" / NAME).exists()
    assert train(*STEPS, "--resume") == 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    ours, theirs = weights(tmp_path / "broken"), weights(tmp_path / "straight")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    results = [
        json.loads((tmp_path / n / NAME / "all_results.json").read_text()) for n in ("straight", "broken")
    ]
    for result in results:
        result.pop("train_runtime")
    assert results[0] == results[1]


def test_ctrl_c_exits_130_with_a_checkpoint_and_tells_the_way_on(train, monkeypatch, capsys):
    stop_at(monkeypatch, 2, signal.SIGINT)
    assert train(*STEPS) == 130
    seen = capsys.readouterr().err
    assert "step3" in seen and "--resume" in seen and "Traceback" not in seen


def test_resume_without_a_checkpoint_starts_anew_and_says_so(train, capsys):
    assert train(*STEPS, "--max_steps", 1, "--resume") == 0
    assert "沒有檢查點，從頭開始" in capsys.readouterr().err


def test_resuming_a_finished_run_trains_no_further(train, tmp_path, capsys):
    assert train(*STEPS) == 0
    before = losses(tmp_path)
    assert train(*STEPS, "--resume") == 0
    assert losses(tmp_path) == before and "已完成 7/7 步" in capsys.readouterr().err


def test_a_run_that_starts_anew_moves_the_former_checkpoints_aside(train, tmp_path):
    assert train(*STEPS) == 0
    assert train(*STEPS, "--seed", 5, "--max_steps", 2) == 0
    folder = tmp_path / "checkpoints"
    assert (folder / "earlier_1/step7/progress.json").is_file() and (
        folder / "earlier_1/best/config.json"
    ).is_file()
    assert [p.name for p in folder.glob("step*")] == ["step2"]


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(train, tmp_path, capsys):
    assert train(*STEPS, "--save_interval", 3, "--save_total_limit", 0) == 0
    written = sorted(p.name for p in tmp_path.rglob("*"))
    assert train(*STEPS, "--load_dir", "checkpoints", "--ckpt_id", "step100") == 2
    assert "step3、step6、step7" in capsys.readouterr().err
    assert train(*STEPS, "--load_dir", "nowhere") == 2
    assert written == sorted(p.name for p in tmp_path.rglob("*"))


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(train, tmp_path, capsys):
    assert train(*STEPS) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert train(*STEPS, "--learning_rate", "2e-3", "--objective", "mlm", "--resume") == 2
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}  # nothing was touched
    seen = capsys.readouterr().err
    assert "learning_rate：檢查點 0.001，這次 0.002" in seen and "objective" in seen


def test_the_limit_keeps_the_newest(tmp_path):
    keeper = Checkpoints(tmp_path, {}, keep=2, world=ONE)
    for step in (2, 10, 9):
        keeper.save(Progress(step=step), lambda folder: (folder / "x").write_text("x"))
    assert keeper.names() == ["step9", "step10"] and keeper.newest_step() == 10


def test_a_save_that_breaks_off_leaves_no_half_checkpoint(tmp_path):
    keeper = Checkpoints(tmp_path, {"a": 1}, keep=2, world=ONE)
    keeper.save(Progress(step=1, best_accuracy=0.5), lambda folder: None)

    def breaks(folder):
        (folder / "part").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        keeper.save(Progress(step=2), breaks)
    assert keeper.names() == ["step1"] and find(tmp_path, "") == tmp_path / "step1"
    assert keeper.load(tmp_path / "step1", lambda folder: None) == Progress(step=1, best_accuracy=0.5)
    with pytest.raises(UserError, match="a：檢查點 1，這次 2"):
        Checkpoints(tmp_path, {"a": 2}, 2, ONE).load(tmp_path / "step1", lambda folder: None)


def test_the_best_is_the_highest_accuracy_then_the_lowest_loss():
    progress = Progress()

    def close(accuracy, loss):
        progress.step += 1
        return progress.after_epoch(
            {"validation_accuracy": accuracy, "validation_loss": loss}, patience=3, total_steps=99
        )

    assert [close(0.3, 2.0), close(0.3, 1.9), close(0.2, 1.0), close(0.3, 1.9), close(0.4, 3.0)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert progress.best_step == 5 and not progress.finished
    for _ in range(3):
        close(0.4, 5.0)
    assert progress.finished and progress.stopped_early and progress.best_step == 5


def test_without_validation_rows_the_last_model_is_the_one_kept(train, tmp_path):
    assert train(*STEPS, "--split_ratio", "0.95,0,0.05") == 0
    results = json.loads((tmp_path / NAME / "all_results.json").read_text())
    assert results["best_step"] == 7 and "validation_accuracy" not in results


def test_a_saved_model_that_does_not_read_back_is_an_error(tmp_path, loaded):
    from finetune.folders import compare_saved, save_model

    model, tokenizer, _ = loaded
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(tmp_path, model.config, tokenizer, state)
    compare_saved(tmp_path, model)
    with pytest.raises(RunError, match="不完整"):
        save_model(
            tmp_path,
            model.config,
            tokenizer,
            {k: v for k, v in state.items() if "layer.0.attention" not in k},
        )
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    raw[-3] ^= 0x10
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(RunError, match="不同"):
        compare_saved(tmp_path, model)


def test_a_second_signal_ends_the_process_but_the_launchers_echo_does_not(monkeypatch):
    """`deepspeed` passes a Ctrl-C on as SIGTERM, right after the terminal's own SIGINT."""
    from finetune import world

    ended, now = [], [100.0]
    monkeypatch.setattr(world.os, "_exit", ended.append)
    monkeypatch.setattr(world.time, "monotonic", lambda: now[0])
    with world.StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        now[0] += 0.5
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGINT and not ended
        now[0] += 5
        signal.raise_signal(signal.SIGTERM)
        assert ended == [143]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_best_model_goes_along_when_a_run_goes_on_from_a_checkpoint(
    train, tmp_path, elsewhere, monkeypatch
):
    """Into another --save_dir too; newer checkpoints of the timeline that is left are moved aside."""
    assert train(*STEPS, "--save_interval", 6, "--save_total_limit", 0) == 0
    best = json.loads((tmp_path / "checkpoints/best/run_card.json").read_text())["step"]
    words = ["--save_dir", "other", "--output_dir", "other_model"] if elsewhere else []
    if elsewhere:  # of another run: must not be taken for this one's
        (tmp_path / "other/best").mkdir(parents=True)
    assert train(*STEPS, "--load_dir", "checkpoints", "--ckpt_id", "step6", *words) == 0
    folder = tmp_path / ("other" if elsewhere else "checkpoints")
    assert (folder / ("earlier_1/best" if elsewhere else "earlier_1/step7")).is_dir()
    assert Checkpoints(folder, {}, 0, ONE).names()[-1] == "step7"
    assert json.loads((folder / "best/run_card.json").read_text())["step"] == best
    one, two = (load_file(f / "best/model.safetensors") for f in (tmp_path / "checkpoints", folder))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_best_model_from_the_future_is_not_the_best_so_far(train, tmp_path, capsys):
    assert train(*STEPS) == 0
    card = tmp_path / "checkpoints/best/run_card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"step": 99}))
    assert train(*STEPS, "--resume") == 0
    assert "重新挑選" in capsys.readouterr().err
    assert json.loads(card.read_text())["step"] == 7


def test_a_run_never_trains_from_the_folder_it_replaces(train, tmp_path, capsys):
    assert train(*STEPS) == 0
    assert train(*STEPS, "--model", NAME) == 2
    assert train(*STEPS, "--model", "checkpoints/best") == 2
    assert "微調前後就無從比較" in capsys.readouterr().err


def test_a_model_taught_twice_remembers_both_lessons_and_says_what_it_had_seen(train, tmp_path, capsys):
    assert (
        train(*STEPS, "--pool", "all", "--output_dir", "first/model", "--save_dir", "first/checkpoints") == 0
    )
    capsys.readouterr()
    words = ["--model", "first/model", "--output_dir", "second/model", "--save_dir", "second/checkpoints"]
    assert train(*STEPS, *words, "--seed", 9, "--exam_limit", 0) == 0
    said = capsys.readouterr().out
    assert "題是模型訓練過的，去掉後" in said and "不可與公布的 TMMLU+ 成績比較" in said
    first, second = (
        json.loads((tmp_path / n / "model/run_card.json").read_text()) for n in ("first", "second")
    )
    assert set(first["fingerprints"]) < set(second["fingerprints"]) and second["pool"] == "all"
