"""BERT without transformers' modelling code, for a process that runs a single prompt.

That code takes longer to import than the model to run. The parts have transformers' names, and
models/encoder.py runs them. Whatever is not plain BERT with plain weights is left to `loading.load_model`,
which also reports what is wrong with it.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

UNUSED = ("bert.pooler.", "cls.seq_relationship.", "bert.embeddings.position_ids")  # by a masked model


class Weights:
    """Tensors by name, each to be taken once."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str = ""):
        self.tensors, self.prefix = tensors, prefix

    def below(self, name: str) -> Weights:
        """Return the weights whose names begin with this module's."""
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def take(self, name: str, *shape: int) -> nn.Parameter:
        """Remove a tensor and return it in fp32.

        Raises:
            KeyError: there is no tensor of this name.
            ValueError: it has another shape.
        """
        tensor = self.tensors.pop(self.prefix + name)
        if tensor.shape != shape:
            raise ValueError(f"{self.prefix}{name}: {tuple(tensor.shape)}")
        return nn.Parameter(tensor.float(), requires_grad=False)


class Linear(nn.Module):
    """Linear layer with a bias."""

    def __init__(self, weights: Weights, inputs: int, outputs: int):
        super().__init__()
        self.weight, self.bias = weights.take("weight", outputs, inputs), weights.take("bias", outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute (…, inputs) -> (…, outputs)."""
        return functional.linear(inputs, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Layer normalisation over the hidden size."""

    def __init__(self, weights: Weights, config: PreTrainedConfig):
        super().__init__()
        self.size, self.eps = (config.hidden_size,), config.layer_norm_eps
        self.weight, self.bias = weights.take("weight", *self.size), weights.take("bias", *self.size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return functional.layer_norm(inputs, self.size, self.weight, self.bias, self.eps)


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings, all of segment 0, normed."""

    def __init__(self, weights: Weights, config: PreTrainedConfig):
        super().__init__()
        size = config.hidden_size
        self.words = weights.take("word_embeddings.weight", config.vocab_size, size)
        self.positions = weights.take("position_embeddings.weight", config.max_position_embeddings, size)
        self.segments = weights.take("token_type_embeddings.weight", config.type_vocab_size, size)
        self.LayerNorm = LayerNorm(weights.below("LayerNorm"), config)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed token ids, (B, T) -> (B, T, H)."""
        words = functional.embedding(input_ids, self.words) + self.segments[0]
        return self.LayerNorm(words + self.positions[: input_ids.shape[1]])


class Attention(nn.Module):
    """Projections of attention; models/encoder.py computes the rest."""

    def __init__(self, weights: Weights, config: PreTrainedConfig):
        super().__init__()
        size, self.num_attention_heads = config.hidden_size, config.num_attention_heads
        self.scaling = (size // self.num_attention_heads) ** -0.5
        for name in ("query", "key", "value"):
            setattr(self, name, Linear(weights.below(name), size, size))


class FeedForward(nn.Module):
    """First half of the feed-forward network."""

    intermediate_act_fn = staticmethod(functional.gelu)

    def __init__(self, weights: Weights, config: PreTrainedConfig):
        super().__init__()
        self.dense = Linear(weights.below("dense"), config.hidden_size, config.intermediate_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute (…, H) -> (…, intermediate size)."""
        return functional.gelu(self.dense(inputs))


class ResidualOutput(nn.Module):
    """Linear layer whose output is added to the residual, and normed."""

    def __init__(self, weights: Weights, config: PreTrainedConfig, inputs: int):
        super().__init__()
        self.dense = Linear(weights.below("dense"), inputs, config.hidden_size)
        self.LayerNorm = LayerNorm(weights.below("LayerNorm"), config)

    def forward(self, inputs: Tensor, residual: Tensor) -> Tensor:
        """Compute (…, inputs) and a residual (…, H) -> (…, H)."""
        return self.LayerNorm(self.dense(inputs) + residual)


class Layer(nn.Module):
    """One layer of the encoder, with the names of transformers' modules."""

    def __init__(self, weights: Weights, config: PreTrainedConfig):
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = Attention(weights.below("attention.self"), config)
        self.attention.output = ResidualOutput(weights.below("attention.output"), config, config.hidden_size)
        self.intermediate = FeedForward(weights.below("intermediate"), config)
        self.output = ResidualOutput(weights.below("output"), config, config.intermediate_size)


class Head(nn.Module):
    """Vocabulary head, whose weights are the word embeddings."""

    def __init__(self, weights: Weights, config: PreTrainedConfig, words: nn.Parameter):
        super().__init__()
        transform, size = weights.below("transform"), config.hidden_size
        self.dense = Linear(transform.below("dense"), size, size)
        self.LayerNorm = LayerNorm(transform.below("LayerNorm"), config)
        self.words, self.bias = words, weights.take("bias", config.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute logits, (…, H) -> (…, V)."""
        return functional.linear(self.LayerNorm(functional.gelu(self.dense(hidden))), self.words, self.bias)


class PlainBert(nn.Module):
    """A masked language model in fp32, as `forward.TokenLogits` takes it."""

    base_model_prefix = "bert"

    def __init__(self, tensors: dict[str, Tensor], config: PreTrainedConfig):
        super().__init__()
        self.config = config
        weights = Weights(tensors)
        self.bert = nn.Module()
        self.bert.config = cast(Any, config)
        self.bert.embeddings = Embeddings(weights.below("bert.embeddings"), config)
        layers = (
            Layer(weights.below(f"bert.encoder.layer.{number}"), config)
            for number in range(config.num_hidden_layers)
        )
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList(layers)
        head = Head(weights.below("cls.predictions"), config, self.bert.embeddings.words)
        self.cls = nn.Sequential(OrderedDict(predictions=head))


def load(name: str, config: PreTrainedConfig) -> PlainBert | None:
    """Load the model of a local folder; return None where it is not plain BERT."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(name).expanduser() / "model.safetensors"
    plain = (
        config.model_type == "bert"
        and config.architectures == ["BertForMaskedLM"]
        and config.hidden_act == "gelu"
        and config.tie_word_embeddings
        and not config.is_decoder
        and not config.chunk_size_feed_forward
        and 0 < config.num_attention_heads <= config.hidden_size
        and not config.hidden_size % config.num_attention_heads
        and file.is_file()
    )
    if not plain:
        return None
    try:
        saved = load_file(file)
        tensors = {_renamed(key): saved[key] for key in saved if not key.startswith(UNUSED)}
        model = PlainBert(tensors, config)
    except (KeyError, ValueError, OSError, SafetensorError):  # `loading.load_model` is next, and reports it
        return None
    return None if tensors else model.eval()


def _renamed(key: str) -> str:
    """Return the present name of a parameter in files that were converted from TensorFlow."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
