"""The world the tests own: a tiny BERT, a tiny exam, and ways to run the real scripts. No network, no data
files."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach the network; test_hub sets its own
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SUBJECTS = ("physics", "taxation", "trade", "education_(profession_level)")
HAN = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜金生麗水玉出崑岡"
ODD_OPTIONS = ("NA", "None", "1.0", "無", "甲,乙", '他說"好"', "第一行\n第二行", "007")


def make_vocabulary() -> list[str]:
    """Like bert-base-chinese's: small letters, no capitals."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    text = (
        HAN
        + "題目選項答案：（），。？！…第一二三四行甲乙丙丁無他說好以上皆是與的了、:,.()[]\"'/"
        + "0123456789"
    )
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    return (
        special
        + sorted(set(text))
        + letters
        + ["##" + c for c in letters]
        + ["##" + d for d in "0123456789"]
        + ["10"]
    )


def make_model_dir(folder: Path, model_type: str = "bert", vocabulary=None, **changes) -> Path:
    """A masked language model of two tiny layers with its tokenizer, as a Hugging Face folder."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = vocabulary or make_vocabulary()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    shape = {
        "vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 128, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(AutoConfig.for_model(model_type, **shape)).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, do_lower_case=False).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    return make_model_dir(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def loaded(model_dir):
    """(model, tokenizer, device) of the tiny model, for tests that do not change it."""
    import inference

    return inference.load_model(model_dir, "cpu")


def write_csv(
    path: Path, rows: list[list[str]], header=("question", "A", "B", "C", "D", "answer"), bom=False
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def random_text(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choice(HAN) for _ in range(rng.randint(low, high)))


def make_exam_dir(folder: Path, dev=5, val=8, test=10, subjects=SUBJECTS) -> Path:
    """An exam in TMMLU+'s layout, with options that naive readers spoil."""
    rng = random.Random(1)
    for subject in subjects:
        for split, count in (("dev", dev), ("val", val), ("test", test)):
            rows = []
            for number in range(count):
                options = [random_text(rng, 1, 6) for _ in range(4)]
                if number % 3 == 0:
                    options[rng.randrange(4)] = rng.choice(ODD_OPTIONS)
                rows.append([random_text(rng, 6, 30) + "？", *options, rng.choice("ABCD")])
            write_csv(folder / f"{subject}_{split}.csv", rows)
    return folder


@pytest.fixture(scope="session")
def exam_dir(tmp_path_factory) -> Path:
    return make_exam_dir(tmp_path_factory.mktemp("exam"))


@pytest.fixture
def train(monkeypatch, tmp_path, model_dir, exam_dir):
    """Runs `fine_tuning_llm.main` in a folder of its own; returns its exit code."""
    import fine_tuning_llm

    monkeypatch.chdir(tmp_path)

    def run(*argv: str, base: bool = True) -> int:
        source = ["--model_name_or_path", str(model_dir), "--dataset", str(exam_dir), "--cpu"] if base else []
        return fine_tuning_llm.main([*source, *map(str, argv)])

    return run


def read_log(folder: Path) -> list[dict]:
    return [
        json.loads(line) for line in (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def losses(folder: Path) -> list[float]:
    """Training losses by step, from train_log.jsonl."""
    return [entry["loss"] for entry in read_log(folder) if "loss" in entry]


def command(*words: str) -> list[str]:
    """`deepspeed`, `torchrun`, `accelerate`: the one beside this Python."""
    program = Path(sys.executable).parent / words[0]
    return [str(program), *map(str, words[1:])]


def environment(**more: str) -> dict[str, str]:
    """Ours, one thread a process, this Python first on PATH: launchers start `python` by name."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **more}


def run_process(argv: list[str], cwd: Path, timeout: float = 300, **env: str) -> subprocess.CompletedProcess:
    """Runs a command in its own process group, and ends the whole group when time is up."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = list(map(str, argv))
    process = subprocess.Popen(words, cwd=cwd, env=environment(**env), start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"{argv} did not end in {timeout} s\n{err[-3000:]}") from None
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


# A process counts what its parent held at its start as its own peak: so a small one stands between.
_SMALL_PARENT = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_memory(argv: list, cwd: Path | None = None) -> tuple[int, int]:
    """(exit code, peak resident bytes) of a command."""
    words = [sys.executable, "-c", _SMALL_PARENT, *map(str, argv)]
    done = subprocess.run(words, cwd=cwd, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    code, kilobytes = map(int, done.stdout.split())
    return code, kilobytes * 1024


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory):
    """(folder, finished process): `make demo` in a copy of the project that shares our .venv."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "checkpoints")
    )
    (folder / ".venv").symlink_to(ROOT / ".venv")
    done = run_process(["make", "demo"], folder, timeout=900, OMP_NUM_THREADS=str(os.cpu_count()))
    return folder, done


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
