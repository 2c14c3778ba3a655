"""What the decoding options make of the scores of the next token, and which token is chosen by them.

Meaning and order are those of transformers' `generate`: `processed` is what its logits processors leave, in
every way of decoding, `filtered` what its warpers leave, in sampling alone.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from finetune.models.decoding import Decoding
from finetune.models.forward import NOT_NUMBERS
from finetune.models.kv_cache import NO_TOKEN
from finetune.runtime.errors import UserError

SMALL = 1e-3  # dividing by less may go beyond fp32
TINY = torch.finfo(torch.float32).tiny  # fp32 takes less for 0
NO_NUMBERS, NO_TOKEN_LEFT = -1, -2  # in the place of a token: logits that are no numbers, none may come


@dataclass(frozen=True)
class Choice:
    """How the next token of a row is chosen. Rows of which it is the same are chosen for together.

    Attributes:
        decoding: reduced to what decides about one token, see `Choice.of`.
        banned: tokens that must not come.
        forced: tokens of which one must come; none where any may.
    """

    decoding: Decoding
    banned: frozenset[int] = frozenset()
    forced: frozenset[int] = frozenset()

    @classmethod
    def of(cls, decoding: Decoding) -> Choice:
        """Return the choice of a decoding, without a ban."""
        asked = ["repetition_penalty", "no_repeat_ngram_size"]
        if decoding.samples:
            asked += ["do_sample", "temperature", "top_k", "top_p", "min_p"]
        return cls(Decoding(**{name: getattr(decoding, name) for name in asked}))

    @property
    def is_plain(self) -> bool:
        """True where the token with the highest logit is chosen, whatever came before."""
        return not (self.decoding.samples or self.decoding.reads_reply or self.banned or self.forced)


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
    if min(decoding.temperature, decoding.repetition_penalty) < SMALL:  # the likeliest is 0: no overflow
        scores = scores - scores.amax(-1, keepdim=True)
    if decoding.temperature != 1.0:
        scores = scores / max(decoding.temperature, TINY)
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


def chosen(logits: Tensor, previous_ids: Tensor, choice: Choice, uniform: Tensor | None) -> Tensor:
    """Return the next token (B,) of each row; NO_NUMBERS or NO_TOKEN_LEFT where there is none.

    Args:
        logits: (B, V) in fp32.
        previous_ids: (B, T), see `processed`.
        choice: how it is chosen, in every row.
        uniform: (B, 1) random numbers in [0, 1) where the decoding samples.
    """
    decoding = choice.decoding
    highest = logits.amax(-1)
    is_number = highest < torch.inf  # False of NaN
    if choice.is_plain:
        return logits.argmax(-1).where(is_number, NO_NUMBERS)
    scores = processed(logits, previous_ids, decoding, choice.banned, choice.forced)
    tokens = scores.argmax(-1) if uniform is None else _sampled(filtered(scores, decoding), uniform)
    if decoding.no_repeat_ngram_size:
        tokens = tokens.where(~scores.isneginf().all(-1), NO_TOKEN_LEFT)
    return tokens.where(is_number, NO_NUMBERS)


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probabilities of a token, by the model's distribution before any filter.

    Attributes:
        token: its id.
        logprob: in nats.
        top: the likeliest tokens in its place with theirs, best first.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


def token_logprobs(logits: Tensor, tokens: Tensor, count: int) -> list[TokenLogprob]:
    """Return the log-probabilities of tokens (B,) by logits (B, V) in fp32, with the `count` likeliest."""
    log_probs = logits.log_softmax(-1)
    own = log_probs.gather(1, tokens[:, None])[:, 0].tolist()
    top, top_ids = (part.tolist() for part in log_probs.topk(min(count, log_probs.shape[1])))
    return [
        TokenLogprob(token, logprob, list(zip(ids, values, strict=True)))
        for token, logprob, ids, values in zip(tokens.tolist(), own, top_ids, top, strict=True)
    ]


def failure(token: int, decoding: Decoding) -> UserError:
    """Return why `chosen` has no token for a row."""
    if token == NO_NUMBERS:
        return UserError(NOT_NUMBERS)
    return UserError(
        f"--no_repeat_ngram_size {decoding.no_repeat_ngram_size}：每一個 token 接下去都會重複，"
        "沒有可以選的了；請加大它，或縮短 --min_new_tokens 與 --max_new_tokens"
    )


def generator_of(seed: int | None, number: int) -> torch.Generator:
    """Return what a row's uniform numbers are drawn from, one a token, on the CPU.

    Args:
        seed: None draws others every time.
        number: of the row in its call: what is drawn depends on it and on the seed alone.
    """
    seed = secrets.randbits(63) if seed is None else seed
    row_seed = random.Random(f"decoding:{seed}:{number}").getrandbits(63)
    return torch.Generator().manual_seed(row_seed)


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
    changed = torch.where(seen < 0, seen * penalty, seen / max(penalty, TINY))
    if penalty < SMALL:  # what is beyond fp32 would be no distribution
        changed = changed.clamp(max=torch.finfo(changed.dtype).max)
    return wide.scatter(1, ids, changed)[:, :words]


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


def _sampled(scores: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token (B,) of each row by inversion of its distribution.

    This takes one number a row, unlike `multinomial`, whose need of random numbers grows with the vocabulary.
    """
    cumulated = scores.softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)[:, 0]
