"""Vectors of texts: the hidden states of any model's body, pooled as the model brings it or as asked for."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy
import torch
from torch import Tensor

from finetune.cli.inference_args import POOLINGS
from finetune.evaluation.queries import BATCH_TOKENS
from finetune.models import encoder
from finetune.models.forward import LEAK, NOT_NUMBERS, body_of, config_of
from finetune.models.loading import POOLER
from finetune.models.padding import padded_width
from finetune.models.pooling import DEFAULT, Pooling, pool, read_pooling
from finetune.models.products import invariant_modules
from finetune.models.run_card import hash_texts
from finetune.models.tokenizer import positions, prompt_length
from finetune.predict.predictor import LocalPredictor, kind_of_model, weight_checksums
from finetune.predict.row_handler import is_text
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, shown
from finetune.runtime.strict_json import too_long

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNLIMITED = 1 << 30  # tokens
ROUNDING = 1e-4  # as a share of the spread of hidden states: more than fp32 rounds


class EncoderPredictor(LocalPredictor):
    """A body without a head: it gives vectors, and answers nothing."""

    def method(self, requested: str = "auto") -> str:
        """Raise UserError: there is no head that could answer a question."""
        raise UserError(
            f"{self.name or '這個模型'} 是沒有輸出層的編碼器，不會答選擇題；"
            "可用 --embed 得到向量，或以 fine_tuning_llm.py --task classify、tag、span 訓練輸出層"
        )

    def _prompt_settings(self) -> list[str]:
        return []


def embed_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    device: torch.device | str,
    pooling: str | None = None,
) -> numpy.ndarray:
    """Return a vector for each text, float32 (N, H); see `Embedder`.

    Args:
        texts: one that is too long for the model loses its end, which is logged once.
        pooling: one of POOLINGS; None or `auto` as the model brings it, else `mean`.

    Raises:
        UserError: what is no text, an empty text, half characters; an unknown pooling.
    """
    return Embedder.of(model, tokenizer, device, pooling)(texts)


def body_for_vectors(model: torch.nn.Module) -> Any:
    """Return the part of a model whose hidden states are pooled: its body or, of two, its encoder."""
    body: Any = model if kind_of_model(model) == "encoder" else body_of(model)
    body = model if body is None else body
    if config_of(model).is_encoder_decoder and hasattr(body, "decoder"):
        return body.get_encoder()
    return body


class Embedder:
    """A model's body with its pooling.

    The vector of a text does not depend on the texts beside it: padding stands on the right, is never
    attended to and is never pooled. Families in which it would be seen all the same get texts of one length
    together. In fp32 on a CPU this holds to the last digit where models/encoder.py supports the family.

    Args:
        model, tokenizer, device: as `inference.load_model` returns them.
        pooling: one of POOLINGS; None or `auto` as the model brings it, else `mean`.
        bf16: compute in bf16 where models/encoder.py supports the family, with sums and norms in fp32.

    Attributes:
        max_length: tokens of a text that are read.

    Raises:
        UserError: an unknown pooling, or one that comes with the model and is not known here.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        pooling: str | None = None,
        bf16: bool = False,
    ):
        self.tokenizer, self.device = tokenizer, device
        self.pooling = _pooling_of(model, pooling)
        self._body = body_for_vectors(model)
        self._encoder = encoder.Encoder(self._body, bf16) if encoder.is_supported(self._body) else None
        self.bf16 = bf16 and self._encoder is not None
        self._parameters = frozenset(inspect.signature(self._body.forward).parameters)
        config = config_of(model)
        self._positions = positions(config, UNLIMITED)
        self.max_length = (
            prompt_length(config, tokenizer, UNLIMITED)
            if self.pooling.max_length is None  # else it stands in for the tokenizer's own
            else min(self.pooling.max_length, self._positions)
        )
        ids = getattr(config, "pad_token_id", None), tokenizer.pad_token_id
        self._pad_id = next((number for number in ids if isinstance(number, int) and number >= 0), 0)
        self._skipped = 0 if self.pooling.include_prompt else self._count_prompt()
        self._cut_logged = False

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        pooling: str | None,
    ) -> Self:
        """Return the embedder of a model, made once for a tokenizer, a device and a pooling."""
        kept, key = getattr(model, "_embedder", None), (tokenizer, device, pooling)
        if kept is None or kept[0] != key:
            kept = key, cls(model, tokenizer, device, pooling)
            object.__setattr__(model, "_embedder", kept)  # not a submodule: no cycle
        return kept[1]

    def __call__(self, texts: Sequence[str]) -> numpy.ndarray:
        """Return the vectors of texts, float32 (N, H); (0, H) of none.

        Raises:
            UserError: what is no text, an empty text, half characters; a model whose output is no number.
        """
        rows = self.encode(texts)
        if not rows:
            return numpy.zeros((0, self.dimension), dtype=numpy.float32)
        return self.vectors(rows)

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model has."""
        return self._body.get_input_embeddings().num_embeddings

    @cached_property
    def dimension(self) -> int:
        """Numbers of a vector."""
        return self.vectors(self.encode(["1"])).shape[1]

    @cached_property
    def digest(self) -> str:
        """Hash of the weights and the pooling: vectors of another digest cannot be compared."""
        weights = [part for part in weight_checksums(self._body) if not part.startswith(POOLER)]
        settings = [*self.pooling.settings(), str(self.max_length), str(len(self.tokenizer))]
        return hash_texts([*weights, *settings])

    def encode(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """Tokenize texts, each as `input_ids` and whatever else the body takes.

        Raises:
            UserError: what is no text, an empty text, half characters.
        """
        texts = [self._lowered(self.pooling.prompt + checked_text(text)) for text in texts]
        if not texts:
            return []
        encoding = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, padding=False,
            split_special_tokens=True, return_overflowing_tokens=False,
        )  # fmt: skip
        names = [name for name in ("input_ids", "token_type_ids") if name in encoding]
        rows = [
            dict(zip(names, values, strict=True))
            for values in zip(*(encoding[name] for name in names), strict=True)
        ]
        if any(not row["input_ids"] for row in rows):
            raise UserError("有一段文字在這個模型的 tokenizer 裡一個 token 也沒有，得不到向量")
        self._log_cut(texts, rows)
        return rows

    @torch.no_grad()
    def vectors(self, rows: Sequence[dict[str, list[int]]]) -> numpy.ndarray:
        """Return the vectors of tokenized texts, float32 (N, H), in their order.

        Raises:
            UserError: a model whose output is no number.
        """
        found: list[Any] = [None] * len(rows)
        for batch in self._batches([len(row["input_ids"]) for row in rows]):
            vectors = self._pooled([rows[number] for number in batch])
            with invariant_modules(vectors):
                vectors = self.pooling.finish(vectors)
            if not vectors.isfinite().all():
                raise UserError(NOT_NUMBERS)
            for number, vector in zip(batch, vectors.float().cpu().numpy(), strict=True):
                found[number] = vector
        return numpy.stack(found)

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Group the numbers of rows of similar length, within BATCH_TOKENS padded tokens a batch."""
        batches: list[list[int]] = []
        for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
            longest = lengths[batches[-1][0]] if batches else 0
            full = not batches or (len(batches[-1]) + 1) * padded_width(longest) > BATCH_TOKENS
            if full or (not self._ignores_padding and lengths[number] != longest):
                batches.append([])
            batches[-1].append(number)
        return batches

    def _pooled(self, rows: Sequence[dict[str, list[int]]]) -> Tensor:
        """Return the pooled hidden states of a batch, (B, ·)."""
        ids = [row["input_ids"] for row in rows]
        lengths = torch.tensor([len(row) for row in ids], device=self.device)
        width = len(ids[0])  # the first is the longest
        if self._ignores_padding:
            width = min(padded_width(width), self._positions)
        inputs = self._inputs(rows, width)
        if not self.pooling.single:
            places, cols = inputs["attention_mask"].nonzero(as_tuple=True)
            return pool(self._hidden(inputs, places, cols), lengths, self.pooling.modes, self._skipped)
        places = torch.arange(len(ids), device=self.device)
        cols = torch.tensor([self.pooling.place(len(row), self._skipped) for row in ids], device=self.device)
        return self._hidden(inputs, places, cols).float()

    def _inputs(self, rows: Sequence[dict[str, list[int]]], width: int) -> dict[str, Tensor]:
        """Return rows as tensors (B, width), with padding on the right."""
        inputs = {"input_ids": [row["input_ids"] for row in rows], "attention_mask": []}
        inputs["attention_mask"] = [[1] * len(ids) for ids in inputs["input_ids"]]
        if any(any(row.get("token_type_ids", ())) for row in rows):
            inputs["token_type_ids"] = [row["token_type_ids"] for row in rows]
        filled = {
            name: [
                [*row, *[self._pad_id if name == "input_ids" else 0] * (width - len(row))] for row in values
            ]
            for name, values in inputs.items()
        }
        return {name: torch.tensor(values, device=self.device) for name, values in filled.items()}

    @cached_property
    @torch.no_grad()
    def _ignores_padding(self) -> bool:
        """Whether padding changes no hidden state of this family, tried on one text.

        Convolutions and Fourier transforms see it, whatever the attention mask says.
        """
        if self._encoder is not None:
            return True
        if "attention_mask" not in self._parameters:
            return False
        row = self.encode(["1 2 3"])
        count = len(row[0]["input_ids"])
        places = torch.zeros(count, dtype=torch.long, device=self.device)
        cols = torch.arange(count, device=self.device)
        alone, beside = (self._hidden(self._inputs(row, width), places, cols) for width in (count, count + 5))
        least = LEAK if alone.dtype != torch.float32 else ROUNDING
        return bool((alone - beside).abs().max() <= least * alone.std())

    def _hidden(self, inputs: dict[str, Tensor], rows: Tensor, cols: Tensor) -> Tensor:
        """Return the hidden states (M, H) of the last layer at M tokens."""
        if self._encoder is not None:
            segments = inputs.get("token_type_ids")
            return self._encoder(inputs["input_ids"], inputs["attention_mask"], rows, cols, segments)
        if "attention_mask" not in self._parameters:
            inputs = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
        if "use_cache" in self._parameters:  # keys and values would not be used
            return self._body(**inputs, use_cache=False)[0][rows, cols]
        return self._body(**inputs)[0][rows, cols]

    def _lowered(self, text: str) -> str:
        """Lower-case a text as sentence-transformers does, character by character."""
        if not self.pooling.lower_case:
            return text
        from tokenizers.normalizers import Lowercase

        return Lowercase().normalize_str(text)

    def _count_prompt(self) -> int:
        """Count the tokens of the prompt, with what stands before it and without what stands after it."""
        prompt = self.pooling.prompt
        if not prompt:
            return 0
        ids = self.tokenizer(self._lowered(prompt))["input_ids"]
        return len(ids) - (bool(ids) and ids[-1] in self.tokenizer.all_special_ids)

    def _log_cut(self, texts: Sequence[str], rows: Sequence[dict[str, list[int]]]) -> None:
        """Log once that texts are longer than what is read of them."""
        full = [at for at, row in enumerate(rows) if len(row["input_ids"]) >= self.max_length]
        if self._cut_logged or not full:
            return
        whole = self.tokenizer([texts[at] for at in full], split_special_tokens=True)["input_ids"]
        if any(len(ids) > self.max_length for ids in whole):
            self._cut_logged = True
            log(f"⚠️ 有文字超過 {self.max_length} 個 token，超過的部分沒有讀")


