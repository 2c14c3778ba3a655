"""The comparisons of speed.py on a CUDA GPU, and the share of the card's peak that training reaches.

python benchmarks/gpu.py [training] [evaluation] [prompts] [decoding] [--runs 3] [--engine auto]

Prints the peak of matrix products in bf16, then a table, and writes benchmarks/results_gpu.json. Ends with 2
where there is no GPU, and with 1 where a part of it failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import speed
from harness import ROOT, Measurement, compare, machine, peak_flops, show, write
from training import TrainingJob

SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192), (65536, 768, 3072))  # see peak_flops
BATCHES = (32, 128)  # rows a step; memory for a Trainer in fp32 with much more few cards have
STEPS, SKIP = 60, 10  # of training, and how many of them are not timed
EXAM, PROMPTS, ROWS = 480, 1024, 128  # questions; prompts, and those that the pipeline reads at a time
SIZES = (("half", 128),)  # of models that decode, and new tokens
SHARE = ">= 0.45"  # of the peak


def peak(device: str = "cuda", shapes=SHAPES) -> float:
    """The best of these products in bf16, operations a second. Prints each."""
    import torch

    found = []
    for rows, inputs, outputs in shapes:
        found.append(peak_flops(torch.bfloat16, device, [(rows, inputs, outputs)]))
        print(f"bf16, {rows} × {inputs} × {outputs}: {found[-1] / 1e12:.1f} TFLOP/s", flush=True)
    if device != "cpu":
        torch.cuda.empty_cache()  # others need it now
    return max(found)


def training(
    home: Path, runs: int, best: float, engine: str = "auto", batches=BATCHES, **more
) -> list[Measurement]:
    """Tokens a second beside both trainers and, as operations that the model needs, beside the peak.

    Args:
        best: the peak, operations a second.
        more: of a TrainingJob.
    """
    more = {"device": "cuda", "skip": SKIP, "engine": engine, **more}
    found: list[Measurement] = []
    for batch in batches:
        job = TrainingJob.write(home, STEPS * batch, batch, **more)
        try:
            speeds, peaks = job.run(home, runs)
        except SystemExit as error:  # too little memory for a Trainer, say: fewer rows may do
            print(f"{batch} rows a step: {error}", file=sys.stderr, flush=True)
            continue
        reached = [tokens * job.flops_a_token() / 1e12 for tokens in speeds["ours"]]
        what, memory = f"training, {batch} rows a step", f"its memory, {batch} rows a step"
        for peer in ("trainer_default", "trainer_tuned"):
            found += [
                compare(what, peer, "token/s", speeds["ours"], speeds[peer], ">= 1.0"),
                compare(memory, peer, "GB", peaks["ours"], peaks[peer], "<= 1.0"),
            ]
        found.append(compare(what, "matrix products alone", "TFLOP/s", reached, [best / 1e12] * runs, SHARE))
    return found


def run_speed_on_gpu(measure: Callable, home: Path, runs: int, **more) -> list[Measurement]:
    """Measurements of speed.py on the GPU; its targets are a CPU's, and here we shall not be slower."""
    rows = measure(home, runs, **{"device": "cuda", **more})
    return [replace(row, target="<= 1.0" if row.unit == "ms" else ">= 1.0") for row in rows]


def main() -> int:
    flags = _flags()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # a Trainer would take all cards there are
    import torch

    if not torch.cuda.is_available():
        print("gpu.py needs a CUDA GPU, and torch finds none here.", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name()
    print(card)
    best = peak()
    measures = {
        "training": partial(training, best=best, engine=flags.engine),
        "evaluation": partial(run_speed_on_gpu, speed.evaluation, count=EXAM),
        "prompts": partial(run_speed_on_gpu, speed.prompts, count=PROMPTS, rows=ROWS),
        "decoding": partial(run_speed_on_gpu, speed.decoding, dtype="bfloat16", sizes=SIZES),
    }
    found: list[Measurement] = []
    failed = False
    with tempfile.TemporaryDirectory() as home:
        for name in flags.names or NAMES:
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                found += measures[name](home=Path(home), runs=flags.runs)
            except (SystemExit, RuntimeError) as error:  # too little memory, say: the others can be had
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                failed = True
    write(flags.write, machine() | {"gpu": card, "gpu_peak_tflops": round(best / 1e12)}, found)
    print()
    show(found)
    return int(failed)


NAMES = ("training", "evaluation", "prompts", "decoding")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--engine", choices=("auto", "deepspeed", "torch"), default="auto", help="of ours")
    parser.add_argument("--write", type=Path, default=ROOT / "benchmarks" / "results_gpu.json")
    flags = parser.parse_args()
    if unknown := set(flags.names) - set(NAMES):
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(NAMES)}")
    return flags


if __name__ == "__main__":
    sys.exit(main())
