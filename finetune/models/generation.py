"""Text generation with a causal language model: greedy, sampling or beam search, in batches.

Keys and values are cached where the model's family supports it (models/kv_cache.py). The results are those of
transformers' `generate`, token for token; of a sampled row the distributions are the same. The continuation
of a prompt does not depend on the prompts beside it, up to the rounding of the model's own sums.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.models.forward import config_of
from finetune.models.kv_cache import Reader, decode_mode
from finetune.models.streaming import STOPS, Writer, special_tokens
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")  # ChatML and Qwen, Llama 3, Gemma
BATCH_TOKENS = 1 << 14  # tokens in the cache, prompts and replies together

Rows = Sequence[Sequence[int]]  # prompts as token ids


@dataclass(frozen=True)
class Decoding:
    """Decoding options; names, meaning and order of the filters as in transformers.

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
    seed: int | None = None  # seed of sampling; None = a new one every time
    min_p: float = 0.0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.samples and self.num_beams > 1:
            raise UserError(f"--num_beams {self.num_beams} 與 --do_sample 不能一起用：束搜尋不抽樣")

    @property
    def samples(self) -> bool:
        """True when tokens are drawn at random; a temperature of 0 is greedy."""
        return self.do_sample and self.temperature > 0


GREEDY = Decoding()


# ---- texts -------------------------------------------------------------------------------------------------


@dataclass
class Generator:
    """A causal language model with its tokenizer, and how it decodes.

    Attributes:
        model: a causal model of transformers.
        decoding: how the next token is chosen.
        stops: a reply is cut at the first of these strings.
        end_ids: tokens that end a reply; None for `eos_ids` of model and tokenizer.
        batch_tokens: (longest prompt + max_new_tokens) · beams · rows of a batch stay below it, though a
            batch has at least one row.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    decoding: Decoding = GREEDY
    stops: Sequence[str] = STOPS
    end_ids: set[int] | None = None
    batch_tokens: int = BATCH_TOKENS

    def __post_init__(self) -> None:
        if self.end_ids is None:
            self.end_ids = eos_ids(self.model, self.tokenizer)

    def generate(
        self, prompts: Sequence[str | Sequence[int]], on_done: Callable[[int], object] | None = None
    ) -> list[str]:
        """Generate a reply to each prompt, in order, without special tokens, cut at the first stop string.

        Args:
            prompts: texts, tokenized with the tokenizer's defaults, or token ids.
            on_done: called with the number of prompts that have just been finished.

        Raises:
            UserError: prompts without a token, or that leave the model no room; all of them at once.
        """
        rows = [
            self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts
        ]
        _check(self.model, rows)
        texts = [""] * len(rows)
        for numbers in _batches(self.model, rows, self.decoding, self.batch_tokens):
            batch = _Batch([rows[number] for number in numbers], numbers)
            for row, piece in self._pieces(batch):
                texts[numbers[row]] += piece
            if on_done:
                on_done(len(numbers))
        return texts

    def stream(self, ids: Sequence[int]) -> Iterator[str]:
        """Yield what `generate` returns for this prompt, in pieces, each as soon as it is certain.

        Raises:
            UserError: as `generate`.
        """
        pieces: Iterator[str] = (piece for _, piece in self._pieces(_Batch([ids], [0])))
        if self.decoding.num_beams > 1:  # which beam is the best one is known at the end
            pieces = iter(["".join(pieces)])
        yield from filter(None, pieces)

    def _pieces(self, batch: _Batch) -> Iterator[tuple[int, str]]:
        """Yield (row, text) of one batch, as the texts become certain."""
        writers = [Writer(self.tokenizer, self.stops) for _ in batch.rows]
        pad_id = self.tokenizer.pad_token_id or 0  # masked: any id does
        for step in _steps(self.model, batch, self.decoding, self.end_ids or set(), pad_id):
            for row, token in step:
                yield row, writers[row].write(token)
                if writers[row].over:
                    batch.finished.add(row)
        for row, writer in enumerate(writers):
            yield row, writer.finish()


def eos_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end a reply.

    These are what tokenizer and model call EOS, and the end-of-turn token that the chat template writes (a
    base model's EOS is often another one).
    """
    ids: set[int] = set()
    for holder in (tokenizer, config_of(model), getattr(model, "generation_config", None)):
        named = getattr(holder, "eos_token_id", None)
        ids.update([named] if isinstance(named, int) else named or ())
    template, special = str(tokenizer.chat_template or ""), special_tokens(tokenizer)
    return ids | {i for i, text in special.items() if text in END_OF_TURN and text in template}


