"""Kills training runs with SIGKILL at random moments, the moment of saving among them, and lets each go on.

python benchmarks/soak.py [--plain 200] [--zero 40] [--minutes 90] [--seed 0]

A run of 60 steps in 6 epochs, with a checkpoint every 4 steps, early stopping, layers that open one after
another and a best model that changes, is left alone once. Then it is started again and again: killed, looked
at, resumed, killed … until it is done; and anew, until so many kills were made: of one plain process, and of
two CPU ranks under DeepSpeed ZeRO-2, whose launcher and ranks all die at once. After every kill each
checkpoint must verify, none may be lost, and the model folder must hold the former model or the new one; a
finished run must have the very weights, losses and questions of the one left alone. Prints a table; ends with
1 where one of these does not hold. 200 and 40 kills: half an hour on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import ROOT

from finetune.models.run_card import weights_hash
from finetune.runtime import manifest
from finetune.training.checkpoints import complete

MODEL, SAVES = "model", "checkpoints"
RUN = [
    "--max_steps",
    "60",
    "--train_batch_size",
    "8",
    "--save_interval",
    "4",
    "--save_total_limit",
    "2",
    "--early_stopping_patience",
    "5",
    "--unfreeze_every",
    "8",
    "--learning_rate",
    "1e-3",
    "--objective",
    "answer",
    "--exam_limit",
    "4",
    "--max_length",
    "128",
    "--precision",
    "fp32",
]
QUESTIONS, WIDTH = 112, 96
CHARACTERS = "".join(map(chr, range(0x4E00, 0x4E64)))
MOMENTS = ("starting", "training", "saving a checkpoint", "saving the best model", "publishing, evaluating")
LONGEST = 300  # seconds that a run may take without a kill


@dataclass
class SoakResult:
    """Outcome of the kills of one engine."""

    kills: Counter = field(default_factory=Counter)  # by moment
    finished: int = 0
    wrong: list[str] = field(default_factory=list)


def small_model(folder: Path) -> None:
    """A BERT of three layers with random weights: what is tried here does not depend on what it knows."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *CHARACTERS,
        *"abcdefghij0123456789題目選項答案：（），。？！",
    ]
    torch.manual_seed(0)
    shape = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 4 * WIDTH,
    }
    config = BertConfig(vocab_size=len(words), max_position_embeddings=128, **shape)
    BertForMaskedLM(config).save_pretrained(folder)
    BertTokenizer(vocab={word: at for at, word in enumerate(words)}).save_pretrained(folder)


def write_exam(path: Path) -> None:
    rng = random.Random(1)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", *"ABCD", "answer"])
        for _ in range(QUESTIONS):
            texts = ["".join(rng.choices(CHARACTERS, k=rng.randint(2, 8))) for _ in range(5)]
            rows.writerow([texts[0] * 4 + "？", *texts[1:], rng.choice("ABCD")])


