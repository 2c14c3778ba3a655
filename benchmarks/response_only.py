"""Is it worth while to run the vocabulary head at the response's positions alone?

    python benchmarks/response_only.py

One training step (forward, backward, AdamW) of a 4-layer Qwen2 with Qwen2.5's vocabulary (151,936 tokens) on
batches as long as Alpaca's: prompts of about 70 tokens, responses of about 65. Two ways, turn by turn:
the head where a response is to be said (this project), and the head everywhere with the same loss (-100 on
the prompt, as transformers computes it). The two losses are first seen to be equal.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetune.models.forward import TokenLogits  # noqa: E402
from finetune.objectives.batching import Example, collate
from finetune.objectives.loss import summed_loss, token_losses

VOCABULARY, ROWS, BATCHES, ROUNDS = 151_936, 4, 3, 5


def alpaca_like(rng: random.Random) -> Example:
    """Lengths drawn as those of Alpaca's 52,002 rows are spread: prompt with template, then response."""
    prompt = max(20, int(rng.lognormvariate(4.2, 0.35)))
    said = max(4, min(400, int(rng.lognormvariate(3.9, 0.8))))
    ids = [rng.randrange(1000) for _ in range(prompt + said)]
    at = range(prompt, prompt + said)
    return Example(tuple(ids), tuple(i - 1 for i in at), tuple(ids[i] for i in at), by_token=True)


def main() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2", vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=768, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    blanks, rng = TokenLogits(model), random.Random(0)
    batches = [collate([alpaca_like(rng) for _ in range(ROWS)], 0) for _ in range(BATCHES)]

    def at_responses(batch):
        logits = blanks(batch.input_ids, batch.attention_mask, batch.rows, batch.cols)
        return summed_loss(token_losses(logits, batch), batch) / batch.num_targets

    def everywhere(batch):
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.rows, batch.cols] = batch.targets
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)

    def seconds(loss_of) -> float:
        began = time.perf_counter()
        for batch in batches:
            loss_of(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - began) / len(batches)

    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(at_responses(batch), everywhere(batch), rtol=1e-4, atol=1e-4)
    ways = {"all logits": everywhere, "response positions": at_responses}
    times = {name: [] for name in ways}
    for loss_of in ways.values():
        seconds(loss_of)
    for _ in range(ROUNDS):
        for name, loss_of in ways.items():
            times[name].append(seconds(loss_of))
    tokens = sum(batch.tokens for batch in batches) / len(batches)
    share = sum(batch.num_targets for batch in batches) / len(batches) / tokens
    print(f"{ROWS} rows, {tokens:.0f} tokens a step, {share:.0%} of them to be said; medians of {ROUNDS}")
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"  {name:<20} {middle:.3f} s a step, {tokens / middle:,.0f} tokens/s")
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    print(f"  ratio {statistics.median(ratios):.2f} (of each round: {', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
