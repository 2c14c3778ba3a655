"""Forward pass of BERT's family, from token ids to hidden states at the wanted positions alone.

It computes the same numbers as transformers' own pass, with the same modules and less work:

- Only attention sees padding, since it needs rectangular batches.
- The last layer computes queries, attention and feed-forward at the wanted positions alone, since nothing
  reads them elsewhere.
- On a CPU attention in bf16 and in training is three plain matrix products: torch's fused kernel takes
  several times as long in bf16.
- In fp32 on a CPU, outside of training, the digits of a row do not depend on the rows beside it: its products
  are those of models/products.py, its attention that of models/row_groups.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.models import bert, products
from finetune.models.cpu import dropout_mask
from finetune.models.padding import MULTIPLE
from finetune.models.row_groups import RowGroups

# Passes after which a small model gets copies of its weights laid out as oneDNN reads them, which takes the
# time of some passes: it would lay them out at every pass, which takes a quarter of a short one.
REPEATED = 8
FAMILIES = ("bert", "roberta", "xlm-roberta", "ernie")  # whose layers are BERT's


def is_supported(body: Any) -> bool:
    """Return whether this module can run an encoder; decoders and other families are left to transformers."""
    layers = getattr(getattr(body, "encoder", None), "layer", None)
    return (
        layers is not None
        and body.config.model_type in FAMILIES
        and not body.config.is_decoder
        and not getattr(body.config, "chunk_size_feed_forward", 0)
    )


class TokenPositions:
    """Positions of N tokens in B rows of length T, at most one token in a cell.

    Args:
        cells: (N,) row · T + column of each token, ascending.
        shape: (B, T).

    Attributes:
        cells: as given; None where every cell holds a token: then token and cell have the same number.
        tokens: (B · T,) the token in each cell; of an empty cell any token, since nothing reads it. Set only
            where some cell is empty.
    """

    def __init__(self, cells: Tensor, shape: tuple[int, int]):
        self.shape = shape
        self.cells: Tensor | None = None
        if len(cells) < shape[0] * shape[1]:
            self.cells = cells
            self.tokens = torch.zeros(shape[0] * shape[1], dtype=torch.long, device=cells.device)
            self.tokens[cells] = torch.arange(len(cells), device=cells.device)

    def rectangle(self, tokens: Tensor) -> Tensor:
        """Arrange tokens (N, H) as (B, T, H); the contents of empty cells are undefined."""
        if self.cells is not None:
            tokens = _Scatter.apply(tokens, self.tokens, self.cells)
        return tokens.view(*self.shape, -1)

    def flat(self, rectangle: Tensor) -> Tensor:
        """Return the tokens (N, H) of a rectangle (B, T, H)."""
        rows = rectangle.reshape(-1, rectangle.shape[-1])
        return rows if self.cells is None else _Gather.apply(rows, self.cells)


class _Scatter(torch.autograd.Function):
    """Copy tokens into cells; the gradient of an empty cell is dropped."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, numbers: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        return tokens.index_select(0, numbers)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Gather(torch.autograd.Function):
    """Index by cells that are known to differ: torch would add up their gradients one by one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        ctx.size = len(rows)
        return rows.index_select(0, cells)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows = gradient.new_zeros(ctx.size, gradient.shape[1])
        return rows.index_copy_(0, ctx.saved_tensors[0], gradient), None


class Encoder:
    """Compute hidden states with the layers of a model.

    Args:
        body: an encoder of transformers for which `is_supported` is True.
        bf16: use copies of its weights in bf16, for a model that is not trained any more. Embeddings, sums
            and norms keep the dtype of the model.
    """

    def __init__(self, body: Any, bf16: bool = False):
        self.body, self.bf16 = body, bf16
        self._copies: list[_InferenceLayer] = []
        self._copied_version = 0  # version of the weights that the copies were made of
        self._passes = 0  # one after the other in fp32, outside of training

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        cols: Tensor,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states (M, H) of the last layer at M positions.

        The arguments are those of `TokenLogits.forward`, segments those of `SequenceLogits.forward`.
        """
        real = attention_mask.bool()
        keys = TokenPositions(_cells_to_compute(real.flatten()), (real.shape[0], real.shape[1]))
        token_types = {} if segments is None else {"token_type_ids": segments}
        hidden = keys.flat(self.body.embeddings(input_ids=input_ids, **token_types))  # (N, H)
        # U cells, and for each of the M positions the number of its cell among them
        wanted, inverse = torch.unique(rows * real.shape[1] + cols, return_inverse=True)
        *layers, last = self._layers(hidden)
        attend = _attention_everywhere(last, real, keys)
        for layer in layers:
            inputs = layer.to_compute_dtype(hidden)
            hidden = _run_layer(layer, hidden, inputs, inputs, attend)
        residual = hidden[wanted if keys.cells is None else keys.tokens[wanted]]
        inputs = last.to_compute_dtype(residual), last.to_compute_dtype(hidden)
        return _run_layer(last, residual, *inputs, _attention_at(last, real, keys, wanted))[inverse]

    def _layers(self, hidden: Tensor) -> list[Any]:
        """Return the layers as they compute the next pass, of hidden states like these."""
        layers = self.body.encoder.layer
        modules = [module for layer in layers for module in _linears(layer)]
        if not self.bf16:
            plain = products.are_invariant(hidden) and not self.body.training
            if not (plain and all(map(_is_plain, modules))):
                self._copies, self._passes = [], 0
                return [_Layer(layer) for layer in layers]
            self._passes += 1
            # a weight made in inference mode does not tell when it changes
            small = all(
                module.weight.numel() < products.LARGE and not module.weight.is_inference()
                for module in modules
            )
            if not small or self._passes <= REPEATED:
                return [_InferenceLayer(layer, _Linear, torch.float32) for layer in layers]
        version = hash(tuple((module.weight.data_ptr(), module.weight._version) for module in modules))
        # the first time, and whenever the model was trained in between
        if not self._copies or version != self._copied_version:
            product, dtype = (_Bf16Linear, torch.bfloat16) if self.bf16 else (_PackedLinear, torch.float32)
            self._copies = [_InferenceLayer(layer, product, dtype) for layer in layers]
            self._copied_version = version
        return self._copies


