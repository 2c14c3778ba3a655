"""A causal language model goes on writing: greedy, by sampling, or by beam search, in batches and with a
cache where its family can be read so (models/kv_cache.py).

The laws are those of transformers' `generate`, token for token; of a sampled row they are the distributions.
What a prompt becomes does not depend on the prompts beside it, up to the rounding of the model's own sums.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.models.kv_cache import Reader, manner_of
from finetune.models.streaming import STOPS, Writer, special_tokens
from finetune.runtime.errors import UserError

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")  # ChatML and Qwen, Llama 3, Gemma
BATCH_TOKENS = 1 << 14  # of the cache, prompts and answers together

Rows = Sequence[Sequence[int]]  # prompts as token ids


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen; names, meaning and order of the filters as in transformers.

    Raises:
        UserError: beam search that samples.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 50  # 0 = all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    seed: int | None = None  # of sampling; None = a new one every time

    def __post_init__(self):
        if self.samples and self.num_beams > 1:
            raise UserError(f"--num_beams {self.num_beams} 與 --do_sample 不能一起用：束搜尋不抽樣")

    @property
    def samples(self) -> bool:
        return self.do_sample and self.temperature > 0


GREEDY = Decoding()


# ---- texts -------------------------------------------------------------------------------------------------


def generate(
    model,
    tokenizer,
    prompts: Sequence[str | Sequence[int]],
    decoding: Decoding = GREEDY,
    stops: Sequence[str] = STOPS,
    batch_tokens: int = BATCH_TOKENS,
    on_done: Callable[[int], object] | None = None,
    ends: set[int] | None = None,
) -> list[str]:
    """What the model writes after each prompt, in order, no special tokens, cut at the first stop string.

    Args:
        prompts: texts, tokenized with the tokenizer's defaults, or token ids.
        batch_tokens: (longest prompt + max_new_tokens) · beams · rows of a batch stay below it, though a
            batch has at least one row.
        on_done: called with the number of prompts that have just been answered.
        ends: tokens that end an answer; `eos_ids` of the model when None.

    Raises:
        UserError: prompts without a token, or that leave the model no room; all of them at once.
    """
    rows = [tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts]
    _check(model, rows)
    pad_id = tokenizer.pad_token_id or 0  # masked: any id does
    ends = ends or eos_ids(model, tokenizer)
    texts = [""] * len(rows)
    for batch in _batches(model, rows, decoding, batch_tokens):
        own = [rows[number] for number in batch]
        for row, piece in _pieces(model, tokenizer, own, decoding, ends, pad_id, stops, batch):
            texts[batch[row]] += piece
        if on_done:
            on_done(len(batch))
    return texts


def stream(
    model, tokenizer, ids: Sequence[int], decoding: Decoding, eos_ids: set[int], stops: Sequence[str] = STOPS
) -> Iterator[str]:
    """What `generate` returns for this prompt, in pieces, each as soon as nothing can change it any more.

    Raises:
        UserError: as `generate`.
    """
    pieces = (piece for _, piece in _pieces(model, tokenizer, [ids], decoding, eos_ids, 0, stops, [0]))
    if decoding.num_beams > 1:  # which beam is the best one is known at the end
        pieces = iter(["".join(pieces)])
    yield from filter(None, pieces)


def _pieces(
    model, tokenizer, rows: Rows, decoding: Decoding, eos_ids: set[int], pad_id: int, stops, numbers
) -> Iterator[tuple[int, str]]:
    """(row, text) of one batch, as the texts become certain; arguments as of `_steps`."""
    writers = [Writer(tokenizer, stops) for _ in rows]
    over: set[int] = set()
    for step in _steps(model, rows, decoding, eos_ids, pad_id, numbers, over):
        for row, token in step:
            yield row, writers[row].write(token)
            if writers[row].over:
                over.add(row)
    for row, writer in enumerate(writers):
        yield row, writer.finish()


def eos_ids(model, tokenizer) -> set[int]:
    """The tokens that end an answer: what tokenizer and model call EOS, and the end-of-turn token that the
    chat template writes (a base model's EOS is often another one).
    """
    found: set[int] = set()
    for holder in (tokenizer, model.config, getattr(model, "generation_config", None)):
        given = getattr(holder, "eos_token_id", None)
        found.update([given] if isinstance(given, int) else given or ())
    template, special = str(tokenizer.chat_template or ""), special_tokens(tokenizer)
    return found | {i for i, text in special.items() if text in END_OF_TURN and text in template}


# ---- token ids ---------------------------------------------------------------------------------------------


def generate_ids(model, rows: Rows, decoding: Decoding, eos_ids: set[int], pad_id: int) -> list[list[int]]:
    """The new tokens of each prompt of one batch, with the EOS that ended it.

    Raises:
        UserError: as `generate`.
    """
    found: list[list[int]] = [[] for _ in rows]
    batches = [range(len(rows))] if manner_of(model).batched else [[number] for number in range(len(rows))]
    for batch in batches:
        own = [rows[number] for number in batch]
        for step in _steps(model, own, decoding, eos_ids, pad_id, batch, set()):
            for row, token in step:
                found[batch[row]].append(token)
    return found


def filtered(logits: Tensor, previous_ids: Tensor, decoding: Decoding) -> Tensor:
    """Logits (B, V) after repetition penalty, temperature, top-k and top-p, in fp32; -inf where filtered out.

    Args:
        previous_ids: (B, T) of prompt and answer; an id outside the vocabulary counts for nothing.
        decoding: with a temperature above 0.
    """
    scores = _penalised(logits.float(), previous_ids, decoding.repetition_penalty)
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
    return scores


def _penalised(scores: Tensor, previous_ids: Tensor, penalty: float) -> Tensor:
    """Scores (B, V) of tokens that were there, divided by `penalty` where positive, else times it (Keskar et
    al. 2019, section 4.1; for negative scores as transformers does). As there, padding is no token.
    """
    if penalty == 1.0:
        return scores
    words = scores.shape[-1]
    ids = previous_ids.clamp(max=words)
    wide = torch.nn.functional.pad(scores, (0, 1))  # the last column takes what is outside the vocabulary
    seen = wide.gather(1, ids)
    return wide.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))[:, :words]


def _check(model, rows: Rows) -> None:
    most = _positions(model)
    problems = []
    for number, row in enumerate(rows, 1):
        which = f"第 {number} 個提示" if len(rows) > 1 else "提示"
        if not len(row):
            problems.append(f"{which}是空的（沒有任何 token）；請給至少一個字")
        elif len(row) >= most:
            problems.append(
                f"{which}有 {len(row)} 個 token，這個模型連同回答最多 {most} 個；"
                "請縮短提示，或換一個上下文更長的模型"
            )
    if problems:
        raise UserError(problems)


def _positions(model) -> int:
    """Tokens that the model can read."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or 1 << 30


def _batches(model, rows: Rows, decoding: Decoding, batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of rows of alike length, the longest first, so that too little memory shows at once."""
    batch: list[int] = []
    most, side_by_side = 0, manner_of(model).batched
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number])):
        if len(batch) == most:
            if batch:
                yield batch
            width = min(len(rows[number]) + decoding.max_new_tokens, _positions(model))
            batch, most = [], max(1, batch_tokens // (width * decoding.num_beams)) if side_by_side else 1
        batch.append(number)
    if batch:
        yield batch


def _reader(model, rows: Rows, decoding: Decoding, pad_id: int) -> Reader:
    _check(model, rows)
    most = _positions(model)
    room = [min(decoding.max_new_tokens, most - len(row)) for row in rows]
    return Reader(model, rows, room, pad_id, manner_of(model))


@torch.inference_mode()
def _steps(
    model,
    rows: Rows,
    decoding: Decoding,
    eos_ids: set[int],
    pad_id: int,
    numbers: Sequence[int],
    over: set[int],
) -> Iterator[list[tuple[int, int]]]:
    """(row, token) of the rows that are not over, step by step; with beams, when all is done.

    Args:
        numbers: of each row in the whole call, which with the seed fix what is drawn for it.
        over: rows that have ended; who reads may add to it, and that row gets no more.
    """
    reader = _reader(model, rows, decoding, pad_id)
    if decoding.num_beams > 1:
        for row, ids in enumerate(_beam_search(reader, decoding, eos_ids)):
            yield [(row, token) for token in ids]
        return
    draws = _draws(decoding.seed, numbers, reader.steps).to(reader.device) if decoding.samples else None
    ids, live = reader.ids, range(len(rows))
    for step in range(reader.steps):
        logits = reader.read(ids)
        if draws is not None:
            chosen = _drawn(filtered(logits, reader.previous, decoding), draws[:, step : step + 1])
        else:
            chosen = _penalised(logits, reader.previous, decoding.repetition_penalty).argmax(-1)
        found = chosen.tolist()
        yield [(row, found[row]) for row in live]
        over |= {row for row in live if found[row] in eos_ids or step + 1 == reader.limits[row]}
        live = [row for row in live if row not in over]
        if not live:
            return
        tokens = [[pad_id if row in over else token] for row, token in enumerate(found)]
        ids = torch.tensor(tokens, device=reader.device)
        if decoding.repetition_penalty != 1.0:
            reader.previous = torch.cat((reader.previous, ids), 1)


def _draws(seed: int | None, numbers: Sequence[int], steps: int) -> Tensor:
    """Uniform numbers (B, steps). On the CPU, where the first ones are the same however many are drawn."""
    seed = secrets.randbits(63) if seed is None else seed
    drawn = []
    for number in numbers:
        own = torch.Generator().manual_seed(random.Random(f"decoding:{seed}:{number}").getrandbits(63))
        drawn.append(torch.rand(steps, generator=own))
    return torch.stack(drawn)


def _drawn(scores: Tensor, uniform: Tensor) -> Tensor:
    """A token (B,) of each row by inversion of its distribution: one number a row, unlike `multinomial`,
    whose need of random numbers grows with the vocabulary.
    """
    cumulated = scores.softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)[:, 0]


def _beam_search(reader: Reader, decoding: Decoding, eos_ids: set[int]) -> list[list[int]]:
    """The best finished beam of each row, by summed log-probability / length ** length_penalty.

    The rules are those of transformers 5 (`GenerationMixin._beam_search`): only the best `num_beams` of the
    candidates may finish; a row is done when its `num_beams` finished ones are not below what the best
    running one is worth at its present length, or, with `early_stopping`, as soon as there are so many.
    """
    width, device = decoding.num_beams, reader.device
    kept = max(2, 1 + len(eos_ids)) * width  # enough that `width` of them are not finished
    limits = torch.tensor(reader.limits, device=device)[:, None]
    size = len(limits)
    ends = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)
    running = torch.empty((size, 1, 0), dtype=torch.long, device=device)  # (B, beams, tokens)
    scores = torch.zeros((size, 1), device=device)
    best = torch.zeros((size, width, reader.steps), dtype=torch.long, device=device)
    best_scores = torch.full((size, width), -torch.inf, device=device)
    lengths = torch.zeros((size, width), dtype=torch.long, device=device)
    done = torch.zeros((size, 1), dtype=torch.bool, device=device)
    ids = reader.ids
    for step in range(1, reader.steps + 1):
        firsts = torch.arange(size, device=device)[:, None] * running.shape[1]  # rows of the cache
        log_probs = reader.read(ids).log_softmax(-1)
        previous = torch.cat((reader.previous, running.flatten(0, 1)), 1)
        log_probs = _penalised(log_probs, previous, decoding.repetition_penalty)
        words = log_probs.shape[-1]
        totals = (log_probs.view(size, -1, words) + scores[..., None]).flatten(1)
        totals, index = totals.topk(min(kept, totals.shape[1]))  # (B, kept)
        beams, tokens = index // words, index % words
        grown = torch.cat((_beams_at(running, beams), tokens[..., None]), 2)
        over = torch.isin(tokens, ends) | (step == limits)

        worth = (totals / step**decoding.length_penalty).masked_fill(~over | done, -torch.inf)
        best_scores, order = torch.cat((best_scores, worth[:, :width]), 1).topk(width)
        finished = torch.nn.functional.pad(grown[:, :width], (0, reader.steps - step))
        best = _beams_at(torch.cat((best, finished), 1), order)
        lengths = torch.cat((lengths, torch.full_like(beams[:, :width], step)), 1).gather(1, order)

        scores, order = totals.masked_fill(over, -torch.inf).topk(width)
        running = _beams_at(grown, order)
        worst = best_scores[:, -1:]  # -inf until `width` are finished
        done |= (scores[:, :1] / step**decoding.length_penalty <= worst) | (step == limits)
        if decoding.early_stopping:
            done |= worst > -torch.inf
        if done.all():
            break
        reader.select((firsts + beams.gather(1, order)).flatten())
        ids = running[:, :, -1].reshape(-1, 1)
    return [row[:length] for row, length in zip(best[:, 0].tolist(), lengths[:, 0].tolist(), strict=True)]


def _beams_at(beams: Tensor, index: Tensor) -> Tensor:
    """Of beams (B, N, T) those at index (B, M)."""
    return beams.gather(1, index[..., None].expand(-1, -1, beams.shape[2]))
