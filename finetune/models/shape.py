"""Shape of a model from its configuration alone: the sizes of its parts, counted in a model without weights.

The model is built on the meta device, where a parameter has a shape and takes no memory, so that every count
is that of `num_parameters()` of the model that transformers would load.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune.models.kinds import CLASSES, is_decoder, kind_of
from finetune.models.layer_groups import BODY, EMBEDDINGS, HEAD, SHARED, LayerGroups, format_ranges
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ENCODER, DECODER, ENCODER_DECODER = "encoder", "decoder", "encoder-decoder"
WORD, POSITION, SEGMENT = "word", "position", "segment"  # what a lookup table is looked up by
LEARNED, ROTARY, RELATIVE, ALIBI, OTHER = "learned", "rotary", "relative", "alibi", ""
AFTER, BEFORE = "after", "before"  # where a layer normalises: its sums (BERT), or its inputs (GPT-2)
NORMALISES_AFTER = (
    "bert", "roberta", "xlm-roberta", "camembert", "albert", "electra", "ernie", "distilbert", "mpnet",
    "deberta", "deberta-v2", "roformer", "layoutlm", "bart", "openai-gpt", "xlm", "flaubert",
)  # fmt: skip
NORMALISES_BEFORE = (
    "modernbert", "gpt2", "gpt_neo", "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "opt", "bloom",
    "smollm3", "granite", "t5", "mt5", "umt5", "mbart", "pegasus", "xlm-roberta-xl",
)  # fmt: skip
T5_LIKE = ("t5", "mt5", "umt5")  # their norm is an RMSNorm by another name, and their room has no end
# Exceptions that building a model raises over numbers that make no sense.
SPOILT = (ValueError, ArithmeticError, RuntimeError, AssertionError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Table:
    """Lookup table of embeddings: `rows` vectors of `width` numbers.

    Attributes:
        role: WORD, POSITION, SEGMENT or "" for something else.
    """

    role: str
    rows: int
    width: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model.

    Attributes:
        name: of the model, or of the configuration.
        model_type: family name of transformers: `bert`.
        class_name: class of transformers that was counted: `BertForMaskedLM`.
        family: ENCODER, DECODER or ENCODER_DECODER.
        hidden: width H of a hidden state.
        layers: number of layers; of an encoder-decoder, of its encoder.
        decoder_layers: of the decoder of an encoder-decoder; else 0.
        heads: attention heads; 0 for a family without attention.
        kv_heads: heads of keys and values, fewer than `heads` with grouped queries.
        head_width: numbers of a head.
        feed_forward: width inside the feed-forward network; 0 if unknown.
        activation: its function.
        gated: the feed-forward network multiplies by a gate (GLU).
        experts: feed-forward networks of a layer, a few of which read each token; 0 for a plain one.
        positions: LEARNED, ROTARY, RELATIVE, ALIBI or OTHER.
        room: tokens that fit, as the configuration says; 0 for no limit.
        tables: lookup tables, in the order in which the model holds them.
        norm: class of normalisation: `LayerNorm` or `RMSNorm`.
        norm_place: AFTER, BEFORE or "" for another place.
        vocabulary: tokens that the output layer scores, or rows of the word table.
        sizes: parameters of each part, bottom to top; the parts of LayerGroups, of an encoder-decoder
            `embeddings`, `encoder`, `decoder`, `head`.
        parameters: their sum, `num_parameters()` of the model.
        tied: the output weights are those of the embeddings.
        shared: all layers use one set of weights.
    """

    name: str
    model_type: str
    class_name: str
    family: str
    hidden: int
    layers: int
    decoder_layers: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    activation: str
    gated: bool
    experts: int
    positions: str
    room: int
    tables: tuple[Table, ...]
    norm: str
    norm_place: str
    vocabulary: int
    sizes: dict[str, int]
    parameters: int
    tied: bool
    shared: bool

    @property
    def layer_sizes(self) -> list[int]:
        """Parameters of each layer of a stack, bottom to top; one entry where all layers share them."""
        return [size for part, size in self.sizes.items() if part not in (EMBEDDINGS, HEAD)]

    @property
    def ranges(self) -> dict[str, int]:
        """Parameters by part, with the layers together: `embeddings`, `0–11`, `head`."""
        inner = [part for part in self.sizes if part.isdigit()]
        joined = {part: size for part, size in self.sizes.items() if not part.isdigit()}
        if not inner:
            return joined
        layers = {format_ranges(inner): sum(self.sizes[part] for part in inner)}
        return {EMBEDDINGS: joined[EMBEDDINGS], **layers, HEAD: joined[HEAD]}


def family_of(config: PreTrainedConfig) -> str:
    """Return ENCODER, DECODER or ENCODER_DECODER."""
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    return DECODER if kind_of(config) == "causal" or is_decoder(config) else ENCODER


