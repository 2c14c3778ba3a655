"""The world the tests own: a tiny BERT, a tiny exam, and ways to run the real scripts. No network, no data
files."""

from __future__ import annotations

import csv
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from forked import draw_nothing

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach the network; test_hub sets its own
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SUBJECTS = ("physics", "taxation", "trade", "education_(profession_level)")
HAN = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜金生麗水玉出崑岡"
ODD_OPTIONS = ("NA", "None", "1.0", "無", "甲,乙", '他說"好"', "第一行\n第二行", "007")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first: they wait for processes while others compute, and none is left for the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="module", autouse=True)
def blank_pictures(request):
    """Modules that look at pictures or at the font of a page are marked `pictures`; others draw none."""
    if request.node.get_closest_marker("pictures"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        yield


@pytest.fixture(scope="module", autouse=True)
def frozen_libraries():
    """The hundreds of thousands of objects of torch and transformers, which each run's `gc.collect` would
    look through again for 0.4 s, are set aside once they are imported."""
    gc.collect()
    gc.freeze()


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


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CHAT = [  # three questions and replies; in them a line break, a letter alone, spaces
    {"role": "user", "content": "天地玄黃？"},
    {"role": "assistant", "content": "宇宙洪荒。"},
    {"role": "user", "content": "日月\n盈昃 Night"},
    {"role": "assistant", "content": "B"},
    {"role": "user", "content": "寒來暑往"},
    {"role": "assistant", "content": "秋收\n冬藏 x y"},
]


def make_causal_dir(folder: Path, model_type: str = "qwen2", chat: bool = True, **changes) -> Path:
    """A causal model of two tiny layers (qwen2 or llama), with a byte-level BPE tokenizer trained here.

    Args:
        chat: the tokenizer has a chat template (ChatML, as Qwen's).
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    corpus = [random_text(rng, 5, 30) for _ in range(400)] + [
        "User: Assistant: 題目選項答案文章問題 A B C D"
    ] * 99
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>" if chat else "<|endoftext|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHATML if chat else None
    tokenizer.save_pretrained(folder)
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
        "tie_word_embeddings": model_type == "qwen2", "initializer_range": 0.2, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape)).save_pretrained(folder)
    return folder


def write_texts(path: Path, count: int = 40, seed: int = 3) -> Path:
    """Documents as those of a Taigi corpus: {"title", "paragraphs"}, the paragraphs numbered."""
    rng = random.Random(seed)
    rows = [
        {
            "title": f"文-{number}",
            "paragraphs": [f"{i}. {random_text(rng, 20, 60)}。" for i in range(1, rng.randint(5, 9))],
        }
        for number in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def write_reading(path: Path, count: int = 24, seed: int = 4) -> Path:
    """Reading comprehension: the right option stands in the passage, the answer counts from 1."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        options = [random_text(rng, 3, 6) for _ in range(4)]
        right = rng.randrange(4)
        passage = f"{random_text(rng, 10, 30)}是{options[right]}。{random_text(rng, 10, 30)}。"
        rows.append([str(number + 1), passage, "文章說是什麼？", *options, str(right + 1)])
    return write_csv(path, rows, ("ID", "文章", "問題", "選項1", "選項2", "選項3", "選項4", "正確答案"))


def write_alpaca(path: Path, count: int = 24, seed: int = 5) -> Path:
    """instruction, input (often empty), output."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        extra = random_text(rng, 5, 15) if number % 3 == 0 else ""
        rows.append([random_text(rng, 5, 20), extra, random_text(rng, 5, 30)])
    return write_csv(path, rows, ("instruction", "input", "output"))


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory) -> Path:
    """A 2-layer Qwen2 with a chat template and tied embeddings."""
    return make_causal_dir(tmp_path_factory.mktemp("models") / "qwen")


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory) -> Path:
    """A 2-layer Llama without a chat template."""
    return make_causal_dir(tmp_path_factory.mktemp("models") / "llama", "llama", chat=False)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    return make_model_dir(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def spread_model_dir(tmp_path_factory) -> Path:
    """The tiny model with weights drawn 15 times as wide: its logits lie apart."""
    return make_model_dir(tmp_path_factory.mktemp("models") / "spread", initializer_range=0.3)


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


def write_rows(path: Path, rows: list[dict], features: dict | None = None) -> Path:
    """Rows in the format of the name, by writers of the tests' own.

    Args:
        features: those that `datasets` 5.2 notes in a parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table = pyarrow.Table.from_pylist(rows)
        if features:
            noted = {"huggingface": json.dumps({"info": {"features": features}})}
            table = table.replace_schema_metadata(noted)
        pyarrow.parquet.write_table(table, path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as stream:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
        path.write_text(text, encoding="utf-8")
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


@pytest.fixture
def train_causal(train, qwen_dir):
    """`fine_tuning_llm.main` on a causal model; returns its exit code."""

    def run(task, data, *argv, model=qwen_dir):
        return train(
            "--task", task, "--dataset", data, "--model_name_or_path", model, "--cpu", "--seed", 9527, *argv,
            base=False,
        )  # fmt: skip

    return run


@pytest.fixture
def run(folders, capsys, tmp_path, monkeypatch):
    """Runs inference.main on one of the module's `folders`, in an empty folder; returns (exit code, stdout,
    stderr)."""
    import inference

    monkeypatch.chdir(tmp_path)

    def run(which: str, *argv) -> tuple[int, str, str]:
        capsys.readouterr()
        code = inference.main(["--model_path", str(folders[which]), "--cpu", *map(str, argv)])
        return code, *capsys.readouterr()

    return run


def read_log(folder: Path) -> list[dict]:
    return [
        json.loads(line) for line in (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def losses(folder: Path) -> list[float]:
    """Training losses by step, from train_log.jsonl."""
    return [entry["loss"] for entry in read_log(folder) if "loss" in entry]


def causal_weights(folder: Path) -> dict:
    """Weights of a causal model by name."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_same_weights(first: dict, second: dict, **tolerance: float) -> None:
    import torch

    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **tolerance)


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
    """(folder, finished process): `make demo` in a copy of the project that shares our .venv. The workers of
    xdist share one run; each has the folder to itself."""
    own = tmp_path_factory.getbasetemp()
    home = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    ran, told = home / "demo", home / "demo.json"
    with FileLock(home / "demo.lock"):
        if not told.exists():
            leave = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "checkpoints")
            shutil.copytree(ROOT, ran, ignore=leave)
            (ran / ".venv").symlink_to(ROOT / ".venv")
            threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
            done = run_process(["make", "demo"], ran, timeout=900, OMP_NUM_THREADS=threads)
            told.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
    folder = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(ran, folder, symlinks=True)
    return folder, subprocess.CompletedProcess(*json.loads(told.read_text()))


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
