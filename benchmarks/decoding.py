"""Seconds of our decoding and of `generate` for the same tokens: a Qwen2 of 4 layers of 256, eight prompts of
unequal lengths, 64 new tokens, medians of five runs that take turns.

python benchmarks/decoding.py [threads]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from finetune.decoding import Decoding, generate_ids

RUNS, ROWS, NEW, PAD = 5, 8, 64, 0
WAYS = {
    "greedy": {},
    "sampling, top-k 50, top-p 0.9": {"do_sample": True, "top_k": 50, "top_p": 0.9},
    "4 beams": {"num_beams": 4},
}


def make_model():
    """Random weights: what a token costs does not depend on what it is."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 1024, "initializer_range": 0.2,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **shape)).eval()
    model.generation_config.eos_token_id = None  # every row gets all its tokens
    return model


def compare(model, name: str, way: dict) -> None:
    """Runs both in turn and prints their row."""
    rows = [torch.randint(1, 8192, (16 + 4 * row,)).tolist() for row in range(ROWS)]
    width = max(map(len, rows))
    ids = torch.tensor([[*[PAD] * (width - len(row)), *row] for row in rows])
    asked = {"max_new_tokens": NEW, **way}

    def ours():
        return generate_ids(model, rows, Decoding(**asked), set(), PAD)

    def theirs():
        found = model.generate(input_ids=ids, attention_mask=(ids != PAD).long(), pad_token_id=PAD, **asked)
        return found[:, width:].tolist()

    if not way.get("do_sample") and ours() != theirs():
        raise SystemExit(f"{name}: not the same tokens")
    seconds: dict = {ours: [], theirs: []}
    for _ in range(RUNS):
        for run, taken in seconds.items():
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    mine, other = (statistics.median(taken) for taken in seconds.values())
    print(f"| {name} | {mine:.2f} | {other:.2f} | {mine / other:.2f} |", flush=True)


def main(threads: int = 1) -> None:
    torch.set_num_threads(threads)
    model = make_model()
    print("| decoding | ours, s | generate, s | ratio |\n|---|---|---|---|")
    for name, way in WAYS.items():
        compare(model, name, way)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
