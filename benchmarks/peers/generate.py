"""transformers' generate for several prompts, as its documentation shows it: padded on the left."""

from __future__ import annotations

import torch


def generate(model, tokenizer_pad_id: int, prompts: list[list[int]], **way) -> list[list[int]]:
    """The new token ids of each prompt."""
    width = max(map(len, prompts))
    ids = [[*[tokenizer_pad_id] * (width - len(row)), *row] for row in prompts]
    seen = [[*[0] * (width - len(row)), *[1] * len(row)] for row in prompts]
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(seen)}
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    return model.generate(**inputs, pad_token_id=tokenizer_pad_id, **way)[:, width:].tolist()
