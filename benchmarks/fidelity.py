"""Effect of bf16 on a CPU: the loss of a BERT of base size over 200 steps, and the answers of the demo's
model, beside fp32.

python benchmarks/fidelity.py [steps]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import fmean

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import workload
from harness import process

BATCH, LAST = 8, 50  # rows a step; steps that losses are averaged over
WAYS = (("letter", "1"), ("letter", "cyclic"), ("letter+prior", "1"), ("pll", "1"), ("joint", "1"))


def losses(home: Path, precision: str, steps: int) -> list[float]:
    """Of every step of masked language modelling; the same rows and masks in any precision."""
    folder = home / precision
    process(
        "fine_tuning_llm.py", "--cpu", "--precision", precision, "--task", "mlm", "--masking", "token",
        "--model_name_or_path", home / "model", "--dataset", home / "texts.txt", "--clean", "none",
        "--min_chars", 1, "--split_ratio", "1,0,0", "--max_steps", steps, "--train_batch_size", BATCH,
        "--save_dir", folder / "checkpoints", "--output_dir", folder / "model",
    )  # fmt: skip
    lines = map(json.loads, (folder / "train_log.jsonl").read_text("utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def compare_losses(home: Path, steps: int) -> None:
    workload.masked_model(home / "model")
    workload.write_texts(home / "texts.txt", BATCH * steps)
    found = {precision: losses(home, precision, steps) for precision in ("fp32", "bf16")}
    print("| steps | loss in fp32 | in bf16 | apart |\n|---|---|---|---|")
    for start in range(0, steps, LAST):
        exact, light = (fmean(found[name][start : start + LAST]) for name in ("fp32", "bf16"))
        print(f"| {start + 1}–{start + LAST} | {exact:.4f} | {light:.4f} | {abs(light / exact - 1):.2%} |")


def compare_answers(home: Path) -> None:
    import torch

    import inference
    from finetune.demo import builtin
    from finetune.evaluation.scores import best
    from finetune.evaluation.scoring import score_options
    from finetune.models.forward import bf16_forward
    from finetune.predict.loading import predictor_for

    where = "--cpu", "--save_dir", home / "demo/checkpoints", "--output_dir", home / "demo/model"
    process("fine_tuning_llm.py", "--demo", *where)
    model, tokenizer, device = inference.load_model(home / "demo/model", torch.device("cpu"))
    predictor = predictor_for(model, tokenizer, device, "fp32")
    light = bf16_forward(model)
    asked = [question for rows in builtin.exam().questions.values() for question in rows]
    print(f"\n| of {len(asked)} questions | answered alike | scores apart, at most |\n|---|---|---|")
    for method, orders in WAYS:
        exact, quick = (
            score_options(forward, tokenizer, asked, method, orders, prompts=predictor.prompts)
            for forward in (light.fp32_forward, light)
        )
        alike = fmean(best(a) == best(b) for a, b in zip(exact, quick, strict=True))
        pairs = (zip(*rows, strict=True) for rows in zip(exact, quick, strict=True))
        apart = max(abs(a - b) for row in pairs for a, b in row)
        print(f"| {method}, orders {orders} | {alike:.2%} | {apart:.3f} nats |", flush=True)


def main(steps: int = 200) -> None:
    with tempfile.TemporaryDirectory() as home:
        compare_answers(Path(home))
        compare_losses(Path(home), steps)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
