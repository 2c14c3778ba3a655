"""Parts of a model: which parameters they hold, and which learn, when, how fast."""

import random
from unicodedata import east_asian_width

import pytest
import torch
from torch import nn

from finetune.models import layer_schedule
from finetune.models.layer_groups import LayerGroups, parse_layers
from finetune.models.layer_schedule import (
    LayerSchedule,
    build_parameter_groups,
    build_schedule,
    by_group,
    set_trainable,
    table,
)
from finetune.runtime.errors import UserError

BERT = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip
GPT = {"vocab_size": 50, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}
EMBED, HEAD = "embeddings", "head"
MASKED, CLASSIFY, CHOICE, CAUSAL = "MaskedLM", "SequenceClassification", "MultipleChoice", "CausalLM"
# By hand: family, configuration, heads, what begins the names of embeddings, of layers, of the head.
FAMILIES = [
    ("bert", BERT, (MASKED, CLASSIFY, CHOICE), "bert.embeddings.", "bert.encoder.layer.",
     "bert.pooler. cls. classifier."),
    ("roberta", BERT, (MASKED, CLASSIFY, CHOICE), "roberta.embeddings.", "roberta.encoder.layer.",
     "roberta.pooler. lm_head. classifier."),
    ("albert", {**BERT, "embedding_size": 8}, (MASKED, CLASSIFY, CHOICE),
     "albert.embeddings. albert.encoder.embedding_hidden_mapping_in.", "albert.encoder.albert_layer_groups.",
     "albert.pooler. predictions. classifier."),
    ("electra", {**BERT, "embedding_size": 8}, (CLASSIFY, CHOICE),
     "electra.embeddings. electra.embeddings_project.", "electra.encoder.layer.",
     "classifier. sequence_summary."),
    ("modernbert", {**BERT, "pad_token_id": 0}, (MASKED, CLASSIFY, CHOICE), "model.embeddings.",
     "model.layers.", "model.final_norm. head. decoder. classifier."),
    ("distilbert", {"vocab_size": 50, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32},
     (MASKED, CLASSIFY, CHOICE), "distilbert.embeddings.", "distilbert.transformer.layer.",
     "vocab_ pre_classifier. classifier."),
    ("deberta-v2", {**BERT, "relative_attention": True, "position_buckets": 4, "conv_kernel_size": 3,
                    "norm_rel_ebd": "layer_norm", "pos_att_type": ["p2c", "c2p"]},
     (MASKED, CLASSIFY), "deberta.embeddings. deberta.encoder.rel_embeddings. deberta.encoder.LayerNorm. "
     "deberta.encoder.conv.", "deberta.encoder.layer.", "cls. pooler. classifier."),
    ("xlm", {"vocab_size": 50, "emb_dim": 16, "n_layers": 3, "n_heads": 2}, (MASKED, CLASSIFY),
     "transformer.position_embeddings. transformer.embeddings. transformer.layer_norm_emb.",
     "transformer.attentions. transformer.ffns. transformer.layer_norm1. transformer.layer_norm2.",
     "pred_layer. sequence_summary."),
    ("gpt2", GPT, (CAUSAL, CLASSIFY), "transformer.wte. transformer.wpe.", "transformer.h.",
     "transformer.ln_f. score."),
    ("qwen2", {**BERT, "num_key_value_heads": 1}, (CAUSAL, CLASSIFY), "model.embed_tokens.", "model.layers.",
     "model.norm. lm_head. score."),
    ("llama", BERT, (CAUSAL, CLASSIFY), "model.embed_tokens.", "model.layers.",
     "model.norm. lm_head. score."),
    ("bloom", {"vocab_size": 50, "hidden_size": 16, "n_layer": 3, "n_head": 2}, (CAUSAL, CLASSIFY),
     "transformer.word_embeddings. transformer.word_embeddings_layernorm.", "transformer.h.",
     "transformer.ln_f. score."),
    ("falcon", {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
     (CAUSAL, CLASSIFY), "transformer.word_embeddings.", "transformer.h.", "transformer.ln_f. score."),
    ("opt", {**BERT, "ffn_dim": 32, "word_embed_proj_dim": 8}, (CAUSAL, CLASSIFY),
     "model.decoder.embed_tokens. model.decoder.embed_positions. model.decoder.project_in.",
     "model.decoder.layers.", "model.decoder.final_layer_norm. model.decoder.project_out. score."),
    ("gemma4_text", {**BERT, "num_key_value_heads": 1, "head_dim": 8, "hidden_size_per_layer_input": 4,
                     "vocab_size_per_layer_input": 50, "num_kv_shared_layers": 0,
                     "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
     (CAUSAL,), "model.embed_tokens. model.embed_tokens_per_layer. model.per_layer_model_projection. "
     "model.per_layer_projection_norm.", "model.layers.", "model.norm. lm_head."),
]  # fmt: skip
CASES = [pytest.param(*family[:2], head, *family[3:], id=f"{family[0]}-{head}")
         for family in FAMILIES for head in family[2]]  # fmt: skip


def make(family="bert", head=MASKED, device="cpu", **changes):
    import transformers
    from transformers import AutoConfig

    transformers.logging.set_verbosity_error()
    shape = {**next(row[1] for row in FAMILIES if row[0] == family), **changes}
    torch.manual_seed(0)
    with torch.device(device):
        return getattr(transformers, f"AutoModelFor{head}").from_config(AutoConfig.for_model(family, **shape))


def with_lora(model, targets, **more):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=targets, **more)).get_base_model()


