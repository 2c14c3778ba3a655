"""Signals, and ranks that die: a run ends in order, with a checkpoint, and no rank waits for a dead one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, command, environment, free_port, losses
from forked import run_ranks, start
from safetensors.torch import load_file
from test_checkpoints import STEPS, stop_at

from finetune.runtime import manifest, signals
from finetune.runtime.errors import Stopped

SOON = 60  # seconds in which the others have to end
NAME = "my_bert_finetuned_model_hf_format"


@pytest.fixture(autouse=True)
def not_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143), ("SIGHUP", 143)]
)
def test_a_signal_ends_a_run_with_a_checkpoint_and_its_exit_code(train, tmp_path, monkeypatch, name, code):
    """SIGUSR1 is what Slurm sends before the time of a job is up, SIGHUP what a closed terminal sends; to a
    shell they are a stop like SIGTERM."""
    stop_at(monkeypatch, 2, getattr(signal, name))
    assert train(*STEPS) == code
    assert manifest.verify(tmp_path / "checkpoints/step3") == []


def test_a_signal_before_the_first_step_ends_the_run_at_once_and_in_order(
    train, tmp_path, monkeypatch, capsys
):
    from finetune.training import datamodule

    prepare = datamodule.setup_data

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGUSR1)
        return prepare(*args)

    monkeypatch.setattr(datamodule, "setup_data", interrupted)
    assert train(*STEPS) == 143
    seen = capsys.readouterr().err
    assert "■ 已中斷" in seen and "Traceback" not in seen and not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("call", [signals.time, signals.os], ids=["time", "os"])
def test_an_echo_that_comes_while_the_first_signal_is_handled_is_one_wish_all_the_same(
    monkeypatch, capfd, call
):
    """Python handles a signal within any call, that of another signal's handler too."""
    name = "monotonic" if call is signals.time else "write"
    real, nested = getattr(call, name), []

    def echoed(*args):
        if not nested:
            nested.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(call, name, echoed)
    monkeypatch.setattr(signals.os, "_exit", lambda code: pytest.fail("ended at once"))
    with signals.StopRequest() as stop, stop.deferring():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT and nested
    assert capfd.readouterr().err.count("收到停止訊號") == 1


def test_a_closed_terminal_is_no_signal_to_a_run_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
    assert not stop.signum and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_library_that_expects_errors_does_not_take_a_signal_for_one(train, tmp_path, monkeypatch, capsys):
    """Reading a configuration fails in many ways; a stop is none of them."""
    import transformers

    def interrupted(*args, **named):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal came too late")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", interrupted)
    assert train(*STEPS) == 130
    assert "讀不懂" not in capsys.readouterr().err


def test_a_stop_reaches_other_processes_as_a_stop():
    import pickle

    found = pickle.loads(pickle.dumps(Stopped(signal.SIGINT, "已中斷")))
    assert type(found) is Stopped and found.exit_code == 130 and str(found) == "已中斷"


def test_afterwards_signals_mean_what_they_meant_before():
    before = [signal.getsignal(signum) for signum in signals.SIGNALS]
    with signals.StopRequest() as stop, stop.deferring():
        assert all(signal.getsignal(signum) == stop._handle for signum in signals.SIGNALS)
    assert [signal.getsignal(signum) for signum in signals.SIGNALS] == before
    with pytest.raises(Stopped), signals.StopRequest():
        signal.raise_signal(signal.SIGTERM)


# ---- processes ---------------------------------------------------------------------------------------------


def wait_until(there, process, seconds: float = 120) -> None:
    """Waits for a condition, while a process is alive."""
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def end(process: subprocess.Popen) -> None:
    """Leaves nothing of a process group running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.communicate()


def launch(folder: Path, words: list) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        list(map(str, words)), cwd=folder, env=environment(), start_new_session=True, **pipes
    )


def endless(model_dir, exam_dir, *more) -> list:
    words = [
        "--cpu",
        "--max_steps",
        "100000",
        "--early_stopping_patience",
        "0",
        "--train_batch_size",
        "8",
        "--exam_limit",
        "2",
    ]
    words += ["--model", model_dir, "--dataset", exam_dir, "--save_interval", 1000, *more]
    return [ROOT / "fine_tuning_llm.py", *words]


def has_begun(folder: Path) -> bool:
    return (folder / "train_log.jsonl").is_file() and len(losses(folder)) > 2


SLOW = """
import sys, time
sys.path.insert(0, {root!r})
from finetune.training.engine import Engine
step = Engine.step
def slow(self, *args, **named):
    print("in a step", flush=True)
    time.sleep(300)
    return step(self, *args, **named)
