"""Text generation with causal language models and encoder-decoders: greedy, sampling, beam search, batched.

Keys and values are cached where the model's family supports it (models/kv_cache.py). An encoder-decoder reads
the prompt with its encoder, and the reply is all that its decoder writes (models/encoder_decoder.py). The
results are those of transformers' `generate`, token for token; of a sampled row the distributions are the
same. The continuation of a prompt does not depend on the prompts beside it, up to the rounding of the model's
own sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from finetune.models.beam_search import beam_search
from finetune.models.decoding import GREEDY, Decoding
from finetune.models.encoder_decoder import EncoderDecoderReader, mode_of
from finetune.models.forward import config_of
from finetune.models.kinds import is_seq2seq
from finetune.models.kv_cache import DecodeMode, Reader, TokenReader, decode_mode
from finetune.models.reply_batch import STOP, ReplyBatch, ReplyEvent, ReplyRow
from finetune.models.room import Rows, check_prompts, positions_of, reply_room
from finetune.models.streaming import STOPS, Reply, ReplyStream, Writer, chinese_decoder, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")  # ChatML and Qwen, Llama 3, Gemma
BATCH_TOKENS = 1 << 14  # tokens in the cache, prompts and replies together

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
        check_prompts(self.model, rows)
        replies = [Reply()] * len(rows)
        for numbers in _batches(self.model, rows, self.decoding, self.batch_tokens):
            for number, event in self._events([rows[number] for number in numbers], numbers):
                replies[number] = Reply(replies[number] + event.text, event.reason != STOP)
            if on_done:
                on_done(len(numbers))
        return replies

    def stream(self, ids: Sequence[int]) -> ReplyStream:
        """Return what `generate` returns for this prompt, in pieces, each as soon as it is certain.

        Raises:
            UserError: as `generate`, when the first piece is asked for.
        """
        reasons: list[str] = []

        def pieces() -> Iterator[str]:
            for _, event in self._events([ids], [0]):
                yield event.text
                reasons.append(event.reason)

        whole = self.decoding.num_beams > 1  # which beam is the best one is known at the end
        return ReplyStream(
            filter(None, ["".join(pieces())] if whole else pieces()), lambda: reasons[-1:] != [STOP]
        )

    def _events(self, rows: Rows, numbers: Sequence[int]) -> Iterator[tuple[int, ReplyEvent]]:
        """Yield (number, what became of its row) of one batch, as the texts become certain."""
        writer = writer_for(self.model, self.tokenizer, (*self.stops, *self.decoding.stop))
        pad_id = self.tokenizer.pad_token_id or 0  # masked: any id pads
        return _events(
            self.model, rows, _Asked(self.decoding, self.end_ids or set(), pad_id, numbers, writer)
        )


def writer_for(model: nn.Module, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> Writer:
    """Return what converts the token ids of a model's reply to text, up to the first of the stop strings."""
    decode = chinese_decoder(tokenizer) if is_seq2seq(config_of(model)) else None
    return Writer(tokenizer, stops, decode)


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


@dataclass(frozen=True)
class _Asked:
    """How a batch of prompts is continued.

    Attributes:
        decoding: how tokens are chosen.
        end_ids: tokens that end a reply.
        pad_id: any id will do.
        numbers: number of each row in the whole call; with the seed it fixes what is drawn for the row.
        writer: converts the tokens of a row to text, a copy for each; None where no text is needed.
    """

    decoding: Decoding
    end_ids: set[int]
    pad_id: int
    numbers: Sequence[int]
    writer: Writer | None = None


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
        asked = _Asked(decoding, eos_ids, pad_id, batch)
        for number, event in _events(model, [rows[number] for number in batch], asked):
            new_ids[number].append(event.token)
    return new_ids


@torch.inference_mode()
def reader_of(
    model: nn.Module, rows: Rows, room: Sequence[int], pad_id: int, mode: DecodeMode
) -> TokenReader:
    """Return the reader of a batch; arguments as of `Reader` and `EncoderDecoderReader`."""
    reader = EncoderDecoderReader if is_seq2seq(config_of(model)) else Reader
    return reader(model, rows, room, pad_id, mode)


def generation_mode(model: nn.Module) -> DecodeMode:
    """Return how a model is decoded, see `kv_cache.decode_mode` and `encoder_decoder.mode_of`.

    Raises:
        UserError: it cannot be.
    """
    return mode_of(model) if is_seq2seq(config_of(model)) else decode_mode(model)


def _batches(model: nn.Module, rows: Rows, decoding: Decoding, batch_tokens: int) -> Iterator[list[int]]:
    """Yield numbers of rows of similar length, the longest first, so that too little memory shows at once."""
    batch: list[int] = []
    size, batched = 0, generation_mode(model).batched
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number])):
        if len(batch) == size:
            if batch:
                yield batch
            width = min(len(rows[number]) + decoding.max_new_tokens, positions_of(model))
            batch, size = [], max(1, batch_tokens // (width * decoding.num_beams)) if batched else 1
        batch.append(number)
    if batch:
        yield batch


def _events(model: nn.Module, rows: Rows, asked: _Asked) -> Iterator[tuple[int, ReplyEvent]]:
    """Yield (number, what became of its row), step by step; with beams, all tokens of a row at the end.

    Raises:
        UserError: a row that cannot go on.
    """
    room = reply_room(model, rows, asked.decoding)
    reader = reader_of(model, rows, room, asked.pad_id, generation_mode(model))
    replies = [
        ReplyRow(row, asked.decoding, limit, number, copy(asked.writer))
        for row, limit, number in zip(rows, reader.limits, asked.numbers, strict=True)
    ]
    if asked.decoding.num_beams > 1:
        yield from _beam_events(reader, replies, asked)
        return
    batch = ReplyBatch(reader, replies, asked.end_ids)
    while batch.rows:
        for event in batch.step():
            if event.error:
                raise event.error
            yield event.row.number, event


@torch.inference_mode()
def _beam_events(
    reader: TokenReader, replies: Sequence[ReplyRow], asked: _Asked
) -> Iterator[tuple[int, ReplyEvent]]:
    """Yield (number, token) of all tokens of the best beam of each row."""
    writers = [reply.writer for reply in replies if reply.writer and reply.writer.stops]
    beams = beam_search(reader, asked.decoding, asked.end_ids, [copy(writer) for writer in writers])
    for reply, ids in zip(replies, beams, strict=True):
        had_to = reader.forces_end and len(ids) == reply.limit
        for token in ids:
            text, reason = reply.write(token, token in asked.end_ids and not had_to)
            yield reply.number, ReplyEvent(reply, token, text, reason)
