"""Are the masks of --masking right on real sentences?

    python benchmarks/masks.py zh_tw_cc0.txt [--tokenizer bert-base-chinese]

Every line of the file is a row. Of each way of masking: the share of tokens masked; the share expected (15 %,
more in rows so short that the one word they mask is more than their share, less where there are [UNK], which
are never masked), and how many standard errors lie between; words of which some tokens are masked and others
are not, "?" where a line was longer than a row; rows without a masked token. Words are looked for by
characters, not by the units that were drawn.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetune.cli import train_args
from finetune.data.cleaning import Text  # noqa: E402
from finetune.data.segmentation import word_spans  # noqa: E402
from finetune.objectives import masked_lm  # noqa: E402
from finetune.objectives.masked_lm import MaskedLMObjective, MaskingConfig

LONGEST = 512
drawn = masked_lm._drawn
expected: list[float] = []  # masked tokens of each row, given the units it was cut into


def watched(units, rate, rng):
    """The draw itself, with what it should give on average noted down (see `apply_mask`)."""
    budget = rate * sum(map(len, units))
    expected.append(budget + sum(max(0.0, len(unit) - budget) for unit in units) / len(units))
    return drawn(units, rate, rng)


def half_masked(tokenizer, text: str, masked: set[int]) -> int:
    """Words of `text` that are masked in part. `masked`: positions, the first token of the text is 1."""
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    ids, places = encoded["input_ids"], encoded["offset_mapping"]
    split = 0
    for start, end in word_spans(text):
        over = [at for at, (low, high) in enumerate(places) if low < end and start < high]
        if tokenizer.unk_token_id not in (ids[at] for at in over):
            split += len({at + 1 in masked for at in over}) > 1
    return split


def main() -> None:
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--tokenizer", default="bert-base-chinese")
    flags = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(flags.tokenizer)
    lines = [line for line in flags.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    masked_lm._drawn = watched
    print("| masking | rows | tokens | masked | expected | z | words in halves | rows without | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for way in train_args.MASKINGS:
        expected.clear()
        began = time.perf_counter()
        rows = MaskedLMObjective(tokenizer, [Text(line) for line in lines], LONGEST, 0, MaskingConfig(way))
        examples = [rows.example(*entry, 0) for entry in rows.epoch(0)]
        seconds = time.perf_counter() - began
        counts = [len(example.positions) for example in examples]
        tokens = sum(rows.lengths) - 2 * len(examples)
        over = [count - wanted for count, wanted in zip(counts, expected, strict=True)]
        z = sum(over) / (stdev(over) * len(over) ** 0.5) if stdev(over) else 0.0
        split: int | str = "?"
        if len(examples) == len(lines):  # a row each
            split = sum(
                half_masked(tokenizer, line, set(example.positions))
                for line, example in zip(lines, examples, strict=True)
            )
        shares = f"{sum(counts) / tokens:.2%} | {sum(expected) / tokens:.2%} | {z:+.1f}"
        row = f"{way} | {len(counts):,} | {tokens:,} | {shares} | {split} | {counts.count(0)} | {seconds:.1f}"
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
