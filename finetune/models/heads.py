"""Forward passes of heads that are no language model, and of encoders with a decoder.

All are called like `TokenLogits`: rows and columns name the M targets of a batch, so that one engine trains
them all.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models import encoder
from finetune.models.forward import TokenLogits, body_of, config_of, is_multi
from finetune.models.kinds import is_seq2seq
from finetune.models.products import invariant_modules

ROW_CLASSES = ("ForSequenceClassification", "ForMultipleChoice")
TAGGER_CLASS, SPAN_CLASS = "ForTokenClassification", "ForQuestionAnswering"
START, END = 0, 1  # columns of `SpanLogits`


def _exact(module: nn.Module, device: torch.device) -> Any:
    """Return a context in which scores that decide an answer keep their digits, as in TokenLogits."""
    exact = not module.training and next(module.parameters()).dtype == torch.float32
    return torch.autocast(device.type, enabled=False) if exact else contextlib.nullcontext()


class _HeadLogits(nn.Module):
    """Base: the model, its fast encoder where models/encoder.py supports the family, and segments.

    Attributes:
        cols_are_tokens: the columns of targets are tokens of their rows.
        per_token: the second dimension of the output is T.
    """

    cols_are_tokens = True
    per_token = False

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._segments = getattr(model.config, "type_vocab_size", 0) > 1
        body = body_of(model)
        self._encoder = encoder.Encoder(body) if encoder.is_supported(body) else None

    def _inputs(
        self, input_ids: Tensor, attention_mask: Tensor, segments: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the arguments of transformers' own forward pass."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return inputs if segments is None else {**inputs, "token_type_ids": segments}


class SequenceLogits(_HeadLogits):
    """Logits of whole rows: of a classifier one for each class, of a multiple-choice head one number.

    `cols` are classes. Multi-label classes are selected one by one.
    """

    cols_are_tokens = False

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self._multi = is_multi(config_of(model))
        self._choice = type(model).__name__.endswith("ForMultipleChoice")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        cols: Tensor,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return logits (M, C) of the rows.

        Those of a multiple-choice head are (M, 1), those of a multi-label classifier (M,).

        Args:
            input_ids, attention_mask: (B, T).
            rows, cols: (M,).
            segments: (B, T), 0 for the first sentence of a pair and 1 for the second; None without pairs.
        """
        segments = segments if self._segments else None
        with _exact(self, input_ids.device):
            if self._encoder is not None:
                logits = self._fast_pass(self._encoder, input_ids, attention_mask, segments)
            else:
                logits = self._model_pass(input_ids, attention_mask, segments)
        return logits[rows, cols] if self._multi else logits[rows]

    def _fast_pass(
        self, body: encoder.Encoder, input_ids: Tensor, attention_mask: Tensor, segments: Tensor | None
    ) -> Tensor:
        """Run a family that models/encoder.py supports: the head reads the first token alone."""
        model: Any = self.model
        rows = torch.arange(len(input_ids), device=input_ids.device)
        first = body(input_ids, attention_mask, rows, torch.zeros_like(rows), segments)[:, None]
        with invariant_modules(first):
            if (pooler := body.body.pooler) is None:
                return model.classifier(first)  # which takes the first token itself
            return model.classifier(model.dropout(pooler(first)))

    def _model_pass(self, input_ids: Tensor, attention_mask: Tensor, segments: Tensor | None) -> Tensor:
        """Run transformers' own forward pass."""
        inputs = self._inputs(input_ids, attention_mask, segments)
        if self._choice:  # (questions, options, T): each option is a question by itself here
            inputs = {name: value[:, None] for name, value in inputs.items()}
        return self.model(**inputs).logits


class TaggingLogits(_HeadLogits):
    """Logits of a token classifier at chosen tokens."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        cols: Tensor,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return logits (M, K) of the K tags at the tokens.

        Args:
            input_ids, attention_mask: (B, T).
            rows, cols: (M,) the tokens.
            segments: not used: a tagger reads a single text.
        """
        model: Any = self.model
        with _exact(self, input_ids.device):
            if self._encoder is None:
                return model(**self._inputs(input_ids, attention_mask, None)).logits[rows, cols]
            hidden = self._encoder(input_ids, attention_mask, rows, cols)  # (M, H)
            with invariant_modules(hidden):
                return model.classifier(model.dropout(hidden))


