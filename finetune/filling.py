"""[MASK] becomes characters."""

from __future__ import annotations

import torch

from .errors import UserError
from .prompts import ends


def encode_with_blanks(tokenizer, prompt: str, max_length: int) -> tuple[list[int], list[int]]:
    """A prompt as token ids, and where its blanks are. Only `[MASK]` is obeyed; other such words are text.

    Raises:
        UserError: it does not fit.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("句子不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
    prompt = prompt.replace("[MASK]", tokenizer.mask_token)  # some tokenizers call it <mask>
    start, end = ends(tokenizer)
    ids, blanks = [start], []
    for number, piece in enumerate(prompt.split(tokenizer.mask_token)):
        if number:
            blanks.append(len(ids))
            ids.append(tokenizer.mask_token_id)
        ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids.append(end)
    if len(ids) > max_length:
        raise UserError(f"句子有 {len(ids)} 個 token，這個模型最多 {max_length} 個；請縮短")
    return ids, blanks


@torch.inference_mode()
def fill_first_blank(
    forward, tokenizer, prompt: str, top_k: int, max_length: int, device
) -> list[tuple[str, float]]:
    """The likeliest tokens for the first [MASK] of `prompt`, one is added at the end if there is none.

    Returns:
        (word, probability), best first; special tokens and [UNK] are not words.
    """
    if "[MASK]" not in prompt and tokenizer.mask_token not in prompt:
        prompt += tokenizer.mask_token
    ids, blanks = encode_with_blanks(tokenizer, prompt, max_length)
    input_ids = torch.tensor([ids], device=device)
    logits = forward(
        input_ids,
        torch.ones_like(input_ids),
        torch.tensor([0], device=device),
        torch.tensor(blanks[:1], device=device),
    )[0].float()  # (V,)
    probabilities = logits.softmax(-1)
    probabilities[tokenizer.all_special_ids] = -1.0
    words = min(top_k, len(tokenizer) - len(tokenizer.all_special_ids))
    values, indices = probabilities[: len(tokenizer)].topk(words)
    return [
        (tokenizer.decode([i]).strip(), p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)
    ]
