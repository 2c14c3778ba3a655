"""Sizes of a model from its configuration, beside the models of transformers and their own arithmetic."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from families import EXPERTS, SIZES
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig

from finetune.models import shape as shapes
from finetune.models.kinds import CLASSES
from finetune.models.layer_choices import choice_of_run, choices, empty_model, lora_choice
from finetune.models.layer_groups import HEAD, LayerGroups
from finetune.models.lora import Lora, attach, target_modules
from finetune.models.shape import heads_of, shape_of
from finetune.runtime.errors import UserError

SEQ2SEQ = {"vocab_size": 96, "d_model": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
T5 = {**SEQ2SEQ, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
BART = {
    **SEQ2SEQ, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "eos_token_id": 2,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 40,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
WORLD = {  # title -> (family of transformers, its settings)
    "bert": ("bert", SIZES), "roberta": ("roberta", SIZES), "deberta": ("deberta", SIZES),
    "albert, shared layers": ("albert", {**SIZES, "embedding_size": 16}),
    "modernbert": ("modernbert", SIZES), "gpt2": ("gpt2", SIZES), "llama": ("llama", SIZES),
    "llama, grouped": ("llama", GROUPED), "qwen2, tied": ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "mixtral": ("mixtral", {**GROUPED, **EXPERTS}),
    "t5": ("t5", T5), "mt5": ("mt5", T5), "umt5, untied": ("umt5", {**T5, "tie_word_embeddings": False}),
    "bart": ("bart", BART), "mbart": ("mbart", BART),
}  # fmt: skip
PUBLISHED = {"bert": 109_514_298, "gpt2": 124_439_808, "t5": 60_506_624, "bart": 406_291_456}


def config_of(title: str, **changes):
    family, settings = WORLD[title]
    return AutoConfig.for_model(family, **settings | changes)


def whole(config, kind: str):
    """The model with its weights, as transformers builds it."""
    return getattr(transformers, CLASSES[kind]).from_config(copy.deepcopy(config))


@pytest.mark.parametrize("title", WORLD)
def test_the_parameters_are_those_of_the_model_and_its_parts_add_up(title):
    config = config_of(title)
    shape = shape_of(config, title)
    model = getattr(transformers, shape.class_name)(config)
    assert shape.parameters == model.num_parameters() == sum(shape.sizes.values())
    assert sum(shape.ranges.values()) == shape.parameters
    counted: dict[str, int] = {}  # by the names of the weights, each storage once
    seen = set()
    for name, weight in model.named_parameters():
        if weight.data_ptr() not in seen:
            seen.add(weight.data_ptr())
            layer = next((step for step in name.split(".") if step.isdigit()), "")
            side = next((s for s in ("encoder", "decoder") if s in name.split(".")), "") if layer else ""
            place = f"{side if shape.decoder_layers else ''}{layer}"
            counted[place] = counted.get(place, 0) + weight.numel()
    if shape.decoder_layers:
        for side in ("encoder", "decoder"):
            inner = sum(size for place, size in counted.items() if place.startswith(side))
            assert inner <= shape.sizes[side] <= inner + 6 * shape.hidden  # and its norms beside the layers
    elif not shape.shared and shape.model_type != "mixtral":
        assert [shape.sizes[str(n)] for n in range(shape.layers)] == [
            counted[str(n)] for n in range(shape.layers)
        ]


@pytest.mark.parametrize("family", PUBLISHED)
def test_default_configurations_have_the_published_sizes(family):
    assert shape_of(AutoConfig.for_model(family), family).parameters == PUBLISHED[family]


@pytest.mark.parametrize(
    "title, facts",
    [
        ("bert", {"positions": "learned", "norm": "LayerNorm", "norm_place": "after", "gated": False}),
        ("qwen2, tied", {"tied": True, "gated": True, "positions": "rotary"}),
        ("modernbert", {"positions": "rotary", "norm_place": "before", "gated": True, "room": 128}),
        ("gpt2", {"positions": "learned", "norm_place": "before", "feed_forward": 128, "family": "decoder"}),
        ("llama, grouped", {"positions": "rotary", "norm": "RMSNorm", "kv_heads": 2, "tied": False}),
        ("albert, shared layers", {"shared": True, "layers": 2, "hidden": 32}),
        ("mixtral", {"experts": 4, "norm": "RMSNorm"}),
        ("t5", {"positions": "relative", "layers": 2, "decoder_layers": 3, "room": 0, "norm": "RMSNorm"}),
        ("bart", {"positions": "learned", "layers": 2, "decoder_layers": 3, "room": 40}),
        ("mbart", {"norm_place": "before"}),
    ],
)  # fmt: skip
def test_what_is_drawn_of_a_family_is_what_its_model_is(title, facts):
    changes = {"intermediate_size": 64} if title != "gpt2" else {}
    shape = shape_of(config_of(title, **changes), title)
    assert {name: getattr(shape, name) for name in facts} == facts
    tables = {table.role: (table.rows, table.width) for table in shape.tables}
    assert tables["word"] == (96, 16 if shape.shared else 32)


@pytest.mark.parametrize("title", WORLD)
def test_a_body_and_each_head_make_the_model_of_that_task(title):
    config = config_of(title)
    body, heads = heads_of(config)
    assert heads and body > 0
    for head in heads:
        labels = {"tagger": shapes.TAGS_SHOWN, "classifier": shapes.CLASSES_SHOWN}.get(head.kind)
        changed = config if labels is None else shapes.with_outputs(config, labels)
        assert head.whole == whole(changed, head.kind).num_parameters() == body + head.parameters
    assert config.num_labels == config_of(title).num_labels  # left as it was


def test_untied_output_weights_are_the_head_of_a_t5_like_model():
    config = AutoConfig.for_model("switch_transformers", **T5, num_experts=2, tie_word_embeddings=False)
    sizes = LayerGroups(whole(config, "seq2seq")).sizes()
    assert sizes[HEAD] == shape_of(config, "x").sizes[HEAD] == 96 * 32


def test_numbers_that_make_no_model_are_a_message():
    with pytest.raises(UserError, match="建不出模型"):
        shape_of(config_of("bert", hidden_size=31), "x")


# ---- what is trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["bert", "albert, shared layers", "modernbert", "gpt2", "llama, grouped"])
def test_lora_trains_as_many_parameters_as_peft_does(title):
    config = shapes.with_outputs(config_of(title), 2)
    model = whole(config, "classifier")
    layers = LayerGroups(model)
    new = [name for name, _ in model.named_parameters() if layers.group_of(name) == HEAD]
    model.new_weights = frozenset(new)
    drawn = lora_choice(empty_model(config_of(title), "classifier"), 8, "")
    view = attach(model, Lora(8, 16, 0.0), "base")
    assert drawn.trained_parameters == sum(p.numel() for p in view.parameters() if p.requires_grad)


def test_t5_takes_adapters_everywhere_but_in_its_output_layer():
    config = config_of("umt5, untied")
    drawn = lora_choice(empty_model(config, "seq2seq"), 4, "")
    model = whole(config, "seq2seq")
    view = get_peft_model(model, LoraConfig(r=4, target_modules=target_modules(model, "auto")))
    trained = {name for name, p in view.named_parameters() if p.requires_grad}
    assert not any("lm_head" in name for name in trained)
    assert drawn.trained_parameters == sum(p.numel() for p in view.parameters() if p.requires_grad) > 0


def test_all_some_and_none_leave_what_their_flags_freeze():
    config = config_of("bert", num_hidden_layers=6)
    model = whole(shapes.with_outputs(config, 2), "classifier")
    found = {choice.name: choice for choice in choices(empty_model(config, "classifier"))}
    total = model.num_parameters()
    head = sum(p.numel() for name, p in model.named_parameters() if "classifier" in name or "pooler" in name)
    top = sum(p.numel() for name, p in model.named_parameters() if "layer.5." in name)
    assert found["some"].flags == ("--freeze", "embeddings,0-4")
    trained = {"all": total, "some": top + head, "none": head}
    for name, count in trained.items():
        assert found[name].trained_parameters == count
        assert found[name].frozen_parameters == total - count
    assert found["lora"].frozen_parameters == total - head


@pytest.mark.parametrize("title", ["bart", "t5"])
def test_an_encoder_decoder_is_divided_between_the_two(title):
    found = {choice.name: choice for choice in choices(empty_model(config_of(title), "seq2seq"))}
    assert {"all", "some", "lora"} <= {*found}
    assert found["some"].flags == ("--freeze", "embeddings,encoder")
    assert not found["some"].trained["encoder"] and found["some"].trained["decoder"] > 0


@pytest.mark.parametrize(
    "flags, trained, steps",
    [
        ({"unfreeze_every": 10}, "all", {"1": 10, "0": 20, "embeddings": 30}),
        ({"train_only": "1,head"}, "1 head", {}),
        ({"freeze": "all_but_head", "lora_rank": 0}, "head", {}),
        ({}, "all", {}),
    ],
)
def test_a_run_card_says_what_a_run_trained(flags, trained, steps):
    run = choice_of_run(empty_model(config_of("bert"), "classifier"), flags)
    parts = {part for part, count in run.trained.items() if count}
    assert parts == (set(run.sizes) if trained == "all" else set(trained.split()))
    assert run.steps == steps


@pytest.mark.parametrize(
    "flags", [{"freeze": "77"}, {"freeze": 3}, {"lora_rank": "x"}, {"unfreeze_every": None, "train_only": []}]
)
def test_flags_of_a_card_that_make_no_sense_are_not_drawn(flags):
    run = choice_of_run(empty_model(config_of("bert"), "classifier"), flags)
    assert run is None or run.trained_parameters == sum(run.sizes.values())


def test_nothing_is_allocated():
    model = shapes.build_empty(AutoConfig.for_model("llama"), "causal")
    assert {parameter.device for parameter in model.parameters()} == {torch.device("meta")}