def plan_of(layers, freeze="", train_only="", every=0, decay=1.0) -> LayerSchedule:
    return build_schedule(freeze, train_only, every, decay, layers)


def problems(*arguments, call=parse_layers) -> list[str]:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return caught.value.problems


@pytest.fixture(scope="module")
def bert():
    return LayerGroups(make())


@pytest.fixture(scope="module")
def twelve():
    return LayerGroups(make(device="meta", num_hidden_layers=12))


# ---- the parts of a model ----------------------------------------------------------------------------------


def by_hand(name, family, embeddings, stack, head) -> str:
    found = [(EMBED, start) for start in embeddings.split() if name.startswith(start)]
    found += [(HEAD, start) for start in head.split() if name.startswith(start)]
    for start in stack.split():
        if name.startswith(start):
            found.append(("shared" if family == "albert" else name[len(start) :].split(".")[0], start))
    assert len(found) == 1, (name, found)
    return found[0][0]


@pytest.mark.parametrize(("family", "shape", "head", "embeddings", "stack", "top"), CASES)
def test_every_parameter_is_in_the_part_it_is_in_by_hand(family, shape, head, embeddings, stack, top):
    model = make(family, head, "meta")
    layers = LayerGroups(model)
    expected = dict.fromkeys(layers.names, 0)
    for name, parameter in model.named_parameters():
        part = by_hand(name, family, embeddings, stack, top)
        assert layers.group_of(name) == part, name
        expected[part] += parameter.numel()
    middle = ["shared"] if family == "albert" else ["0", "1", "2"]
    assert layers.names == [EMBED, *middle, HEAD] and layers.sizes() == expected
    assert [layers.depth(name) for name in layers.names] == list(range(len(layers.names)))
    assert sum(expected.values()) == sum(p.numel() for p in set(model.parameters()))
    assert all(expected.values())


@pytest.mark.parametrize("tied", [True, False])
def test_output_weights_are_of_the_head_unless_they_are_the_embeddings(tied):
    model = make("qwen2", CAUSAL, tie_word_embeddings=tied)
    layers = LayerGroups(model)
    assert layers.group_of("lm_head.weight") == (EMBED if tied else HEAD) and layers.tied == tied
    assert layers.sizes()[HEAD] == 16 + (0 if tied else 50 * 16)
    shown = "\n".join(table(layers, plan_of(layers)))
    assert ("同一組" in shown) == tied
    layer_schedule.freeze(model, layers, plan_of(layers, freeze=EMBED))
    assert model.lm_head.weight.requires_grad != tied


def test_a_model_without_one_stack_of_layers_has_a_body_and_a_head():
    import transformers

    config = transformers.FunnelConfig(
        vocab_size=50, block_sizes=[2, 1], d_model=16, n_head=2, d_head=8, d_inner=32, num_decoder_layers=1
    )
    layers = LayerGroups(transformers.FunnelForSequenceClassification(config))
    assert layers.names == ["body", HEAD]
    (problem,) = problems("0-1", "--freeze", layers)
    assert "--freeze 0-1" in problem and "body、head" in problem


