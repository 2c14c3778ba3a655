"""Forward passes of language models: logits at chosen positions, of one document or several to a row."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from finetune.models import encoder
from finetune.models.products import invariant_modules
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The modules after the encoder or decoder, in order, by family.
HEADS = {
    "bert": ("cls",),
    "ernie": ("cls",),
    "roberta": ("lm_head",),
    "xlm-roberta": ("lm_head",),
    "albert": ("predictions",),
    "modernbert": ("head", "decoder"),
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "gpt2", "phi3"), ("lm_head",)),
}
CAUSAL_CLASSES = ("ForCausalLM", "LMHeadModel")
# values of config.problem_type of transformers
SINGLE_LABEL: Final = "single_label_classification"
MULTI_LABEL: Final = "multi_label_classification"
# Families whose attention takes a mask for each row. Others ignore it, read it as numbers, or carry a state
# from token to token.
PACKABLE = (
    "llama", "qwen2", "qwen3", "mistral", "mixtral", "gpt2", "gpt_neox", "phi", "phi3", "olmo2", "opt",
    "smollm3", "glm4", "granite",
)  # fmt: skip
NOT_NUMBERS = (
    "模型輸出 NaN 或無限大：權重損壞，或超出這個精度的範圍；請用 --precision fp32 再試，或換一個模型"
)
LEAK = 0.02  # as a share of the spread of logits: more than bf16 rounds, less than a neighbour changes


def config_of(model: nn.Module) -> PreTrainedConfig:
    """Return the configuration of a model of transformers, an attribute that `nn.Module` does not declare."""
    return cast("PreTrainedConfig", model.config)


def check_numbers(logits: Tensor) -> None:
    """Check that logits are numbers; -inf is one, that of a token which a model never predicts.

    Raises:
        UserError: some logit is NaN or infinite.
    """
    if logits.isnan().any() or (logits == torch.inf).any():
        raise UserError(NOT_NUMBERS)


def is_multi(config: PreTrainedConfig) -> bool:
    """Return whether a classifier is multi-label: its texts may have no label, or several."""
    return config.problem_type == MULTI_LABEL


class TokenLogits(nn.Module):
    """Logits at positions: masked ones of a masked model, those before each target of a causal one.

    The vocabulary head runs only there, which gives the very same numbers and saves its cost elsewhere.
    Training, validation and scoring all go through it, so DDP and ZeRO see one root module.

    Args:
        model: a transformers model with a masked or a causal language modelling head.
        packed: rows hold several documents each (causal models only); none of them attends to another.
        bf16: use a copy of the weights in bf16, where models/encoder.py supports the family.

    Attributes:
        has_fast_path: models/encoder.py supports this family.
        fp32_forward: the forward pass without bf16 copies, where `bf16` makes this one use them; else None.
    """

    def __init__(self, model: nn.Module, packed: bool = False, bf16: bool = False):
        super().__init__()
        self.model, self.packed = model, packed
        names = HEADS.get(config_of(model).model_type)
        self._head = names if names and all(hasattr(model, name) for name in names) else None
        body = body_of(model)
        self.has_fast_path = self._head is not None and encoder.is_supported(body)
        self._encoder = encoder.Encoder(body, bf16) if self.has_fast_path else None
        self.fp32_forward = TokenLogits(model, packed).eval() if bf16 and self.has_fast_path else None
        self._kwargs = {"use_cache": False} if is_causal(model) else {}  # keys and values would not be used

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        cols: Tensor,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return logits (M, V) at the positions.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T): 0 is padding; of packed rows, the number of the document, from 1.
            rows, cols: (M,).
            segments: not used: a language model reads a single segment.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **self._kwargs}
        if self.packed:
            inputs["attention_mask"] = document_mask(attention_mask)
            inputs["position_ids"] = document_positions(attention_mask)
        if self._head is None:
            return self.model(**inputs).logits[rows, cols]
        if self._encoder is not None:
            hidden = self._encoder(input_ids, attention_mask, rows, cols)
        else:
            hidden = body_of(self.model)(**inputs)[0][rows, cols]  # (M, H)
        # Scores that decide an answer keep their digits: bf16 rounds logits so coarsely that options tie.
        exact = not self.training and next(self.parameters()).dtype == torch.float32
        with torch.autocast(hidden.device.type, enabled=False) if exact else contextlib.nullcontext():
            hidden = hidden.float() if exact else hidden
            with invariant_modules(hidden):
                for name in self._head:
                    hidden = getattr(self.model, name)(hidden)
        return hidden


def body_of(model: nn.Module) -> Any:
    """Return the base model of transformers under the head; None where there is none."""
    return getattr(model, cast(str, model.base_model_prefix), None)


def bf16_forward(model: nn.Module) -> TokenLogits:
    """Return the forward pass of a masked model, in bf16 where models/encoder.py supports its family."""
    return TokenLogits(model, bf16=True).eval()


def is_causal(model: nn.Module) -> bool:
    """Return whether a model predicts the next token; False for a masked model."""
    return type(model).__name__.endswith(CAUSAL_CLASSES)


def can_pack(config: PreTrainedConfig, max_length: int) -> bool:
    """Return whether a model can read several documents in one row without one attending to another.

    Args:
        config: the model's; an attention window shorter than the row would be lost under our mask.
        max_length: tokens of a row.
    """
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return config.model_type in PACKABLE and (window is None or window >= max_length)


@torch.no_grad()
def attention_leaks_across_documents(model: nn.Module) -> bool:
    """Return whether a document's logits change with its neighbour in a packed row, tried on two."""
    id_limit = min(config_of(model).vocab_size, 1000)
    first, second = (torch.arange(start, start + 24) * 7919 % id_limit for start in (1, 101))
    ids = torch.cat([first, second])[None].to(next(model.parameters()).device)
    documents = torch.tensor([[1] * 24 + [2] * 24], device=ids.device)
    cols = torch.arange(24, 48, device=ids.device)
    was_training = model.training
    model.eval()
    packed = TokenLogits(model, packed=True).eval()(ids, documents, torch.zeros_like(cols), cols).float()
    alone = model(input_ids=ids[:, 24:]).logits[0].float()
    model.train(was_training)
    return bool((packed - alone).abs().mean() > LEAK * alone.std())


def document_mask(documents: Tensor) -> Tensor:
    """Return the attention mask of packed rows: causal attention within each document.

    Restarting position ids alone would not keep documents apart: attention does not depend on them.

    Args:
        documents: (B, T), the number of each token's document; 0 is padding, which attends to padding.

    Returns:
        (B, 1, T, T) booleans, as scaled dot-product attention takes them.
    """
    same = documents[:, :, None] == documents[:, None, :]  # (B, T, T)
    return same.tril()[:, None]


def document_positions(documents: Tensor) -> Tensor:
    """Return position ids that begin at 0 with every document, (B, T) -> (B, T)."""
    columns = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return columns - torch.where(begins, columns, 0).cummax(dim=1).values
