"""Gain of the two stages on a model small enough for a laptop.

    python benchmarks/two_stages.py --general drcd_paragraphs.jsonl --taigi taigi_cc0.json \\
        --reading reading_mcq_train.csv --questions reading_mcq_val.csv

A 2-layer Llama with a byte-level BPE tokenizer, both made here, reads encyclopedia texts first (300 steps),
so that there is a base to go on from. Then: continued pre-training on Taigi (300 steps; all weights, and LoRA
rank 64), tuning on reading comprehension (100 steps, LoRA rank 16), and an exam on other questions. Every
command is the project's own; the figures are those of its all_results.json and its verdict.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

VOCABULARY, LENGTH = 4096, 256


def make_base(folder: Path, sources: list[Path]) -> None:
    """Configuration and tokenizer of the base: 2 layers, hidden size 256."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    bpe.train([str(source) for source in sources], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=special[0], pad_token=special[1])
    tokenizer.save_pretrained(folder)
    LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=688, max_position_embeddings=2048, bos_token_id=None,
        eos_token_id=0, pad_token_id=1, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip


def train(folder: Path, name: str, *flags) -> dict:
    """One run of the training script; its figures."""
    words = [
        sys.executable,
        ROOT / "fine_tuning_llm.py",
        "--cpu",
        "--seed",
        9527,
        "--max_length",
        LENGTH,
        *flags,
    ]
    words += ["--output_dir", folder / name / "model", "--save_dir", folder / name / "checkpoints"]
    began = time.perf_counter()
    subprocess.run(list(map(str, words)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = json.loads((folder / name / "model/all_results.json").read_text(encoding="utf-8"))
    return found | {"seconds": time.perf_counter() - began}


def print_row(title: str, found: dict) -> None:
    before, after = found["untuned_validation_perplexity"], found["validation_perplexity"]
    print(
        f"{title:<44} held-out perplexity {before:9.1f} -> {after:7.1f} ({after / before - 1:+.1%}), "
        f"{found['steps']} steps, {found['seconds']:.0f} s", flush=True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("general", "taigi", "reading", "questions"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("two_stages"))
    given = parser.parse_args()
    folder = given.folder
    make_base(folder / "base", [given.general, given.taigi])
    steps = ["--max_steps", 300, "--train_batch_size", 8, "--learning_rate"]
    scratch = ["--model_name_or_path", folder / "base", "--from_scratch"]
    print_row("base: encyclopedia, from scratch", train(
        folder, "general", "--task", "cpt", "--dataset", given.general, *scratch, *steps, 2e-3
    ))  # fmt: skip
    taigi = ["--task", "cpt", "--dataset", given.taigi, "--model_name_or_path", folder / "general/model"]
    print_row("CPT: Taigi, all weights", train(folder, "cpt", *taigi, *steps, 1e-3))
    lora = ["--lora_rank", 64, "--lora_alpha", 128]
    print_row("CPT: Taigi, LoRA rank 64, merged", train(folder, "cpt_lora", *taigi, *steps, 2e-3, *lora))
    print_row("SFT: reading comprehension, LoRA rank 16", train(
        folder, "sft", "--task", "sft", "--dataset", given.reading, "--template", "plain",
        "--model_name_or_path", folder / "cpt/model", "--max_steps", 100, "--learning_rate", 1e-3,
        "--lora_rank", 16, "--lora_alpha", 32, "--lora_dropout", 0.1,
    ))  # fmt: skip
    words = [sys.executable, ROOT / "inference.py", "--cpu", "--model_path", folder / "sft/model"]
    words += [
        "--exam",
        given.questions,
        "--split",
        "all",
        "--report",
        folder / "report",
        "--compare_with",
        "base",
    ]
    subprocess.run(list(map(str, words)), check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