def build_empty(config: PreTrainedConfig, kind: str) -> nn.Module:
    """Build a model of a kind without weights, on the meta device.

    Args:
        config: left as it is.
        kind: one of kinds.CLASSES; "" for the base model alone.

    Raises:
        UserError: no model can be built from these numbers.
    """
    import transformers

    auto_class: Any = getattr(transformers, CLASSES.get(kind, "AutoModel"))
    try:
        with torch.device("meta"):
            return auto_class.from_config(copy.deepcopy(config))
    except SPOILT as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"照 config.json 建不出模型：{reason}") from error


def shape_of(config: PreTrainedConfig, name: str, kind: str = "") -> ModelShape:
    """Return the shape of the model that a configuration describes.

    Args:
        config: of transformers.
        name: what to call it.
        kind: which head to count; "" for the one that it was saved with.

    Raises:
        UserError: no model can be built from these numbers.
    """
    model = build_empty(config, kind or kind_of(config))
    text: Any = config.get_text_config()
    tables = _tables(model, config)
    sizes, layers = part_sizes(model), LayerGroups(model)
    heads = _number(text, "num_attention_heads", "n_head", "encoder_attention_heads")
    hidden = _number(text, "hidden_size", "d_model", "n_embd", "dim")
    output = model.get_output_embeddings()  # type: ignore[operator]  # torch types attributes as modules
    words = next((table.rows for table in tables if table.role == WORD), 0)
    family = family_of(config)
    return ModelShape(
        name=name, model_type=str(config.model_type), class_name=type(model).__name__, family=family,
        hidden=hidden,
        layers=_number(text, "num_hidden_layers", "n_layer", "encoder_layers", "num_layers"),
        decoder_layers=_decoder_layers(config) if family == ENCODER_DECODER else 0,
        heads=heads, kv_heads=_number(text, "num_key_value_heads") or heads,
        head_width=_number(text, "head_dim", "d_kv") or (hidden // heads if heads else 0),
        feed_forward=_feed_forward(text, hidden), activation=_activation(text), gated=_is_gated(model),
        experts=_number(text, "num_local_experts", "num_experts", "n_routed_experts"),
        positions=_positions(text, model, tables), room=_room(text), tables=tables,
        norm="RMSNorm" if _has(model, "rmsnorm") or config.model_type in T5_LIKE else "LayerNorm",
        norm_place=_norm_place(config),
        vocabulary=output.weight.shape[0] if output is not None else words,
        sizes=sizes, parameters=sum(sizes.values()), tied=_is_tied(model), shared=SHARED in layers.names,
    )  # fmt: skip


def part_sizes(model: nn.Module) -> dict[str, int]:
    """Return the parameters of each part, bottom to top, each counted once.

    The parts are those of LayerGroups; an encoder-decoder, which has but `body` there, is divided into
    `embeddings`, `encoder`, `decoder` and `head`.
    """
    groups = LayerGroups(model)
    if BODY not in groups.names:
        return groups.sizes()
    tables = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    sizes = dict.fromkeys((EMBEDDINGS, ENCODER, DECODER, HEAD), 0)
    for name, parameter in model.named_parameters():
        sizes[_side(name, groups.group_of(name), tables)] += parameter.numel()
    return {part: size for part, size in sizes.items() if size or part == HEAD}


def _side(name: str, group: str, tables: set[str]) -> str:
    """Return the part of a parameter of a model whose layers are no single stack."""
    steps = name.split(".")
    if group == HEAD:
        return HEAD
    inside = any(step.isdigit() for step in steps)  # a relative bias belongs to its layer
    if not inside and name.rpartition(".")[0] in tables:
        return EMBEDDINGS
    return DECODER if DECODER in steps else ENCODER


def _number(config: Any, *names: str) -> int:
    """Return the first of some entries that is a positive number; 0 if none is."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if type(value) is int and value > 0), 0)


def _decoder_layers(config: Any) -> int:
    return _number(config, "decoder_layers", "num_decoder_layers", "num_hidden_layers")


def _feed_forward(config: Any, hidden: int) -> int:
    """Return the width inside the feed-forward network; GPT-2 writes None for four times the hidden size."""
    if hasattr(config, "n_inner"):
        return _number(config, "n_inner") or 4 * hidden
    names = (
        "intermediate_size", "ffn_dim", "encoder_ffn_dim", "d_ff", "ffn_hidden_size", "hidden_dim",
        "moe_intermediate_size",
    )  # fmt: skip
    return _number(config, *names)


def _activation(config: Any) -> str:
    names = ("dense_act_fn", "hidden_act", "hidden_activation", "activation_function", "activation", "afn")
    found = next((v for v in (getattr(config, name, None) for name in names) if isinstance(v, str)), "")
    titles = {"gelu": "GELU", "gelu_new": "GELU", "gelu_pytorch_tanh": "GELU", "relu": "ReLU", "silu": "SiLU"}
    return titles.get(found, found[:16])


def _is_gated(model: nn.Module) -> bool:
    """Return whether a feed-forward network has a gate: a layer of that name, or one twice as wide."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return bool(names & {"gate_proj", "wi_1", "gate_up_proj", "Wi", "w3"})


def _has(model: nn.Module, part_of_class: str) -> bool:
    return any(part_of_class in type(module).__name__.lower() for module in model.modules())


def _tables(model: nn.Module, config: Any) -> tuple[Table, ...]:
    """Return the lookup tables that are added up before the first layer, each once."""
    found: dict[str, Table] = {}
    words = model.get_input_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or any(step.isdigit() for step in name.split(".")):
            continue
        rows, width = module.weight.shape
        last = name.rpartition(".")[2]
        role = (
            WORD if module is words or "embed_tokens" in last or module.weight is words.weight
            else SEGMENT if "token_type" in last
            else POSITION if "position" in last or last in ("wpe", "positions_embed")
            else ""
        )  # fmt: skip
        if role:
            found.setdefault(role, Table(role, rows, width))
    return tuple(found[role] for role in (WORD, POSITION, SEGMENT) if role in found)


def _positions(config: Any, model: nn.Module, tables: Sequence[Table]) -> str:
    if any(table.role == POSITION for table in tables):
        return LEARNED
    names = [name for name, _ in model.named_modules()]
    if any(name.endswith(("relative_attention_bias", "rel_embeddings")) for name in names):
        return RELATIVE
    if getattr(config, "rope_parameters", None) or getattr(config, "rotary_dim", None):
        return ROTARY
    is_alibi = config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False)
    return ALIBI if is_alibi else OTHER


