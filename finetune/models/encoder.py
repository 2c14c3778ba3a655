"""The forward pass of BERT's family, from token ids to hidden states where they are wanted, and nowhere else.

The same numbers as transformers' own pass, from the same modules, with less work:

- Padding is read by nothing but attention, which needs rectangles.
- The last layer asks at the wanted positions alone: elsewhere nobody reads its queries, its attention and its
  feed-forward.
- On a CPU attention is three plain matrix products: torch's fused kernel takes several times as long in bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.models.cpu import dropout_mask
from finetune.models.padding import MULTIPLE

FAMILIES = ("bert", "roberta", "xlm-roberta", "ernie")  # whose layers are BERT's


def readable(body: nn.Module | None) -> bool:
    """True for an encoder that is read here; decoders and other families are left to transformers."""
    layers = getattr(getattr(body, "encoder", None), "layer", None)
    return (
        layers is not None
        and body.config.model_type in FAMILIES
        and not body.config.is_decoder
        and not getattr(body.config, "chunk_size_feed_forward", 0)
    )


class TokenPositions:
    """Where N tokens stand in B rows of length T, at most one in a place.

    Args:
        places: (N,) row · T + column of each, ascending.
        shape: (B, T).
    """

    def __init__(self, places: Tensor, shape: tuple[int, int]):
        self.shape = shape
        self.places = None  # every place is taken: token and place have the same number
        if len(places) < shape[0] * shape[1]:
            self.places = places
            # of each place its token; of an empty one any, since nobody looks
            self.tokens = torch.zeros(shape[0] * shape[1], dtype=torch.long, device=places.device)
            self.tokens[places] = torch.arange(len(places), device=places.device)

    def rectangle(self, tokens: Tensor) -> Tensor:
        """(N, H) -> (B, T, H). What stands in an empty place must not be looked at."""
        if self.places is not None:
            tokens = _Spread.apply(tokens, self.tokens, self.places)
        return tokens.view(*self.shape, -1)

    def flat(self, rectangle: Tensor) -> Tensor:
        """(B, T, H) -> (N, H)."""
        cells = rectangle.reshape(-1, rectangle.shape[-1])
        return cells if self.places is None else _Gather.apply(cells, self.places)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, numbers: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return tokens.index_select(0, numbers)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Gather(torch.autograd.Function):
    """Indexing whose places are known to differ: torch would add up their gradients one by one."""

    @staticmethod
    def forward(ctx, cells: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(cells)
        return cells.index_select(0, places)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        cells = gradient.new_zeros(ctx.size, gradient.shape[1])
        return cells.index_copy_(0, ctx.saved_tensors[0], gradient), None


class Encoder:
    """Reads rows with the layers of a model.

    Args:
        body: an encoder of transformers that is `readable`.
        light: with copies of its weights in bf16, for a model that is not taught any more. Embeddings, sums
            and norms keep the dtype of the model.
    """

    def __init__(self, body: nn.Module, light: bool = False):
        self.body, self.light = body, light
        self._copies: list[_Bf16Layer] = []
        self._copied = 0  # what they were made of

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, cols: Tensor, segments=None
    ) -> Tensor:
        """Hidden states (M, H) of the last layer at M positions; arguments as of
        `logits.BlankLogits.forward`, and segments as of `logits.RowLogits.forward`.
        """
        size, length = input_ids.shape
        real = attention_mask.bool()
        here = TokenPositions(_kept(real.flatten()), (size, length))
        bias = None
        if not real.all():
            bias = torch.zeros(real.shape, device=real.device).masked_fill(~real, -torch.inf)  # (B, T)
        kinds = {} if segments is None else {"token_type_ids": segments}
        hidden = here.flat(self.body.embeddings(input_ids=input_ids, **kinds))  # (N, H)
        *layers, last = self._layers()
        for layer in layers:
            lower = layer.to_compute_dtype(hidden)
            hidden = _through(layer, hidden, lower, here, lower, here, bias)

        wanted, back = torch.unique(
            rows * length + cols, return_inverse=True
        )  # U places; of each target which
        row, count = wanted // length, torch.bincount(wanted // length, minlength=size)
        slot = torch.arange(len(wanted), device=row.device) - (count.cumsum(0) - count)[row]
        widest = int(count.max())
        there = TokenPositions(row * widest + slot, (size, widest))
        asking = hidden[wanted if here.places is None else here.tokens[wanted]]
        return _through(
            last, asking, last.to_compute_dtype(asking), there, last.to_compute_dtype(hidden), here, bias
        )[back]

    def _layers(self) -> list:
        if not self.light:
            return [_Layer(layer) for layer in self.body.encoder.layer]
        weights = self.body.encoder.parameters()
        seen = hash(tuple((weight.data_ptr(), weight._version) for weight in weights))
        if seen != self._copied:  # at first, and when somebody has taught the model in between
            self._copies = [_Bf16Layer(layer) for layer in self.body.encoder.layer]
            self._copied = seen
        return self._copies


def _kept(real: Tensor) -> Tensor:
    """The places of tokens, (N,), and of some padding that makes N a multiple of MULTIPLE."""
    missing = -int(real.sum()) % MULTIPLE
    padding = (~real).nonzero()[:missing, 0]
    return real.index_fill(0, padding, True).nonzero()[:, 0]


def _through(layer, *inputs) -> Tensor:
    """`_pass`, or what gradient checkpointing makes of it."""
    module = getattr(layer, "layer", None)
    if getattr(module, "gradient_checkpointing", False) and module.training:
        return module._gradient_checkpointing_func(_pass, layer, *inputs)
    return _pass(layer, *inputs)


def _pass(
    layer, asking: Tensor, lower: Tensor, there: TokenPositions, read: Tensor, here: TokenPositions, bias
) -> Tensor:
    """A layer for the tokens `asking` (U, H), which look at all that are read (N, H); both also as `lower`
    makes them.
    """
    keys, values = layer.keys_and_values(read)
    seen = attention(
        layer.attention,
        there.rectangle(layer.queries(lower)),
        here.rectangle(keys),
        here.rectangle(values),
        bias,
    )
    return layer.rest(there.flat(seen), asking)


class _Layer:
    """A layer of transformers, by its own modules: adapters and hooks on them do their work."""

    def __init__(self, layer: nn.Module):
        self.layer, self.attention = layer, layer.attention.self

    def to_compute_dtype(self, hidden: Tensor) -> Tensor:
        """As products are computed; under autocast once, and not for queries, keys and values each."""
        kind = hidden.device.type
        return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden

    def queries(self, asking: Tensor) -> Tensor:
        return self.attention.query(asking)

    def keys_and_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention.key(hidden), self.attention.value(hidden)

    def rest(self, seen: Tensor, asking: Tensor) -> Tensor:
        """All after attention."""
        asking = self.layer.attention.output(seen, asking)
        return self.layer.output(self.layer.intermediate(asking), asking)


class _Bf16Layer:
    """A layer with its weights in bf16, for inference: converted once, and not at every pass."""

    def __init__(self, layer: nn.Module):
        self.attention = attention = layer.attention.self
        self._queries = _PackedLinear(attention.query)
        self._both = _PackedLinear(attention.key, attention.value)
        self._out, self._up = (
            _PackedLinear(layer.attention.output.dense),
            _PackedLinear(layer.intermediate.dense),
        )
        self._down, self._activation = (
            _PackedLinear(layer.output.dense),
            layer.intermediate.intermediate_act_fn,
        )
        self._norms = layer.attention.output.LayerNorm, layer.output.LayerNorm

    def to_compute_dtype(self, hidden: Tensor) -> Tensor:
        return hidden.bfloat16()

    def queries(self, asking: Tensor) -> Tensor:
        return self._queries(asking)

    def keys_and_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self._both(hidden).chunk(2, dim=-1)

    def rest(self, seen: Tensor, asking: Tensor) -> Tensor:
        asking = self._norms[0](self._out(seen) + asking)
        wide = self._activation(self._up(asking.bfloat16()))
        return self._norms[1](self._down(wide) + asking)


class _PackedLinear:
    """Linear layers in bf16, one below the other, with weights laid out once as oneDNN reads them: a tenth
    off a long product, a third off a short one.
    """

    def __init__(self, *modules: nn.Linear):
        weights = torch.cat([module.weight.detach() for module in modules]).bfloat16()
        self._bias = torch.cat([module.bias.detach() for module in modules]).bfloat16()
        self._product = F.linear
        if torch.backends.mkldnn.is_available():
            weights = torch.ops.mkldnn._reorder_linear_weight(weights, None)
            self._product = _laid_out
        self._weights = weights

    def __call__(self, inputs: Tensor) -> Tensor:
        return self._product(inputs, self._weights, self._bias)


def _laid_out(inputs: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    # as torch.compile calls it for a model that is not trained
    return torch.ops.mkldnn._linear_pointwise(inputs, weights, bias, "none", [], "")


def attention(
    attention: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
    """Multi-head attention. queries (B, Q, H), keys and values (B, T, H) -> (B, Q, H).

    Args:
        attention: of transformers, for its heads, its scale and its dropout.
        bias: (B, T), added to scores: -inf where nobody may look; None where all may.
    """
    heads, p = attention.num_attention_heads, attention.dropout.p if attention.training else 0.0
    size, asked, width = queries.shape
    parts = [part.view(size, -1, heads, width // heads).transpose(1, 2) for part in (queries, keys, values)]
    if bias is not None:
        bias = bias.to(queries.dtype)[:, None, None, :]
    if queries.device.type != "cpu":
        seen = F.scaled_dot_product_attention(
            *parts, attn_mask=bias, dropout_p=p, scale=attention.scaling
        )  # (B, heads, Q, h)
        return seen.transpose(1, 2).reshape(size, asked, width)
    with torch.autocast("cpu", enabled=False):
        queries, keys, values = (part.reshape(size * heads, -1, width // heads) for part in parts)
        start, use = queries.new_zeros(1), 0  # of the sums: a bias costs nothing there
        if bias is not None:
            start, use = bias.expand(-1, heads, -1, -1).reshape(size * heads, 1, -1), 1
        scores = torch.baddbmm(start, queries, keys.transpose(1, 2), beta=use, alpha=attention.scaling)
        weights = scores.softmax(-1)  # (B · heads, Q, T)
        if p:
            weights = weights * dropout_mask(weights, p)
        seen = torch.bmm(weights, values)
    return seen.view(size, heads, asked, -1).transpose(1, 2).reshape(size, asked, width)