def _cells_to_compute(real: Tensor) -> Tensor:
    """Return the cells (N,) of tokens, and of some padding that makes N a multiple of MULTIPLE."""
    missing = -int(real.sum()) % MULTIPLE
    padding = (~real).nonzero()[:missing, 0]
    return real.index_fill(0, padding, True).nonzero()[:, 0]


class _Rectangle(NamedTuple):
    """Attention of U queries to N tokens in one rectangle of rows.

    Attributes:
        queries, keys: positions of the U and of the N tokens.
        bias: see `attention`.
    """

    queries: TokenPositions
    keys: TokenPositions
    bias: Tensor | None

    def __call__(self, module: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Compute attention, see `RowGroups`."""
        arranged = self.queries.rectangle(queries), self.keys.rectangle(keys), self.keys.rectangle(values)
        return self.queries.flat(attention(module, *arranged, self.bias))


def _attention_everywhere(layer: Any, real: Tensor, keys: TokenPositions) -> _Rectangle | RowGroups:
    """Return the attention of all tokens to one another, in a form that suits the layer."""
    if layer.is_invariant:
        return RowGroups(real, None if keys.cells is None else keys.tokens, keys.cells)
    return _Rectangle(keys, keys, _bias(real))


def _attention_at(layer: Any, real: Tensor, keys: TokenPositions, wanted: Tensor) -> _Rectangle | RowGroups:
    """Return the attention of the tokens in some cells (U,), ascending, to all."""
    if layer.is_invariant:
        return RowGroups(real, None if keys.cells is None else keys.tokens, keys.cells, wanted)
    row = wanted // real.shape[1]
    count = torch.bincount(row, minlength=len(real))
    slot = torch.arange(len(wanted), device=row.device) - (count.cumsum(0) - count)[row]
    widest = int(count.max())
    return _Rectangle(TokenPositions(row * widest + slot, (len(real), widest)), keys, _bias(real))


def _bias(real: Tensor) -> Tensor | None:
    """Return what is added to scores (B, T), as `attention` takes it."""
    if real.all():
        return None
    return torch.zeros(real.shape, device=real.device).masked_fill(~real, -torch.inf)


def _run_layer(layer: Any, *inputs: Any) -> Tensor:
    """Call `_forward_layer`, through gradient checkpointing where it is on."""
    module = getattr(layer, "layer", None)
    if module is not None and getattr(module, "gradient_checkpointing", False) and module.training:
        return module._gradient_checkpointing_func(_forward_layer, layer, *inputs)
    return _forward_layer(layer, *inputs)


def _forward_layer(
    layer: Any, residual: Tensor, query_inputs: Tensor, key_inputs: Tensor, attend: _Rectangle | RowGroups
) -> Tensor:
    """Run a layer for U tokens, which attend to N.

    Args:
        layer: a `_Layer` or an `_InferenceLayer`.
        residual: (U, H) hidden states of the tokens.
        query_inputs: the same in the dtype of products.
        key_inputs: (N, H) hidden states attended to, in the dtype of products.
        attend: a `_Rectangle` or `RowGroups`.
    """
    keys, values = layer.keys_and_values(key_inputs)
    context = attend(layer.attention, layer.queries(query_inputs), keys, values)
    return layer.rest(context, residual)


class _Layer:
    """A layer of transformers that calls its own modules, so that adapters and hooks on them work."""

    is_invariant = False

    def __init__(self, layer: Any):
        self.layer, self.attention = layer, layer.attention.self

    def to_compute_dtype(self, hidden: Tensor) -> Tensor:
        """Convert to the dtype of products: under autocast once, not for queries, keys and values each."""
        device = hidden.device.type
        return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden

    def queries(self, hidden: Tensor) -> Tensor:
        """Project hidden states to queries."""
        return self.attention.query(hidden)

    def keys_and_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Project hidden states to keys and values."""
        return self.attention.key(hidden), self.attention.value(hidden)

    def rest(self, context: Tensor, residual: Tensor) -> Tensor:
        """Compute all that follows attention."""
        residual = self.layer.attention.output(context, residual)
        return self.layer.output(self.layer.intermediate(residual), residual)


class _InferenceLayer:
    """A layer that is not trained, in fp32 or with copies of its weights in bf16.

    Args:
        layer: of transformers, or of models/bert.py.
        product: `_Linear`, `_PackedLinear` or `_Bf16Linear`.
        dtype: of products.
    """

    def __init__(self, layer: Any, product: Callable[..., Any], dtype: torch.dtype):
        self.attention = attention = layer.attention.self
        self._queries, self._keys_and_values = (
            product(attention.query),
            product(attention.key, attention.value),
        )
        self._out = product(layer.attention.output.dense)
        self._up, self._down = product(layer.intermediate.dense), product(layer.output.dense)
        self._activation = layer.intermediate.intermediate_act_fn
        self._norms = layer.attention.output.LayerNorm, layer.output.LayerNorm
        self._dtype = dtype
        self.is_invariant = dtype == torch.float32

    def to_compute_dtype(self, hidden: Tensor) -> Tensor:
        """Convert to the dtype of products."""
        return hidden.to(self._dtype)

    def queries(self, hidden: Tensor) -> Tensor:
        """Project hidden states to queries."""
        return self._queries(hidden)[0]

    def keys_and_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Project hidden states to keys and values."""
        keys, values = self._keys_and_values(hidden)
        return keys, values

    def rest(self, context: Tensor, residual: Tensor) -> Tensor:
        """Compute all that follows attention."""
        residual = self._norms[0](self._out(context)[0] + residual)
        wide = self._activation(self._up(residual.to(self._dtype))[0])
        return self._norms[1](self._down(wide)[0] + residual)


def _linears(layer: Any) -> Iterator[Any]:
    """Yield the linear layers of a layer."""
    attention = layer.attention.self
    yield from (attention.query, attention.key, attention.value)
    yield from (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)


def _is_plain(module: nn.Module) -> bool:
    """Return whether a linear layer is nothing but a product: no adapter, no hook."""
    return type(module) in (nn.Linear, bert.Linear) and not (
        module._forward_hooks or module._forward_pre_hooks
    )


class _Linear:
    """Linear layers in fp32, with the weights of the modules themselves."""

    def __init__(self, *modules: nn.Linear):
        self._modules = modules

    def __call__(self, inputs: Tensor) -> list[Tensor]:
        """Compute the product with each."""
        return [products.linear(inputs, module.weight, module.bias) for module in self._modules]


class _PackedLinear:
    """Copies of linear layers in fp32, laid out as oneDNN reads them. The digits are those of `_Linear`."""

    def __init__(self, *modules: nn.Linear):
        self._pairs = [(products.packed(module.weight), module.bias) for module in modules]

    def __call__(self, inputs: Tensor) -> list[Tensor]:
        """Compute the product with each."""
        return [products.linear(inputs, weight, bias) for weight, bias in self._pairs]


class _Bf16Linear:
    """Linear layers in bf16, converted once and not at every pass, and laid out as oneDNN reads them.

    The layout saves a tenth of a long product and a third of a short one.
    """

    def __init__(self, *modules: nn.Linear):
        self._sizes = [module.weight.shape[0] for module in modules]
        weights = torch.cat([module.weight.detach() for module in modules]).bfloat16()
        self._bias = torch.cat([module.bias.detach() for module in modules]).bfloat16()
        self._product: Callable[[Tensor, Tensor, Tensor], Tensor] = functional.linear
        if torch.backends.mkldnn.is_available():
            weights = torch.ops.mkldnn._reorder_linear_weight(weights, None)
            self._product = _packed_product
        self._weights = weights

    def __call__(self, inputs: Tensor) -> Sequence[Tensor]:
        """Compute the product with each."""
        return self._product(inputs, self._weights, self._bias).split(self._sizes, dim=-1)


def _packed_product(inputs: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    # as torch.compile calls it for a model that is not trained
    return torch.ops.mkldnn._linear_pointwise(inputs, weights, bias, "none", [], "")


def attention(attention: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Compute multi-head attention: queries (B, Q, H), keys and values (B, T, H) -> (B, Q, H).

    Args:
        attention: transformers' module, for its heads, its scale and its dropout.
        bias: (B, T), added to scores: -inf at positions that must not be attended to; None for no bias.
    """
    heads, p = attention.num_attention_heads, attention.dropout.p if attention.training else 0.0
    size, num_queries, width = queries.shape
    split = [part.view(size, -1, heads, width // heads).transpose(1, 2) for part in (queries, keys, values)]
    if bias is not None:
        bias = bias.to(queries.dtype)[:, None, None, :]
    if queries.device.type != "cpu":
        context = functional.scaled_dot_product_attention(
            split[0], split[1], split[2], attn_mask=bias, dropout_p=p, scale=attention.scaling
        )  # (B, heads, Q, h)
        return context.transpose(1, 2).reshape(size, num_queries, width)
    with torch.autocast("cpu", enabled=False):
        queries, keys, values = (part.reshape(size * heads, -1, width // heads) for part in split)
        start, beta = queries.new_zeros(1), 0  # added to the products, where a bias costs nothing
        if bias is not None:
            start, beta = bias.expand(-1, heads, -1, -1).reshape(size * heads, 1, -1), 1
        scores = torch.baddbmm(start, queries, keys.transpose(1, 2), beta=beta, alpha=attention.scaling)
        weights = scores.softmax(-1)  # (B · heads, Q, T)
        if p:
            weights = weights * dropout_mask(weights, p)
        context = torch.bmm(weights, values)
    return context.view(size, heads, num_queries, -1).transpose(1, 2).reshape(size, num_queries, width)
