"""DeepSpeed's checkpoint files: what is in them is never run, and they are cut anew for other ranks."""

from __future__ import annotations

import math
import os
import random
import shutil

import pytest
import torch
from conftest import ROOT
from forked import run_ranks

from finetune.runtime import manifest
from finetune.runtime.errors import UserError
from finetune.training.deepspeed_files import read_strictly, repartition_by_parameter, repartition_flat


class Payload:
    """Runs when it is unpickled by someone careless."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_file_with_a_program_in_it_is_refused_and_nothing_is_run(tmp_path):
    torch.save({"module": torch.ones(2), "more": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="可能執行外來的程式，不載入"):
        read_strictly(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # it would have
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x04.", os.urandom(200)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError):
        read_strictly(tmp_path / "x.pt")
    with pytest.raises(UserError, match="少了這個檔案"):
        read_strictly(tmp_path / "nowhere.pt")


def shards_of(numels: list[int], size: int, each: bool) -> list[torch.Tensor]:
    """Partitions of parameters 1, 2, 3 … as the paper says it, number by number."""
    values, at = [], 1.0
    for numel in numels:
        values.append([at + i for i in range(numel)])
        at += numel
    if each:
        ranks: list[list[float]] = [[] for _ in range(size)]
        for value in values:
            part = math.ceil(len(value) / size)
            value = value + [0.0] * (part * size - len(value))
            for rank in range(size):
                ranks[rank] += value[rank * part : (rank + 1) * part]
        return [torch.tensor(rank) for rank in ranks]
    flat = sum(values, [])
    part = math.ceil(len(flat) / size)
    flat += [0.0] * (part * size - len(flat))
    return [torch.tensor(flat[rank * part : (rank + 1) * part]) for rank in range(size)]


@pytest.mark.parametrize("each", [False, True])
def test_partitions_cut_anew_are_those_that_the_new_ranks_would_have_written(each):
    rng = random.Random(3)
    for _ in range(60):
        numels = [rng.randint(1, 12) for _ in range(rng.randint(1, 5))]
        then, now = rng.randint(1, 5), rng.randint(1, 5)
        old, new = shards_of(numels, then, each), shards_of(numels, now, each)
        for rank in range(now):
            mine = (
                repartition_by_parameter(old, numels, rank, now)
                if each
                else repartition_flat(old, len(new[rank]), rank)
            )
            assert torch.equal(mine, new[rank])


@pytest.mark.slow
def test_a_strangers_checkpoint_with_a_manifest_that_verifies_runs_nothing(tmp_path, model_dir, exam_dir):
    """The stranger knows how to write a manifest: exit code 2, and the payload is not run. One whose manifest
    does not verify is not even opened."""
    words = [
        "--cpu",
        "--engine",
        "deepspeed",
        "--max_steps",
        "2",
        "--exam_limit",
        "2",
        "--save_interval",
        "1",
    ]
    words += ["--model", model_dir, "--dataset", exam_dir]

    def run(*more):
        return run_ranks(tmp_path, ROOT / "fine_tuning_llm.py", *words, *more, ranks=1)

    assert run().returncode == 0
    saved = tmp_path / "checkpoints/step1"
    assert not list(saved.rglob("*.py"))  # DeepSpeed's own recovery scripts: programs among data
    for file in sorted(saved.rglob("*.pt")):
        shutil.copy(file, tmp_path / "good.pt")
        state = torch.load(file, weights_only=False)
        torch.save({**state, "ds_version": Payload(tmp_path / "ran")}, file)
        for seal, says in ((False, "損壞的檢查點"), (True, "可能執行外來的程式，不載入")):
            if seal:
                manifest.write_manifest(saved)
            done = run("--load_dir", "checkpoints", "--ckpt_id", "step1")
            assert done.returncode == 2, done.stderr[-2000:]
            assert says in done.stderr and not (tmp_path / "ran").exists()
            assert done.stderr.count("✗") == 1
        shutil.copy(tmp_path / "good.pt", file)
