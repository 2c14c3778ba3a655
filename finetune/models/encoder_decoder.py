"""Encoder-decoders (T5, BART, mBART …): their special tokens, and incremental decoding of a batch.

The encoder reads each text once; the decoder begins with one token and is continued as a causal model is,
see models/kv_cache.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from finetune.models.forward import check_numbers, config_of
from finetune.models.kv_cache import (
    BEST,
    COARSE,
    MODES,
    SHARED,
    TOLERANCE,
    CachedReader,
    DecodeMode,
    probe_ids,
)
from finetune.models.padding import padded
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

# Special tokens by which `generate` begins and ends: attributes of config and generation_config
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id")
LAST_FIRST = ("mbart",)  # families whose decoder begins with the last token of the target, its language


# ---- special tokens ----------------------------------------------------------------------------------------


def target_ids(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> tuple[list[int], bool]:
    """Return the token ids of a target as the tokenizer writes `text_target`, and whether its end was cut.

    An end of text follows where the tokenizer writes none: without one a model never learns to stop.
    """
    eos_id = tokenizer.eos_token_id
    whole: Any = tokenizer(text_target=text, split_special_tokens=True, verbose=False)
    ids = list(whole["input_ids"])
    appended = (
        [] if eos_id in ids[-2:] else [eos_id]
    )  # before the last one stands mBART's, before the language
    length = max(1, max_length - len(appended))
    if len(ids) <= length:
        return [*ids, *appended], False
    cut: Any = tokenizer(
        text_target=text, split_special_tokens=True, truncation=True, max_length=length, verbose=False
    )
    return [*cut["input_ids"], *appended], True


def shifted_right(target: Sequence[int], config: PreTrainedConfig) -> list[int]:
    """Return what the decoder reads to predict a target: `prepare_decoder_input_ids_from_labels` of one row.

    Args:
        config: completed, see `complete_config`.
    """
    first = target[-1] if config.model_type in LAST_FIRST else cast(Any, config).decoder_start_token_id
    return [first, *target[:-1]]


def complete_config(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write into a configuration the special tokens it lacks, by which training and `generate` begin and end.

    mBART begins with the language of the target: the tokenizer's `tgt_lang` where that is set, else that of
    the configuration, else the tokenizer's source language.
    """
    values: Any = config
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(config, name, None) is None:
            setattr(config, name, getattr(tokenizer, name))
    start = getattr(config, "decoder_start_token_id", None)
    if config.model_type in LAST_FIRST:
        _choose_language(start, tokenizer)
        last = target_ids(tokenizer, "", 1 << 20)[0][-1]
        if start is None or last != tokenizer.eos_token_id:  # mBART-50 has the language at the other end
            values.decoder_start_token_id = last
    elif start is None:
        begins = tokenizer.bos_token_id if "t5" not in config.model_type else None
        values.decoder_start_token_id = config.pad_token_id if begins is None else begins


def _choose_language(start: int | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the tokenizer's target language to the start of a decoder, where it has no language of its own."""
    languages: Any = tokenizer
    if start is None or getattr(languages, "tgt_lang", "") is not None:
        return
    code = tokenizer.convert_ids_to_tokens(start)
    if code in (getattr(languages, "lang_code_to_id", None) or ()):
        languages.tgt_lang = code


def first_language(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the language token that a target begins with (mBART-50, NLLB); None without languages."""
    ids, _ = target_ids(tokenizer, "", 1 << 20)
    usual = {tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id}
    return ids[0] if len(ids) > 1 and ids[0] not in usual else None


def take_over_special_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a model's configuration and its generation_config name the same special tokens, all of them.

    Those of the generation_config count first, as in `generate`. A forced first token stands in it alone:
    `generate` refuses a configuration that has one.
    """
    config, generation = config_of(model), cast(Any, model).generation_config
    for name in SPECIAL:
        if (value := getattr(generation, name, None)) is not None:
            setattr(config, name, value)
    complete_config(config, tokenizer)
    for name in SPECIAL:
        setattr(generation, name, getattr(config, name, None))
    if generation.forced_bos_token_id is None:
        generation.forced_bos_token_id = first_language(tokenizer)


def generation_config(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, longest: int = 0
) -> GenerationConfig:
    """Return the generation_config of a model, by which transformers' `generate` writes as this program does.

    Args:
        longest: tokens of an output at most; 0 leaves it to `generate`.
    """
    import transformers

    values: dict[str, Any] = {name: getattr(config, name, None) for name in SPECIAL}
    values["forced_bos_token_id"] = first_language(tokenizer)
    positions = getattr(config, "max_position_embeddings", None) or longest + 1
    if longest:  # the first token is the decoder's start
        values["max_length"] = min(longest + 1, positions)
    return transformers.GenerationConfig(**values)


# ---- decoding ----------------------------------------------------------------------------------------------


class EncoderDecoderReader(CachedReader):
    """A batch of B texts, read by the encoder, with the decoder's cache; see `kv_cache.Reader`.

    Args:
        model: an encoder-decoder of transformers.
        rows: token ids that the encoder reads; one row in a mode that is not batched.
        room: the number of new tokens of each row.
        pad_id: any id will do, padding is masked.
        mode: see `mode_of`.
        decoder_rows: tokens that the decoder begins with, equally many in each row; None is the start token.

    Attributes:
        ids: (B, T) what the decoder begins with.
        previous: (B, T) the same: repetitions are those of the decoder alone.
        limits, steps: new tokens of each row, and the most of them.
    """

    def __init__(  # noqa: PLR0913  as `Reader`, and what the decoder begins with
        self,
        model: nn.Module,
        rows: Sequence[Sequence[int]],
        room: Sequence[int],
        pad_id: int,
        mode: DecodeMode,
        decoder_rows: Sequence[Sequence[int]] | None = None,
    ):
        from transformers import DynamicCache, EncoderDecoderCache

        if not mode.batched and len(rows) > 1:
            raise ValueError("rows that must be read alone")
        whole: Any = model
        self.model, self.device, self.mode = whole, cast(torch.device, model.device), mode
        self.limits, self.steps = list(room), max(room)
        generation = whole.generation_config
        start = generation.decoder_start_token_id
        if start is None:
            start = generation.bos_token_id
        self._forced = generation.forced_bos_token_id, generation.forced_eos_token_id
        self.ids = torch.tensor(decoder_rows or [[start]] * len(rows), device=self.device)
        self.previous = self.ids
        self._read_ids = self.ids[:, :0]
        input_ids, self._mask = (part.to(self.device) for part in padded(rows, pad_id))
        encoder = whole.get_encoder()
        self._hidden: Tensor = encoder(input_ids=input_ids, attention_mask=self._mask)[0]  # (B, S, H)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if mode.cached else None

    def forced(self, step: int, limit: int) -> list[int]:
        """Return the tokens of which one must come as the new token `step` of a row; none where any may.

        Args:
            step: from 0.
            limit: new tokens of the row.
        """
        first, last = self._forced
        forced = last if step + 1 == limit and last is not None else first if step == 0 else None
        return [] if forced is None else [forced] if isinstance(forced, int) else list(forced)

    @property
    def forces_end(self) -> bool:
        """True when a reply without room for more ends with an EOS that the decoder had no choice about."""
        return self._forced[1] is not None

    def logits(self, ids: Tensor) -> Tensor:
        """Read the next tokens (B, n) of every row; return logits (B, V) of the token after them, in fp32."""
        from transformers.modeling_outputs import BaseModelOutput

        if self._cache is None:
            ids = self._read_ids = torch.cat((self._read_ids, ids), 1)
        logits: Tensor = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=cast(Any, self._hidden)),
            attention_mask=self._mask,
            decoder_input_ids=ids,
            past_key_values=self._cache,
            use_cache=self.mode.cached,
        ).logits[:, -1]  # fmt: skip
        return logits.float()

    def select(self, rows: Tensor) -> None:
        """Continue with these rows (R,) of the batch; a row may occur several times."""
        super().select(rows)
        self._hidden, self._mask = self._hidden[rows], self._mask[rows]