# ---- token ids ---------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """Prompts that are continued side by side.

    Attributes:
        rows: their token ids.
        numbers: number of each row in the whole call; with the seed it fixes what is drawn for the row.
        finished: rows that have ended; the reader may add to it, and that row gets no more tokens.
    """

    rows: Rows
    numbers: Sequence[int]
    finished: set[int] = field(default_factory=set)


def generate_ids(
    model: nn.Module, rows: Rows, decoding: Decoding, eos_ids: set[int], pad_id: int
) -> list[list[int]]:
    """Return the new tokens of each prompt of one batch, with the EOS that ended it.

    Raises:
        UserError: as `Generator.generate`.
    """
    new_ids: list[list[int]] = [[] for _ in rows]
    numbers = range(len(rows))
    batches = [numbers] if decode_mode(model).batched else [numbers[at : at + 1] for at in numbers]
    for batch in batches:
        part = _Batch([rows[number] for number in batch], batch)
        for step in _steps(model, part, decoding, eos_ids, pad_id):
            for row, token in step:
                new_ids[batch[row]].append(token)
    return new_ids


def filtered(logits: Tensor, previous_ids: Tensor, decoding: Decoding) -> Tensor:
    """Return logits (B, V) after repetition penalty, temperature, top-k and top-p, in fp32.

    Filtered tokens get -inf.

    Args:
        previous_ids: (B, T) of prompt and reply; an id outside the vocabulary counts for nothing.
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


def _check(model: nn.Module, rows: Rows) -> None:
    """Raise UserError for prompts that are empty or leave the model no room."""
    limit = _positions(model)
    problems = []
    for number, row in enumerate(rows, 1):
        label = f"第 {number} 個提示" if len(rows) > 1 else "提示"
        if not len(row):
            problems.append(f"{label}是空的（沒有任何 token）；請給至少一個字")
        elif len(row) >= limit:
            problems.append(
                f"{label}有 {len(row)} 個 token，這個模型連同回答最多 {limit} 個；"
                "請縮短提示，或換一個上下文更長的模型"
            )
    if problems:
        raise UserError(problems)


def _positions(model: nn.Module) -> int:
    """Return the number of tokens that the model can read."""
    config = config_of(model).get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or 1 << 30