ENCODER_DECODERS = {
    "t5": {"d_model": 16, "d_kv": 8, "num_layers": 2, "num_heads": 2, "d_ff": 32},
    "bart": {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "max_position_embeddings": 32,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_an_encoder_with_a_decoder_has_these_parts_and_every_parameter_lies_in_one(family):
    import transformers

    config = transformers.AutoConfig.for_model(family, vocab_size=50, **ENCODER_DECODERS[family])
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    layers = LayerGroups(model)
    assert layers.names == [EMBED, "encoder", "decoder", HEAD] and layers.tied
    assert sum(layers.sizes().values()) == model.num_parameters()
    for name, _ in model.named_parameters():
        wanted = "encoder" if ".layer" in name and "encoder." in name.split(".layer")[0] else None
        wanted = "decoder" if ".layer" in name and "decoder." in name.split(".layer")[0] else wanted
        assert wanted is None or "embedding" in name or layers.group_of(name) == wanted
    assert layers.group_of(next(name for name, _ in model.named_parameters() if "shared" in name)) == EMBED
    schedule = layer_schedule.build_schedule("encoder,embeddings", "", 0, 1.0, layers)
    layer_schedule.freeze(model, layers, schedule)
    trained = {
        name.removeprefix("model.").split(".")[0] for name, p in model.named_parameters() if p.requires_grad
    }
    assert trained == {"decoder"}
    assert parse_layers("body", "--freeze", layers) == {EMBED, "encoder", "decoder"}
    (problem,) = problems("0-1", "--freeze", layers)
    assert "embeddings、encoder、decoder、head" in problem and "body" in problem


def test_groups_of_albert_layers_are_still_shared_until_each_layer_has_its_own():
    assert LayerGroups(make("albert", num_hidden_groups=2)).names == [EMBED, "shared", HEAD]
    own = LayerGroups(make("albert", num_hidden_groups=3))
    assert own.names == [EMBED, "0", "1", "2", HEAD]
    assert own.group_of("albert.encoder.albert_layer_groups.1.albert_layers.0.ffn.weight") == "1"


def test_a_name_that_the_model_does_not_have_is_no_part(bert):
    for name in ("model.bert.embeddings.word_embeddings.weight", "nothing.weight"):
        with pytest.raises(AttributeError):
            bert.group_of(name)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("family", "head", "targets", "more"),
    [
        ("bert", CLASSIFY, ["query", "dense", "word_embeddings"], {"modules_to_save": ["classifier"]}),
        ("bert", MASKED, ["query", "value"], {}),
        ("deberta-v2", MASKED, ["query_proj", "rel_embeddings"], {}),
        ("llama", CAUSAL, ["q_proj", "down_proj", "lm_head"], {"modules_to_save": ["embed_tokens"]}),
        ("albert", MASKED, ["query", "ffn", "embedding_hidden_mapping_in"], {}),
    ],
)
def test_an_adapter_is_in_the_part_of_what_it_adapts(family, head, targets, more, before):
    row = next(row for row in FAMILIES if row[0] == family)
    model = make(family, head)
    layers = LayerGroups(model) if before else None
    model = with_lora(model, targets, **more)
    layers = layers or LayerGroups(model)
    expected, trained = dict.fromkeys(layers.names, 0), dict.fromkeys(layers.names, 0)
    for name, parameter in model.named_parameters():
        part = by_hand(name, family, *row[3:])
        assert layers.group_of(name) == part, name
        expected[part] += parameter.numel()
        trained[part] += parameter.numel() * parameter.requires_grad
    assert layers.sizes() == expected and layers.trainable() == trained
    assert any("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    can = [part for part in layers.names if trained[part]]
    schedule = plan_of(layers, every=5)
    assert [schedule.unfreeze_step(part) for part in reversed(can)] == [5 * i for i in range(len(can))]
    assert all(schedule.unfreeze_step(part) is None for part in layers.names if part not in can)


# ---- what a person asks for --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("head", [HEAD]),
        ("embeddings,0-2", [EMBED, "0", "1", "2"]),
        (" 11 ， head、Embeddings ", [EMBED, "11", HEAD]),
        ("9 - 11", ["9", "10", "11"]),
        ("９－１０", ["9", "10"]),
        ("0–1", ["0", "1"]),  # as the table writes it
        ("4-4,4,", ["4"]),
        ("all_but_head", [EMBED, *map(str, range(12))]),
    ],
)
def test_a_list_names_these_parts_and_no_others(twelve, spec, wanted):
    assert parse_layers(spec, "--freeze", twelve) == set(wanted)


