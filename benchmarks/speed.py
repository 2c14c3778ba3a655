"""How fast this project is beside the ways people do the same today: same rows, same weights, in turns.

python benchmarks/speed.py [teaching] [examining] [prompts] [starting] [decoding] [--runs 5]

Without names, all of them: three quarters of an hour on two cores. Prints a table, and writes
benchmarks/results.json. README.md here says how to read it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import workload
from harness import ROOT, RUNS, Found, alternate, compare, machine, peak_flops, process, show, timed, write

PEERS = ROOT / "benchmarks" / "peers"
TEXTS, BATCH = 128, 32  # rows taught, and rows a step
EXAM = 96  # questions
PROMPTS, SINGLE = 128, 20  # prompts at once; and one after another
MASKED = 0.15  # of the tokens


# ---- teaching ----------------------------------------------------------------------------------------------


def teaching(home: Path, runs: int) -> list[Found]:
    """Tokens a second of masked language modelling, steps alone, and the peak memory of the process."""
    texts = workload.write_texts(home / "texts.txt", TEXTS)
    model = workload.masked_model(home / "model")
    ways = {
        "ours": lambda: _taught(model, texts, home / "ours"),
        "trainer_default": lambda: _trainer("trainer_default.py", model, texts),
        "trainer_tuned": lambda: _trainer("trainer_tuned.py", model, texts),
    }
    found = alternate(ways, runs)
    speeds = {name: [row["tokens"] / row["seconds"] for row in rows] for name, rows in found.items()}
    peaks = {name: [row["peak"] / 1e9 for row in rows] for name, rows in found.items()}
    flops, best = _flops_a_token(texts) / 1e9, _peak() / 1e9
    reached = [speed * flops for speed in speeds["ours"]]
    taught = "teaching, masked language modelling"
    return [
        compare(taught, "trainer_default", "token/s", speeds["ours"], speeds["trainer_default"], ">= 4.0"),
        compare(taught, "trainer_tuned", "token/s", speeds["ours"], speeds["trainer_tuned"], ">= 1.8"),
        compare(taught, "matrix products alone", "GFLOP/s", reached, [best] * runs, ">= 0.60"),
        compare(
            "peak memory of teaching",
            "trainer_default",
            "GB",
            peaks["ours"],
            peaks["trainer_default"],
            "<= 0.6",
        ),
    ]


def _trainer(script: str, model: Path, texts: Path) -> dict:
    ended = process(PEERS / script, model, texts, BATCH)
    return {**json.loads(ended.out.splitlines()[-1]), "peak": ended.peak}


def _taught(model: Path, texts: Path, home: Path) -> dict:
    ended = process(
        "fine_tuning_llm.py", "--cpu", "--task", "mlm", "--masking", "token", "--mask_rate", MASKED,
        "--model_name_or_path", model, "--dataset", texts, "--clean", "none", "--min_chars", 1,
        "--split_ratio", "1,0,0", "--num_epochs", 1, "--train_batch_size", BATCH,
        "--save_dir", home / "checkpoints", "--output_dir", home / "model",
    )  # fmt: skip
    lines = map(json.loads, (home / "train_log.jsonl").read_text("utf-8").splitlines())
    steps = [line for line in lines if "tokens" in line]
    seconds = sum(step["tokens"] / step["tokens_per_second"] for step in steps)
    return {"tokens": sum(step["tokens"] for step in steps), "seconds": seconds, "peak": ended.peak}


def _flops_a_token(texts: Path) -> float:
    """Of a forward and a backward pass, in a BERT of base size: 85.05 M weights of layers, which attention
    adds to by the length of the row, and 33.6 M operations of the head for each token that is asked for."""
    lengths = [len(line.strip()) + 2 for line in texts.read_text("utf-8").split("\n\n")]
    length = sum(n * n for n in lengths) / sum(lengths)  # of the row that a token stands in, on average
    return 6 * 85.05e6 + 12 * 12 * 768 * length + 3 * MASKED * 33.6e6


def _peak() -> float:
    """Of the precision that is computed in here."""
    import torch

    from finetune import cpu

    precision = cpu.choose_precision(768)[0]
    return peak_flops(torch.bfloat16 if precision == "bf16" else torch.float32)


# ---- examining and filling ---------------------------------------------------------------------------------


def _loaded(home: Path):
    """transformers' model for the peers; ours as inference.py's main has it."""
    import torch
    from transformers import AutoModelForMaskedLM

    import inference
    from finetune import cpu

    cpu.keep_memory()
    folder = home / "model"
    if not folder.exists():
        workload.masked_model(folder)
    plain = AutoModelForMaskedLM.from_pretrained(folder).eval()
    model, tokenizer, device = inference.load_model(folder, torch.device("cpu"))
    return plain, model, tokenizer, device


def examining(home: Path, runs: int) -> list[Found]:
    """Questions a second by the letter method."""
    from peers import predecessor

    import inference
    from finetune.exams import parse_question

    plain, model, tokenizer, device = _loaded(home)
    rows = workload.questions(EXAM, seed=1)
    asked = [parse_question(row) for row in rows]
    examinee = inference._examinee(model, tokenizer, device)
    examinee.score(asked[:8], "letter", "1")
    ways = {
        "one order": partial(timed, lambda: examinee.score(asked, "letter", "1")),
        "four orders": partial(timed, lambda: examinee.score(asked, "letter", "cyclic")),
        "predecessor": partial(timed, lambda: predecessor.answer_all(plain, tokenizer, rows)),
    }
    found = {name: [EXAM / taken for taken in seconds] for name, seconds in alternate(ways, runs).items()}
    return [
        compare(f"examining, {name}", "predecessor", "question/s", found[name], found["predecessor"], target)
        for name, target in (("one order", ">= 12"), ("four orders", ">= 3.5"))
    ]


def prompts(home: Path, runs: int) -> list[Found]:
    """A warm model and its pipeline: one prompt after the other, then many at once."""
    from transformers import pipeline

    import inference

    plain, model, tokenizer, device = _loaded(home)
    theirs = pipeline("fill-mask", model=plain, tokenizer=tokenizer)
    rng = random.Random(3)
    asked = []
    for row in workload.questions(PROMPTS, seed=3):
        stem = row["question"][:300]
        at = rng.randrange(len(stem))
        asked.append(f"{stem[:at]}[MASK]{stem[at + 1 :]}")
    examinee = inference._examinee(model, tokenizer, device)
    few = asked[:SINGLE]
    ways = {
        "one, ours": partial(
            timed, lambda: [inference.predict_mask(model, tokenizer, p, device) for p in few]
        ),
        "one, pipeline": partial(timed, lambda: [theirs(prompt) for prompt in few]),
        "many, ours": partial(timed, lambda: examinee.fill([examinee.read(prompt) for prompt in asked], 5)),
        "many, pipeline": partial(timed, lambda: theirs(asked, batch_size=32)),
    }
    for way in ways.values():
        way()
    found = alternate(ways, runs)
    one = {name: [1000 * taken / SINGLE for taken in found[f"one, {name}"]] for name in ("ours", "pipeline")}
    many = {name: [PROMPTS / taken for taken in found[f"many, {name}"]] for name in ("ours", "pipeline")}
    return [
        compare("one warm prompt", "pipeline", "ms", one["ours"], one["pipeline"], "<= 0.4"),
        compare("prompts in batches", "pipeline", "prompt/s", many["ours"], many["pipeline"], ">= 5"),
    ]


def starting(home: Path, runs: int) -> list[Found]:
    """One prompt as a whole process."""
    if not (home / "model").exists():
        workload.masked_model(home / "model")
    prompt = "今天天氣很[MASK]。"
    ways = {
        "ours": lambda: process("inference.py", "--model_path", home / "model", "--prompt", prompt).seconds,
        "pipeline": lambda: process(PEERS / "pipeline.py", home / "model", prompt).seconds,
    }
    for way in ways.values():
        way()  # files are read from the disk once
    found = alternate(ways, runs)
    return [
        compare(
            "starting: one prompt, all of it", "pipeline", "s", found["ours"], found["pipeline"], "<= 0.75"
        )
    ]


# ---- decoding ----------------------------------------------------------------------------------------------

WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 50, "top_p": 0.9},
    "4 beams": {"num_beams": 4},
}


def decoding(home: Path, runs: int) -> list[Found]:
    """Tokens a second for eight prompts of unequal lengths; the same tokens, but where they are drawn."""
    import torch

    from finetune.decoding import Decoding, generate_ids

    rows: list[Found] = []
    for size, new in (("tiny", 64), ("half", 16)):
        model = workload.causal_model(size)
        asked = [torch.randint(1, model.config.vocab_size, (16 + 4 * row,)).tolist() for row in range(8)]
        width = max(map(len, asked))
        ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in asked])
        more = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pad_token_id": 0}
        for name, way in WAYS.items():
            way = {"max_new_tokens": new, **way}
            ours = partial(generate_ids, model, asked, Decoding(**way), set(), 0)
            theirs = partial(model.generate, **more, **way)
            if name != "sampling" and ours() != theirs()[:, width:].tolist():
                raise SystemExit(f"{size}, {name}: not the same tokens")
            found = alternate({"ours": partial(timed, ours), "generate": partial(timed, theirs)}, runs)
            speeds = {who: [8 * new / taken for taken in seconds] for who, seconds in found.items()}
            what = f"decoding, {size}, {name}"
            rows.append(compare(what, "generate", "token/s", speeds["ours"], speeds["generate"], ">= 1.0"))
    return rows


MEASURES = {
    "teaching": teaching, "examining": examining, "prompts": prompts, "starting": starting,
    "decoding": decoding,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASURES))
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--write", type=Path, default=ROOT / "benchmarks" / "results.json")
    flags = parser.parse_args()
    if unknown := set(flags.names) - set(MEASURES):
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(MEASURES)}")
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as home:
        for name in flags.names or MEASURES:
            print(f"{name} …", file=sys.stderr, flush=True)
            found += MEASURES[name](Path(home), flags.runs)
    show(found)
    write(flags.write, machine(), found)


if __name__ == "__main__":
    main()
