"""Masked language modelling in three ways, each in processes of its own, on a CPU or on a GPU: ours, and both
trainers of peers/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import workload
from harness import ROOT, alternate, process

PEERS = ROOT / "benchmarks" / "peers"
TRAINERS = ("trainer_default", "trainer_tuned")
MASKED = 0.15  # of the tokens
# The script, and then the most memory that it had on the GPU, on a line of its own.
ON_GPU = (
    "import sys, torch, fine_tuning_llm; code = fine_tuning_llm.main(sys.argv[1:]); "
    "print(torch.cuda.max_memory_allocated()); sys.exit(code)"
)


@dataclass(frozen=True)
class TrainingJob:
    """Rows to train on, and where they lie.

    Attributes:
        batch: rows a step.
        skip: steps at the beginning that are not timed: on a GPU they make it ready.
        engine: of ours, as --engine takes it.
    """

    model: Path
    texts: Path
    batch: int
    device: str = "cpu"
    skip: int = 0
    engine: str = "auto"

    @classmethod
    def write(cls, home: Path, texts: int, batch: int, **more) -> TrainingJob:
        """Of a BERT of base size and of so many texts, which are put into the folder."""
        model = home / "model"
        if not model.exists():
            workload.masked_model(model)
        return cls(model, workload.write_texts(home / f"{texts}texts.txt", texts), batch, **more)

    def run(
        self, home: Path, runs: int, peers: Sequence[str] = TRAINERS
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Tokens a second, steps alone, and peak memory in GB, of ours and of peers, run by run."""
        ways = {name: partial(self._trainer, f"{name}.py") for name in peers}
        found = alternate({"ours": lambda: self._ours(home / "ours"), **ways}, runs)
        speeds = {name: [row["tokens"] / row["seconds"] for row in rows] for name, rows in found.items()}
        return speeds, {name: [row["peak"] / 1e9 for row in rows] for name, rows in found.items()}

    def _trainer(self, script: str) -> dict:
        more = {"use_cpu": self.device == "cpu"}
        if not more["use_cpu"]:
            more["logging_steps"] = 1000  # each line waits for the GPU
        ended = process(PEERS / script, self.model, self.texts, self.batch, json.dumps(more), self.skip)
        found = json.loads(ended.out.splitlines()[-1])
        return {**found, "peak": ended.peak if self.device == "cpu" else found["gpu_peak"]}

    def _ours(self, home: Path) -> dict:
        script = ("-c", ON_GPU, "--precision", "bf16")
        if self.device == "cpu":
            script = ("fine_tuning_llm.py", "--cpu")
        ended = process(
            *script, "--engine", self.engine, "--task", "mlm", "--masking", "token", "--mask_rate", MASKED,
            "--model_name_or_path", self.model, "--dataset", self.texts, "--clean", "none", "--min_chars", 1,
            "--split_ratio", "1,0,0", "--num_epochs", 1, "--train_batch_size", self.batch,
            "--save_dir", home / "checkpoints", "--output_dir", home / "model",
        )  # fmt: skip
        lines = map(json.loads, (home / "train_log.jsonl").read_text("utf-8").splitlines())
        steps = [line for line in lines if "tokens" in line][self.skip :]
        seconds = sum(step["tokens"] / step["tokens_per_second"] for step in steps)
        peak = ended.peak if self.device == "cpu" else int(ended.out.split()[-1])
        return {"tokens": sum(step["tokens"] for step in steps), "seconds": seconds, "peak": peak}

    def flops_a_token(self) -> float:
        """Of a forward and a backward pass, in a BERT of base size: 85.05 M weights of layers, which
        attention adds to by the length of the row, and 33.6 M operations of the head for each token that is
        asked for."""
        lengths = [len(line.strip()) + 2 for line in self.texts.read_text("utf-8").split("\n\n")]
        length = sum(n * n for n in lengths) / sum(lengths)  # of the row that a token stands in, on average
        return 6 * 85.05e6 + 12 * 12 * 768 * length + 3 * MASKED * 33.6e6