class SpanLogits(_HeadLogits):
    """Logits of the start and of the end of an answer over the tokens of each row."""

    cols_are_tokens = False
    per_token = True

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        cols: Tensor,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return logits (M, T), one row of them for each target; -inf at padding.

        transformers' own loss includes padding, so that it depends on the longest row of the batch; this one
        does not, and is the same where no row is padded.

        Args:
            input_ids, attention_mask: (B, T).
            rows: (M,).
            cols: (M,) START or END.
            segments: (B, T), 0 for the question and 1 for the context; None where the model has none.
        """
        segments = segments if self._segments else None
        with _exact(self, input_ids.device):
            if self._encoder is not None:
                logits = self._fast_pass(self._encoder, input_ids, attention_mask, segments)
            else:
                output = self.model(**self._inputs(input_ids, attention_mask, segments))
                logits = torch.stack((output.start_logits, output.end_logits), 1)  # (B, 2, T)
        padding = attention_mask[rows] == 0
        return logits[rows, cols].float().masked_fill(padding, -torch.inf)

    def _fast_pass(
        self, body: encoder.Encoder, input_ids: Tensor, attention_mask: Tensor, segments: Tensor | None
    ) -> Tensor:
        """Run a family that models/encoder.py supports, at the tokens that are no padding: (B, 2, T)."""
        model: Any = self.model
        rows, cols = attention_mask.nonzero(as_tuple=True)
        hidden = body(input_ids, attention_mask, rows, cols, segments)
        with invariant_modules(hidden):
            found = model.qa_outputs(hidden)  # (N, 2)
        logits = found.new_zeros((*input_ids.shape, 2)).index_put((rows, cols), found)
        return logits.transpose(1, 2)


class Seq2SeqLogits(nn.Module):
    """Logits of an encoder-decoder at chosen tokens of the decoder's input."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        cols: Tensor,
        segments: Tensor | None = None,
        decoder_ids: Tensor | None = None,
    ) -> Tensor:
        """Return logits (M, V) of the tokens after the chosen ones.

        Args:
            input_ids, attention_mask: (B, T) what the encoder reads.
            rows, cols: (M,) tokens of `decoder_ids`.
            segments: not used.
            decoder_ids: (B, S) what the decoder reads; padding after the last token changes nothing, since
                no token attends to a later one.
        """
        if decoder_ids is None:  # a batch of no weight, which keeps this rank in step with others
            decoder_ids = input_ids
        with _exact(self, input_ids.device):
            logits = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_ids,
                use_cache=False,
            ).logits
        return logits[rows, cols]


def forward_of(model: nn.Module, packed: bool = False) -> nn.Module:
    """Return the forward pass of a model, by its head."""
    name = type(model).__name__
    if name.endswith(ROW_CLASSES):
        return SequenceLogits(model)
    if name.endswith(TAGGER_CLASS):
        return TaggingLogits(model)
    if name.endswith(SPAN_CLASS):
        return SpanLogits(model)
    return Seq2SeqLogits(model) if is_seq2seq(config_of(model)) else TokenLogits(model, packed)


def all_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Return all logits of one row (1, T) in fp32, whatever the head, to compare two states of a model.

    A decoder beside an encoder reads the same row; a multiple-choice head takes it as the only option.
    """
    if type(model).__name__.endswith("ForMultipleChoice"):
        ids = ids[:, None]  # (questions, options, T)
    decoder = {"decoder_input_ids": ids} if is_seq2seq(config_of(model)) else {}
    output = model(input_ids=ids, **decoder)
    if hasattr(output, "start_logits"):
        return torch.stack((output.start_logits, output.end_logits)).float()
    return output.logits.float()
