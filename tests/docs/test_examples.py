"""The example scripts run as they are, on a small model; what they say is what is published."""

import shutil
import subprocess

import pytest
from conftest import ROOT, make_causal_dir, write_alpaca, write_reading, write_texts
from forked import quick_python


@pytest.fixture
def project(tmp_path):
    """A copy of the project to run scripts in."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("fine_tuning_llm.py", "inference.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "finetune").symlink_to(ROOT / "finetune")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def run(project, script, *data, **env):
    words = ["bash", f"examples/{script}", *map(str, data)]
    (project / "bin").mkdir()
    env |= quick_python(project / "bin") | {"MORE": "--cpu --max_steps 2 --max_length 96"}
    return subprocess.run(words, cwd=project, env=env, timeout=300, capture_output=True, text=True)


@pytest.mark.slow
def test_the_taigi_example_goes_from_texts_to_answers(project, tmp_path):
    base = make_causal_dir(tmp_path / "base", "llama", chat=False)
    reading = write_reading(tmp_path / "reading.csv")
    done = run(project, "taigi.sh", write_texts(tmp_path / "t.json"), reading, reading, BASE=str(base))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "rank 64、alpha 128、dropout 0.05" in done.stderr and "rank 16、alpha 32、dropout 0.1" in done.stderr
    )
    assert (project / "taigi/answers.csv").read_text().splitlines()[0] == "ID,Answer"


@pytest.mark.slow
def test_the_alpaca_example_answers_three_ways(project, tmp_path):
    base = make_causal_dir(tmp_path / "base")
    done = run(project, "alpaca.sh", write_alpaca(tmp_path / "a.csv"), BASE=str(base))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("回答: ") == 3


@pytest.mark.slow
@pytest.mark.nightly
def test_the_textbook_example_trains_all_some_none_and_lora(project):
    done = run(project, "textbook.sh")
    assert done.returncode == 0, done.stderr[-2000:]
    *_, whole, some, none, lora = done.stdout.splitlines()
    trained = [int(line.split()[1].replace(",", "")) for line in (whole, some, none, lora)]
    assert trained[0] > trained[1] > trained[3] > trained[2] > 0
    assert all("held-out rows" in line for line in (whole, some, none, lora))
    assert len(list((project / "textbook/figures").glob("*.svg"))) == 5


@pytest.mark.parametrize(
    "script, said",
    [
        (
            "taigi.sh",
            "Bohanlu/Taigi-Llama-2-13B|--lora_rank 64 --lora_alpha 128 --lora_dropout 0.05|"
            "--learning_rate 2e-4|"
            "--max_steps 1000|--train_batch_size 16 --micro_batch_size 4|--max_length 2048|--seed 9527|"
            "--lora_rank 16 --lora_alpha 32 --lora_dropout 0.1|--learning_rate 1e-5|--max_steps 100",
        ),
        ("alpaca.sh", "Qwen/Qwen2.5-0.5B"),
        ("textbook.sh", "--freeze all_but_head|SOME:-embeddings,0-1|--lora_rank 8|--task mlm|--draw"),
    ],
)
def test_the_examples_hold_the_published_settings(script, said):
    text = (ROOT / "examples" / script).read_text()
    assert all(part in text for part in said.split("|"))