def test_every_problem_of_a_list_is_reported_at_once_with_what_there_is(twelve):
    unknown, backwards, high = problems("embedings,9-3,0,8-12", "--train_only", twelve)
    assert "--train_only embedings" in unknown and "是不是 embeddings？" in unknown
    assert "--train_only 9-3" in backwards and "3-9" in backwards
    assert "--train_only 8-12" in high and "0 到 11" in high
    assert "embeddings、0–11、head" in unknown and "embeddings、0–11、head" in high
    for word in ("12", "-1", "3-", "1-2-3", "x", "shared", "body", "一", "9" * 5000):
        assert f"--freeze {word}：" in problems(word, "--freeze", twelve)[0]
    for empty in ("", " ", ",", "、，"):
        (problem,) = problems(empty, "--freeze", twelve)
        assert "--freeze 是空的" in problem and "embeddings、0–11、head" in problem


def test_layers_that_share_their_weights_cannot_be_named_apart():
    layers = LayerGroups(make("albert"))
    for spec in ("0", "0-2", "2-0", "7"):
        (problem,) = problems(spec, "--freeze", layers)
        assert "3 層共用一組權重" in problem and "embeddings、shared、head" in problem
    assert parse_layers("shared", "--freeze", layers) == {"shared"}
    assert "3 層共用" in "\n".join(table(layers, plan_of(layers)))


def test_something_must_be_left_to_learn(twelve):
    for freeze, only in (("all_but_head,head", ""), ("embeddings,0-11,head", "")):
        (problem,) = problems(freeze, only, 0, 1.0, twelve, call=build_schedule)
        assert f"--freeze {freeze}" in problem and "embeddings、0–11、head" in problem
    adapted = LayerGroups(with_lora(make(), ["query"]))
    for freeze, only in (("0-2", ""), ("", "head")):
        (problem,) = problems(freeze, only, 0, 1.0, adapted, call=build_schedule)
        assert "沒有留下可訓練的參數" in problem and "0–2" in problem
    assert plan_of(adapted, train_only="1,head").trainable == {"1"}


def test_flags_that_contradict_or_make_no_sense_are_reported_together(twelve):
    found = problems("nose", "99", -1, 1.5, twelve, call=build_schedule)
    for word in (
        "不能同時",
        "--freeze nose",
        "--train_only 99",
        "--unfreeze_every -1",
        "--layer_lr_decay 1.5",
    ):
        assert any(word in problem for problem in found), word
    assert len(found) == 5
    for decay in (0.0, -0.5, float("nan"), float("inf")):
        assert "--layer_lr_decay" in problems("", "", 0, decay, twelve, call=build_schedule)[0]


@pytest.mark.parametrize("flag", ["freeze", "train_only"])
@pytest.mark.parametrize("spec", ["head", "embeddings,0-1", "2", "all_but_head"])
def test_what_is_named_is_frozen_or_all_but_that(flag, spec):
    model = make()
    layers = LayerGroups(model)
    never = model.get_parameter("bert.encoder.layer.2.output.dense.bias").requires_grad_(False)
    named = parse_layers(spec, "--freeze", layers)
    layer_schedule.freeze(model, layers, plan_of(layers, **{flag: spec}))
    for name, parameter in model.named_parameters():
        inside = layers.group_of(name) in named
        assert parameter.requires_grad == (parameter is not never and inside == (flag == "train_only")), name


