"""The engines: the same gradient however a batch is cut, the same losses on every engine, a schedule one
can trust."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command, environment, free_port, losses, random_text, run_process
from forked import run_ranks

from finetune.data.question import Question
from finetune.objectives.batching import collate, split_micro_batches
from finetune.objectives.exam import ExamObjective
from finetune.prompts.exam import ExamPrompts
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import RunError, UserError
from finetune.training.engine import Engine, EngineConfig, learning_rate_at

ONE = Distributed(0, 1, torch.device("cpu"))


def engine_config(micro_batch=8, clip=0.0) -> EngineConfig:
    return EngineConfig(1e-3, 0.01, clip, 1, "fp32", micro_batch, accumulation=1)


def examples_of(loaded, name="answer+mlm", count=8):
    rng = random.Random(0)
    rows = [
        Question(random_text(rng, 3, 30), tuple(random_text(rng, 1, 5) for _ in range(4)), 1, "s", f"q{i}")
        for i in range(count)
    ]
    objective = ExamObjective(name, ExamPrompts(loaded[1], 128), rows, 0)
    return [objective.example(*entry, 0) for entry in objective.epoch(0)][:count]


def gradient(loaded, examples, micro_batches):
    """Gradient of one optimizer step, without dropout."""
    engine = Engine(copy.deepcopy(loaded[0]), ONE, engine_config())
    engine.wrapped.train = lambda mode=True: engine.wrapped  # dropout stays off
    engine.wrapped.eval()
    kept = {}
    engine._update = lambda: (
        kept.update({n: p.grad.clone() for n, p in engine.forward_model.named_parameters()}) or 0.0
    )
    parts = split_micro_batches(range(len(examples)), 0, 1, micro_batches)
    batches = [collate([None if i is None else examples[i] for i in part], 0) for part in parts]
    report = engine.step(batches, 0, 1e-3)
    return kept, report.loss


@pytest.mark.parametrize("micro_batches", [2, 4, 8, 11])
def test_micro_batches_are_only_a_memory_knob(loaded, micro_batches):
    """One global batch gives one gradient, though its slices hold unequal numbers of targets, or none."""
    examples = examples_of(loaded)
    whole, loss = gradient(loaded, examples, 1)
    parts, same = gradient(loaded, examples, micro_batches)
    assert same == pytest.approx(loss, rel=1e-6)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)


def test_the_schedule_is_that_of_transformers():
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-5)
    reference = get_linear_schedule_with_warmup(optimizer, 7, 50)
    for step in range(50):
        assert learning_rate_at(step, 3e-5, 7, 50) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-12
        )
        optimizer.step()
        reference.step()


def test_gradients_are_clipped_to_the_norm_asked_for(loaded):
    examples = examples_of(loaded)
    engine = Engine(copy.deepcopy(loaded[0]), ONE, engine_config(clip=0.01))
    seen = {}
    step = engine.optimizer.step

    def spy(*args, **kwargs):
        grads = [p.grad for p in engine.forward_model.parameters() if p.grad is not None]
        seen["norm"] = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])).item()
        return step(*args, **kwargs)

    engine.optimizer.step = spy
    report = engine.step([collate(examples, 0)], 0, 1e-3)
    assert report.grad_norm > 0.01 and seen["norm"] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.slow
def test_gradient_checkpointing_changes_memory_and_not_the_losses(train, tmp_path, monkeypatch):
    found = []
    for name, more in (("plain", []), ("thrifty", ["--gradient_checkpointing"])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert train("--max_steps", 3, "--exam_limit", 2, *more) == 0
        found.append(losses(tmp_path / name))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_run_and_names_its_rows(loaded):
    model = copy.deepcopy(loaded[0])
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(RunError, match="q0"):
        Engine(model, ONE, engine_config()).step([collate(examples_of(loaded), 0)], 0, 1e-3)


def test_dropout_depends_on_seed_and_step_alone(loaded):
    examples = examples_of(loaded)
    runs = []
    for noise in (0, 5):  # what was drawn before does not matter
        engine = Engine(copy.deepcopy(loaded[0]), ONE, engine_config())
        torch.manual_seed(noise)
        runs.append([engine.step([collate(examples, 0)], step, 1e-3).loss for step in range(3)])
    assert runs[0] == runs[1]


def test_deepspeed_that_cannot_start_is_an_error_when_asked_for_and_a_sentence_when_not(monkeypatch):
    from finetune.training import hardware

    def broken(_):
        raise RuntimeError("CUDA_HOME does not exist")

    monkeypatch.setattr(hardware, "import_deepspeed", broken)
    with pytest.raises(UserError, match="CUDA_HOME"):
        hardware.choose_engine("deepspeed", on_gpu=True)
    assert hardware.choose_engine("auto", on_gpu=True) == (
        "torch",
        "引擎：PyTorch（DeepSpeed 無法使用：RuntimeError：CUDA_HOME does not exist）",
    )


def test_without_gpu_or_launcher_deepspeed_is_not_even_imported(monkeypatch):
    from finetune.training import hardware

    monkeypatch.setattr(hardware, "import_deepspeed", lambda _: pytest.fail("imported"))
    assert hardware.choose_engine("auto", on_gpu=False)[0] == "torch"
    monkeypatch.setenv("CROSS_SIZE", "1")  # the deepspeed launcher sets it
    monkeypatch.setattr(hardware, "import_deepspeed", lambda _: None)
    assert hardware.choose_engine("auto", on_gpu=False)[0] == "deepspeed"


def test_fp16_on_a_cpu_is_refused():
    from finetune.training.hardware import choose_precision

    with pytest.raises(UserError, match="fp16"):
        choose_precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("batch", "micro", "size", "says"), [(32, 0, 3, "30、33"), (32, 5, 2, "30、40"), (2, 0, 4, "請改成 4")]
)
def test_a_batch_that_cannot_be_cut_evenly_is_refused_with_sizes_that_can(batch, micro, size, says):
    from finetune.training.hardware import choose_micro_batch

    with pytest.raises(UserError, match=says):
        choose_micro_batch(batch, micro, 16, Distributed(0, size, torch.device("cpu")))


def test_the_model_trained_in_bf16_is_saved_in_fp32(train, tmp_path):
    from safetensors import safe_open

    assert train("--max_steps", 2, "--precision", "bf16", "--output_dir", "m") == 0
    with safe_open(tmp_path / "m/model.safetensors", "pt") as saved:
        names = saved.keys()  # a safe_open cannot be iterated over
        assert {saved.get_tensor(name).dtype for name in names} == {torch.float32}


# ---- several processes -------------------------------------------------------------------------------------


def script(model_dir, exam_dir, *flags) -> list:
    """The training script and its flags, after any launcher."""
    return [ROOT / "fine_tuning_llm.py", "--model", model_dir, "--dataset", exam_dir, *flags]


def train_on_two(
    engine: str, folder: Path, model_dir, exam_dir, *flags: str, config: dict | None = None, steps=10
):
    """Runs the script on two CPU ranks; returns its losses by step."""
    folder.mkdir()
    words = script(model_dir, exam_dir, "--cpu", "--max_steps", steps)
    words += ["--learning_rate", "1e-3", "--exam_limit", "4", *flags]
    if config is not None:
        (folder / "ds.json").write_text(json.dumps(config))
        words += ["--deepspeed_config", "ds.json"]
    done = run_ranks(folder, *words, "--engine", engine)
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(folder), done


@pytest.fixture(scope="module")
def plain_two(tmp_path_factory, model_dir, exam_dir):
    folder = tmp_path_factory.mktemp("two") / "plain"
    return folder, *train_on_two("torch", folder, model_dir, exam_dir, "--micro_batch_size", "8")


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(plain_two, train, tmp_path, model_dir, exam_dir):
    """Without dropout: with it, ranks draw differently."""
    from conftest import make_model_dir

    still = make_model_dir(tmp_path / "still", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    two, _ = train_on_two("torch", tmp_path / "two", still, exam_dir)
    assert train("--model", still, "--max_steps", 10, "--learning_rate", "1e-3", "--exam_limit", 4) == 0
    assert losses(tmp_path) == pytest.approx(two, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [*(pytest.param(one, marks=pytest.mark.nightly) for one in (0, 1)), 2, 3])
def test_zero_gives_the_losses_of_plain_pytorch_saves_a_whole_model_and_resumes(
    plain_two, tmp_path, model_dir, exam_dir, stage
):
    import inference

    shm = set(Path("/dev/shm").glob("*")) if Path("/dev/shm").is_dir() else set()
    config = json.loads((ROOT / "ds_config.json").read_text())
    config["zero_optimization"] |= {
        "stage": stage,
        "stage3_param_persistence_threshold": 0,
    }  # or a tiny model stays whole
    folder, reference, _ = plain_two
    flags = ["--micro_batch_size", "8", "--save_interval", "3", "--save_total_limit", "0"]
    found, done = train_on_two("deepspeed", tmp_path / "ds", model_dir, exam_dir, *flags, config=config)
    assert found == pytest.approx(reference, rel=1e-3)
    assert "DeepSpeed" in done.stderr
    new = (
        {path.name for path in set(Path("/dev/shm").glob("*")) - shm}
        if shm or Path("/dev/shm").is_dir()
        else set()
    )
    assert not [name for name in new if "deepspeed" in name]
    name = "my_bert_finetuned_model_hf_format"
    theirs, _, _ = inference.load_model(folder / name, "cpu")
    ours, _, _ = inference.load_model(tmp_path / "ds" / name, "cpu")
    for (key, a), (_, b) in zip(theirs.state_dict().items(), ours.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=key)
    if stage < 2:  # what is resumed differs by what is partitioned: gradients and parameters
        return
    # resumed in the middle of an epoch (2 steps each), it goes on as if never stopped
    flags += ["--load_dir", tmp_path / "ds/checkpoints", "--ckpt_id", "step3"]
    resumed, _ = train_on_two("deepspeed", tmp_path / "again", model_dir, exam_dir, *flags, config=config)
    assert resumed == pytest.approx(found[3:], abs=1e-6)


@pytest.mark.nightly  # what it says is seen in test_stopping too
def test_the_launcher_without_gpus_trains_on_cpu_processes_and_says_so(tmp_path, model_dir, exam_dir):
    words = script(model_dir, exam_dir, "--max_steps", 2, "--exam_limit", 4)
    done = run_process(
        [*command("deepspeed", "--num_gpus=2", f"--master_port={free_port()}"), *words], tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("在 2 個 CPU 行程上訓練（沒有用 GPU）") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--cpu", "--num_processes", "1"],
        pytest.param(["--use_deepspeed", "--num_processes", "2"], marks=pytest.mark.nightly),
    ],
)
def test_accelerate_launch_works(tmp_path, model_dir, exam_dir, flags):
    words = script(model_dir, exam_dir, "--max_steps", 2, "--exam_limit", 4)
    start = command(
        "accelerate",
        "launch",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        *flags,
    )
    done = run_process([*start, "--main_process_port", free_port(), *words], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (f"rank 數：{flags[-1]}" in done.stderr) and ("DeepSpeed（由" in done.stderr) == (
        "--use_deepspeed" in flags
    )


@pytest.mark.slow
def test_deepspeed_runs_without_a_launcher_too(train, tmp_path, capfd):
    words = ["--engine", "deepspeed", "--max_steps", "2", "--exam_limit", "4"]
    done = run_process(
        [
            *command("python"),
            ROOT / "fine_tuning_llm.py",
            *words,
            "--model",
            make(tmp_path),
            "--dataset",
            make_exam(tmp_path),
        ],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "引擎：DeepSpeed（--engine deepspeed）" in done.stderr and "Setting accelerator" not in done.stdout


@pytest.mark.slow
def test_a_key_that_only_deepspeed_can_tell_to_be_unknown_is_named_and_ends_with_2(tmp_path):
    config = json.loads((ROOT / "ds_config.json").read_text())
    config["bf16"] = {"enabeld": True}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    words = ["--model", make(tmp_path), "--dataset", make_exam(tmp_path), "--engine", "deepspeed", "--cpu"]
    words += ["--deepspeed_config", "ds.json", "--max_steps", 1]
    done = run_ranks(tmp_path, ROOT / "fine_tuning_llm.py", *words, ranks=0)
    assert done.returncode == 2 and done.stderr.count("✗") == 1 and "enabeld" in done.stderr, done.stderr


def make(folder):
    from conftest import make_model_dir

    return make_model_dir(folder / "base")


def make_exam(folder):
    from conftest import make_exam_dir

    return make_exam_dir(folder / "exam")


@pytest.mark.slow
def test_an_error_on_two_ranks_is_said_once_and_ends_both(tmp_path, model_dir):
    script = ROOT / "fine_tuning_llm.py"
    done = run_ranks(tmp_path, script, "--model", model_dir, "--dataset", "nothing.csv")
    assert done.returncode == 2
    assert done.stderr.count("沒有這個檔案或資料夾") == 1


@pytest.mark.slow
def test_ranks_end_when_their_launcher_is_killed(tmp_path, model_dir, exam_dir):
    import os
    import signal
    import subprocess
    import time

    import psutil

    words = script(model_dir, exam_dir, "--max_steps", "100000", "--early_stopping_patience", "0")
    start = command("deepspeed", "--num_accelerators", 2, f"--master_port={free_port()}")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(list(map(str, [*start, *words])), cwd=tmp_path, env=environment(), **silent)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "train_log.jsonl").is_file() or not losses(tmp_path):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # the outer launcher alone
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=90)
        assert not alive
    finally:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, signum)
            except ProcessLookupError:
                break
            time.sleep(1)
