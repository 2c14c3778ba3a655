"""Starts two training runs in one folder at nearly the same time, again and again: one must end as a run that
was alone, the other must name that run and touch nothing.

python benchmarks/concurrent_runs.py [--rounds 20] [--seed 0]

The second one starts a random while after the first: at once, or up to half as long as a run takes. The one
that ends with 0 must have the weights, losses, questions and files of a run that was alone; the other must
end with 2 and name the process of the first. Prints a table; ends with 1 where one of these does not hold.
20 rounds: ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from soak import LONGEST, results, small_model, start, write_exam

STEPS = ["--max_steps", "12"]


def begin(home: Path, folder: Path) -> subprocess.Popen:
    """A run of a few steps."""
    return start(home, folder, 1, STEPS)


def one_round(home: Path, folder: Path, delay: float) -> tuple[list[int], list[int], str]:
    """(exit codes, process ids, what both said) of two runs in one folder."""
    folder.mkdir()
    first = begin(home, folder)
    time.sleep(delay)
    second = begin(home, folder)
    codes = [first.wait(LONGEST), second.wait(LONGEST)]
    return codes, [first.pid, second.pid], (home / f"{folder.name}.log").read_text("utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    rng, wrong, delays, firsts = random.Random(flags.seed), [], [], 0
    with tempfile.TemporaryDirectory(prefix="concurrent_runs_") as place:
        home = Path(place)
        small_model(home / "base")
        write_exam(home / "exam.csv")
        (home / "alone").mkdir()
        began = time.monotonic()
        if begin(home, home / "alone").wait(LONGEST):
            raise SystemExit((home / "alone.log").read_text("utf-8")[-3000:])
        usual, expected = time.monotonic() - began, results(home / "alone")
        while len(delays) < flags.rounds:
            number, delay = len(delays) + 1, rng.choice([0.0, rng.random() * 0.05, rng.random() * usual / 2])
            folder = home / f"round{number}_{len(wrong)}"
            codes, pids, said = one_round(home, folder, delay)
            delays.append(delay)
            print(f"  round {number}: {delay:.3f} s apart, exit codes {codes}", file=sys.stderr, flush=True)
            if sorted(codes) != [0, 2]:
                wrong.append(f"round {number}: exit codes {codes}\n{said[-1500:]}")
                continue
            firsts += codes[0] == 0
            named = re.findall(r"行程 (\d+)，主機", said)
            if named != [str(pids[codes.index(0)])]:
                wrong.append(f"round {number}: names {named}, should name {pids[codes.index(0)]}")
            ended = results(folder)
            wrong += [f"round {number}: other {key}" for key in expected if ended[key] != expected[key]]
    print(
        "| two runs in one folder | |\n|---|---|\n"
        f"| rounds | {len(delays)} |\n"
        f"| seconds apart | {min(delays):.3f} to {max(delays):.1f} |\n"
        f"| the first to start won | {firsts} |\n"
        f"| **what was wrong** | {len(wrong)} |"
    )
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
