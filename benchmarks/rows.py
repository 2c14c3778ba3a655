"""Memory and time of many questions: read from a csv file, split, encoded, and the first epoch planned.

python benchmarks/rows.py [questions]

Without a number 2,000,000, and a tenth of them for comparison: nine minutes on two cores. Memory is the most
that the process has for itself, above one that has imported the same and read nothing. Pages of the mapped
Arrow files, which the system takes back when it needs them, are not counted (Linux; elsewhere they are).
"""

from __future__ import annotations

import json
import random
import re
import resource
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import workload
from harness import Measurement, alternate, compare, process, show

MANY, TENTH = 2_000_000, 10
BATCH = 32  # rows a step
SUBJECTS = 66


def write_many(path: Path, count: int) -> Path:
    """Questions as long as real ones, no two alike, cut out of one long text."""
    rng = random.Random(6)
    characters = workload.text(1_000_000, rng)

    def piece(quantiles) -> str:
        start = rng.randrange(len(characters) - 400)
        return characters[start : start + workload.length(quantiles, rng)]

    with path.open("w", encoding="utf-8") as file:
        file.write("question,A,B,C,D,answer,subject\n")
        for number in range(count):
            options = ",".join(piece(workload.OPTION) + letter for letter in "甲乙丙丁")
            stem = piece(workload.STEM)
            file.write(f"{number}{stem},{options},{'ABCD'[number % 4]},s{number % SUBJECTS}\n")
    return path


class Memory(threading.Thread):
    """Watches the memory of this process.

    Attributes:
        most: bytes, at most so far.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.start()

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(0.05)

    def look(self) -> int:
        status = Path("/proc/self/status")
        if status.exists():
            now = 1024 * int(re.search(r"RssAnon:\s+(\d+)", status.read_text()).group(1))
        else:
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.most = max(self.most, now)
        return self.most


def measure(path: str) -> None:
    """The steps that `fine_tuning_llm.py` takes before a model is loaded; prints what they took as JSON."""
    from finetune.data.exam import read_exam
    from finetune.data.splits import split_exam
    from finetune.models.run_card import question_fingerprints
    from finetune.objectives.batching import EpochPlan, plan_epoch
    from finetune.objectives.exam import ExamObjective
    from finetune.prompts.exam import ExamPrompts
    from finetune.training import engine  # noqa: F401  what the script imports

    prompts = ExamPrompts(workload.tokenizer(), 512)
    memory = Memory()
    idle, seconds, began = memory.look(), {}, time.perf_counter()

    def done(what: str) -> None:
        nonlocal began
        seconds[what], began = time.perf_counter() - began, time.perf_counter()

    exam = read_exam(path)
    done("read")
    splits = split_exam(exam, (0.8, 0.1, 0.1), "fit", 42)
    done("split")
    objectives = [ExamObjective("answer", prompts, rows, 42) for rows in (splits.fit, splits.validation)]
    fitted = question_fingerprints(objectives[0].rows)
    done("encode")
    train = objectives[0]
    plan = EpochPlan(train.epoch(0), plan_epoch(train.lengths, BATCH, 42, 0))
    done("plan")
    for entry in plan[0]:
        train.example(*entry, 0)
    found = {"rows": len(exam), "steps": len(plan), "fitted": len(fitted)}
    print(json.dumps({**found, "seconds": seconds, "memory": memory.look() - idle}))


def loading(home: Path, runs: int, many: int = MANY) -> list[Measurement]:
    """Memory of `many` questions, and their time beside that of a tenth of them."""

    def measure_in_process(file: Path) -> dict:
        found = json.loads(process(__file__, "--measure", file).out.splitlines()[-1])
        steps = ", ".join(f"{name} {taken:.1f} s" for name, taken in found["seconds"].items())
        print(f"  {found['rows']:,} questions: {steps}; {found['memory'] / 1e6:.0f} MB", file=sys.stderr)
        return found

    sizes = {"tenth": many // TENTH, "whole": many}
    ways = {
        name: partial(measure_in_process, write_many(home / f"{count}.csv", count))
        for name, count in sizes.items()
    }
    found = alternate(ways, runs)
    seconds = {name: [sum(one["seconds"].values()) for one in all_runs] for name, all_runs in found.items()}
    memory = [one["memory"] / 1e6 for one in found["whole"]]
    what = f"{many:,} questions read, split, encoded"
    return [
        compare(f"{what}: memory", "1 GB", "MB", memory, [1000.0] * runs, "<= 1.0"),
        compare(f"{what}: time", f"{many // TENTH:,}", "s", seconds["whole"], seconds["tenth"], "<= 11"),
    ]


def main(*arguments: str) -> None:
    if arguments[:1] == ("--measure",):
        measure(arguments[1])
        return
    with tempfile.TemporaryDirectory() as home:
        show(loading(Path(home), 1, *map(int, arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
