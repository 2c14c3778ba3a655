"""The demo with three seeds, and on two processes: accuracy on unseen questions, untuned accuracy, seconds of
training.

python benchmarks/demo_seeds.py [seed …]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "fine_tuning_llm.py"


HERE = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun, 2 processes": [HERE / "torchrun", "--nproc_per_node", "2"],
    "deepspeed ZeRO-2, 2 processes": [HERE / "deepspeed", "--num_accelerators", "2"],
}


def run(name: str, start: list, *flags: str) -> None:
    """Runs the demo in a folder of its own and prints its row."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(word) for word in (*start, SCRIPT, "--demo", *flags)]
        path = f"{HERE}{os.pathsep}{os.environ['PATH']}"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(words, cwd=folder, check=True, env={**os.environ, "PATH": path}, **quiet)
        found = json.loads((Path(folder) / "my_bert_finetuned_model_hf_format/all_results.json").read_text())
    row = found["test_accuracy"], found["untuned_test_accuracy"], found["train_runtime"]
    print("| {} | {:.3f} | {:.3f} | {:.0f} |".format(name, *row), flush=True)


def main(seeds: list[str]) -> None:
    print("| run | unseen questions | untuned | training, s |\n|---|---|---|---|")
    for seed in seeds or ["42", "1", "2"]:
        run(f"seed {seed}", [sys.executable], "--seed", seed)
    for name, start in LAUNCHERS.items() if not seeds else ():
        run(name, start)


if __name__ == "__main__":
    main(sys.argv[1:])
