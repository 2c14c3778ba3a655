"""Layers that are trained, in the real engines: frozen ones stay, others unfreeze at the promised step."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import ROOT, losses, make_model_dir, write_texts
from safetensors.torch import load_file
from test_classification_task import run_on_two
from test_engine import ONE, engine_config, examples_of, train_on_two

from finetune.models.layer_groups import LayerGroups
from finetune.models.layer_schedule import build_schedule
from finetune.models.loading import load
from finetune.objectives.batching import collate
from finetune.training.engine import Engine

NAME = "my_bert_finetuned_model_hf_format"


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A tiny BERT without dropout: ranks draw it differently."""
    return make_model_dir(
        tmp_path_factory.mktemp("still") / "m", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def moved(before: dict, after: dict, layers: LayerGroups) -> set[str]:
    """The parts that hold a changed weight."""
    return {layers.group_of(name) for name in before if not torch.equal(before[name], after[name])}


def parts_moved(base, folder) -> set[str]:
    """The same of two model folders."""
    model, _ = load(str(base), "--model")
    tuned, _ = load(str(folder), "--model")
    states = [{name: value.detach() for name, value in one.named_parameters()} for one in (model, tuned)]
    return moved(*states, LayerGroups(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "learns"),
    [
        (["--freeze", "embeddings,0"], {"1", "head"}),
        (["--freeze", "all_but_head"], {"head"}),
        (["--train_only", "1"], {"1"}),
        (["--unfreeze_every", 3], {"embeddings", "0", "1", "head"}),
        (["--unfreeze_every", 3, "--freeze", "embeddings"], {"0", "1", "head"}),
    ],
)
def test_what_is_frozen_is_bit_identical_after_training_and_the_rest_moved(
    train, tmp_path, model_dir, flags, learns
):
    words = ["--max_steps", 12, "--learning_rate", 1e-3, "--exam_limit", 4, "--early_stopping_patience", 0]
    assert train(*words, *flags) == 0
    model, _ = load(str(model_dir), "--model")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.load_state_dict(load_file(tmp_path / "checkpoints/step12/model.safetensors"), strict=False)
    assert moved(before, dict(model.named_parameters()), LayerGroups(model)) == learns


@pytest.mark.parametrize("every", [1, 2, 5])
def test_in_every_step_those_parts_move_that_were_promised_and_no_others(loaded, every):
    model = copy.deepcopy(loaded[0])
    layers = LayerGroups(model)
    promised = build_schedule("", "", every, 1.0, layers)
    engine = Engine(model, ONE, engine_config(), promised)
    batch = collate(examples_of(loaded, "mlm"), 0)
    for step in range(4 * every + 1):
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        engine.step([batch], step, 1e-3)
        after = dict(model.named_parameters())
        assert moved(before, after, layers) == set(["head", "1", "0", "embeddings"][: step // every + 1])


def test_a_part_that_opens_has_no_momentum_and_has_seen_no_step(loaded):
    model = copy.deepcopy(loaded[0])
    engine = Engine(model, ONE, engine_config(), build_schedule("", "", 3, 1.0, LayerGroups(model)))
    batch = collate(examples_of(loaded, "mlm"), 0)
    for step in range(4):
        engine.step([batch], step, 1e-3)
    steps = {
        group["part"]: {
            int(engine.optimizer.state[p]["step"]) for p in group["params"] if p in engine.optimizer.state
        }
        for group in engine.optimizer.param_groups
    }
    assert steps == {"embeddings": set(), "0": set(), "1": {1}, "head": {4}}


def test_layers_learn_at_rates_that_fall_from_the_top(loaded):
    """The first step of Adam moves a weight by its rate, whatever the gradient."""
    model = copy.deepcopy(loaded[0])
    layers = LayerGroups(model)
    engine = Engine(model, ONE, engine_config(), build_schedule("", "", 0, 0.5, layers))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    engine.step([collate(examples_of(loaded, "mlm"), 0)], 0, 1e-3)
    widest: dict[str, float] = {}
    for name, value in model.named_parameters():
        part = layers.group_of(name)
        widest[part] = max(widest.get(part, 0.0), float((value.detach() - before[name]).abs().max()))
    expected = {"head": 1e-3, "1": 5e-4, "0": 2.5e-4, "embeddings": 1.25e-4}
    assert widest == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_a_run_stopped_in_the_middle_of_the_schedule_goes_on_as_if_it_never_was(train, tmp_path, model_dir):
    flags = ["--unfreeze_every", 3, "--max_steps", 10, "--learning_rate", 1e-3, "--exam_limit", 4]
    flags += ["--save_interval", 4, "--save_total_limit", 0, "--early_stopping_patience", 0]
    assert train(*flags, "--save_dir", "a", "--output_dir", "one/m") == 0
    assert (
        train(*flags, "--load_dir", "a", "--ckpt_id", "step4", "--save_dir", "b", "--output_dir", "two/m")
        == 0
    )
    states = [load_file(tmp_path / run / "step10/model.safetensors") for run in "ab"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert train(*flags[2:], "--load_dir", "a", "--ckpt_id", "step4", "--output_dir", "three/m") == 2


@pytest.mark.slow
def test_two_ranks_open_layers_as_one_does(train, tmp_path, still, exam_dir):
    flags = ["--unfreeze_every", "2", "--layer_lr_decay", "0.8"]
    two, _ = train_on_two("torch", tmp_path / "two", still, exam_dir, *flags)
    words = ["--max_steps", 10, "--learning_rate", 1e-3, "--exam_limit", 4]
    assert train("--model", still, *words, *flags) == 0
    assert losses(tmp_path) == pytest.approx(two, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (3, "fp32"),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in [(0, "fp32"), (1, "fp32"), (2, "fp32"), (2, "bf16"), (3, "bf16")]
        ),
    ],
)
def test_zero_opens_layers_as_plain_pytorch_does_and_resumes_between_two_openings(
    train, tmp_path, still, exam_dir, stage, precision
):
    config = json.loads((ROOT / "ds_config.json").read_text())
    config["zero_optimization"] |= {"stage": stage, "stage3_param_persistence_threshold": 0}
    # as with a large model, parameters are let go as soon as they were used
    config["zero_optimization"] |= {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
    flags = ["--freeze", "0", "--unfreeze_every", "3", "--layer_lr_decay", "0.8", "--micro_batch_size", "8"]
    flags += ["--save_interval", "4", "--save_total_limit", "0", "--precision", precision]
    flags += ["--split_ratio", "0.95,0,0.05"]  # without validation the newest model is the best
    found, _ = train_on_two("deepspeed", tmp_path / "ds", still, exam_dir, *flags, config=config)
    words = ["--max_steps", 10, "--learning_rate", 1e-3, "--exam_limit", 4]
    assert train("--model", still, *words, *flags) == 0
    assert losses(tmp_path) == pytest.approx(found, rel=1e-4 if precision == "fp32" else 0.02)
    assert parts_moved(still, tmp_path / "ds" / NAME) == {"embeddings", "1", "head"}
    if precision == "fp32":
        theirs, ours = (
            load_file(folder / NAME / "model.safetensors") for folder in (tmp_path, tmp_path / "ds")
        )
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=2e-5, msg=name)
    flags += ["--load_dir", tmp_path / "ds/checkpoints", "--ckpt_id", "step4"]
    resumed, _ = train_on_two("deepspeed", tmp_path / "again", still, exam_dir, *flags, config=config)
    assert resumed == pytest.approx(found[4:], abs=1e-6)


def adapters_moved(folder) -> set[str]:
    """Layers whose adapter says something: its second half begins as 0."""
    saved = load_file(folder / "adapter_model.safetensors")
    return {name.split(".layers.")[1][0] for name, value in saved.items() if "lora_B" in name and value.any()}


@pytest.mark.parametrize("family", ["qwen", "llama"])
@pytest.mark.parametrize("lora", [[], ["--lora_rank", 4, "--no_merge"]])
def test_decoders_freeze_and_open_too_with_and_without_lora(request, train, tmp_path, family, lora):
    base = request.getfixturevalue(f"{family}_dir")
    texts = write_texts(tmp_path / "texts.json")
    words = ["--task", "cpt", "--model_name_or_path", base, "--dataset", texts, "--min_chars", 10]
    words += ["--max_length", 64, "--max_steps", 6, "--learning_rate", 1e-2, "--cpu", *lora]
    assert train(*words, "--unfreeze_every", 2, "--freeze", "embeddings", base=False) == 0
    if not lora:
        assert parts_moved(base, tmp_path / NAME) == ({"0", "1", "head"})
        return
    trained = adapters_moved(tmp_path / NAME)
    assert trained == {"0", "1"}
    more = ["--freeze", "0", "--output_dir", "top/m", "--save_dir", "top/c"]
    assert train(*words, *more, base=False) == 0
    trained = adapters_moved(tmp_path / "top/m")
    assert trained == {"1"}


@pytest.mark.parametrize("family", ["roberta", "albert"])
def test_other_encoders_freeze_by_their_own_parts(train, tmp_path, family):
    base = make_model_dir(tmp_path / family, family, embedding_size=32, pad_token_id=0)
    words = ["--model_name_or_path", base, "--max_steps", 4, "--learning_rate", 1e-3, "--exam_limit", 4]
    learns = {"shared", "head"} if family == "albert" else {"1", "head"}
    frozen = "embeddings" if family == "albert" else "embeddings,0"
    assert train(*words, "--freeze", frozen) == 0
    assert parts_moved(base, tmp_path / NAME) == learns


def test_a_schedule_longer_than_the_run_is_reported(train, capfd):
    assert train("--max_steps", 4, "--unfreeze_every", 100, "--exam_limit", 4) == 0
    told = capfd.readouterr().err
    assert "最下面的層要 300 步後才開始訓練" in told and "100 步後解凍" in told


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--from_scratch", "--freeze", "all_but_head"], "底模是隨機初始化的"),
        (["--objective", "choice", "--freeze", "head"], "輸出層是新加的（隨機初始化）"),
    ],
)
def test_random_weights_that_will_never_learn_are_warned_of(train, capfd, flags, says):
    assert train(*flags, "--max_steps", 2, "--exam_limit", 4) == 0
    assert says in capfd.readouterr().err


