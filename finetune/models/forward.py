"""The forward passes of this project: logits at chosen positions of a language model alone, and those of the
heads that read a whole row.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from finetune.models import encoder
from finetune.runtime.errors import UserError

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
ROW_CLASSES = ("ForSequenceClassification", "ForMultipleChoice")
MULTI_LABEL = "multi_label_classification"  # config.problem_type of transformers
# Families whose attention keeps to a mask of its own for every row. Others ignore it, read it as numbers, or
# carry a state from token to token.
PACKABLE = (
    "llama", "qwen2", "qwen3", "mistral", "mixtral", "gpt2", "gpt_neox", "phi", "phi3", "olmo2", "opt",
    "smollm3", "glm4", "granite",
)  # fmt: skip
NOT_NUMBERS = (
    "模型算出的不是數（NaN 或無限大）：權重壞了，或這個精度裝不下它；請用 --precision fp32 再試，或換一個模型"
)
LEAK = 0.02  # of the spread of logits: more than bf16 rounds, less than a neighbour changes


def check_numbers(logits: Tensor) -> None:
    """Raises UserError for logits that are no numbers: nothing can be said by them. -inf is one, of a token
    that a model never says.
    """
    if logits.isnan().any() or (logits == torch.inf).any():
        raise UserError(NOT_NUMBERS)


def is_multi(config) -> bool:
    """True for a classifier whose texts may have no label, or several."""
    return config.problem_type == MULTI_LABEL


class TokenLogits(nn.Module):
    """Logits where something is asked: at blanks of a masked model, before each token that a causal one must
    say.

    The vocabulary head runs only there, which gives the very same numbers and saves its cost elsewhere.
    Training, validation and scoring all go through it, so DDP and ZeRO see one root module.

    Args:
        model: of transformers, with a masked or a causal language modelling head.
        packed: rows hold several documents each (causal models only); none of them sees another.
        light: with weights copied in bf16, where the family can be read that way; `exact` is then the
            forward pass without.

    Attributes:
        able: models/encoder.py reads this family.
    """

    def __init__(self, model: nn.Module, packed: bool = False, light: bool = False):
        super().__init__()
        self.model, self.packed = model, packed
        names = HEADS.get(model.config.model_type)
        self._head = names if names and all(hasattr(model, name) for name in names) else None
        body = getattr(model, model.base_model_prefix, None)
        self.has_fast_path = self._head is not None and encoder.readable(body)
        self._encoder = encoder.Encoder(body, light) if self.has_fast_path else None
        self.fp32_forward = TokenLogits(model, packed).eval() if light and self.has_fast_path else None
        self._more = {"use_cache": False} if is_causal(model) else {}  # keys and values nobody will ask for

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, cols: Tensor, segments=None
    ) -> Tensor:
        """Logits (M, V) of the positions asked for. A language model reads one segment alone.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T): 0 is padding; of packed rows, the number of the document, from 1.
            rows, cols: (M,).
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **self._more}
        if self.packed:
            inputs["attention_mask"] = document_mask(attention_mask)
            inputs["position_ids"] = document_positions(attention_mask)
        if self._head is None:
            return self.model(**inputs).logits[rows, cols]
        if self._encoder is not None:
            hidden = self._encoder(input_ids, attention_mask, rows, cols)
        else:
            body = getattr(self.model, self.model.base_model_prefix)
            hidden = body(**inputs)[0][rows, cols]  # (M, H)
        # Scores that decide an answer keep their digits: bf16 rounds logits so coarsely that options tie.
        exact = not self.training and next(self.parameters()).dtype == torch.float32
        with torch.autocast(hidden.device.type, enabled=False) if exact else contextlib.nullcontext():
            hidden = hidden.float() if exact else hidden
            for name in self._head:
                hidden = getattr(self.model, name)(hidden)
        return hidden


