"""Stopping and going on: a resumed run ends where the straight run ends."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from conftest import losses, make_model_dir
from safetensors.torch import load_file

from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import RunError, UserError
from finetune.training.checkpoints import Checkpoints, find
from finetune.training.state import TrainingState
from finetune.training.train_log import TrainLog

NAME = "my_bert_finetuned_model_hf_format"
STEPS = [
    "--max_steps",
    "7",
    "--learning_rate",
    "1e-3",
    "--train_batch_size",
    "8",
    "--exam_limit",
    "4",
]  # 5 to 6 an epoch
ONE = Distributed(0, 1, torch.device("cpu"))


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_resuming_a_finished_run_trains_no_further(train, tmp_path, capsys):
    assert train(*STEPS) == 0
    before = losses(tmp_path)
    assert train(*STEPS, "--resume") == 0
    assert losses(tmp_path) == before and "已完成 7/7 步" in capsys.readouterr().err


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_checkpoint_may_be_named_by_its_own_folder(train, tmp_path, capsys):
    more = "--save_interval", 1, "--save_total_limit", 0
    assert train(*STEPS, *more) == 0
    assert train(*STEPS, *more, "--load_dir", "checkpoints/step2", "--save_dir", "other") == 0
    assert "從 checkpoints/step2 接續" in capsys.readouterr().err
    assert train(*STEPS, "--load_dir", "checkpoints/best") == 2
    assert "--model_name_or_path" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(train, tmp_path, capsys):
    assert train(*STEPS) == 0

    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if not path.is_dir()}

    before = files()
    assert train(*STEPS, "--learning_rate", "2e-3", "--objective", "mlm", "--resume") == 2
    assert before == files()  # nothing was touched
    seen = capsys.readouterr().err
    assert "learning_rate：檢查點 0.001，這次 0.002" in seen and "objective" in seen
    flags = ("--learning_rate 0.001（這次 0.002）", "--objective answer+mlm（這次 mlm）")
    for way in (*flags, "換一個 --save_dir", "--model_name_or_path checkpoints/best"):
        assert way in seen


def test_a_run_is_not_resumed_on_another_base(train, tmp_path, capfd):
    other = make_model_dir(tmp_path / "other", initializer_range=0.3)
    words = ["--objective", "cloze", "--max_steps", 2, "--exam_limit", 4, "--freeze", "embeddings"]
    assert train(*words, "--save_dir", "a") == 0
    assert train(*words, "--model", other, "--load_dir", "a", "--save_dir", "b") == 2
    assert "底模的權重" in capfd.readouterr().err


def test_the_limit_keeps_the_newest(tmp_path):
    saver = Checkpoints(tmp_path, {}, keep=2, world=ONE)
    for step in (2, 10, 9):
        saver.save(TrainingState(step=step), lambda folder: (folder / "x").write_text("x"))
    assert saver.names() == ["step9", "step10"] and saver.newest_step() == 10


def test_a_save_that_breaks_off_leaves_no_half_checkpoint(tmp_path):
    saver = Checkpoints(tmp_path, {"a": 1}, keep=2, world=ONE)
    saver.save(TrainingState(step=1, best_accuracy=0.5), lambda folder: None)

    def breaks(folder):
        (folder / "part").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="step2 寫不進.*No space left on device.*step1，加 --resume 接續"):
        saver.save(TrainingState(step=2), breaks)
    assert saver.names() == ["step1"] and find(tmp_path, "") == tmp_path / "step1"
    assert saver.load(tmp_path / "step1", lambda folder: None) == TrainingState(step=1, best_accuracy=0.5)
    with pytest.raises(UserError, match="a：檢查點 1，這次 2"):
        Checkpoints(tmp_path, {"a": 2}, 2, ONE).load(tmp_path / "step1", lambda folder: None)


def test_the_best_is_the_highest_accuracy_then_the_lowest_loss():
    progress = TrainingState()

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


@pytest.mark.parametrize("measure", ["accuracy", "macro_f1", "loss"])
def test_what_is_called_the_best_so_far_is_what_early_stopping_waits_for(measure):
    """An epoch of equal accuracy and lower loss is better by both, or by neither."""
    rng, progress = random.Random(measure), TrainingState()
    since = 0
    for step in range(1, 200):
        progress.step = step
        good = rng.choice((0.25, 0.5, 0.75))
        found = {"validation_loss": rng.choice((1.0, 1.5, 2.0)) - step / 1000}
        if measure != "loss":
            found |= {"validation_accuracy": 0.5, f"validation_{measure}": good}
        since = 0 if progress.after_epoch(found, patience=5, total_steps=999) else since + 1
        assert progress.epochs_without_gain == since and progress.stopped_early == (since >= 5)
    assert progress.best_step and since


def test_without_validation_rows_the_last_model_is_the_one_kept(train, tmp_path):
    assert train(*STEPS, "--split_ratio", "0.95,0,0.05") == 0
    results = json.loads((tmp_path / NAME / "all_results.json").read_text())
    assert results["best_step"] == 7 and "validation_accuracy" not in results


def test_a_saved_model_that_does_not_read_back_is_an_error(tmp_path, loaded):
    from finetune.models.saving import compare_saved, save_model

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
    from finetune.runtime import signals

    ended, now = [], [100.0]
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.StopRequest() as stop, stop.deferring():
        signal.raise_signal(signal.SIGINT)
        now[0] += 0.5
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGINT and not ended
        now[0] += 5
        signal.raise_signal(signal.SIGTERM)
        assert ended == [143]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_model_trained_twice_keeps_the_fingerprints_of_both_stages_and_reports_the_overlap(
    train, tmp_path, capsys
):
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


# ---- what broke --------------------------------------------------------------------------------------------


def damage(path: Path, at: int = 100) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.slow
def test_the_newest_checkpoint_that_verifies_is_gone_on_from_and_those_passed_over_are_named(
    train, tmp_path, monkeypatch, capsys
):
    """It ends as the straight run, and what was passed over is kept aside."""
    words = [*STEPS, "--save_interval", 2, "--save_total_limit", 0]
    assert train(*words) == 0
    straight = weights(tmp_path)
    damage(tmp_path / "checkpoints/step7/optimizer.pt")
    (tmp_path / "checkpoints/step6/model.safetensors").unlink()
    capsys.readouterr()
    assert train(*words, "--resume") == 0
    seen = capsys.readouterr().err
    assert "略過檢查點 checkpoints/step7：optimizer.pt 的內容變了（SHA-256 不符）" in seen
    assert "略過檢查點 checkpoints/step6：少了 model.safetensors" in seen
    assert "從 checkpoints/step4 接續" in seen and "重新挑選" not in seen
    ours = weights(tmp_path)
    assert all(torch.equal(ours[key], straight[key]) for key in straight)
    archive = {path.name for path in (tmp_path / "checkpoints/earlier_1").iterdir()}
    assert archive == {"step6", "step7", ".best.step7"}  # with the best model they count on


def test_a_damaged_checkpoint_that_was_asked_for_is_refused_and_another_one_named(train, tmp_path, capsys):
    words = [*STEPS, "--save_interval", 4]
    assert train(*words) == 0
    damage(tmp_path / "checkpoints/step7/progress.json", 20)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert train(*words, "--load_dir", "checkpoints", "--ckpt_id", "step7") == 2
    seen = capsys.readouterr().err
    assert "progress.json 的內容變了" in seen and "可改用 --ckpt_id step4" in seen
    damage(tmp_path / "checkpoints/step4/progress.json", 20)
    assert train(*words, "--resume") == 2
    seen = capsys.readouterr().err
    assert "損壞的檢查點 checkpoints/step7" in seen and "損壞的檢查點 checkpoints/step4" in seen
    assert "重新開始請不要加 --resume" in seen
    assert before.keys() == dict.fromkeys(tmp_path.rglob("*"), 0).keys()


@pytest.mark.slow
def test_a_run_killed_between_the_best_model_and_the_next_checkpoint_ends_as_the_straight_one(
    train, tmp_path, monkeypatch
):
    """The best model that the checkpoint counts on was replaced by a better one that the checkpoint does not
    know. Killed right after each of them, and resumed, until it is done."""
    words = [*STEPS, "--max_steps", 24, "--save_interval", 5, "--early_stopping_patience", 2]
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    assert train(*words) == 0
    monkeypatch.chdir(tmp_path / "killed")
    save_best, killed = Checkpoints.save_best, set()

    def and_kill(self, write):
        save_best(self, write)
        step = json.loads((self.best / "run_card.json").read_text())["step"]
        if step not in killed:
            killed.add(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save_best", and_kill)
    runs = 0
    while (code := train(*words, "--resume")) != 0:
        runs += 1
        assert code == 130 and runs < 20
    assert runs == len(killed) > 1
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "straight")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    results = [
        json.loads((tmp_path / n / NAME / "all_results.json").read_text()) for n in ("straight", "killed")
    ]
    for result in results:
        result.pop("train_runtime")
    assert results[0] == results[1] and losses(tmp_path / "killed") == losses(tmp_path / "straight")
    hidden = [path.name for path in (tmp_path / "killed/checkpoints").iterdir() if path.name[0] == "."]
    assert [name for name in hidden if not name.startswith(".best.step")] == []


def test_verify_checkpoint_says_which_are_whole(train, tmp_path, capsys):
    """A checkpoint, all of a --save_dir, a model folder; 0 when all are, 1 when one is not, 2 for none."""
    assert train(*STEPS, "--save_interval", 4) == 0
    capsys.readouterr()
    assert train("--verify_checkpoint", "checkpoints", base=False) == 0
    seen = capsys.readouterr().out.splitlines()
    assert [line.split("：")[0] for line in seen] == [
        "✓ checkpoints/step4", "✓ checkpoints/step7", "✓ checkpoints/best",
    ]  # fmt: skip
    assert "第 4 步" in seen[0]
    assert train("--verify_checkpoint", NAME, base=False) == 0
    assert train("--verify_checkpoint", "checkpoints/step4", base=False) == 0
    damage(tmp_path / "checkpoints/step4/model.safetensors", 1000)
    damage(tmp_path / NAME / "model.safetensors", 1000)
    capsys.readouterr()
    assert train("--verify_checkpoint", "checkpoints", base=False) == 1
    assert "✗ checkpoints/step4：model.safetensors 的內容變了" in capsys.readouterr().out
    assert train("--verify_checkpoint", NAME, base=False) == 1
    assert "權重與 run_card.json 記載的不同" in capsys.readouterr().out
    (tmp_path / "bare").mkdir()
    assert train("--verify_checkpoint", "bare", base=False) == 2
    assert train("--verify_checkpoint", "nowhere", base=False) == 2


def test_verify_resume_compares_a_stopped_run_with_a_straight_one_and_leaves_nothing(
    train, tmp_path, capsys, monkeypatch
):
    assert train(*STEPS, "--unfreeze_every", 2, "--verify_resume", 6) == 0
    seen = capsys.readouterr()
    assert "✓ 接續與一次跑完逐位元相同：6 步的損失" in seen.out and list(tmp_path.iterdir()) == []
    from finetune.training.engine import Engine

    load = Engine.load

    def forgetful(self, folder):
        load(self, folder)
        self.optimizer.state.clear()

    monkeypatch.setattr(Engine, "load", forgetful)
    assert train(*STEPS, "--verify_resume", 6) == 1
    seen = capsys.readouterr().err
    assert "個張量不同，最多差" in seen and "第 5、6 步的損失不同" in seen and list(tmp_path.iterdir()) == []


def test_a_damaged_best_model_is_not_published(train, tmp_path, monkeypatch, capsys):
    from finetune.training import publish as publishing

    publish = publishing.publish

    def after_damage(best, *rest):
        damage(best / "model.safetensors", 1000)
        publish(best, *rest)

    monkeypatch.setattr(publishing, "publish", after_damage)
    assert train(*STEPS) == 1
    assert "best 損壞了：model.safetensors 的內容變了" in capsys.readouterr().err
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    "progress",
    [None, [], {}, {"step": "9"}, {"step": 3, "__class__": 1}, {**vars(TrainingState()), "epoch": 1.5}],
)
def test_progress_that_makes_no_sense_is_refused(train, tmp_path, capsys, progress):
    """By someone who knows how to write a manifest."""
    from finetune.runtime import manifest

    assert train(*STEPS) == 0
    card = tmp_path / "checkpoints/step7/progress.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "progress": progress}))
    manifest.write_manifest(card.parent)
    assert train(*STEPS, "--resume") == 2
    seen = capsys.readouterr().err
    assert "進度讀不懂" in seen and "Traceback" not in seen


@pytest.mark.slow
def test_more_patience_makes_a_run_that_stopped_early_go_on(train, tmp_path, capsys):
    words = ["--num_epochs", 6, "--train_batch_size", 8, "--exam_limit", 2, "--learning_rate", 0.1]
    assert train(*words, "--early_stopping_patience", 1) == 0
    assert "提早結束" in capsys.readouterr().err
    before = len(losses(tmp_path))
    assert train(*words, "--early_stopping_patience", 0, "--resume") == 0
    assert "提早結束" not in capsys.readouterr().err and len(losses(tmp_path)) > before


@pytest.mark.slow
def test_a_run_that_was_begun_goes_on_though_its_first_command_named_where_to_begin(train, tmp_path, capsys):
    """The same line in a job that is queued again: first from another run, then from where this one is."""
    assert train(*STEPS, "--save_interval", 2, "--save_total_limit", 0) == 0
    line = [*STEPS, "--save_interval", 2, "--load_dir", "checkpoints", "--ckpt_id", "step2", "--resume"]
    line += ["--save_dir", "mine", "--output_dir", "mine_model"]
    for where in ("checkpoints/step2", "mine/step7"):
        assert train(*line) == 0
        assert f"從 {where} 接續" in capsys.readouterr().err
    assert not list((tmp_path / "mine").glob("earlier_*"))


@pytest.mark.slow
def test_a_merged_model_can_be_gone_on_with_when_the_run_was_killed_before_its_exam(
    train, tmp_path, monkeypatch
):
    import fine_tuning_llm

    words = [*STEPS, "--lora_rank", 4]

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning_llm, "evaluate", killed)
        assert train(*words) == 130
    assert (tmp_path / NAME / "run_card.json").is_file()
    assert train(*words, "--resume") == 0
