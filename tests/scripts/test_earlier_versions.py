"""Models and checkpoints that an earlier version wrote, kept in tests/kept, are used and resumed.

written_before_the_wings.tar.gz: by the version of 2026-11-28, of each task a checkpoint after 2 of 4 steps,
the finished model and the log of its 4 steps; the base models and the data.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import losses
from safetensors.torch import load_file

KEPT = Path(__file__).parents[1] / "kept" / "written_before_the_wings.tar.gz"
TASKS = {
    "exam": ("masked_base", "exam_rows"), "mlm": ("masked_base", "texts.json"),
    "classify": ("masked_base", "labels.csv"), "cpt": ("causal_base", "texts.json"),
    "sft": ("causal_base", "replies.csv"),
}  # fmt: skip
EVERY = (
    "--cpu --max_steps 4 --train_batch_size 4 --save_interval 2 --max_length 96 --seed 1 --learning_rate 1e-3"
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(KEPT) as archive:
        archive.extractall(folder, filter="data")
    return folder


def run(task: str, folder: Path, save_dir: Path, output_dir: Path, *more: str) -> int:
    import fine_tuning_llm

    base, data = TASKS[task]
    words = [
        "--task",
        task,
        "--model_name_or_path",
        folder / base,
        "--dataset",
        folder / data,
        *EVERY.split(),
    ]
    words += ["--save_dir", save_dir, "--output_dir", output_dir, *more]
    words += ["--class_weights"] * (task == "classify")
    return fine_tuning_llm.main([*map(str, words)])


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_of_an_earlier_version_is_resumed_as_if_this_one_had_written_it(task, kept, tmp_path):
    shutil.copytree(kept / task / "checkpoints", tmp_path / "resumed/c")
    assert run(task, kept, tmp_path / "resumed/c", tmp_path / "resumed/m", "--resume") == 0
    assert run(task, kept, tmp_path / "whole/c", tmp_path / "whole/m") == 0
    # Bit for bit on the kind of processor that wrote the archive; elsewhere kept steps differ by rounding.
    former = load_file(kept / task / "checkpoints/step2/model.safetensors")
    here = load_file(tmp_path / "whole/c/step2/model.safetensors")
    same = all(torch.equal(former[name], here[name]) for name in former)
    resumed, whole = (load_file(tmp_path / way / "m/model.safetensors") for way in ("resumed", "whole"))
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0 if same else 1e-4)
    assert losses(kept / task) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    assert losses(tmp_path / "resumed") == pytest.approx(
        losses(tmp_path / "whole")[2:], abs=0 if same else 1e-5
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_model_of_an_earlier_version_is_used_as_it_says(task, kept, capsys):
    import inference

    prompt = "天地玄黃" if task in ("classify", "cpt", "sft") else "天[MASK]玄黃"
    words = ["--model_path", str(kept / task / "model"), "--cpu", "--prompt", prompt, "--json"]
    assert inference.main([*words, "--max_new_tokens", "4"] if task in ("cpt", "sft") else words) == 0
    assert prompt in json.loads(capsys.readouterr().out).values()


def test_a_base_that_is_another_one_is_refused_with_what_differs(kept, tmp_path, capsys):
    shutil.copytree(kept / "exam/checkpoints", tmp_path / "c")
    assert run("exam", kept, tmp_path / "c", tmp_path / "m", "--resume", "--seed", "2") == 2
    assert "seed" in capsys.readouterr().err
