"""Shared parts of the speed benchmarks: ways that take turns, processes with their peak memory, and a table
of ratios beside their targets."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = 5


@dataclass
class Measurement:
    """One line of the table. `value` is a ratio, or a share; min, median and max over the runs."""

    what: str
    against: str
    unit: str  # of ours and theirs
    ours: float  # medians
    theirs: float
    low: float
    median: float
    high: float
    target: str  # such as ">= 4.0"; "0.85..1.15": every run lies between

    @property
    def meets_target(self) -> bool:
        if ".." in self.target:
            least, most = map(float, self.target.split(".."))
            return least <= self.low and self.high <= most
        relation, limit = self.target.split()
        return self.median >= float(limit) if relation == ">=" else self.median <= float(limit)


def compare(
    what: str, against: str, unit: str, ours: list[float], theirs: list[float], target: str
) -> Measurement:
    """Ours over theirs, run by run."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Measurement(
        what, against, unit, statistics.median(ours), statistics.median(theirs),
        min(ratios), statistics.median(ratios), max(ratios), target,
    )  # fmt: skip


def alternate(ways: dict[str, Callable[[], object]], runs: int = RUNS) -> dict[str, list]:
    """Results of each way, run after run: they take turns, so that a slow minute of the machine is slow for
    all of them."""
    found: dict[str, list] = {name: [] for name in ways}
    for number in range(runs):
        for name, way in ways.items():
            found[name].append(way())
            print(f"  {name}, run {number + 1} of {runs}", file=sys.stderr, flush=True)
    return found


def timed(way: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


@dataclass
class Ended:
    """A process that ended well. `peak`: bytes resident at most; on Linux never less than what this process
    had when it started it, which is small beside what is compared."""

    out: str
    seconds: float
    peak: int


def process(*arguments: object) -> Ended:
    """Runs Python with these arguments. Raises SystemExit, with what it said, when it fails."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=out, stderr=err)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if child.returncode:
            raise SystemExit(f"{arguments} ended with {child.returncode}:\n{err.read()[-4000:]}")
        return Ended(out.read(), seconds, used.ru_maxrss * 1024)


# Products of a BERT of base size: rows, inputs, outputs.
SHAPES = ((2048, 768, 768), (2048, 768, 3072), (2048, 3072, 768))


def peak_flops(dtype, device: str = "cpu", shapes: Sequence[tuple[int, int, int]] = SHAPES) -> float:
    """Floating-point operations a second in matrix products: the best median of several shapes."""
    import torch

    def product(left, right) -> None:
        torch.nn.functional.linear(left, right)
        if device != "cpu":
            torch.cuda.synchronize()  # it is only begun

    best = 0.0
    for rows, inputs, outputs in shapes:
        left = torch.randn(rows, inputs, device=device).to(dtype)
        right = torch.randn(outputs, inputs, device=device).to(dtype)
        seconds = [timed(partial(product, left, right)) for _ in range(15)]
        best = max(best, 2 * rows * inputs * outputs / statistics.median(seconds))
    return best


def machine() -> dict:
    """Machine that the figures were measured on."""
    import torch

    names = ("torch", "transformers", "deepspeed", "accelerate", "tokenizers", "numpy")
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
        "peak_gflops": {
            "fp32": round(peak_flops(torch.float32) / 1e9),
            "bf16": round(peak_flops(torch.bfloat16) / 1e9),
        },
    }


def show(found: list[Measurement]) -> None:
    """The table, on stdout."""
    print("| what | against | ours | theirs | ratio: min | median | max | target | |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in found:
        figures = " | ".join(f"{value:.2f}" for value in (row.low, row.median, row.high))
        print(
            f"| {row.what} | {row.against} | {row.ours:.4g} {row.unit} | {row.theirs:.4g} {row.unit} | "
            f"{figures} | {row.target} | {'met' if row.meets_target else 'MISSED'} |"
        )


def write(path: Path, about: dict, found: list[Measurement]) -> None:
    """Puts the results into a file, those of the same name in place of older ones."""
    older = json.loads(path.read_text("utf-8"))["results"] if path.is_file() else []
    new = {(row.what, row.against): {**asdict(row), "met": row.meets_target} for row in found}
    kept = [row for row in older if (row["what"], row["against"]) not in new]
    results = {"machine": about, "results": [*kept, *new.values()]}
    path.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
