"""Files and folders that are whole or not there, wherever a run is killed or the disk is full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from finetune.runtime import files


def make(folder: Path, text: str) -> Path:
    files.new_folder(folder)
    for name in ("a", "b/c"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def read(folder: Path) -> str:
    """Text of all its files; they must be of one making."""
    texts = {(folder / name).read_text() for name in ("a", "b/c")}
    assert len(texts) == 1
    return texts.pop()


def test_a_file_that_could_not_be_finished_leaves_the_former_one(tmp_path):
    files.atomic_write(tmp_path / "x", "old")
    with pytest.raises(ValueError), files.atomic_open(tmp_path / "x") as stream:
        stream.write("new")
        raise ValueError
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    files.atomic_write(tmp_path / "x", "新")
    assert (tmp_path / "x").read_text("utf-8") == "新" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, exchanges):
    """In one step where the file system can, in two where it cannot."""
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    make(tmp_path / "model", "old")
    files.replace_folder(make(tmp_path / ".half", "new"), tmp_path / "model")
    assert read(tmp_path / "model") == "new" and [p.name for p in tmp_path.iterdir()] == ["model"]
    files.replace_folder(make(tmp_path / ".half", "newer"), tmp_path / "model", tmp_path / "kept")
    assert read(tmp_path / "model") == "newer" and read(tmp_path / "kept") == "new"
    files.replace_folder(make(tmp_path / ".half", "first"), tmp_path / "deep/er/model")
    assert read(tmp_path / "deep/er/model") == "first"


def test_a_folder_that_vanishes_between_two_looks_is_not_called_unwritable(tmp_path, monkeypatch):
    """Else a run would go without its lock because another one has just ended."""
    (tmp_path / "x").mkdir()
    looks, access = [], os.access

    def vanish(path, mode):
        if not looks:
            (tmp_path / "x").rmdir()
        looks.append(path)
        return access(path, mode)

    monkeypatch.setattr(os, "access", vanish)
    assert files.writable(tmp_path / "x/y") and len(looks) == 2
    (tmp_path / "file").touch()
    assert not files.writable(tmp_path / "file/y")


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="others rename twice")
def test_the_exchange_is_one_step_of_the_kernel(tmp_path):
    make(tmp_path / "one", "1"), make(tmp_path / "two", "2")
    assert files._exchange(tmp_path / "one", tmp_path / "two")
    assert read(tmp_path / "one") == "2" and read(tmp_path / "two") == "1"
    assert not files._exchange(tmp_path / "one", tmp_path / "nowhere")


def test_a_reader_that_recovers_the_old_folder_between_two_renames_does_not_make_the_replacement_fail(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    rename, recovered = files._rename, []

    def watched(one, other):
        if one.name == ".half" and len(recovered) < 3:
            recovered.append(files.recover_replace(tmp_path / "model"))
        rename(one, other)

    monkeypatch.setattr(files, "_rename", watched)
    make(tmp_path / "model", "old")
    files.replace_folder(make(tmp_path / ".half", "new"), tmp_path / "model")
    assert recovered == [True] * 3
    assert read(tmp_path / "model") == "new" and [p.name for p in tmp_path.iterdir()] == ["model"]


OPERATIONS = ("rename", "replace", "fsync", "mkdir", "open", "unlink", "rmdir")


def interrupted(monkeypatch, at: int) -> list[str]:
    """Every operation on the disk from number `at` on fails, as it does once the disk is full or gone."""
    done: list[str] = []

    def failing(name, real):
        def operation(*args, **kwargs):
            done.append(name)
            if len(done) > at:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        monkeypatch.setattr(os, name, failing(name, getattr(os, name)))
    return done


@pytest.mark.parametrize("exchanges", [True, False])
def test_wherever_a_replacement_breaks_off_the_old_or_the_new_folder_is_there(
    tmp_path, monkeypatch, exchanges
):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    seen = set()
    for at in range(40):
        make(tmp_path / "model", "old"), make(tmp_path / ".half", "new")
        with monkeypatch.context() as patch:
            done = interrupted(patch, at)
            try:
                files.replace_folder(tmp_path / ".half", tmp_path / "model")
            except OSError:
                pass
            whole = len(done) <= at
        recovered = files.recover_replace(tmp_path / "model")
        seen.add((read(tmp_path / "model"), recovered))
        shutil.rmtree(tmp_path), tmp_path.mkdir()
        if whole:
            break
    else:
        raise AssertionError("it never ended")
    assert {text for text, _ in seen} == {"old", "new"}
    assert any(recovered for _, recovered in seen) != exchanges  # one step leaves nothing to be recovered


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from finetune.runtime import files as disk
home = Path(sys.argv[2])
if sys.argv[3] == "no":
    disk._exchange = lambda *_: False
print("ready", flush=True)
for number in range(100_000):
    half = disk.new_folder(home / ".half")
    for name in ("a", "b/c"):
        (half / name).parent.mkdir(exist_ok=True)
        (half / name).write_text(str(number))
    disk.replace_folder(half, home / "model")
"""


@pytest.mark.slow
@pytest.mark.parametrize("exchanges", ["yes", "no"])
def test_a_folder_that_is_replaced_all_the_time_is_whole_whenever_the_process_is_killed(tmp_path, exchanges):
    recovered = 0
    make(tmp_path / "model", "0")  # the first process may be killed before it has done anything
    for number in range(12):
        words = [sys.executable, "-c", KILLED, str(ROOT), str(tmp_path), exchanges]
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        try:
            process.wait(0.02 + 0.013 * number)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        recovered += files.recover_replace(tmp_path / "model")
        assert read(tmp_path / "model").isdigit()
    assert exchanges == "no" or not recovered


def test_a_folder_is_recovered_only_when_its_own_is_gone(tmp_path):
    make(tmp_path / ".model.old", "former")
    assert files.recover_replace(tmp_path / "model") and read(tmp_path / "model") == "former"
    make(tmp_path / ".model.old", "older still")
    assert not files.recover_replace(tmp_path / "model") and read(tmp_path / "model") == "former"


@pytest.mark.parametrize("flag", ["--save_dir", "--output_dir"])
@pytest.mark.parametrize("below", ["", "/folder"])
def test_a_circular_link_is_no_place_to_write(flag, below, tmp_path, monkeypatch, capsys):
    import fine_tuning_llm

    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    assert not files.writable(f"circle{below}")
    assert fine_tuning_llm.main(["--demo", "--cpu", "--max_steps", "1", flag, f"circle{below}"]) == 2
    assert f"{flag} {tmp_path}/circle{below} 不能寫入" in capsys.readouterr().err