def test_a_description_tells_apart_what_learns_differently(twelve):
    assert plan_of(twelve).describe() == ""
    same = [plan_of(twelve, freeze="all_but_head"), plan_of(twelve, freeze="0-11,embeddings"),
            plan_of(twelve, train_only="head")]  # fmt: skip
    assert len({one.describe() for one in same}) == 1
    others = [plan_of(twelve, "0-3"), plan_of(twelve, "0-4"), plan_of(twelve, every=3),
              plan_of(twelve, every=4), plan_of(twelve, decay=0.9), plan_of(twelve, decay=0.9000001),
              plan_of(twelve, "0-3", every=3), same[0], plan_of(twelve)]  # fmt: skip
    assert len({one.describe() for one in others}) == len(others)


# ---- the schedule ------------------------------------------------------------------------------------------


def test_parts_open_one_by_one_from_the_top_as_a_slow_loop_opens_them(bert):
    rng = random.Random(1)
    for _ in range(60):
        frozen = frozenset(rng.sample(bert.names, rng.randrange(len(bert.names))))
        able = frozenset(rng.sample(bert.names, rng.randrange(1, len(bert.names) + 1)))
        every = rng.choice([0, 1, 2, 7])
        if not able - frozen:
            continue
        plan = LayerSchedule(tuple(bert.names), frozen, able - frozen, every)
        waiting = [name for name in bert.names if name in able and name not in frozen]  # the top is last
        opened, first = set(), {}
        for step in range(40):
            if every == 0:
                opened |= set(waiting)
            elif step % every == 0 and waiting:
                opened.add(waiting.pop())
            for name in opened:
                first.setdefault(name, step)
            assert plan.trainable_at(step) == opened, (frozen, able, every, step)
        assert {name: plan.unfreeze_step(name) for name in bert.names} == {
            name: first.get(name) for name in bert.names
        }
        assert plan.last_unfreeze_step == max(first.values())


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_the_learning_rate_shrinks_from_part_to_part_downwards(family):
    layers = LayerGroups(make(family))
    plan = plan_of(layers, freeze="head", decay=0.8)
    factor = 1.0
    for part in reversed(layers.names):
        assert plan.scale(part) == pytest.approx(factor, rel=1e-12)
        factor *= 0.8
    depth = 1 if family == "albert" else 3
    assert plan.scale(HEAD) == 1.0 and plan.scale(EMBED) == pytest.approx(0.8 ** (depth + 1))


# ---- what the engine does with it --------------------------------------------------------------------------


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("frozen", ["", "embeddings,1"])
def test_without_schedule_the_groups_are_matrices_and_the_rest_in_the_models_order(adapted, frozen):
    model = make("llama", CAUSAL, tie_word_embeddings=True)
    model = with_lora(model, ["q_proj", "gate_proj"]) if adapted else model
    layers = LayerGroups(model)
    plan = plan_of(layers, freeze=frozen)
    layer_schedule.freeze(model, layers, plan)
    trained = [p for p in model.parameters() if p.requires_grad]
    old = [([p for p in trained if p.ndim >= 2], 0.01), ([p for p in trained if p.ndim < 2], 0.0)]
    found = build_parameter_groups(model, layers, plan, 0.01)
    assert len(found) == 2
    for group, (params, decay) in zip(found, old, strict=True):
        assert list(map(id, group["params"])) == list(map(id, params)) and group["weight_decay"] == decay
        assert (group["part"], group["scale"]) == ("", 1.0)


@pytest.mark.parametrize(
    "flags", [{"every": 10}, {"decay": 0.9}, {"every": 3, "decay": 0.5, "freeze": "0,head"}]
)
@pytest.mark.parametrize("adapted", ["", "none", "lora_only"])  # biases that learn beside the adapters
def test_groups_hold_what_learns_exactly_once_by_part_and_decay(flags, adapted):
    model = make()
    model = with_lora(model, ["query", "dense"], bias=adapted) if adapted else model
    layers = LayerGroups(model)
    plan = plan_of(layers, **flags)
    layer_schedule.freeze(model, layers, plan)
    found = build_parameter_groups(model, layers, plan, 0.01)
    where = {id(p): group for group in found for p in group["params"]}
    assert sum(len(group["params"]) for group in found) == len(where)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert where.keys() == {id(p) for p in trained.values()} and all(group["params"] for group in found)
    for name, parameter in trained.items():
        group = where[id(parameter)]
        assert group["part"] == layers.group_of(name) and group["scale"] == plan.scale(group["part"])
        assert group["weight_decay"] == (0.01 if parameter.ndim >= 2 else 0.0)
    places = [(layers.depth(group["part"]), group["weight_decay"] == 0) for group in found]
    assert places == sorted(set(places))
    torch.optim.AdamW(found, lr=1e-3)