def _room(config: Any) -> int:
    room = _number(config, "max_position_embeddings", "n_positions")
    return 0 if config.model_type in T5_LIKE else room


def _norm_place(config: Any) -> str:
    if config.model_type == "opt" and not getattr(config, "do_layer_norm_before", True):
        return AFTER
    places = {**dict.fromkeys(NORMALISES_AFTER, AFTER), **dict.fromkeys(NORMALISES_BEFORE, BEFORE)}
    return places.get(config.model_type, "")


def _is_tied(model: Any) -> bool:
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


# ---- the same body under several heads ---------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """Output layer that a task puts on a body.

    Attributes:
        kind: of model that it makes, one of kinds.CLASSES.
        parameters: of the head alone; weights shared with the embeddings count there.
        outputs: numbers that it gives for a token or a text: classes, tags, vocabulary.
        whole: parameters of the model with this head.
    """

    kind: str
    parameters: int
    outputs: int
    whole: int


KINDS_OF_FAMILY = {
    ENCODER: ("masked", "choice", "classifier", "tagger", "extractor"),
    DECODER: ("causal", "classifier", "tagger"),
    ENCODER_DECODER: ("seq2seq", "masked", "classifier", "extractor"),
}
CLASSES_SHOWN, TAGS_SHOWN = 2, 7  # of a new head: two classes; O, and B and I of three types of entities


def heads_of(config: PreTrainedConfig) -> tuple[int, list[Head]]:
    """Return the parameters of a body, and the heads that the tasks of this project put on it.

    A kind that transformers cannot build for this family, or builds on another body, is left out.

    Args:
        config: a classifier's or tagger's own labels are those of its head.

    Raises:
        UserError: no model can be built from these numbers.
    """
    saved_as, heads, body = kind_of(config), [], 0
    for kind in dict.fromkeys((saved_as, *KINDS_OF_FAMILY[family_of(config)])):
        if not kind or not has_class(config, kind):
            continue
        model = build_empty(_with_outputs(config, kind, saved_as), kind)
        groups = LayerGroups(model).sizes()
        whole = sum(groups.values())
        if body and whole - groups[HEAD] != body:
            continue
        body = whole - groups[HEAD]
        heads.append(Head(kind, groups[HEAD], _outputs(model, kind), whole))
    order = {kind: place for place, kind in enumerate(KINDS_OF_FAMILY[family_of(config)])}
    return body, sorted(heads, key=lambda head: order.get(head.kind, len(order)))


def has_class(config: PreTrainedConfig, kind: str) -> bool:
    """Return whether transformers has a class of a kind for the family of a configuration."""
    import transformers

    return type(config) in getattr(transformers, CLASSES[kind])._model_mapping


def with_outputs(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """Return a copy of a configuration whose head has `count` classes or tags."""
    changed = copy.deepcopy(config)
    changed.num_labels = count
    return changed


def _with_outputs(config: PreTrainedConfig, kind: str, saved_as: str) -> PreTrainedConfig:
    if kind == saved_as or kind not in ("classifier", "tagger", "extractor"):
        return config
    return with_outputs(config, TAGS_SHOWN if kind == "tagger" else CLASSES_SHOWN)


def _outputs(model: Any, kind: str) -> int:
    if kind in ("classifier", "tagger"):
        return int(model.config.num_labels)
    if kind == "extractor":
        return 2  # start and end
    output = model.get_output_embeddings()
    return 1 if output is None else int(output.weight.shape[0])
