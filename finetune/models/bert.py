"""BERT from its weights alone, for a process that answers one prompt: transformers' modelling code takes
longer to import than the model to answer.

The parts have transformers' names, and models/encoder.py reads them. Whatever is not plain BERT with plain
weights is left to `models.load_model`, which also says what is wrong with it.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

UNUSED = ("bert.pooler.", "cls.seq_relationship.", "bert.embeddings.position_ids")  # when blanks are filled


class Weights:
    """Tensors by name, each to be taken once.

    Raises:
        ValueError: one has another shape. KeyError: it is not there.
    """

    def __init__(self, tensors: dict[str, Tensor], prefix: str = ""):
        self.tensors, self.prefix = tensors, prefix

    def below(self, name: str) -> Weights:
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def take(self, name: str, *shape: int) -> nn.Parameter:
        found = self.tensors.pop(self.prefix + name)
        if found.shape != shape:
            raise ValueError(f"{self.prefix}{name}: {tuple(found.shape)}")
        return nn.Parameter(found.float(), requires_grad=False)


class Linear(nn.Module):
    def __init__(self, weights: Weights, inputs: int, outputs: int):
        super().__init__()
        self.weight, self.bias = weights.take("weight", outputs, inputs), weights.take("bias", outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight, self.bias)


class LayerNorm(nn.Module):
    def __init__(self, weights: Weights, config):
        super().__init__()
        self.size, self.eps = (config.hidden_size,), config.layer_norm_eps
        self.weight, self.bias = weights.take("weight", *self.size), weights.take("bias", *self.size)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.layer_norm(inputs, self.size, self.weight, self.bias, self.eps)


class Embeddings(nn.Module):
    def __init__(self, weights: Weights, config):
        super().__init__()
        size = config.hidden_size
        self.words = weights.take("word_embeddings.weight", config.vocab_size, size)
        self.places = weights.take("position_embeddings.weight", config.max_position_embeddings, size)
        self.segments = weights.take("token_type_embeddings.weight", config.type_vocab_size, size)
        self.LayerNorm = LayerNorm(weights.below("LayerNorm"), config)

    def forward(self, input_ids: Tensor) -> Tensor:
        words = F.embedding(input_ids, self.words) + self.segments[0]
        return self.LayerNorm(words + self.places[: input_ids.shape[1]])


class Attention(nn.Module):
    """Its products; models/encoder.py does the rest."""

    def __init__(self, weights: Weights, config):
        super().__init__()
        size, self.num_attention_heads = config.hidden_size, config.num_attention_heads
        self.scaling = (size // self.num_attention_heads) ** -0.5
        for name in ("query", "key", "value"):
            setattr(self, name, Linear(weights.below(name), size, size))


class FeedForward(nn.Module):
    """The first half of a feed-forward."""

    intermediate_act_fn = staticmethod(F.gelu)

    def __init__(self, weights: Weights, config):
        super().__init__()
        self.dense = Linear(weights.below("dense"), config.hidden_size, config.intermediate_size)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.gelu(self.dense(inputs))


class ResidualOutput(nn.Module):
    """A product that is added to what went before, and normed."""

    def __init__(self, weights: Weights, config, inputs: int):
        super().__init__()
        self.dense = Linear(weights.below("dense"), inputs, config.hidden_size)
        self.LayerNorm = LayerNorm(weights.below("LayerNorm"), config)

    def forward(self, inputs: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(inputs) + before)


class Layer(nn.Module):
    def __init__(self, weights: Weights, config):
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = Attention(weights.below("attention.self"), config)
        self.attention.output = ResidualOutput(weights.below("attention.output"), config, config.hidden_size)
        self.intermediate = FeedForward(weights.below("intermediate"), config)
        self.output = ResidualOutput(weights.below("output"), config, config.intermediate_size)


class Head(nn.Module):
    """Over the words, whose weights are the embeddings."""

    def __init__(self, weights: Weights, config, words: nn.Parameter):
        super().__init__()
        below, size = weights.below("transform"), config.hidden_size
        self.dense, self.LayerNorm = (
            Linear(below.below("dense"), size, size),
            LayerNorm(below.below("LayerNorm"), config),
        )
        self.words, self.bias = words, weights.take("bias", config.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(self.LayerNorm(F.gelu(self.dense(hidden))), self.words, self.bias)


class PlainBert(nn.Module):
    """A masked language model in fp32, as `logits.BlankLogits` takes it."""

    base_model_prefix = "bert"

    def __init__(self, tensors: dict[str, Tensor], config):
        super().__init__()
        self.config = config
        weights = Weights(tensors)
        self.bert = nn.Module()
        self.bert.config = config
        self.bert.embeddings = Embeddings(weights.below("bert.embeddings"), config)
        layers = (
            Layer(weights.below(f"bert.encoder.layer.{number}"), config)
            for number in range(config.num_hidden_layers)
        )
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList(layers)
        head = Head(weights.below("cls.predictions"), config, self.bert.embeddings.words)
        self.cls = nn.Sequential(OrderedDict(predictions=head))


def load(name: str, config) -> PlainBert | None:
    """The model of a local folder; None where it is not as plain as that."""
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
        found = load_file(file)
        tensors = {_renamed(key): found[key] for key in found if not key.startswith(UNUSED)}
        model = PlainBert(tensors, config)
    except (KeyError, ValueError, OSError, SafetensorError):  # `models.load_model` is next, and says which
        return None
    return None if tensors else model.eval()


def _renamed(key: str) -> str:
    """Of files that were made from TensorFlow's."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