def _batches(model: nn.Module, rows: Rows, decoding: Decoding, batch_tokens: int) -> Iterator[list[int]]:
    """Yield numbers of rows of similar length, the longest first, so that too little memory shows at once."""
    batch: list[int] = []
    size, batched = 0, decode_mode(model).batched
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number])):
        if len(batch) == size:
            if batch:
                yield batch
            width = min(len(rows[number]) + decoding.max_new_tokens, _positions(model))
            batch, size = [], max(1, batch_tokens // (width * decoding.num_beams)) if batched else 1
        batch.append(number)
    if batch:
        yield batch


def _reader(model: nn.Module, rows: Rows, decoding: Decoding, pad_id: int) -> Reader:
    """Return the reader of a batch, with as many new tokens a row as the model has room for."""
    _check(model, rows)
    limit = _positions(model)
    room = [min(decoding.max_new_tokens, limit - len(row)) for row in rows]
    return Reader(model, rows, room, pad_id, decode_mode(model))


@torch.inference_mode()
def _steps(
    model: nn.Module, batch: _Batch, decoding: Decoding, eos_ids: set[int], pad_id: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield (row, token) of the unfinished rows, step by step; with beams, all tokens of a row at the end."""
    rows, finished = batch.rows, batch.finished
    reader = _reader(model, rows, decoding, pad_id)
    if decoding.num_beams > 1:
        for row, row_ids in enumerate(_beam_search(reader, decoding, eos_ids)):
            yield [(row, token) for token in row_ids]
        return
    draws = _draws(decoding.seed, batch.numbers, reader.steps).to(reader.device) if decoding.samples else None
    ids, active = reader.ids, list(range(len(rows)))
    for step in range(reader.steps):
        logits = reader.read(ids)
        if draws is not None:
            chosen = _sample(filtered(logits, reader.previous, decoding), draws[:, step : step + 1])
        else:
            chosen = _penalised(logits, reader.previous, decoding.repetition_penalty).argmax(-1)
        tokens = chosen.tolist()
        yield [(row, tokens[row]) for row in active]
        finished |= {row for row in active if tokens[row] in eos_ids or step + 1 == reader.limits[row]}
        active = [row for row in active if row not in finished]
        if not active:
            return
        next_ids = [[pad_id if row in finished else token] for row, token in enumerate(tokens)]
        ids = torch.tensor(next_ids, device=reader.device)
        if decoding.repetition_penalty != 1.0:
            reader.previous = torch.cat((reader.previous, ids), 1)


def _draws(seed: int | None, numbers: Sequence[int], steps: int) -> Tensor:
    """Draw uniform numbers (B, steps), on the CPU: there the first ones do not depend on how many follow."""
    seed = secrets.randbits(63) if seed is None else seed
    rows = []
    for number in numbers:
        row_seed = random.Random(f"decoding:{seed}:{number}").getrandbits(63)
        rows.append(torch.rand(steps, generator=torch.Generator().manual_seed(row_seed)))
    return torch.stack(rows)


def _sample(scores: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token (B,) of each row by inversion of its distribution.

    This takes one number a row, unlike `multinomial`, whose need of random numbers grows with the vocabulary.
    """
    cumulated = scores.softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)[:, 0]


def _beam_search(reader: Reader, decoding: Decoding, eos_ids: set[int]) -> list[list[int]]:
    """Return the best finished beam of each row, by summed log-probability / length ** length_penalty.

    The rules are those of transformers 5 (`GenerationMixin._beam_search`): only the best `num_beams` of the
    candidates may finish; a row is done when its `num_beams` finished ones score no less than the best
    running one at its present length, or, with `early_stopping`, as soon as there are that many.
    """
    num_beams, device = decoding.num_beams, reader.device
    num_candidates = max(2, 1 + len(eos_ids)) * num_beams  # enough that `num_beams` of them are not finished
    limits = torch.tensor(reader.limits, device=device)[:, None]
    batch_size = len(limits)
    end_ids = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)
    running = torch.empty((batch_size, 1, 0), dtype=torch.long, device=device)  # (B, beams, tokens)
    scores = torch.zeros((batch_size, 1), device=device)
    best = torch.zeros((batch_size, num_beams, reader.steps), dtype=torch.long, device=device)
    best_scores = torch.full((batch_size, num_beams), -torch.inf, device=device)
    lengths = torch.zeros((batch_size, num_beams), dtype=torch.long, device=device)
    done = torch.zeros((batch_size, 1), dtype=torch.bool, device=device)
    ids = reader.ids
    for step in range(1, reader.steps + 1):
        first_rows = torch.arange(batch_size, device=device)[:, None] * running.shape[1]  # rows of the cache
        log_probs = reader.read(ids).log_softmax(-1)
        previous = torch.cat((reader.previous, running.flatten(0, 1)), 1)
        log_probs = _penalised(log_probs, previous, decoding.repetition_penalty)
        vocab_size = log_probs.shape[-1]
        totals = (log_probs.view(batch_size, -1, vocab_size) + scores[..., None]).flatten(1)
        totals, index = totals.topk(min(num_candidates, totals.shape[1]))  # (B, num_candidates)
        beams, tokens = index // vocab_size, index % vocab_size
        grown = torch.cat((_beams_at(running, beams), tokens[..., None]), 2)
        ended = torch.isin(tokens, end_ids) | (step == limits)

        final_scores = (totals / step**decoding.length_penalty).masked_fill(~ended | done, -torch.inf)
        best_scores, order = torch.cat((best_scores, final_scores[:, :num_beams]), 1).topk(num_beams)
        finished = functional.pad(grown[:, :num_beams], (0, reader.steps - step))
        best = _beams_at(torch.cat((best, finished), 1), order)
        lengths = torch.cat((lengths, torch.full_like(beams[:, :num_beams], step)), 1).gather(1, order)

        scores, order = totals.masked_fill(ended, -torch.inf).topk(num_beams)
        running = _beams_at(grown, order)
        worst = best_scores[:, -1:]  # -inf until `num_beams` are finished
        done |= (scores[:, :1] / step**decoding.length_penalty <= worst) | (step == limits)
        if decoding.early_stopping:
            done |= worst > -torch.inf
        if done.all():
            break
        reader.select((first_rows + beams.gather(1, order)).flatten())
        ids = running[:, :, -1].reshape(-1, 1)
    return [row[:length] for row, length in zip(best[:, 0].tolist(), lengths[:, 0].tolist(), strict=True)]


def _beams_at(beams: Tensor, index: Tensor) -> Tensor:
    """Select the beams at index (B, M) among beams (B, N, T)."""
    return beams.gather(1, index[..., None].expand(-1, -1, beams.shape[2]))