def command(home: Path, ranks: int) -> list[str]:
    """The training script, resuming; under a launcher when there are several ranks."""
    words = [
        "fine_tuning_llm.py",
        "--cpu",
        "--model_name_or_path",
        home / "base",
        "--dataset",
        home / "exam.csv",
    ]
    words += [*RUN, "--save_dir", SAVES, "--output_dir", MODEL, "--resume"]
    words[0] = ROOT / words[0]
    if ranks == 1:
        return [sys.executable, *map(str, words)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words += ["--engine", "deepspeed", "--deepspeed_config", home / "zero2.json"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", ranks, "--master_port", port]
    return [str(word) for word in [*launch, *words]]


def start(home: Path, folder: Path, ranks: int, more_flags: Sequence[str] = ()) -> subprocess.Popen:
    """In a session of its own, so that launcher and ranks can be killed at once; a thread a process."""
    log = (folder.parent / f"{folder.name}.log").open("ab")
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    more = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": loopback}
    with log:
        return subprocess.Popen(
            [*command(home, ranks), *more_flags], cwd=folder, env={**os.environ, **more},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the whole session: torchrun's ranks have groups of their own."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(children, timeout=30)


def moment(folder: Path) -> str:
    """Stage of a run that is killed now, by what lies on the disk."""
    saves = folder / SAVES
    if any(saves.glob(".step*.half")):
        return "saving a checkpoint"
    if (saves / ".best.half").exists():
        return "saving the best model"
    if any(path.name.startswith(f".{MODEL}") for path in folder.iterdir()) or (saves / "step60").exists():
        return "publishing, evaluating"
    return ""


def until_killed(home: Path, folder: Path, ranks: int, rng: random.Random, usual: float) -> str:
    """Starts or resumes a run and kills it: at any time, or while it saves. Returns the moment; "" when it
    ended before.

    Args:
        usual: seconds that a run takes when it is left alone.
    """
    log = folder / "train_log.jsonl"
    before = log.stat().st_mtime_ns if log.exists() else 0
    process, began = start(home, folder, ranks), time.monotonic()
    wanted = rng.choices(["", *MOMENTS[2:]], (4, 3, 2, 1))[0]  # "" for any time
    limit = LONGEST if wanted else rng.random() * usual
    skip = rng.randrange(4)  # not always the first
    seen = False
    while process.poll() is None:
        now = moment(folder)
        if time.monotonic() - began > limit:
            break
        if now == wanted != "" and not seen:
            skip -= 1
            if skip < 0 or wanted == MOMENTS[-1]:  # of the last there is one
                time.sleep(rng.random() * (0.02 if skip < 0 else 1.0))
                break
        seen = now == wanted
        time.sleep(0.0005)
    else:
        return ""
    now = moment(folder)
    trained = log.exists() and log.stat().st_mtime_ns != before
    kill(process)
    return now or ("training" if trained else "starting")


def look(folder: Path, newest: int, hashes: set[str]) -> tuple[int, list[str]]:
    """(step of the newest checkpoint, what is wrong) after a kill.

    Args:
        newest: that of the newest one before it.
        hashes: of the former model and of the one that the run must end with.
    """
    saves, wrong = folder / SAVES, []
    names = complete(saves)
    for name in [*names, *(["best"] if (saves / "best").exists() else [])]:
        wrong += [f"{name}: {problem}" for problem in manifest.verify(saves / name)]
    now = int(names[-1].removeprefix("step")) if names else -1
    if now < newest:
        wrong.append(f"step{newest} was lost")
    if weights_hash(folder / MODEL) not in hashes:
        wrong.append("the model folder holds neither the former model nor the new one")
    if any((folder / SAVES).glob("earlier_*")):
        wrong.append("a checkpoint was moved aside")
    return now, wrong


def results(folder: Path) -> dict[str, object]:
    """All that a finished run leaves, but for the time it took."""
    lines = (folder / "train_log.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    card = json.loads((folder / MODEL / "all_results.json").read_text("utf-8"))
    return {
        "weights": weights_hash(folder / MODEL),
        "log": [{k: v for k, v in entry.items() if k != "tokens_per_second"} for entry in entries],
        "results": {key: value for key, value in card.items() if key != "train_runtime"},
        "questions": (folder / "test_qa_data.json").read_bytes(),
        "files": sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if "runs" not in path.parts
        ),
    }


def soak(home: Path, ranks: int, kills: int, rng: random.Random, ends_at: float) -> SoakResult:
    """Kills runs until there were so many kills, or no time is left."""
    what = "ZeRO-2, 2 ranks" if ranks > 1 else "plain"
    former = home / "former"
    alone = fresh(home, former, f"alone{ranks}")
    began = time.monotonic()
    if start(home, alone, ranks).wait(LONGEST):
        raise SystemExit((home / f"{alone.name}.log").read_text("utf-8")[-3000:])
    usual, expected = time.monotonic() - began, results(alone)
    hashes = {weights_hash(former), expected["weights"]}
    found, run = SoakResult(), 0
    while sum(found.kills.values()) < kills and time.monotonic() < ends_at:
        run += 1
        folder, newest = fresh(home, former, f"run{ranks}_{run}"), -1
        while True:
            happened = until_killed(home, folder, ranks, rng, usual)
            newest, wrong = look(folder, newest, hashes)
            found.wrong += [f"{folder.name}, {happened or 'at the end'}: {problem}" for problem in wrong]
            if not happened:
                break
            found.kills[happened] += 1
            done = sum(found.kills.values())
            print(f"  {what}: kill {done}, {happened}, step{newest}", file=sys.stderr, flush=True)
            if done >= kills or time.monotonic() > ends_at:  # the last one too is gone on with
                if start(home, folder, ranks).wait(LONGEST):
                    found.wrong.append(f"{folder.name}: did not go on")
                break
        log = (home / f"{folder.name}.log").read_text("utf-8")
        if not (folder / MODEL / "all_results.json").exists():
            found.wrong.append(f"{folder.name}: did not finish\n{log[-1500:]}")
            continue
        found.finished += 1
        ended = results(folder)
        found.wrong += [f"{folder.name}: other {key}" for key in expected if ended[key] != expected[key]]
        if ended["files"] != expected["files"]:
            found.wrong.append(f"  {sorted({*ended['files']} ^ {*expected['files']})}")
        if "重新挑選" in log or "略過" in log or "Traceback" in log:
            found.wrong.append(f"{folder.name}: a checkpoint or the best model could not be used")
        shutil.rmtree(folder)
    return found


def fresh(home: Path, former: Path, name: str) -> Path:
    """A folder for a run, with the model of another one in the place where its own will stand."""
    shutil.copytree(former, home / name / MODEL)
    return home / name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", type=int, default=200, help="kills of one plain process")
    parser.add_argument("--zero", type=int, default=40, help="kills of two ranks under ZeRO-2")
    parser.add_argument("--minutes", type=float, default=90, help="no kill after so many")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    rng, ends_at = random.Random(flags.seed), time.monotonic() + 60 * flags.minutes
    found = {}
    with tempfile.TemporaryDirectory(prefix="soak_") as place:
        home = Path(place)
        small_model(home / "base")
        write_exam(home / "exam.csv")
        config = json.loads((ROOT / "ds_config.json").read_text("utf-8"))
        config["zero_optimization"]["stage"] = 2
        (home / "zero2.json").write_text(json.dumps(config), encoding="utf-8")
        first = home / "first"
        first.mkdir()
        words = [*command(home, 1), "--max_steps", "1"]
        subprocess.run(words, cwd=first, check=True, capture_output=True)
        (first / MODEL).rename(home / "former")
        for ranks, kills in ((1, flags.plain), (2, flags.zero)):
            if kills:
                found[ranks] = soak(home, ranks, kills, rng, ends_at)
    print("| killed while | plain | ZeRO-2, 2 ranks |\n|---|---|---|")
    empty = SoakResult()
    both = [found.get(ranks, empty) for ranks in (1, 2)]
    for name in MOMENTS:
        print(f"| {name} | {both[0].kills[name]} | {both[1].kills[name]} |")
    for name, of in (
        ("kills", lambda one: sum(one.kills.values())),
        ("runs that were killed and finished, bit-identical", lambda one: one.finished),
        ("what was wrong", lambda one: len(one.wrong)),
    ):
        print(f"| **{name}** | {of(both[0])} | {of(both[1])} |")
    wrong = [problem for one in both for problem in one.wrong]
    for problem in wrong:
        print(problem)
    short = [flags.plain, flags.zero] != [sum(one.kills.values()) for one in both]
    if short:
        print("The time was up before all kills were made.")
    return 1 if wrong or short else 0


if __name__ == "__main__":
    sys.exit(main())