def test_a_mistake_that_two_checks_meet_is_reported_once(train, capfd):
    assert train("--freeze", "0", "--train_only", "1") == 2
    assert capfd.readouterr().err.count("不能同時使用") == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--freeze", "embeddings,0-9"], "embeddings、0–1、head"),
        (["--freeze", "pooler"], "pooler"),
        (["--train_only", "11,head"], "11"),
        (["--freeze", "0", "--train_only", "1"], "不能同時使用"),
        (["--freeze", "embeddings,0-1,head"], "--freeze"),
        (["--layer_lr_decay", "1.5"], "--layer_lr_decay"),
    ],
)
def test_layers_that_are_not_there_are_refused_before_anything_is_written(
    train, tmp_path, capfd, flags, says
):
    assert train(*flags) == 2
    assert says in capfd.readouterr().err and not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.nightly), 3])
def test_zero_opens_adapters_as_plain_pytorch_does(train, tmp_path, qwen_dir, stage):
    config = json.loads((ROOT / "ds_config.json").read_text())
    config["zero_optimization"] |= {"stage": stage, "stage3_param_persistence_threshold": 0}
    texts = write_texts(tmp_path / "texts.json")
    words = ["--task", "cpt", "--min_chars", 10, "--max_length", 64, "--lora_rank", 4, "--lora_dropout", 0]
    words += ["--unfreeze_every", 3, "--train_batch_size", 8, "--no_merge"]
    words += ["--max_steps", 6, "--learning_rate", 1e-3]
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds.json").write_text(json.dumps(config))
    more = ["--deepspeed_config", tmp_path / "ds.json"]
    found = run_on_two("deepspeed", tmp_path / "ds", qwen_dir, texts, *words, *more)
    assert train("--model_name_or_path", qwen_dir, "--dataset", texts, *words, base=False) == 0
    assert losses(tmp_path) == pytest.approx(found, rel=1e-4)
    theirs, ours = (
        load_file(folder / NAME / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "ds")
    )
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-5, msg=name)
    assert adapters_moved(tmp_path / "ds" / NAME) == {"0", "1"}
