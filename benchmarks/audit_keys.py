"""How many of the questions that --audit_keys lists first do have a wrong key?

    python benchmarks/audit_keys.py                  # trains two demo models first: five minutes
    python benchmarks/audit_keys.py MODEL MODEL      # folders of models of fine_tuning_llm.py --demo
    python benchmarks/audit_keys.py MODEL MODEL --flips 5

Of the keys of the built-in exam 5 % are replaced by another option, and two models that learnt the right
facts are asked: a vote each, for they answer by the text of the options. A row for each draw of the replaced
keys: how many of the questions listed first, as many as were replaced, are replaced ones, with its 95 %
interval. A list in random order has 5 % of them. `all` are all questions, of which the models learnt half
with the right keys; `test` those alone whose facts they have only read.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import inference  # noqa: E402
from finetune.data.question import LETTERS, Question
from finetune.demo import builtin
from finetune.evaluation.metrics import wilson

SCRIPT = Path(__file__).resolve().parents[1] / "fine_tuning_llm.py"
SHARE = 0.05  # of the keys that are replaced
TRAINED = "my_bert_finetuned_model_hf_format"


def train(folder: Path, seed: int) -> Path:
    """Trains a demo model in a folder of its own. Returns the folder of the model."""
    folder.mkdir()
    words = [sys.executable, str(SCRIPT), "--demo", "--cpu", "--seed", str(seed)]
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / TRAINED


def with_wrong_keys(questions: list[Question], seed: int) -> tuple[list[Question], set[str]]:
    """Returns the questions with SHARE of their keys replaced, and the ids of those."""
    rng = random.Random(f"flip:{seed}")
    flipped = {question.id for question in rng.sample(questions, round(SHARE * len(questions)))}
    return [replace(q, answer=another(q, rng)) if q.id in flipped else q for q in questions], flipped


def another(question: Question, rng: random.Random) -> int:
    return rng.choice([option for option in range(len(question.options)) if option != question.answer])


def write_exam(path: Path, questions: list[Question]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "subject", "question", *LETTERS[: builtin.OPTIONS], "answer"])
        for question in questions:
            assert question.answer is not None
            key = LETTERS[question.answer]
            writer.writerow([question.id, question.subject, question.stem, *question.options, key])
    return path


def audit(models: list[str], exam: Path, report: Path, flags: list[str]) -> tuple[list[dict], dict]:
    """Returns the rows of doubtful_keys.jsonl and the summary of results.json."""
    words = ["--model_path", models[0], "--cpu", "--exam", str(exam), "--report", str(report), *flags]
    words += ["--compare_with", models[1]] if len(models) > 1 else []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as log:
        code = inference.main([*words, "--audit_keys", "--skip_option_only"])
    if code:
        raise SystemExit(log.getvalue())
    rows = [json.loads(line) for line in (report / "doubtful_keys.jsonl").read_text().splitlines()]
    return rows, json.loads((report / "results.json").read_text())["all"]["doubtful_keys"]


def row_of(name: str, listed: list[dict], flipped: set[str], summary: dict) -> str:
    """A row of the table; where fewer are listed than were replaced, those missing count as misses."""
    hits = sum(row["id"] in flipped for row in listed[: len(flipped)])
    low, high = wilson(hits, len(flipped))
    sure = [row["id"] in flipped for row in listed if row["agreement"] == 1]
    accident = summary["by_accident"]["votes_independent"]
    return (
        f"| {name} | {len(flipped)} | {summary['listed']} | {hits}/{len(flipped)} = {hits / len(flipped):.3f}"
        f" | {low:.3f}–{high:.3f} | {sum(sure)}/{len(sure)} | {accident:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    parser.add_argument("--flips", type=int, default=3, help="draws of the keys that are replaced")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags of inference.py")
    args = parser.parse_args()
    exam = builtin.exam()
    sets = {
        "all": [question for rows in exam.questions.values() for question in rows],
        "test": list(exam.questions["test"]),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = args.models or [str(train(folder / f"seed{seed}", seed)) for seed in (42, 1)]
        head = ("questions, draw", "flipped", "listed", "flipped among the first", "95 %", "of the unanimous")
        print(f"| {' | '.join(head)} | unanimous by accident |\n|---|---|---|---|---|---|---|")
        for title, questions in sets.items():
            for draw in range(args.flips):
                given, flipped = with_wrong_keys(questions, draw)
                path = write_exam(folder / f"{title}{draw}.csv", given)
                listed, summary = audit(models, path, folder / f"{title}{draw}", args.flags)
                print(row_of(f"{title}, {draw}", listed, flipped, summary), flush=True)


if __name__ == "__main__":
    main()
