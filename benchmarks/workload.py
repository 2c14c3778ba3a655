"""Workload of the speed benchmarks: a BERT of base size with random weights, and questions as long as real
ones.

What a token costs does not depend on what it is or on what the weights are, so nothing is downloaded. Lengths
do matter: they are drawn from those of 2,043 questions of the TMMLU+ test split, counted in tokens of
bert-base-chinese, where a Chinese character is a token.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

# Every 5 % from the shortest to the longest; of options the mean of a question's four. Stems and options are
# drawn apart: their lengths have nothing to do with each other (correlation 0.05).
STEM = (5, 12, 14, 16, 17, 19, 20, 22, 23, 25, 27, 29, 32, 35, 38, 43, 49, 57, 70, 99, 300)
OPTION = (
    1, 1, 2, 2.5, 3, 3.2, 3.8, 4.2, 5, 5.8, 6.8, 7.8, 9.5, 11, 12.5, 14.5, 16.2, 19.5, 23, 28.8, 65.8,
)  # fmt: skip
VOCABULARY = 21128  # of bert-base-chinese
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
IDEOGRAPHS = range(0x4E00, 0x9FA6)
COMMON = 3000  # characters that texts are made of


def length(quantiles: tuple[float, ...], rng: random.Random) -> int:
    """A length from a distribution given by equally spaced quantiles, linear between them."""
    at, between = divmod(rng.random() * (len(quantiles) - 1), 1)
    low, high = quantiles[int(at)], quantiles[int(at) + 1]
    return max(1, round(low + between * (high - low)))


def text(count: int, rng: random.Random) -> str:
    return "".join(chr(IDEOGRAPHS.start + rng.randrange(COMMON)) for _ in range(count))


def questions(count: int, seed: int = 0) -> list[dict]:
    """Rows of a question file: question, A to D, answer."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        stem, options = text(length(STEM, rng), rng), length(OPTION, rng)
        texts = {letter: text(options, rng) for letter in "ABCD"}
        rows.append({"question": stem, **texts, "answer": rng.choice("ABCD")})
    return rows


def write_questions(path: Path, count: int, seed: int = 0) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["question", *"ABCD", "answer"])
        writer.writeheader()
        writer.writerows(questions(count, seed))
    return path


def write_texts(path: Path, count: int, seed: int = 0) -> Path:
    """The same questions as running text, a blank line between two."""
    lines = [
        row["question"] + "".join(f"{letter}{row[letter]}" for letter in "ABCD") + row["answer"]
        for row in questions(count, seed)
    ]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def tokenizer():
    """Of Chinese BERT's kind and size: every character is a token."""
    from transformers import BertTokenizer

    words = [*SPECIAL, *map(chr, range(33, 127)), *map(chr, IDEOGRAPHS)]
    words += [f"[unused{i}]" for i in range(VOCABULARY - len(words))]
    return BertTokenizer(vocab={word: at for at, word in enumerate(words[:VOCABULARY])})


def masked_model(folder: Path, layers: int = 12) -> Path:
    """Writes a BertForMaskedLM of base size, and its tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, num_hidden_layers=layers))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def causal_model(size: str):
    """A Qwen2 that never ends an answer: `tiny`, or `half`, of the shape of Qwen2.5-0.5B."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shapes = {
        "tiny": (8192, 256, 4, 4, 2, 1024),
        "half": (151936, 896, 24, 14, 2, 4864),
    }
    names = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "intermediate_size",
    )  # fmt: skip
    shape = dict(zip(names, shapes[size], strict=True), tie_word_embeddings=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **shape, initializer_range=0.2))
    model.generation_config.eos_token_id = None
    return model.eval()
