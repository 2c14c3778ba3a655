"""Every command of both READMEs runs, or is named there as needing a GPU or the hub."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT
from forked import STEPS, quick_python

NEEDS = ("needs the hub", "needs a GPU", "需要 hub", "需要 GPU")
# Run by other tests in the same words: make demo is test_demo's fixture.
ELSEWHERE = {
    "make demo",
    "deepspeed --num_accelerators 2 fine_tuning_llm.py --demo",
}
ITSELF = {"make test", "make check", "make bench"}  # would run these tests again, or the demo three times
RIGHT = {  # what commands must print, beside running: a part of the command, and its answer
    '--prompt "《紅樓夢》的作者是曹[MASK]芹。"': "  1. 雪\n",
    '--prompt "日本的首都是[MASK]。" --word_length 3': "  1. 東京 (",
    '--question "化學元素鐵的符號是什麼？"': "  1. B: Fe (",
    '--question "《紅樓夢》的作者是誰？"': '"answer": "B"',
    '--model_path my_model/model --question "泰國的首都是哪一座城市？"': "  1. A: 曼谷 (",
    "--exam my_exam.csv --split all": "4 題答對 4 題",
    '--prompt "法國的首都是[MASK][MASK]。"': "  1. 巴黎 (",
    "--candidates 巴黎,倫敦,東京": "  1. 巴黎 (",
}
SLOW_BENCH = "benchmarks/demo_seeds.py"


def commands(name: str) -> tuple[list[str], list[str]]:
    """Commands of the bash blocks of a README: those to run, and those that need a GPU or the hub."""
    to_run, excused = [], []
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S):
        lines = block.strip().splitlines()
        needs = lines[0].startswith("#") and any(words in lines[0] for words in NEEDS)
        (excused if needs else to_run).extend(line for line in lines if not line.startswith("#"))
    return to_run, excused


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S)


def test_both_readmes_hold_the_same_commands():
    assert commands("README.md") == commands("README.zh-TW.md")
    assert python_blocks("README.md") == python_blocks("README.zh-TW.md")


@pytest.mark.parametrize("part", RIGHT)
def test_every_answer_that_is_looked_at_belongs_to_a_command(part):
    assert any(part in line for line in commands("README.md")[0])


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci/run").read_text()
    called = [line for line in script.splitlines()[1:] if line and not line.startswith(("set ", "cd ", "#"))]
    assert called == ["make test"] and "make test" in commands("README.md")[0]


@pytest.mark.parametrize("target", sorted(ITSELF))
def test_the_targets_that_run_these_tests_are_there(target):
    shown = subprocess.run([*target.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and ("pytest" in shown.stdout or SLOW_BENCH in shown.stdout)


@pytest.mark.slow
def test_the_commands_for_causal_models_run_against_a_hub_that_has_a_small_one(tmp_path, qwen_dir):
    from loopback_hub import LoopbackHub

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```bash\n(.*?)```", text, re.S) if "downloads Qwen/Qwen2.5-0.5B" in b]
    for name in ("fine_tuning_llm.py", "inference.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    with LoopbackHub({"Qwen/Qwen2.5-0.5B": qwen_dir}, {}) as hub:
        (tmp_path / "bin").mkdir()
        env = quick_python(
            tmp_path / "bin", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0"
        )
        for line in block.strip().splitlines()[1:]:
            done = subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, env=env, input="你好\nreset\nq\n", capture_output=True,
                text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, (line, done.stderr[-2000:])
    assert len((tmp_path / "my_replies.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert (tmp_path / "report_generate/index.html").exists()


@pytest.mark.slow
def test_the_readmes_commands_run_in_their_order(demo_run, tmp_path):
    folder, _ = demo_run
    ours = quick_python(tmp_path) | {STEPS: "30"}  # `make demo` itself has run to its end
    to_run, excused = commands("README.md")
    assert to_run and excused and set(to_run) >= ELSEWHERE
    for line in to_run:
        if line in ELSEWHERE | ITSELF:
            continue
        entries = "qa\n法國的首都是哪一座城市？\nA:倫敦 B:巴黎\nq\n"
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=ours,
            input=entries,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (line, done.stderr[-2000:])
        for answer in (answer for part, answer in RIGHT.items() if part in line):
            assert answer in done.stdout, (line, done.stdout)
    for block in python_blocks("README.md"):
        done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
