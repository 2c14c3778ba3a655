"""What the decoding options make of the scores of the next token.

Meaning and order are those of transformers' `generate`: `processed` is what its logits processors leave, in
every way of decoding, `filtered` what its warpers leave, in sampling alone.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional

from finetune.models.decoding import Decoding
from finetune.models.kv_cache import NO_TOKEN
from finetune.runtime.errors import UserError


def processed(
    scores: Tensor,
    previous_ids: Tensor,
    decoding: Decoding,
    banned: Collection[int] = (),
    forced: Collection[int] = (),
) -> Tensor:
    """Return scores (B, V) after repetition penalty, repeated n-grams and banned tokens, in fp32.

    Tokens that must not come get -inf.

    Args:
        scores: logits, or in beam search log-probabilities.
        previous_ids: (B, T) of prompt and reply; an id outside the vocabulary counts for nothing.
        banned: the ends of a reply, while it has fewer than `min_new_tokens`.
        forced: tokens of which one must come, whatever the rest says; none where any may.
    """
    scores = _penalised(scores.float(), previous_ids, decoding.repetition_penalty)
    if decoding.no_repeat_ngram_size:
        scores = _without_repeats(scores, previous_ids, decoding.no_repeat_ngram_size)
    if ids := [i for i in banned if i < scores.shape[-1]]:
        scores = scores.index_fill(1, torch.tensor(ids, device=scores.device), -torch.inf)
    if forced:
        wanted = torch.tensor(list(forced), device=scores.device)
        scores = torch.full_like(scores, -torch.inf).index_fill(1, wanted, 0.0)
    return scores


def filtered(scores: Tensor, decoding: Decoding) -> Tensor:
    """Return scores (B, V) after temperature, top-k, top-p and min-p; filtered tokens get -inf.

    Args:
        decoding: with a temperature above 0.
    """
    if decoding.temperature != 1.0:
        scores = scores / decoding.temperature
    if decoding.top_k:
        kth = scores.topk(min(decoding.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if decoding.top_p < 1.0:
        ascending, order = scores.sort()
        unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - decoding.top_p
        unlikely[:, -1] = False
        scores = scores.masked_fill(unlikely.scatter(1, order, unlikely), -torch.inf)
    if decoding.min_p:
        shares = scores.softmax(-1)
        scores = scores.masked_fill(shares < decoding.min_p * shares.amax(-1, keepdim=True), -torch.inf)
    return scores


def check_choice(scores: Tensor, decoding: Decoding) -> None:
    """Raise UserError when the n-grams of a row leave it no token at all."""
    if decoding.no_repeat_ngram_size and bool(scores.isneginf().all(-1).any()):
        raise UserError(
            f"--no_repeat_ngram_size {decoding.no_repeat_ngram_size}：每一個 token 接下去都會重複，"
            "沒有可以選的了；請加大它，或縮短 --min_new_tokens 與 --max_new_tokens"
        )


def _penalised(scores: Tensor, previous_ids: Tensor, penalty: float) -> Tensor:
    """Apply the repetition penalty to scores (B, V) of tokens that occur in `previous_ids`.

    Positive scores are divided by `penalty`, others multiplied by it (Keskar et al. 2019, section 4.1;
    negative scores as in transformers). As there, padding is no token.
    """
    if penalty == 1.0:
        return scores
    words = scores.shape[-1]
    ids = previous_ids.clamp(max=words)
    wide = functional.pad(scores, (0, 1))  # the last column takes what is outside the vocabulary
    seen = wide.gather(1, ids)
    return wide.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))[:, :words]


def _without_repeats(scores: Tensor, previous_ids: Tensor, size: int) -> Tensor:
    """Ban the tokens that would complete an n-gram of this size for the second time.

    The n-grams of the prompt count too. Padding stands in none that a row can repeat: it comes before every
    token of the row, and the next token comes after one.
    """
    words, starts = scores.shape[-1], previous_ids.shape[1] + 1 - size  # places where an n-gram begins
    if starts < 1:
        return scores
    repeated = torch.ones_like(previous_ids[:, :starts], dtype=torch.bool)
    for at in range(size - 1):  # against the last size - 1 tokens
        repeated &= previous_ids[:, at : at + starts] == previous_ids[:, starts + at, None]
    completing = previous_ids[:, size - 1 :].masked_fill(~repeated, NO_TOKEN).clamp(max=words)
    wide = functional.pad(scores, (0, 1))
    return wide.scatter(1, completing, -torch.inf)[:, :words]
