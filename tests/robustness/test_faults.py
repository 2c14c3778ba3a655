"""Faults of the machine: a full disk, a folder that vanishes, numbers that are none, no memory, a clock that
jumps. What was good before stays good, and the message says the way on."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, losses, read_log
from forked import run_ranks
from safetensors.torch import load_file

import fine_tuning_llm
from finetune.models.run_card import weights_hash
from finetune.objectives import loss
from finetune.objectives.batching import collate
from finetune.runtime import files, manifest
from finetune.runtime.errors import NonFiniteError, RunError
from finetune.training import checkpoints, engine
from finetune.training import publish as publishing
from finetune.training.engine import Engine
from finetune.training.state import PATIENCE

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
    "--save_interval",
    "2",
]


def weights(folder: Path) -> dict:
    return load_file(folder / NAME / "model.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---- a full disk -------------------------------------------------------------------------------------------


def state(folder: Path) -> tuple:
    """State that must outlive a full disk: the model, and the checkpoints that verify."""
    saves = folder / "checkpoints"
    whole = [name for name in checkpoints.complete(saves) if not manifest.verify(saves / name)]
    assert whole == checkpoints.complete(saves)  # none of them is half
    assert not (saves / "best").exists() or not manifest.verify(saves / "best")
    return weights_hash(folder / NAME), whole


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_dir, exam_dir):
    """A folder with a finished run: a model, checkpoints, a report."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        words = ["--model", model_dir, "--dataset", exam_dir, "--cpu", *STEPS]
        assert fine_tuning_llm.main(list(map(str, words))) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.mark.slow