class SequenceLogits(nn.Module):
    """Logits of whole rows: of a classifier one a class, of a multiple-choice head one number.

    Called like BlankLogits; `cols` are then classes. Multi-label classes are asked for one by one.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._multi = is_multi(model.config)
        self._choice = type(model).__name__.endswith("ForMultipleChoice")
        self._segments = getattr(model.config, "type_vocab_size", 0) > 1
        body = getattr(model, model.base_model_prefix, None)
        self._encoder = encoder.Encoder(body) if encoder.readable(body) else None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, cols: Tensor, segments=None
    ) -> Tensor:
        """Logits (M, C) of the rows asked for, of a multiple-choice head (M, 1), of a multi-label classifier
        (M,).

        Args:
            input_ids, attention_mask: (B, T).
            rows, cols: (M,).
            segments: (B, T), 0 for the first sentence of a pair and 1 for the second; None without pairs.
        """
        segments = segments if self._segments else None
        # Scores that decide an answer keep their digits, as those of BlankLogits do.
        exact = not self.training and next(self.parameters()).dtype == torch.float32
        with torch.autocast(input_ids.device.type, enabled=False) if exact else contextlib.nullcontext():
            own = self._encoder is not None
            logits = (self._own_pass if own else self._their_pass)(input_ids, attention_mask, segments)
        return logits[rows, cols] if self._multi else logits[rows]

    def _own_pass(self, input_ids: Tensor, attention_mask: Tensor, segments: Tensor | None) -> Tensor:
        """Of families that models/encoder.py reads: the head looks at the first token alone."""
        rows = torch.arange(len(input_ids), device=input_ids.device)
        first = self._encoder(input_ids, attention_mask, rows, torch.zeros_like(rows), segments)[:, None]
        if (pooler := self._encoder.body.pooler) is None:
            return self.model.classifier(first)  # which takes the first token itself
        return self.model.classifier(self.model.dropout(pooler(first)))

    def _their_pass(self, input_ids: Tensor, attention_mask: Tensor, segments: Tensor | None) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if segments is not None:
            inputs["token_type_ids"] = segments
        if self._choice:  # (questions, options, T): here every option is a question of its own
            inputs = {name: value[:, None] for name, value in inputs.items()}
        return self.model(**inputs).logits


def forward_of(model: nn.Module, packed: bool = False) -> nn.Module:
    """The forward pass of a model, by its head."""
    return SequenceLogits(model) if type(model).__name__.endswith(ROW_CLASSES) else TokenLogits(model, packed)


def bf16_forward(model: nn.Module) -> TokenLogits:
    """The forward pass of a masked model, in bf16 where its family can be read so."""
    return TokenLogits(model, light=True).eval()


def is_causal(model: nn.Module) -> bool:
    """True for a model that says the next token, False for one that fills blanks."""
    return type(model).__name__.endswith(CAUSAL_CLASSES)


def can_pack(config, max_length: int) -> bool:
    """True when a model of this configuration can read several documents in one row of `max_length` tokens,
    none of which sees another. A window of attention shorter than the row would be lost under our mask.
    """
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return config.model_type in PACKABLE and (window is None or window >= max_length)


@torch.no_grad()
def attention_leaks_across_documents(model: nn.Module) -> bool:
    """True when a document's logits change with its neighbour in a packed row: tried on two."""
    words = min(model.config.vocab_size, 1000)
    first, second = (torch.arange(start, start + 24) * 7919 % words for start in (1, 101))
    ids = torch.cat([first, second])[None].to(next(model.parameters()).device)
    documents = torch.tensor([[1] * 24 + [2] * 24], device=ids.device)
    cols = torch.arange(24, 48, device=ids.device)
    was_training = model.training
    model.eval()
    together = TokenLogits(model, packed=True).eval()(ids, documents, torch.zeros_like(cols), cols).float()
    alone = model(input_ids=ids[:, 24:]).logits[0].float()
    model.train(was_training)
    return bool((together - alone).abs().mean() > LEAK * alone.std())


def document_mask(documents: Tensor) -> Tensor:
    """Who may look at whom: a token at itself and at what stands before it in its own document.

    Restarting position ids alone would not keep documents apart: attention does not look at them.

    Args:
        documents: (B, T), the number of each token's document; 0 is padding, which looks at itself.

    Returns:
        (B, 1, T, T) booleans, as scaled dot-product attention takes them.
    """
    same = documents[:, :, None] == documents[:, None, :]  # (B, T, T)
    return same.tril()[:, None]


def document_positions(documents: Tensor) -> Tensor:
    """Position ids that begin at 0 with every document, (B, T) -> (B, T)."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values