Engine.step = slow
import fine_tuning_llm
sys.exit(fine_tuning_llm.main())
"""


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path, model_dir, exam_dir):
    """In the middle of a step that takes for ever. One that comes right after the first is its echo, as a
    launcher sends it."""
    (tmp_path / "slow.py").write_text(SLOW.format(root=str(ROOT)))
    with (tmp_path / "said").open("wb") as said:
        process = start(["slow.py", *endless(model_dir, exam_dir)[1:]], tmp_path, said)
    try:
        wait_until(lambda: "in a step" in (tmp_path / "said").read_text("utf-8"), process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        time.sleep(signals.ECHO_SECONDS + 0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
        assert not list((tmp_path / "checkpoints").glob("step*"))
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [pytest.param("torchrun", marks=pytest.mark.nightly), "deepspeed"])
def test_a_signal_to_the_launcher_stops_all_ranks_with_one_checkpoint(
    tmp_path, model_dir, exam_dir, launcher
):
    start = ["torchrun", "--nproc_per_node", 2, "--master_port", free_port()]
    if launcher == "deepspeed":
        start = ["deepspeed", "--num_gpus=2", f"--master_port={free_port()}"]
    process = launch(tmp_path, [*command(*start), *endless(model_dir, exam_dir)])
    try:
        wait_until(lambda: has_begun(tmp_path), process)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal
        said, _ = process.communicate(timeout=SOON + 30)
        assert process.returncode != 0
        _, alive = psutil.wait_procs(family, timeout=SOON)
        assert not alive
        saved = list((tmp_path / "checkpoints").glob("step*"))
        assert len(saved) == 1 and manifest.verify(saved[0]) == []
        assert said.count("收到停止訊號") == said.count("加 --resume 接續") == 1, said[-2000:]
        assert said.count("在 2 個 CPU 行程上訓練（沒有用 GPU）") == 1
    finally:
        end(process)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others_under_a_launcher(tmp_path, model_dir, exam_dir):
    start = command("torchrun", "--nproc_per_node", 2, "--master_port", free_port())
    process = launch(tmp_path, [*start, *endless(model_dir, exam_dir)])
    try:
        wait_until(lambda: has_begun(tmp_path), process)
        ranks = {
            int(child.environ()["RANK"]): child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "RANK" in child.environ()
        }
        ranks[1].kill()
        said, _ = process.communicate(timeout=SOON)
        assert process.returncode != 0 and not ranks[0].is_running()
        messages = [line for line in said.splitlines() if line.startswith("✗")]
        assert not messages or "rank 1 突然結束了" in messages[0] or "別的 rank 先結束了" in messages[0]
    finally:
        end(process)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_of_them_with_its_exit_code(tmp_path, model_dir, exam_dir):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    words = endless(model_dir, exam_dir, "--engine", "torch")
    with (tmp_path / "said").open("wb") as said:
        ranks = [
            start(words, tmp_path, said, **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)
        ]
    try:
        wait_until(lambda: has_begun(tmp_path), ranks[0])
        ranks[1].send_signal(signal.SIGTERM)
        assert [process.wait(SOON) for process in ranks] == [143, 143]
        assert len(list((tmp_path / "checkpoints").glob("step*/manifest.json"))) == 1
    finally:
        for process in ranks:
            process.kill()


WAITING = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from finetune.runtime import console
from finetune.runtime.errors import RunError
from finetune.runtime.distributed import Distributed

def body():
    world = Distributed.init(cpu=True)
    world.barrier()
    print("ready", flush=True)
    if world.rank == {who}:
        time.sleep(1)
        if "{how}" == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if "{how}" == "fails":
            raise RunError("我的硬碟壞了")
        world.shutdown()
        return
    time.sleep(300)  # in a call that does not end, as NCCL's do

console.exit_process(console.run(body))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("who", "how"), [(0, "killed"), (2, "killed"), (2, "fails"), (1, "leaves")])
def test_without_a_launcher_too_no_rank_waits_for_a_dead_one(tmp_path, who, how):
    """Three ranks, started by hand. All but one are in a call that does not end. What the dead one had to say
    comes first; one that has left is not dead."""
    (tmp_path / "rank.py").write_text(WAITING.format(root=str(ROOT), who=who, how=how))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3"}
    with (tmp_path / "said").open("wb") as said:
        ranks = [
            start(["rank.py"], tmp_path, said, **place, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank in range(3)
        ]
    try:
        others = [process for rank, process in enumerate(ranks) if rank != who]
        code = ranks[who].wait(90)
        if how == "leaves":
            assert code == 0
            time.sleep(15)
            assert [process.poll() for process in others] == [None, None]
            return
        ended = time.monotonic()
        assert [process.wait(SOON) for process in others] == [1, 1] and time.monotonic() - ended < SOON
        lines = (tmp_path / "said").read_text("utf-8").splitlines()
        messages = [line for line in lines if line.startswith("✗")]
        wanted = "我的硬碟壞了" if how == "fails" else f"rank {who} 突然結束了"
        assert messages and wanted in messages[0], lines
    finally:
        for process in ranks:
            process.kill()


@pytest.mark.slow
def test_a_stranger_at_the_port_is_sent_away():
    """Only who knows the secret, which goes through the process group alone, can be taken for a rank."""
    import socket

    from finetune.runtime.watchdog import Watchdog

    told = []
    line = Watchdog(0, 2, lambda value: told.append(value) or value)
    port, secret = told[0]
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"x" * 20)
        stranger.settimeout(10)
        assert stranger.recv(1) == b""
    assert not line._peers
    with socket.create_connection(("127.0.0.1", port)) as rank:
        rank.sendall(secret + (1).to_bytes(4, "big"))
        deadline = time.monotonic() + 10
        while not line._peers and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(line._peers) == [1]
        line.detach()
        assert rank.recv(1) == b"B"


# ---- many ranks go on --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["torch", *(pytest.param(stage, marks=pytest.mark.nightly) for stage in (0, 1, 2)), 3]
)
def test_a_run_of_two_ranks_goes_on_bit_for_bit_and_on_one_rank_when_asked(
    tmp_path, model_dir, exam_dir, engine
):
    """Stopped in the middle of an epoch. Layers open one after another, dropout is on. On one rank the
    losses differ by what dropout draws; with another engine or another number of ranks it is refused."""
    import json
    import shutil

    config = json.loads((ROOT / "ds_config.json").read_text())
    config["zero_optimization"] |= {
        "stage": engine if engine != "torch" else 0,
        "stage3_param_persistence_threshold": 0,
    }
    words = [
        "--cpu",
        "--max_steps",
        "8",
        "--train_batch_size",
        "8",
        "--save_interval",
        "3",
        "--save_total_limit",
        "0",
    ]
    words += [
        "--learning_rate",
        "1e-3",
        "--exam_limit",
        "2",
        "--unfreeze_every",
        "2",
        "--micro_batch_size",
        "4",
    ]
    words += ["--model", model_dir, "--dataset", exam_dir, "--deepspeed_config", "ds.json"]
    words += ["--engine", "torch" if engine == "torch" else "deepspeed"]

    def run(folder: Path, *more, ranks: int = 2):
        folder.mkdir(exist_ok=True)
        (folder / "ds.json").write_text(json.dumps(config))
        return run_ranks(folder, ROOT / "fine_tuning_llm.py", *words, *more, ranks=ranks)

    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    done = run(straight)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(straight / "checkpoints/step3", resumed / "checkpoints/step3")
    shutil.copytree(resumed, tmp_path / "alone")
    done = run(resumed, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(resumed) == losses(straight)[3:]
    one, other = (load_file(folder / NAME / "model.safetensors") for folder in (straight, resumed))
    assert all((one[key] == other[key]).all() for key in one)
    done = run(tmp_path / "alone", "--resume", ranks=1)
    assert done.returncode != 0 and "rank 數：檢查點 2，這次 1；加 --allow_world_size_change" in done.stderr
    done = run(tmp_path / "alone", "--resume", "--allow_world_size_change", ranks=1)
    assert done.returncode == 0 and "檢查點由 2 個 rank 寫出，這次是 1 個" in done.stderr, done.stderr[-3000:]
    assert losses(tmp_path / "alone") == pytest.approx(losses(straight)[3:], rel=0.1)
