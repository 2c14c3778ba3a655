"""A place that a run writes to is its own until it ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from finetune.runtime import locks
from finetune.runtime.errors import UserError

NAME = "my_bert_finetuned_model_hf_format"
HOLDS = """
import os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from finetune.runtime import locks
from finetune.runtime.errors import UserError
print("ready", flush=True)
taken = 0
for number in range({times}):
    try:
        with locks.hold_locks([("--save_dir x", Path("x/.lock"))]):
            os.close(os.open("mine", os.O_CREAT | os.O_EXCL))  # fails where another has it too
            time.sleep({seconds})
            os.unlink("mine")
            taken += 1
    except UserError:
        time.sleep(0.001)
print(taken, flush=True)
"""


def hold(folder: Path, times: int, seconds: float) -> subprocess.Popen:
    words = [sys.executable, "-c", HOLDS.format(root=str(ROOT), times=times, seconds=seconds)]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_however_many_ask_for_a_place_one_at_a_time_has_it_and_nothing_is_left(tmp_path):
    """The lock file is deleted each time, and may be made anew between any two steps of another process."""
    made = [hold(tmp_path, 150, 0) for _ in range(4)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in made]
    assert [code for *_, code in ended] == [0] * 4, ended
    assert sum(int(out) for out, *_ in ended) >= 150
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_comes_and_goes_while_it_is_looked_at_leaves_no_run_without_its_lock(
    tmp_path, monkeypatch
):
    """What another run's end can do between two steps of this one: the folder vanishes, and is made anew."""
    place = tmp_path / "x"
    place.mkdir()
    access, mkdir, steps = os.access, Path.mkdir, ["access", "mkdir"]

    def gone_and_back(path, mode):
        if steps[:1] == ["access"]:
            steps.pop(0)
            place.rmdir()
            mkdir(place)
            return False
        return access(path, mode)

    def gone_once_it_was_there(self, *more, **kwargs):
        if steps == ["mkdir"]:
            steps.pop()
            place.rmdir()
            raise FileExistsError(errno.EEXIST, "File exists", str(self))
        return mkdir(self, *more, **kwargs)

    monkeypatch.setattr(os, "access", gone_and_back)
    monkeypatch.setattr(Path, "mkdir", gone_once_it_was_there)
    with locks.hold_locks([("--save_dir x", place / ".lock")]):
        assert (place / ".lock").exists() and not steps


def test_a_folder_that_takes_no_file_is_left_to_what_writes_there(tmp_path, monkeypatch):
    def takes_none(path, *more):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(locks, "_open", takes_none)
    with locks.hold_locks([("--watch x", tmp_path / ".x.lock")]):
        assert list(tmp_path.iterdir()) == []


def test_a_place_is_free_once_its_process_was_killed_and_the_holder_is_named_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = hold(tmp_path, 1, 300)
    while not (tmp_path / "mine").exists():
        assert process.poll() is None
    with pytest.raises(UserError) as refused, locks.hold_locks([("--save_dir x", Path("x/.lock"))]):
        raise AssertionError
    assert str(refused.value).startswith("--save_dir x 正由另一次執行使用")
    assert f"行程 {process.pid}，主機 {socket.gethostname()}" in str(refused.value)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "x/.lock").exists()
    with locks.hold_locks([("--save_dir x", Path("x/.lock"))]):
        assert f'"pid": {os.getpid()}' in (tmp_path / "x/.lock").read_text()
    assert list((tmp_path / "x").iterdir()) == []


@pytest.mark.parametrize("mine", ["--save_dir", "--output_dir", "beside"])
def test_a_second_training_run_in_a_place_ends_with_2_and_touches_nothing(train, tmp_path, capsys, mine):
    """In one --save_dir; with one model folder; beside one, where logs and reports would be mixed. Who only
    looks is let in."""
    from finetune.cli.train_args import parse_args
    from finetune.training.preflight import lock_targets

    other = {"--save_dir": ["--output_dir", "o/m"], "beside": ["--save_dir", "s", "--output_dir", "./second"]}
    first = parse_args(["--demo", *other.get(mine, ["--save_dir", "s"])])[0]
    words = ["--max_steps", 1, "--exam_limit", 2]
    with locks.hold_locks(lock_targets(first)):
        before = sorted(tmp_path.rglob("*"))
        assert train(*words) == 2
        seen = capsys.readouterr().err
        flag = "--save_dir ./checkpoints" if mine == "--save_dir" else f"--output_dir ./{NAME}"
        assert seen.startswith(f"✗ {flag}") and f"行程 {os.getpid()}，" in seen
        assert sorted(tmp_path.rglob("*")) == before
        assert train(*words, "--dry_run") == 0
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_locked_a_run_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def unknown(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with locks.hold_locks([("x", tmp_path / "x/.lock")]):
        pass
    assert re.search("不能上鎖.*別讓兩次執行同時寫入", capsys.readouterr().err)
    (tmp_path / "file").touch()
    with locks.hold_locks([("x", tmp_path / "file/x/.lock")]):  # who writes there will say so
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_of_several_ranks_the_first_one_holds_the_places(tmp_path, monkeypatch):
    with locks.hold_locks([("x", tmp_path / ".lock")]):
        monkeypatch.setenv("RANK", "1")
        with locks.hold_locks([("x", tmp_path / ".lock")]):
            pass
