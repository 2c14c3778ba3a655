"""Forward pass of BERT's family, from token ids to hidden states at the wanted positions alone.

It computes the same numbers as transformers' own pass, with the same modules and less work:

- Only attention sees padding, since it needs rectangular batches.
- The last layer computes queries, attention and feed-forward at the wanted positions alone, since nothing
  reads them elsewhere.
- On a CPU attention is three plain matrix products: torch's fused kernel takes several times as long in bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.models.cpu import dropout_mask
from finetune.models.padding import MULTIPLE

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
        self._copies: list[_Bf16Layer] = []
        self._copied_version = 0  # version of the weights that the copies were made of

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
        size, length = input_ids.shape
        real = attention_mask.bool()
        keys = TokenPositions(_cells_to_compute(real.flatten()), (size, length))
        bias = None
        if not real.all():
            bias = torch.zeros(real.shape, device=real.device).masked_fill(~real, -torch.inf)  # (B, T)
        token_types = {} if segments is None else {"token_type_ids": segments}
        hidden = keys.flat(self.body.embeddings(input_ids=input_ids, **token_types))  # (N, H)
        *layers, last = self._layers()
        everywhere = _Positions(keys, keys)
        for layer in layers:
            inputs = layer.to_compute_dtype(hidden)
            hidden = _run_layer(layer, hidden, inputs, inputs, everywhere, bias)

        # U cells, and for each of the M positions the number of its cell among them
        wanted, inverse = torch.unique(rows * length + cols, return_inverse=True)
        row, count = wanted // length, torch.bincount(wanted // length, minlength=size)
        slot = torch.arange(len(wanted), device=row.device) - (count.cumsum(0) - count)[row]
        widest = int(count.max())
        queries = TokenPositions(row * widest + slot, (size, widest))
        residual = hidden[wanted if keys.cells is None else keys.tokens[wanted]]
        inputs = last.to_compute_dtype(residual), last.to_compute_dtype(hidden)
        return _run_layer(last, residual, *inputs, _Positions(queries, keys), bias)[inverse]

    def _layers(self) -> list[Any]:
        """Return the layers, or up-to-date copies of them in bf16."""
        if not self.bf16:
            return [_Layer(layer) for layer in self.body.encoder.layer]
        weights = self.body.encoder.parameters()
        version = hash(tuple((weight.data_ptr(), weight._version) for weight in weights))
        if version != self._copied_version:  # the first time, and whenever the model was trained in between
            self._copies = [_Bf16Layer(layer) for layer in self.body.encoder.layer]
            self._copied_version = version
        return self._copies


def _cells_to_compute(real: Tensor) -> Tensor:
    """Return the cells (N,) of tokens, and of some padding that makes N a multiple of MULTIPLE."""
    missing = -int(real.sum()) % MULTIPLE
    padding = (~real).nonzero()[:missing, 0]
    return real.index_fill(0, padding, True).nonzero()[:, 0]


class _Positions(NamedTuple):
    """Positions of the queries, and of the keys and values."""

    queries: TokenPositions
    keys: TokenPositions


def _run_layer(layer: Any, *inputs: Any) -> Tensor:
    """Call `_forward_layer`, through gradient checkpointing where it is on."""
    module = getattr(layer, "layer", None)
    if module is not None and getattr(module, "gradient_checkpointing", False) and module.training:
        return module._gradient_checkpointing_func(_forward_layer, layer, *inputs)
    return _forward_layer(layer, *inputs)


def _forward_layer(
    layer: Any,
    residual: Tensor,
    query_inputs: Tensor,
    key_inputs: Tensor,
    positions: _Positions,
    bias: Tensor | None,
) -> Tensor:
    """Run a layer for U tokens, which attend to N.

    Args:
        layer: a `_Layer` or a `_Bf16Layer`.
        residual: (U, H) hidden states of the tokens.
        query_inputs: the same in the dtype of products.
        key_inputs: (N, H) hidden states attended to, in the dtype of products.
        positions: positions of the U and of the N tokens.
        bias: see `attention`.
    """
    keys, values = layer.keys_and_values(key_inputs)
    context = attention(
        layer.attention,
        positions.queries.rectangle(layer.queries(query_inputs)),
        positions.keys.rectangle(keys),
        positions.keys.rectangle(values),
        bias,
    )
    return layer.rest(positions.queries.flat(context), residual)


class _Layer:
    """A layer of transformers that calls its own modules, so that adapters and hooks on them work."""

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


class _Bf16Layer:
    """A layer with its weights in bf16, for inference: converted once, and not at every pass."""

    def __init__(self, layer: Any):
        self.attention = attention = layer.attention.self
        self._queries = _PackedLinear(attention.query)
        self._keys_and_values = _PackedLinear(attention.key, attention.value)
        self._out = _PackedLinear(layer.attention.output.dense)
        self._up, self._down = _PackedLinear(layer.intermediate.dense), _PackedLinear(layer.output.dense)
        self._activation = layer.intermediate.intermediate_act_fn
        self._norms = layer.attention.output.LayerNorm, layer.output.LayerNorm

    def to_compute_dtype(self, hidden: Tensor) -> Tensor:
        """Convert to bf16."""
        return hidden.bfloat16()

    def queries(self, hidden: Tensor) -> Tensor:
        """Project hidden states to queries."""
        return self._queries(hidden)

    def keys_and_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Project hidden states to keys and values."""
        keys, values = self._keys_and_values(hidden).chunk(2, dim=-1)
        return keys, values

    def rest(self, context: Tensor, residual: Tensor) -> Tensor:
        """Compute all that follows attention."""
        residual = self._norms[0](self._out(context) + residual)
        wide = self._activation(self._up(residual.bfloat16()))
        return self._norms[1](self._down(wide) + residual)


class _PackedLinear:
    """Linear layers in bf16, one below the other, with weights laid out once as oneDNN reads them.

    This saves a tenth of a long product and a third of a short one.
    """

    def __init__(self, *modules: nn.Linear):
        weights = torch.cat([module.weight.detach() for module in modules]).bfloat16()
        self._bias = torch.cat([module.bias.detach() for module in modules]).bfloat16()
        self._product: Callable[[Tensor, Tensor, Tensor], Tensor] = functional.linear
        if torch.backends.mkldnn.is_available():
            weights = torch.ops.mkldnn._reorder_linear_weight(weights, None)
            self._product = _packed_product
        self._weights = weights

    def __call__(self, inputs: Tensor) -> Tensor:
        return self._product(inputs, self._weights, self._bias)


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