def test_no_file_that_outgrows_the_disk_harms_the_former_model_or_checkpoint(
    trained, train, tmp_path, capsys
):
    """A quota on the size of files, as the kernel enforces it on any library: the same training, with another
    seed, breaks off at the largest file, then at the next smaller … Each time all that was there is whole,
    and once there is room again, the run is resumed and ends well."""
    sizes = {path.stat().st_size for path in trained.rglob("*") if path.is_file()}
    limits = [size - 1 for size in sorted(sizes) if size > 1][:: max(1, len(sizes) // 7)]
    assert len(limits) >= 6
    ended = set()
    for number, limit in enumerate(limits):
        folder = tmp_path / str(number)
        shutil.copytree(trained, folder)
        former, kept = state(folder)
        os.chdir(folder)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            code = train(*STEPS, "--seed", 5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        seen = capsys.readouterr().err
        assert code == 1 and seen.count("✗") == 1 and "Traceback" not in seen, seen[-500:]
        now, _ = state(folder)
        if now != former:  # it broke off after the new model stood, at its report
            assert weights_hash(folder / "checkpoints/best") == now
        ended.add(seen.split("✗ ")[1][:6])
        archive = folder / "checkpoints/earlier_1"
        assert not archive.exists() or checkpoints.complete(archive) == kept
        assert train(*STEPS, "--seed", 5, "--resume") == 0, capsys.readouterr().err[-500:]
        capsys.readouterr()
        assert weights_hash(folder / NAME) == weights_hash(folder / "checkpoints/best") != former
        shutil.rmtree(folder)
    assert len(ended) > 1


@pytest.mark.slow
def test_wherever_saving_breaks_off_the_former_checkpoint_and_model_are_whole(trained, tmp_path, monkeypatch):
    """Every operation on the disk, one after another, is the first that fails, at each of the three things
    that are saved: a checkpoint, the best model, the finished model."""
    from finetune.runtime.distributed import Distributed
    from finetune.training.checkpoints import Checkpoints
    from finetune.training.state import TrainingState

    one = Distributed(0, 1, torch.device("cpu"))

    def acts(folder: Path):
        saver = Checkpoints(folder / "checkpoints", {}, 2, one)

        def write(half: Path) -> None:
            shutil.copytree(trained / "checkpoints/best", half, dirs_exist_ok=True)
            (half / manifest.FILE).unlink()

        yield lambda: saver.save(TrainingState(step=8), write)
        yield lambda: saver.save_best(write)
        yield lambda: publishing.publish(folder / "checkpoints/best", folder / NAME, _Lesson())

    class _Lesson:
        lora = None

    operations = ("rename", "replace", "fsync", "mkdir", "open", "unlink", "rmdir", "scandir")
    broke = [0, 0, 0]
    for which in range(3):
        for at in range(0, 400, 1 if which == 0 else 3):
            folder = tmp_path / "run"
            shutil.copytree(trained, folder)
            former, kept = state(folder)
            act = list(acts(folder))[which]
            count = 0
            with monkeypatch.context() as patch:

                def failing(real, at=at):
                    def operation(*args, **kwargs):
                        nonlocal count
                        count += 1
                        if count > at:
                            raise OSError(28, "No space left on device")
                        return real(*args, **kwargs)

                    return operation

                for name in operations:
                    patch.setattr(os, name, failing(getattr(os, name)))
                try:
                    act()
                except (RunError, OSError):
                    broke[which] += 1
            files.recover_replace(folder / NAME)
            now, there = state(folder)
            assert now == former and set(kept) - set(there) <= {kept[0]} and there, (which, at)
            shutil.rmtree(folder)
            if count <= at:
                break
        else:
            raise AssertionError("it never ended")
    assert min(broke) >= 5


def test_the_oldest_checkpoint_makes_room_for_the_newest(tmp_path):
    """It would have been deleted after the new one was written; the last that is whole stays in any case."""
    from finetune.runtime.distributed import Distributed
    from finetune.training.checkpoints import Checkpoints
    from finetune.training.state import TrainingState

    saver = Checkpoints(tmp_path, {}, 2, Distributed(0, 1, torch.device("cpu")))
    room = 2

    def write(folder: Path) -> None:
        if len(list(tmp_path.glob("*step*"))) > room:
            raise OSError(28, "No space left on device")
        (folder / "x").write_text("x")

    for step in (1, 2, 3):
        saver.save(TrainingState(step=step), write)
    assert saver.names() == ["step2", "step3"]
    (tmp_path / "step3/x").write_text("y")  # the newest is broken: the one before it is all there is
    with pytest.raises(RunError, match="step2，加 --resume"):
        saver.save(TrainingState(step=4), write)
    assert saver.names() == ["step2", "step3"]


def test_words_of_a_library_about_a_full_disk_end_in_the_same_message(train, tmp_path, monkeypatch, capsys):
    """safetensors has an error of its own for it. Nothing half is left, and the way back is named."""
    from safetensors import SafetensorError

    def full(*args, **named):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "save_model", full)
        assert train(*STEPS, "--save_interval", 2) == 1
    seen = capsys.readouterr().err
    assert "最好的模型寫不進 --save_dir checkpoints（SafetensorError：" in seen and "加 --resume 接續" in seen
    assert not list((tmp_path / "checkpoints").glob(".best*"))


@pytest.mark.slow
def test_a_log_that_was_cut_inside_a_character_does_not_stop_a_run_that_goes_on(train, tmp_path):
    assert train(*STEPS) == 0
    with (tmp_path / "train_log.jsonl").open("ab") as log:
        log.write('{"step": 7, "skipped": ["天'.encode()[:-1])
    assert train(*STEPS, "--resume") == 0
    assert len(losses(tmp_path)) == 7


@pytest.mark.slow
def test_a_log_that_cannot_be_written_does_not_end_the_training(train, tmp_path, monkeypatch, capsys):
    from finetune.training.train_log import TrainLog

    began = TrainLog.__init__

    def on_a_full_disk(self, *args):
        began(self, *args)
        self._stream.close()
        self._stream = Path("/dev/full").open("w", buffering=1)

    if not Path("/dev/full").exists():
        pytest.skip("only Linux has a disk that is always full")
    monkeypatch.setattr(TrainLog, "__init__", on_a_full_disk)
    assert train(*STEPS) == 0
    assert capsys.readouterr().err.count("這次不再記錄") == 1


# ---- folders -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_that_vanishes_is_made_again_and_the_run_ends_well(train, tmp_path, monkeypatch, capsys):
    step = Engine.step

    def vanishing(self, batches, number, *rest, **named):
        if number == 5:
            shutil.rmtree(tmp_path / "checkpoints")
        return step(self, batches, number, *rest, **named)

    monkeypatch.setattr(Engine, "step", vanishing)
    assert train(*STEPS, "--early_stopping_patience", 0, "--split_ratio", "0.94,0.01,0.05") == 0
    assert weights_hash(tmp_path / NAME) == weights_hash(tmp_path / "checkpoints/best")
    assert train(*STEPS, "--split_ratio", "0.94,0.01,0.05", "--resume") == 0


@pytest.mark.parametrize("flag", ["--save_dir", "--output_dir"])
def test_a_place_that_cannot_be_written_is_refused_before_training(
    train, tmp_path, monkeypatch, capsys, flag
):
    """As root, who may write anywhere, the answer of the kernel is put in its place."""
    (tmp_path / "locked").mkdir(mode=0o555)
    access = os.access

    def denied(path, mode, **more):
        return access(path, mode, **more) and not (mode & os.W_OK and Path(path).name == "locked")

    monkeypatch.setattr(os, "access", denied)
    assert train(*STEPS, flag, "locked/here") == 2
    seen = capsys.readouterr().err
    assert f"{flag} {tmp_path}/locked/here 不能寫入" in seen and not any((tmp_path / "locked").iterdir())


def test_a_mount_point_cannot_be_replaced_and_is_refused_before_training(
    train, tmp_path, monkeypatch, capsys
):
    """As a volume of a container is one."""
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "volume")
    assert train(*STEPS, "--output_dir", "volume") == 2
    assert "請改用 volume/model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_link_to_the_model_folder_stays_a_link(train, tmp_path):
    (tmp_path / "big_disk/model").mkdir(parents=True)
    (tmp_path / NAME).symlink_to(tmp_path / "big_disk/model")
    for _ in range(2):
        assert train(*STEPS, "--max_steps", 1) == 0
        assert (tmp_path / NAME).is_symlink() and (tmp_path / "big_disk/model/config.json").is_file()
        assert [path.name for path in (tmp_path / "big_disk").iterdir() if path.name[0] == "."] == []


# ---- numbers that are none ---------------------------------------------------------------------------------


def poison(monkeypatch, steps, value=float("nan")):
    """The loss of these steps is no number."""
    real, made = loss.token_losses, [0]

    def losses_of(logits, batch):
        found = real(logits, batch)
        if torch.is_grad_enabled():
            made[0] += 1
            if made[0] in steps:
                return found * value
        return found

    monkeypatch.setattr(engine, "token_losses", losses_of)


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_names_rows_and_way_back(
    train, tmp_path, monkeypatch, capsys, value
):
    words = [*STEPS, "--micro_batch_size", 8]
    with monkeypatch.context() as patch:
        poison(patch, {6}, value)
        assert train(*words) == 1
    seen = capsys.readouterr().err
    assert f"第 6 步的損失是 {value}" in seen and "checkpoints/step4，加 --resume" in seen
    assert "題目：" in seen and "/train/" in seen and "--on_nan skip" in seen
    assert train(*words, "--resume") == 0
    (tmp_path / "straight").mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    assert train(*words) == 0
    assert same(weights(tmp_path), weights(tmp_path / "straight"))


def test_steps_without_a_number_are_left_out_on_request_and_change_nothing(
    train, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        poison(patch, {3})
        assert train(*STEPS, "--micro_batch_size", 8, "--on_nan", "skip") == 0
    seen = capsys.readouterr().err
    assert "第 3 步的損失是 NaN 或無限大，略過" in seen and "/train/" in seen
    log = read_log(tmp_path)
    assert [entry["step"] for entry in log if "skipped" in entry] == [3] and len(losses(tmp_path)) == 6
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(loaded):
    from test_engine import ONE, engine_config, examples_of

    how = engine_config()
    how.skip_bad = True
    made = Engine(copy.deepcopy(loaded[0]), ONE, how)
    good = collate(examples_of(loaded), 0)
    made.step([good], 0, 1e-3)
    before = copy.deepcopy((made.full_weights(), made.optimizer.state_dict()["state"]))
    bad = copy.deepcopy(good)
    bad.weights[0] = float("nan")
    for batches in ([bad], [good, bad], [bad, good]):
        report = made.step(batches, 1, 1e-3)
        assert report.skipped and report.num_targets == 0
    after = made.full_weights(), made.optimizer.state_dict()["state"]
    assert same(before[0], after[0])
    assert all(
        torch.equal(before[1][at][key], after[1][at][key]) for at in before[1] for key in before[1][at]
    )
    how.skip_bad = False
    with pytest.raises(NonFiniteError, match="q0"):
        made.step([bad], 1, 1e-3)
    assert not made.step([good], 1, 1e-3).skipped


def test_a_gradient_that_is_no_number_is_found_though_the_loss_is_one(loaded):
    from test_engine import ONE, engine_config, examples_of

    made = Engine(copy.deepcopy(loaded[0]), ONE, engine_config())
    first = next(made.forward_model.parameters())
    first.register_hook(lambda gradient: gradient * float("inf"))
    before = copy.deepcopy(made.full_weights())
    with pytest.raises(NonFiniteError, match="梯度範數是"):
        made.step([collate(examples_of(loaded), 0)], 0, 1e-3)
    assert same(before, made.full_weights())


def test_a_run_in_which_nothing_is_a_number_any_more_ends(train, monkeypatch, capsys):
    poison(monkeypatch, set(range(3, 999)))
    assert train("--max_steps", 60, "--on_nan", "skip", "--exam_limit", 2) == 1
    assert "第 2 輪每一步的損失都是 NaN 或無限大，略過也無法繼續" in capsys.readouterr().err
    words = ["--train_batch_size", 1, "--micro_batch_size", 1]
    assert train("--max_steps", 60, "--on_nan", "skip", "--exam_limit", 2, *words) == 1
    assert f"連續 {PATIENCE} 步的損失都是 NaN 或無限大" in capsys.readouterr().err


EXPLODING = """
import sys, torch
sys.path.insert(0, {root!r})
from finetune.training.deepspeed_engine import DeepSpeedEngine
step, full = DeepSpeedEngine.step, lambda self: {{k: v.clone() for k, v in self.full_weights().items()}}
def watched(self, batches, number, *rest, **named):
    if number != 2:
        return step(self, batches, number, *rest, **named)
    before = full(self)
    hook = next(self.forward_model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    report = step(self, batches, number, *rest, **named)
    hook.remove()
    after = full(self)
    assert report.skipped and all(torch.equal(before[k], after[k]) for k in before)
    print("UNCHANGED", flush=True)
    return report
DeepSpeedEngine.step = watched
import fine_tuning_llm
fine_tuning_llm.console.exit_process(fine_tuning_llm.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.nightly), 2])
def test_under_zero_too_a_gradient_that_is_no_number_never_touches_the_weights(
    tmp_path, model_dir, exam_dir, stage
):
    (tmp_path / "run.py").write_text(EXPLODING.format(root=str(ROOT)))
    config = json.loads((ROOT / "ds_config.json").read_text())
    config["zero_optimization"]["stage"] = stage
    (tmp_path / "ds.json").write_text(json.dumps(config))
    words = [
        "--cpu",
        "--engine",
        "deepspeed",
        "--max_steps",
        "4",
        "--train_batch_size",
        "8",
        "--precision",
        "fp32",
        "--on_nan",
        "skip",
    ]
    words += ["--deepspeed_config", "ds.json", "--model", model_dir, "--dataset", exam_dir, "--exam_limit", 2]
    done = run_ranks(tmp_path, "run.py", *words, ranks=0)
    assert done.returncode == 0 and "UNCHANGED" in done.stdout, done.stderr[-3000:]


POISONED = """
import sys, torch
sys.path.insert(0, {root!r})
from finetune.training import engine
real, made = engine.token_losses, [0]
def poisoned(logits, batch):
    found = real(logits, batch)
    if torch.is_grad_enabled():
        made[0] += 1
        if made[0] == 6 and __import__("os").environ.get("RANK") == "1":
            return found * float("nan")
    return found
engine.token_losses = poisoned
import fine_tuning_llm
fine_tuning_llm.console.exit_process(fine_tuning_llm.main())
"""


@pytest.fixture(scope="module")
def skipped_on_two(tmp_path_factory, model_dir, exam_dir):
    """Runs two ranks, of which one meets a NaN in the last pass of step 3; returns their losses by step."""

    def run(stage: int | None, precision: str = "fp32") -> dict[int, float]:
        folder = tmp_path_factory.mktemp("poisoned")
        (folder / "run.py").write_text(POISONED.format(root=str(ROOT)))
        config = json.loads((ROOT / "ds_config.json").read_text())
        config["zero_optimization"] |= {"stage": stage or 0, "stage3_param_persistence_threshold": 0}
        (folder / "ds.json").write_text(json.dumps(config))
        words = ["--engine", "torch"] if stage is None else ["--engine", "deepspeed"]
        words += ["--deepspeed_config", "ds.json", "--precision", precision]
        words += [
            "--cpu",
            "--max_steps",
            "6",
            "--train_batch_size",
            "16",
            "--micro_batch_size",
            "4",
            "--learning_rate",
            "1e-3",
        ]
        words += ["--model", model_dir, "--dataset", exam_dir, "--on_nan", "skip", "--exam_limit", 2]
        done = run_ranks(folder, "run.py", *words)
        assert done.returncode == 0, done.stderr[-3000:]
        log = [entry for entry in read_log(folder) if "epoch" not in entry]
        assert [entry["step"] for entry in log if "skipped" in entry] == [3]
        return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}

    return run


@pytest.fixture(scope="module")
def plain_skipped(skipped_on_two):
    return skipped_on_two(None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"),
    [(3, "fp32"), *(pytest.param(*case, marks=pytest.mark.nightly) for case in [(0, "fp32"), (2, "bf16")])],
)
def test_zero_skips_what_plain_pytorch_skips(plain_skipped, skipped_on_two, stage, precision):
    found = skipped_on_two(stage, precision)
    assert found == pytest.approx(plain_skipped, rel=1e-4 if precision == "fp32" else 0.03)


# ---- memory ------------------------------------------------------------------------------------------------


def narrow(monkeypatch, most: int):
    """A GPU that holds `most` rows a forward pass."""
    forward = Engine.forward

    def held(self, *inputs):
        if torch.is_grad_enabled() and len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, *inputs)

    monkeypatch.setattr(Engine, "forward", held)


@pytest.mark.slow
def test_without_memory_the_micro_batch_is_halved_on_request_and_the_step_stays_as_large(
    train, tmp_path, monkeypatch, capsys
):
    """On a model without dropout it is the same training."""
    from conftest import make_model_dir

    still = make_model_dir(tmp_path / "still", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert train("--model", still, *STEPS) == 0
    monkeypatch.chdir(tmp_path)
    narrow(monkeypatch, 2)
    capsys.readouterr()
    assert train("--model", still, *STEPS, "--micro_batch_size", 8, "--auto_micro_batch") == 0
    seen = capsys.readouterr().err
    assert "一次 8 列放不下" in seen and "--micro_batch_size 4（每步 2 次" in seen
    assert "--micro_batch_size 2（每步 4 次 × 1 個 rank，仍是 8 列）" in seen
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_without_memory_the_advice_has_numbers(train, monkeypatch, capsys):
    narrow(monkeypatch, 1)
    assert train(*STEPS, "--micro_batch_size", 8) == 1
    seen = capsys.readouterr().err
    assert "改用 --micro_batch_size 4（每步 2 次" in seen and "--auto_micro_batch" in seen
    narrow(monkeypatch, 0)
    assert train(*STEPS, "--micro_batch_size", 1, "--auto_micro_batch") == 1
    assert "已經一次一列，可縮短 --max_length" in capsys.readouterr().err


@pytest.mark.slow
def test_without_memory_a_run_that_began_elsewhere_goes_on_from_there(train, tmp_path, monkeypatch, capsys):
    """Not from its first step; and it keeps one run at the tracker, and its own best model in its place."""
    assert train(*STEPS, "--save_total_limit", 0) == 0
    seen, step = [], Engine.step
    monkeypatch.setattr(
        Engine, "step", lambda self, batches, number, *rest, **named: (
            seen.append(number), step(self, batches, number, *rest, **named))[1],
    )  # fmt: skip
    narrow(monkeypatch, 4)
    words = ["--load_dir", "checkpoints", "--ckpt_id", "step4", "--micro_batch_size", 8, "--auto_micro_batch"]
    assert train(*STEPS, *words, "--save_dir", "other", "--output_dir", "other_model") == 0
    assert seen == [4, 4, 5, 6] and not list(tmp_path.glob("other/earlier_*"))
    assert "dropout 的隨機結果不同，不再逐位元相同" in capsys.readouterr().err


# ---- the clock ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(train, tmp_path, monkeypatch):
    """Backwards, by years, at every look; and what the newest checkpoint is, no date decides."""
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1.7e9 - 1e6 * next(jumps))
    assert train(*STEPS) == 0
    for number, path in enumerate(sorted((tmp_path / "checkpoints").glob("step*"))):
        os.utime(path, (2e9 - 1e8 * number,) * 2)
    before = losses(tmp_path)
    assert train(*STEPS, "--resume") == 0
    assert losses(tmp_path) == before and all(entry.get("seconds", 0) >= 0 for entry in read_log(tmp_path))
