"""Text generation with causal language models and encoder-decoders: greedy, sampling, beam search, batched.

Keys and values are cached where the model's family supports it (models/kv_cache.py). An encoder-decoder reads
the prompt with its encoder, and the reply is all that its decoder writes (models/encoder_decoder.py). The
results are those of transformers' `generate`, token for token; of a sampled row the distributions are the
same. The continuation of a prompt does not depend on the prompts beside it, up to the rounding of the model's
own sums.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finetune.models.beam_search import beam_search
from finetune.models.decoding import GREEDY, Decoding
from finetune.models.encoder_decoder import EncoderDecoderReader, mode_of
from finetune.models.forward import config_of
from finetune.models.kinds import is_seq2seq
from finetune.models.kv_cache import DecodeMode, Reader, TokenReader, decode_mode
from finetune.models.logits import check_choice, filtered, processed
from finetune.models.streaming import STOPS, Reply, ReplyStream, Writer, chinese_decoder, special_tokens
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")  # ChatML and Qwen, Llama 3, Gemma
BATCH_TOKENS = 1 << 14  # tokens in the cache, prompts and replies together

Rows = Sequence[Sequence[int]]  # prompts as token ids


# ---- texts -------------------------------------------------------------------------------------------------


@dataclass
class Generator:
    """A causal language model with its tokenizer, and how it decodes.

    Attributes:
        model: a causal model of transformers.
        decoding: how the next token is chosen.
        stops: a reply is cut at the first of these strings, and of those of `decoding`; the prompt does not
            count.
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
    ) -> list[Reply]:
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
        replies = [Reply()] * len(rows)
        for numbers in _batches(self.model, rows, self.decoding, self.batch_tokens):
            batch = _Batch([rows[number] for number in numbers], numbers)
            texts = [""] * len(numbers)
            for row, piece in self._pieces(batch):
                texts[row] += piece
            for row, text in enumerate(texts):
                replies[numbers[row]] = Reply(text, row not in batch.complete)
            if on_done:
                on_done(len(numbers))
        return replies

    def stream(self, ids: Sequence[int]) -> ReplyStream:
        """Return what `generate` returns for this prompt, in pieces, each as soon as it is certain.

        Raises:
            UserError: as `generate`, when the first piece is asked for.
        """
        batch = _Batch([ids], [0])
        pieces: Iterator[str] = (piece for _, piece in self._pieces(batch))
        if self.decoding.num_beams > 1:  # which beam is the best one is known at the end
            pieces = ("".join(whole) for whole in [pieces])
        return ReplyStream(filter(None, pieces), lambda: 0 not in batch.complete)

    def _pieces(self, batch: _Batch) -> Iterator[tuple[int, str]]:
        """Yield (row, text) of one batch, as the texts become certain, and note which rows are complete."""
        decode = chinese_decoder(self.tokenizer) if is_seq2seq(config_of(self.model)) else None
        first = Writer(self.tokenizer, (*self.stops, *self.decoding.stop), decode)
        writers = [copy(first) for _ in batch.rows]
        if first.stops:  # beams are searched for them
            batch.writers = [copy(first) for _ in batch.rows]
        pad_id, end_ids = self.tokenizer.pad_token_id or 0, self.end_ids or set()  # masked: any id pads
        for step in _steps(self.model, batch, self.decoding, end_ids, pad_id):
            for row, token in step:
                yield row, writers[row].write(token)
                if writers[row].over:
                    batch.finished.add(row)
                if token in end_ids and row not in batch.forced:
                    batch.complete.add(row)
        for row, writer in enumerate(writers):
            yield row, writer.finish()
            if writer.over:
                batch.complete.add(row)


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
        complete: those of them that an EOS or a stop string ended, and not the room for new tokens.
        writers: of each row, with the stop strings that finish a beam.
        forced: rows that an EOS ended which had to come, since there was no more room.
    """

    rows: Rows
    numbers: Sequence[int]
    finished: set[int] = field(default_factory=set)
    complete: set[int] = field(default_factory=set)
    writers: Sequence[Writer] = ()
    forced: set[int] = field(default_factory=set)


def generate_ids(
    model: nn.Module, rows: Rows, decoding: Decoding, eos_ids: set[int], pad_id: int
) -> list[list[int]]:
    """Return the new tokens of each prompt of one batch, with the EOS that ended it.

    Raises:
        UserError: as `Generator.generate`.
    """
    new_ids: list[list[int]] = [[] for _ in rows]
    numbers = range(len(rows))
    batches = [numbers] if generation_mode(model).batched else [numbers[at : at + 1] for at in numbers]
    for batch in batches:
        part = _Batch([rows[number] for number in batch], batch)
        for step in _steps(model, part, decoding, eos_ids, pad_id):
            for row, token in step:
                new_ids[batch[row]].append(token)
    return new_ids


def generation_mode(model: nn.Module) -> DecodeMode:
    """Return how a model is decoded, see `kv_cache.decode_mode` and `encoder_decoder.mode_of`.

    Raises:
        UserError: it cannot be.
    """
    return mode_of(model) if is_seq2seq(config_of(model)) else decode_mode(model)


def _check(model: nn.Module, rows: Rows) -> None:
    """Raise UserError for prompts that are empty or leave the model no room."""
    if is_seq2seq(config_of(model)):
        _check_texts(model, rows)
        return
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


def _check_texts(model: nn.Module, rows: Rows) -> None:
    """Raise UserError for texts that are empty or longer than the encoder can read."""
    limit, problems = _positions(model), []
    for number, row in enumerate(rows, 1):
        label = f"第 {number} 段文字" if len(rows) > 1 else "這段文字"
        if not len(row):
            problems.append(f"{label}是空的（沒有任何 token）；請給至少一個字")
        elif len(row) > limit:
            problems.append(f"{label}有 {len(row)} 個 token，這個模型最多讀 {limit} 個；請縮短它")
    if problems:
        raise UserError(problems)


def _positions(model: nn.Module) -> int:
    """Return the number of tokens that the model can read."""
    config = config_of(model).get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or 1 << 30


def _batches(model: nn.Module, rows: Rows, decoding: Decoding, batch_tokens: int) -> Iterator[list[int]]:
    """Yield numbers of rows of similar length, the longest first, so that too little memory shows at once."""
    batch: list[int] = []
    size, batched = 0, generation_mode(model).batched
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number])):
        if len(batch) == size:
            if batch:
                yield batch
            width = min(len(rows[number]) + decoding.max_new_tokens, _positions(model))
            batch, size = [], max(1, batch_tokens // (width * decoding.num_beams)) if batched else 1
        batch.append(number)
    if batch:
        yield batch


def _reader(model: nn.Module, rows: Rows, decoding: Decoding, pad_id: int) -> TokenReader:
    """Return the reader of a batch, with as many new tokens a row as the model has room for."""
    _check(model, rows)
    limit = _positions(model)
    if is_seq2seq(config_of(model)):
        room = [max(1, min(decoding.max_new_tokens, limit - 1))] * len(rows)  # after the decoder's start
        return EncoderDecoderReader(model, rows, room, pad_id, mode_of(model))
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
        for row, row_ids in enumerate(beam_search(reader, decoding, eos_ids, batch.writers)):
            batch.forced |= {row} if reader.forces_end and len(row_ids) == reader.limits[row] else set()
            yield [(row, token) for token in row_ids]
        return
    draws = _draws(decoding.seed, batch.numbers, reader.steps).to(reader.device) if decoding.samples else None
    ids, active = reader.ids, list(range(len(rows)))
    for step in range(reader.steps):
        banned = eos_ids if step < decoding.min_new_tokens else ()
        scores = processed(reader.read(ids), reader.previous, decoding, banned, reader.forced(step))
        check_choice(scores, decoding)
        if draws is not None:
            chosen = _sample(filtered(scores, decoding), draws[:, step : step + 1])
        else:
            chosen = scores.argmax(-1)
        tokens = chosen.tolist()
        batch.forced |= {row for row in active if reader.forces_end and step + 1 == reader.limits[row]}
        yield [(row, tokens[row]) for row in active]
        finished |= {row for row in active if tokens[row] in eos_ids or step + 1 == reader.limits[row]}
        active = [row for row in active if row not in finished]
        if not active:
            return
        next_ids = [[pad_id if row in finished else token] for row, token in enumerate(tokens)]
        ids = torch.tensor(next_ids, device=reader.device)
        if decoding.reads_reply:
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
