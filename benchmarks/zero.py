"""Memory of each rank under ZeRO, beside its paper's figures (Rajbhandari et al. 2020, arXiv:1910.02054).

python benchmarks/zero.py [--ranks 1,2,4] [--width 256]

Starts CPU ranks, makes steps through the project's DeepSpeed engine in every stage and precision, and sums
the bytes of the tensors that DeepSpeed holds: each storage once, nothing by a formula. Two minutes on two
cores. Prints a table of the fullest rank; megabytes are of 10^6 bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from harness import ROOT, Measurement, compare
from zero_rank import KINDS

RANKS = (1, 2, 4)
WIDTH = 256  # of the model; 768 is its real size
TARGET = "0.85..1.15"


def theory(precision: str, stage: int, ranks: int, weights: int) -> dict[str, float]:
    """Bytes on a rank. Section 3.1 of the paper: gradients and parameters in the precision that is computed
    in, and K bytes of optimizer state a parameter. Section 5: state is divided by the ranks from stage 1 on,
    gradients from 2, parameters from 3.

    K is 12 in mixed precision, where the optimizer has fp32 weights of its own beside Adam's two moments, and
    8 in fp32, where it needs none.
    """
    k, size = (8, 4) if precision == "fp32" else (12, 2)
    state, gradients, parameters = (weights / (ranks if stage >= first else 1) for first in (1, 2, 3))
    return {"optimizer": k * state, "gradients": size * gradients, "parameters": size * parameters}


def run_ranks(home: Path, ranks: int, width: int = WIDTH) -> list[list[dict]]:
    """Starts the ranks, and returns what each of them measured, case by case. None is left running.

    Raises:
        SystemExit: one of them failed; with what it said.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": loopback}
    files = [home / f"rank{rank}_of_{ranks}.json" for rank in range(ranks)]
    started: list[subprocess.Popen] = []
    try:
        for rank, file in enumerate(files):
            mine = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "OMP_NUM_THREADS": 1, **place}
            more = {"env": os.environ | {name: str(value) for name, value in mine.items()}, "cwd": ROOT}
            words = [sys.executable, ROOT / "benchmarks" / "zero_rank.py", file, str(width)]
            with file.with_suffix(".log").open("w") as log:
                started.append(subprocess.Popen(words, stdout=log, stderr=log, **more))
        while None in (codes := [child.poll() for child in started]) and not any(codes):
            time.sleep(0.2)
    finally:
        for child in started:
            child.kill()
            child.wait()
    for file, code in zip(files, codes, strict=True):
        if code:
            said = file.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
            raise SystemExit(f"{file.stem} ended with {code}:\n{said[-4000:]}")
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [list(case) for case in zip(*found, strict=True)]


def held(rank: dict, kind: str) -> int:
    """The most that a rank held after any backward pass of a step. Stage 1 cuts gradients after the last one:
    until then, while passes add up, they are whole."""
    return max(after[kind] for after in rank["passes"])


def compared(case: list[dict], kinds: Sequence[str] = KINDS) -> list[Measurement]:
    """Memory that the ranks held, against theory; `low` and `high` are those of the ranks."""
    first, ranks = case[0], len(case)
    said = theory(first["precision"], first["stage"], ranks, first["weights"])
    what = f"ZeRO-{first['stage']} on {ranks} rank{'s' * (ranks > 1)}, {first['precision']}"
    found = []
    for kind in kinds:
        measured = [held(rank, kind) / 1e6 for rank in case]
        found.append(compare(f"{what}, {kind}", "theory", "MB", measured, [said[kind] / 1e6] * ranks, TARGET))
    return found


def bytes_per_rank(home: Path, runs: int) -> list[Measurement]:
    """Of every stage and precision on 1, 2 and 4 ranks. `runs` counts for nothing: each would be the same."""
    cases = [case for ranks in RANKS for case in run_ranks(home, ranks)]
    return [row for case in cases for row in compared(case, ("optimizer", "gradients"))]


def show(cases: list[list[dict]]) -> None:
    """The table, on stdout. It also has what of the optimizer is a copy of the weights, what is left of
    gradients after the last backward pass, and all other tensors: buckets that gradients are sent in."""
    names = ["stage", "ranks", "precision", "optimizer, MB", "theory", "ratio", "copy of the weights in it"]
    names += ["gradients, MB", "theory", "ratio", "after the last pass", "parameters, MB", "theory", "ratio"]
    names += ["all else, MB", "within 15 %"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for case in cases:
        rows = dict(zip(KINDS, compared(case), strict=True))
        copy, other = (max(held(rank, kind) for rank in case) for kind in ("copy", "else"))
        last = max(rank["passes"][-1]["gradients"] for rank in case)
        cells = [str(case[0]["stage"]), str(len(case)), case[0]["precision"]]
        for row, more in zip(rows.values(), ([copy], [last], []), strict=True):
            most = row.high * row.theirs  # of the fullest rank
            cells += [f"{most:.1f}", f"{row.theirs:.1f}", f"{row.high:.2f}"]
            cells += [f"{size / 1e6:.1f}" for size in more]
        outside = [kind for kind, row in rows.items() if not row.meets_target]
        cells += [f"{other / 1e6:.1f}", f"not: {', '.join(outside)}" if outside else "yes"]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", default=",".join(map(str, RANKS)), help="numbers of them, with commas")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the model, a multiple of 64")
    flags = parser.parse_args()
    cases: list[list[dict]] = []
    with tempfile.TemporaryDirectory() as home:
        for ranks in map(int, flags.ranks.split(",")):
            print(f"{ranks} of {flags.ranks} ranks …", file=sys.stderr, flush=True)
            cases += run_ranks(Path(home), ranks, flags.width)
    show(cases)
    print(f"\n{cases[0][0]['weights']:,} weights")


if __name__ == "__main__":
    main()
