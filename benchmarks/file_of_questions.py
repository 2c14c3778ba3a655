"""A file of questions answered by a tiny model: questions a second, and memory above a file of one question.

python benchmarks/file_of_questions.py [questions]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
METHODS = (("letter", "1"), ("letter", "cyclic"), ("joint", "1"), ("pll", "1"))


def measure(argv: list) -> tuple[float, float]:
    """(seconds, peak resident MB) of a command, on one thread."""
    from conftest import peak_memory

    start = time.perf_counter()
    code, peak = peak_memory(argv)
    assert code == 0, argv
    return time.perf_counter() - start, peak / 1e6


def write_questions(path: Path, count: int) -> Path:
    """Questions of 5 to 24 characters with four short options, all different."""
    from conftest import HAN

    with path.open("w", encoding="utf-8") as stream:
        stream.write("id,question,A,B,C,D\n")
        for number in range(count):
            at = number % len(HAN)
            stem = (HAN + HAN)[at : at + 4 + number % 20]
            options = ",".join((HAN + HAN)[at + i : at + i + 1 + (number + i) % 4] for i in range(4))
            stream.write(f"{number},{stem}{number}？,{options}\n")
    return path


def main(count: int) -> None:
    from conftest import make_model_dir

    print("| scoring | orders | questions | a second | MB above one question |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = make_model_dir(home / "m", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
        many, one = write_questions(home / "many.csv", count), write_questions(home / "one.csv", 1)
        for method, orders in METHODS:
            words = [sys.executable, ROOT / "inference.py", "--model_path", model, "--cpu", "--overwrite"]
            words += ["--scoring", method, "--orders", orders, "--output", home / "answers.jsonl", "--input"]
            (idle, least), (took, peak) = measure([*words, one]), measure([*words, many])
            row = method, orders, count, count / (took - idle), peak - least
            print("| {} | {} | {:,} | {:,.0f} | {:.0f} |".format(*row), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
