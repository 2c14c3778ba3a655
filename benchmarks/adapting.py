"""Five ways of adapting one base to an exam, in one run: accuracy on unseen questions, parameters trained,
seconds of training, peak memory.

The base has read the demo's sentences (`--task mlm`); each way then trains it on the demo's questions, from
files.

python benchmarks/adapting.py
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finetune.data.question import LETTERS  # noqa: E402
from finetune.demo import builtin  # noqa: E402

SPLITS = {"train": "dev", "validation": "val", "test": "test"}
WAYS = {  # of a base with three layers; an epoch has 10 steps
    "all weights": [],
    "the two upper layers and the head": ["--train_only", "1,2,head"],
    "the head alone": ["--freeze", "all_but_head"],
    "from the top, a part every 40 steps": ["--unfreeze_every", "40"],
    "LoRA, rank 16": ["--lora_rank", "16"],
}
BASE = ["--num_epochs", "60", "--mask_rate", "0.3", "--all_masked", "--split_ratio", "1,0,0"]
COMMON = [
    "--objective",
    "mlm",
    "--num_epochs",
    "20",
    "--early_stopping_patience",
    "0",
    "--learning_rate",
    "1e-3",
]
# A process counts what its parent held at its start as its own peak: so a small one stands between.
PARENT = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def write_exam(folder: Path) -> None:
    """The demo's exam in TMMLU+'s layout."""
    folder.mkdir()
    for split, questions in builtin.exam().questions.items():
        for subject in {question.subject for question in questions}:
            rows = [q for q in questions if q.subject == subject]
            with (folder / f"{subject}_{SPLITS[split]}.csv").open(
                "w", encoding="utf-8", newline=""
            ) as stream:
                table = csv.writer(stream)
                table.writerow(["question", *LETTERS[:4], "answer"])
                table.writerows([q.stem, *q.options, LETTERS[q.answer]] for q in rows)


def run(folder: Path, *flags: str) -> float:
    """Runs the training script there; peak memory in MB."""
    words = [sys.executable, "-c", PARENT, sys.executable, ROOT / "fine_tuning_llm.py", "--cpu", *flags]
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return int(done.stdout.split()[-1]) / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_exam(folder / "exam")
        run(folder, "--demo", "--task", "mlm", *BASE, "--output_dir", "base/model", "--save_dir", "base/c")
        print("| what is trained | unseen questions | parameters trained | training, s | peak memory, MB |")
        print("|---|---|---|---|---|")
        for number, (title, flags) in enumerate(WAYS.items()):
            out = f"way{number}"
            where = ["--output_dir", f"{out}/model", "--save_dir", f"{out}/checkpoints"]
            memory = run(folder, "--model", "base/model", "--dataset", "exam", *COMMON, *flags, *where)
            found = json.loads((folder / out / "model/all_results.json").read_text(encoding="utf-8"))
            if not number:
                print(f"| the base | {found['untuned_test_accuracy']:.3f} | 0 | 0 | |", flush=True)
            row = found["test_accuracy"], found["trained_parameters"], found["train_runtime"], memory
            print("| {} | {:.3f} | {:,} | {:.0f} | {:.0f} |".format(title, *row), flush=True)


if __name__ == "__main__":
    main()
