"""The way of the earlier pair of scripts: a forward pass for every option, in fp32, with `[MASK]` before the
option; the vocabulary's logits at every position, of which one number is read."""

from __future__ import annotations

import torch


@torch.no_grad()
def answer(model, tokenizer, question: str, options: dict[str, str]) -> str:
    """The letter of the option whose first token is likeliest at the blank."""
    best, best_score = "", float("-inf")
    for letter, option in options.items():
        text = f"{question}{tokenizer.mask_token}{option}"
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=512).to(model.device)
        logits = model(**inputs).logits
        blank = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
        scores = logits[0, blank].log_softmax(-1)
        first = tokenizer(option, add_special_tokens=False)["input_ids"][0]
        if scores[first] > best_score:
            best, best_score = letter, float(scores[first])
    return best


def answer_all(model, tokenizer, rows: list[dict]) -> list[str]:
    return [answer(model, tokenizer, row["question"], {x: row[x] for x in "ABCD"}) for row in rows]