def test_only_what_is_open_is_moved_by_an_optimizer():
    model = make()
    layers = LayerGroups(model)
    plan = plan_of(layers, freeze="2", every=2)
    layer_schedule.freeze(model, layers, plan)
    parts = by_group(model, layers)
    assert list(parts) == [EMBED, "0", "1", HEAD]
    assert {name for name, p in model.named_parameters() if any(p is q for q in parts["1"])} == {
        name for name, _ in model.named_parameters() if name.startswith("bert.encoder.layer.1.")
    }
    optimizer = torch.optim.AdamW(build_parameter_groups(model, layers, plan, 0.1), lr=0.1)
    ids = torch.arange(5, 15)[None]
    for step in range(8):
        set_trainable(parts, plan.trainable_at(step))
        was = {name: p.detach().clone() for name, p in model.named_parameters()}
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {
            layers.group_of(name) for name, p in model.named_parameters() if not torch.equal(p, was[name])
        }
        assert (
            moved
            == plan.trainable_at(step)
            == {1: {HEAD}, 2: {HEAD, "1"}, 3: {HEAD, "1", "0"}}.get(step // 2 + 1, {HEAD, "1", "0", EMBED})
        )
    set_trainable(parts, frozenset([HEAD]))  # as when an older checkpoint is gone back to
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is None for part in (EMBED, "0", "1") for p in parts[part])


def test_closing_a_part_forgets_its_gradients():
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    set_trainable({"0": [model.weight], HEAD: [model.bias]}, frozenset([HEAD]))
    assert model.weight.grad is None and not model.weight.requires_grad
    assert model.bias.grad is not None and model.bias.requires_grad


# ---- for a person ------------------------------------------------------------------------------------------


def test_a_table_says_of_each_part_what_it_holds_and_when_it_learns(twelve):
    lines = table(twelve, plan_of(twelve, freeze="embeddings,0-9", every=200))
    rows = [line.split("  ") for line in lines]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert [(row[0], row[-1]) for row in rows[:6]] == [
        ("部分", "狀態"), (EMBED, "凍結"), ("0–9", "凍結"), ("10", "400 步後解凍"),
        ("11", "200 步後解凍"), (HEAD, "訓練"),
    ]  # fmt: skip
    sizes = twelve.sizes()
    ten = sum(sizes[str(number)] for number in range(10))
    assert rows[2][1:3] == [f"{ten / 1e6:.2f} M", "0.00 M"]
    some, whole = sizes["10"] + sizes["11"] + sizes[HEAD], sum(sizes.values())
    share = f"{100 * some / whole:.1f}"
    assert lines[-1] == f"訓練 {some / 1e6:.2f} M／全部 {whole / 1e6:.2f} M 參數（{share} %）"


def test_a_table_shows_factors_only_where_they_differ_and_its_columns_are_aligned(twelve):
    def width(text):
        return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)

    assert not any("學習率" in line for line in table(twelve, plan_of(twelve)))
    lines = table(twelve, plan_of(twelve, freeze="0-10", decay=0.5))
    assert [line.split()[-1] for line in lines[:5]] == ["學習率倍數", f"{0.5**13:.3g}", "–", "0.5", "1"]
    assert len({width(line) for line in lines[:5]}) == 1  # the last column is to the right
    assert len({width(line[: line.index(" M")]) for line in lines[1:5]}) == 1


def test_a_table_counts_adapters_and_tells_parts_that_have_none():
    layers = LayerGroups(with_lora(make(), ["query"], layers_to_transform=[1]))
    lines = table(layers, plan_of(layers, every=10))
    states = {line.split()[0]: line.split()[-1] for line in lines[1:-2]}
    none = "沒有可訓練的參數"
    assert states == {EMBED: none, "0": none, "1": "訓練", "2": none, HEAD: none}
    some, whole = sum(layers.trainable().values()), sum(layers.sizes().values())
    assert some == 2 * 2 * 16 and f"（{100 * some / whole:.1f} %）" in lines[-1]