def mode_of(model: nn.Module) -> DecodeMode:
    """Return the fastest mode in which an encoder-decoder gives the logits of a plain pass over one row.

    Modes are tried once for each model; any but the best one is logged.

    Raises:
        UserError: the logits are no numbers, or none of the modes gives the right ones.
    """
    mode = getattr(model, "_decode_mode", None)
    if mode is None:
        mode = _try(model)
        object.__setattr__(model, "_decode_mode", mode)
        if mode != BEST:
            log(f"{config_of(model).model_type} 模型：{mode.limitations}")
    return mode


@torch.inference_mode()
def _try(model: nn.Module) -> DecodeMode:
    """Return the first of MODES that gives the logits of plain passes over two texts of unlike length."""
    was_training = model.training
    model.eval()
    try:
        ids = probe_ids(model)
        texts = [ids[0].tolist(), ids[1].tolist()[:SHARED]]
        written = [ids[1].tolist()[:SHARED], ids[0].tolist()[:SHARED]]
        expected = [_plain_logits(model, *pair) for pair in zip(texts, written, strict=True)]  # each (T, V)
        for mode in MODES:
            if _agrees(model, texts, written, expected, mode):
                return mode
    finally:
        model.train(was_training)
    raise UserError(
        f"{config_of(model).model_type} 模型：解碼器逐字讀與整段讀的輸出不同，不能用來生成文字；"
        "請換 google/mt5-small、fnlp/bart-base-chinese 這類模型"
    )


def _plain_logits(model: nn.Module, text: list[int], written: list[int]) -> Tensor:
    """Return logits (T, V) in fp32 of one row, in one pass without cache or mask."""
    rows = (torch.tensor([row], device=cast(torch.device, model.device)) for row in (text, written))
    input_ids, decoder_ids = rows
    logits = model(input_ids=input_ids, decoder_input_ids=decoder_ids, use_cache=False).logits[0].float()
    check_numbers(logits)
    return logits


def _agrees(
    model: nn.Module,
    texts: list[list[int]],
    written: list[list[int]],
    expected: list[Tensor],
    mode: DecodeMode,
) -> bool:
    """Return whether a mode gives the expected logits.

    Two tokens are read, then two more one by one, with rows exchanged in between as beam search does.
    """
    batches = [[0, 1]] if mode.batched else [[0], [1]]
    found, wanted = [], []
    try:
        for batch in batches:
            begins = [written[row][:2] for row in batch]
            reader = EncoderDecoderReader(
                model, [texts[row] for row in batch], [3] * len(batch), 0, mode, begins
            )
            rows = batch
            for length in (2, 3, 4):
                ids = (
                    reader.ids if length == 2 else torch.tensor([[written[row][length - 1]] for row in rows])
                )
                found.append(reader.read(ids.to(reader.device)))
                wanted.append(torch.stack([expected[row][length - 1] for row in rows]))
                order = [*reversed(range(len(rows))), *([0] if length == 2 else [])]
                reader.select(torch.tensor(order, device=reader.device))
                rows = [rows[at] for at in order]
    # what families raise over arguments they do not take
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, UserError):
        return False
    spread = torch.cat(expected).std().clamp(min=1e-6)
    difference = (torch.cat(found) - torch.cat(wanted)).abs().mean() / spread
    return bool(difference <= TOLERANCE.get(cast(torch.dtype, model.dtype), COARSE))
