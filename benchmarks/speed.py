"""Speed of this project beside the ways people do the same today: same rows, same weights, in turns.

python benchmarks/speed.py [training] [evaluation] [prompts] [starting] [decoding] [zero] [rows] [--runs 5]

Without names, all of them: an hour and a half on two cores. Prints a table, and writes
benchmarks/results.json. README.md here says how to read it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import workload
from harness import (
    ROOT,
    RUNS,
    Measurement,
    alternate,
    compare,
    machine,
    peak_flops,
    process,
    show,
    timed,
    write,
)
from rows import loading
from training import PEERS, TrainingJob
from zero import bytes_per_rank

TEXTS, STEADY, BATCH = 128, 512, 32  # rows trained on, beside others and alone; rows a step
EXAM = 96  # questions
PROMPTS, SINGLE = 128, 20  # prompts at once; and one after another


# ---- training ----------------------------------------------------------------------------------------------


def training(home: Path, runs: int) -> list[Measurement]:
    """Tokens a second of masked language modelling, steps alone, and the peak memory of the process."""
    job = TrainingJob.write(home, TEXTS, BATCH)
    speeds, peaks = job.run(home, runs)
    # the first steps of a run prepare: memory, the state of the optimizer
    steady = TrainingJob.write(home, STEADY, BATCH)
    flops, best = steady.flops_a_token() / 1e9, _peak() / 1e9
    reached = [speed * flops for speed in steady.run(home, runs, peers=())[0]["ours"]]
    what, default = "training, masked language modelling", "trainer_default"
    memory = "peak memory of training"
    return [
        compare(what, default, "token/s", speeds["ours"], speeds[default], ">= 4.0"),
        compare(what, "trainer_tuned", "token/s", speeds["ours"], speeds["trainer_tuned"], ">= 1.8"),
        compare(what, "matrix products alone", "GFLOP/s", reached, [best] * runs, ">= 0.60"),
        compare(memory, default, "GB", peaks["ours"], peaks[default], "<= 0.6"),
    ]


def _peak() -> float:
    """Of the precision that is computed in here."""
    import torch

    from finetune.models import cpu

    precision = cpu.choose_precision(768)[0]
    return peak_flops(torch.bfloat16 if precision == "bf16" else torch.float32)


# ---- evaluation and fill-mask ------------------------------------------------------------------------------


def _loaded(home: Path, device: str):
    """transformers' model for the peers; ours as inference.py's main has it."""
    from transformers import AutoModelForMaskedLM

    import inference
    from finetune.models import cpu

    cpu.tune_malloc()
    folder = home / "model"
    if not folder.exists():
        workload.masked_model(folder)
    plain = AutoModelForMaskedLM.from_pretrained(folder).eval().to(device)
    return plain, *inference.load_model(folder, device)


def evaluation(home: Path, runs: int, device: str = "cpu", count: int = EXAM) -> list[Measurement]:
    """Questions a second by the letter method."""
    from peers import predecessor

    from finetune.data.question_rows import parse_question
    from finetune.predict.loading import predictor_for

    plain, model, tokenizer, device = _loaded(home, device)
    rows = workload.questions(count, seed=1)
    asked = [parse_question(row) for row in rows]
    predictor = predictor_for(model, tokenizer, device)
    predictor.score(asked[:8], "letter", "1")
    ways = {
        "one order": partial(timed, lambda: predictor.score(asked, "letter", "1")),
        "four orders": partial(timed, lambda: predictor.score(asked, "letter", "cyclic")),
        "predecessor": partial(timed, lambda: predecessor.answer_all(plain, tokenizer, rows)),
    }
    found = {name: [count / taken for taken in seconds] for name, seconds in alternate(ways, runs).items()}
    return [
        compare(f"evaluation, {name}", "predecessor", "question/s", found[name], found["predecessor"], target)
        for name, target in (("one order", ">= 12"), ("four orders", ">= 3.5"))
    ]


def prompts(
    home: Path, runs: int, device: str = "cpu", count: int = PROMPTS, rows: int = 32
) -> list[Measurement]:
    """A warm model and its pipeline: one prompt after the other, then many at once, of which the pipeline
    reads `rows` at a time."""
    from transformers import pipeline

    import inference
    from finetune.predict.loading import predictor_for

    plain, model, tokenizer, device = _loaded(home, device)
    theirs = pipeline("fill-mask", model=plain, tokenizer=tokenizer, device=device)
    rng = random.Random(3)
    asked = []
    for row in workload.questions(count, seed=3):
        stem = row["question"][:300]
        at = rng.randrange(len(stem))
        asked.append(f"{stem[:at]}[MASK]{stem[at + 1 :]}")
    predictor = predictor_for(model, tokenizer, device)
    few = asked[:SINGLE]
    ways = {
        "one, ours": partial(
            timed, lambda: [inference.predict_mask(model, tokenizer, p, device) for p in few]
        ),
        "one, pipeline": partial(timed, lambda: [theirs(prompt) for prompt in few]),
        "many, ours": partial(timed, lambda: predictor.fill([predictor.read(prompt) for prompt in asked], 5)),
        "many, pipeline": partial(timed, lambda: theirs(asked, batch_size=rows)),
    }
    for way in ways.values():
        way()
    found = alternate(ways, runs)
    one = {name: [1000 * taken / SINGLE for taken in found[f"one, {name}"]] for name in ("ours", "pipeline")}
    many = {name: [count / taken for taken in found[f"many, {name}"]] for name in ("ours", "pipeline")}
    return [
        compare("one warm prompt", "pipeline", "ms", one["ours"], one["pipeline"], "<= 0.4"),
        compare("prompts in batches", "pipeline", "prompt/s", many["ours"], many["pipeline"], ">= 5"),
    ]


def starting(home: Path, runs: int) -> list[Measurement]:
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


def decoding(
    home: Path, runs: int, device: str = "cpu", dtype: str = "float32", sizes=(("tiny", 64), ("half", 16))
) -> list[Measurement]:
    """Tokens a second for eight prompts of unequal lengths; the same tokens, but where they are drawn.

    Args:
        sizes: of the models, and new tokens.
    """
    import torch
    from peers.generate import generate

    from finetune.models.generation import Decoding, generate_ids

    rows: list[Measurement] = []
    for size, new in sizes:
        model = workload.causal_model(size).to(device, getattr(torch, dtype))
        asked = [torch.randint(1, model.config.vocab_size, (16 + 4 * row,)).tolist() for row in range(8)]
        for name, way in WAYS.items():
            way = {"max_new_tokens": new, **way}
            ours = partial(generate_ids, model, asked, Decoding(**way), set(), 0)
            theirs = partial(generate, model, 0, asked, **way)
            alike = sum(mine == other for mine, other in zip(ours(), theirs(), strict=True))
            if name != "sampling" and alike < len(asked):
                print(f"  {size}, {name}: {alike} of {len(asked)} rows alike", file=sys.stderr)
                if dtype == "float32":  # its sums are exact enough for the same law to give the same tokens
                    raise SystemExit("not the same tokens")
            found = alternate({"ours": partial(timed, ours), "generate": partial(timed, theirs)}, runs)
            speeds = {who: [8 * new / taken for taken in seconds] for who, seconds in found.items()}
            what = f"decoding, {size}, {name}"
            rows.append(compare(what, "generate", "token/s", speeds["ours"], speeds["generate"], ">= 1.0"))
    return rows


MEASURES = {
    "training": training, "evaluation": evaluation, "prompts": prompts, "starting": starting,
    "decoding": decoding, "zero": bytes_per_rank, "rows": loading,
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
    found: list[Measurement] = []
    about = machine()
    with tempfile.TemporaryDirectory() as home:
        for name in flags.names or MEASURES:
            print(f"{name} …", file=sys.stderr, flush=True)
            found += (part := MEASURES[name](Path(home), flags.runs))
            write(flags.write, about, part)
    show(found)


if __name__ == "__main__":
    main()