def checked_text(text: object) -> str:
    """Return a text that has a vector.

    Raises:
        UserError: with the reason why it has none.
    """
    if not isinstance(text, str):
        raise UserError(f"每一筆應是一段文字，得到 {shown(text)}")
    if not text.strip():
        raise UserError("文字是空的")
    if not is_text(text):
        raise UserError("有落單的代理字元（surrogate），不是合法的 UTF-8")
    if reason := too_long(text):
        raise UserError(f"文字{reason}")
    return text


def _pooling_of(model: torch.nn.Module, requested: str | None) -> Pooling:
    """Return the pooling that was asked for, or the model's own.

    Raises:
        UserError: an unknown pooling, or a part of the model's own that is not known here.
    """
    if requested not in (None, "auto", *POOLINGS):
        raise UserError(f"pooling {shown(requested)}：可用 {'、'.join(POOLINGS)}，或不給（照模型附的設定）")
    source = str(getattr(model, "loaded_from", "") or getattr(model, "name_or_path", "") or "")
    asked = DEFAULT if requested in (None, "auto") else DEFAULT.with_modes(str(requested))
    if not source:
        return asked
    try:
        brought = read_pooling(source, "模型")
    except UserError:
        if requested in (None, "auto"):
            raise
        return asked
    return brought if requested in (None, "auto") else brought.with_modes(str(requested))
