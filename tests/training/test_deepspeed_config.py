"""ds_config.json against the flags."""

import json

import pytest
from conftest import ROOT

from finetune.runtime.errors import RunError, UserError
from finetune.training import deepspeed_config, deepspeed_keys

SETTINGS = deepspeed_config.Settings(32, 8, 2, 1.0, "fp32", 3e-5, 0.01, 10, 100)
SHIPPED = json.loads((ROOT / "ds_config.json").read_text())


def problems(config, settings=SETTINGS) -> str:
    with pytest.raises(UserError) as caught:
        deepspeed_config.resolve(config, settings, 64, "ds.json")
    return "\n".join(caught.value.problems)


def test_every_auto_of_the_shipped_file_is_resolved_from_the_flags():
    resolved = deepspeed_config.resolve(SHIPPED, SETTINGS, 64, "ds.json")
    assert '"auto"' not in json.dumps(resolved)
    assert resolved["train_batch_size"] == 32 and resolved["train_micro_batch_size_per_gpu"] == 8
    assert resolved["gradient_accumulation_steps"] == 2 and resolved["gradient_clipping"] == 1.0
    assert (
        not resolved["bf16"]["enabled"]
        and resolved["zero_optimization"]["reduce_bucket_size"] == deepspeed_config.SMALLEST_BUCKET
    )


@pytest.mark.parametrize(
    ("key", "value", "flag"),
    [
        ("train_batch_size", 64, "--train_batch_size"),
        ("train_micro_batch_size_per_gpu", 4, "--micro_batch_size"),
        ("gradient_accumulation_steps", 7, "--micro_batch_size"),
        ("gradient_clipping", 0.5, "--max_grad_norm"),
        ("bf16", {"enabled": True}, "--precision"),
        ("optimizer", {"type": "AdamW", "params": {"lr": 1e-4}}, "optimizer.params.lr"),
        ("scheduler", {"type": "WarmupLR"}, "scheduler.type"),
    ],
)
def test_a_conflict_with_a_flag_is_named(key, value, flag):
    text = problems({**SHIPPED, key: value})
    assert key.split(".")[0] in text and flag in text


def test_an_optimizer_block_that_says_what_the_flags_say_is_welcome():
    block = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": 0.01, "betas": [0.9, 0.999]}}
    schedule = {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto", "total_num_steps": 100}}
    resolved = deepspeed_config.resolve(
        {**SHIPPED, "optimizer": block, "scheduler": schedule}, SETTINGS, 64, "ds.json"
    )
    assert "optimizer" not in resolved and "scheduler" not in resolved  # the script builds both itself


def test_stage_0_in_half_precision_is_refused_since_its_full_weights_are_lost():
    from dataclasses import replace

    text = problems({"zero_optimization": {"stage": 0}}, replace(SETTINGS, precision="bf16"))
    assert "stage 是 0" in text and "bf16" in text


def test_an_auto_that_no_flag_decides_is_named():
    assert "zero_optimization.stage3_max_live_parameters" in problems(
        {"zero_optimization": {"stage3_max_live_parameters": "auto"}}
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"zero_optimisation": {}}', "是不是 zero_optimization"),
        ('{"graident_clipping": 1, "train_batchsize": 2}', "train_batch_size"),
        ("{", "讀不懂"),
        ("[]", "JSON 物件"),
        ('{"bf16": true}', "bf16 應該是一個物件"),
    ],
)
def test_a_file_with_an_unknown_key_or_no_sense_is_refused_before_training(
    tmp_path, train, capsys, text, says
):
    (tmp_path / "ds.json").write_text(text)
    assert train("--deepspeed_config", "ds.json") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_what_the_file_fixes_decides_where_no_flag_was_given():
    assert deepspeed_config.precision_in({"bf16": {"enabled": True}}) == "bf16"
    assert deepspeed_config.micro_batch_in({"gradient_accumulation_steps": 4}, 32, 2) == 4
    assert deepspeed_config.micro_batch_in({"train_micro_batch_size_per_gpu": 2}, 32, 2) == 2
    assert deepspeed_config.micro_batch_in(SHIPPED, 32, 2) == 0


def test_an_engine_that_believes_something_else_is_an_error():
    class Built:
        def __getattr__(self, name):
            known = {"train_batch_size": 16, "zero_optimization_stage": 2, "gradient_clipping": 1.0}
            return lambda: known.get(
                name, {"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 2}.get(name, False)
            )

    with pytest.raises(RunError, match="train_batch_size：引擎 16，設定 32"):
        deepspeed_config.compare_built(Built(), deepspeed_config.resolve(SHIPPED, SETTINGS, 64, "ds.json"))


def read_text(tmp_path, config: dict) -> dict:
    (tmp_path / "ds.json").write_text(json.dumps(config))
    return deepspeed_config.read(tmp_path / "ds.json")


def test_a_whole_number_written_as_a_float_is_whole(tmp_path):
    """As JSON has `1e5`."""
    read = read_text(tmp_path, {"steps_per_print": 1e5, "train_batch_size": 32.0, "_comment": "x", "//": "y"})
    assert read == {"steps_per_print": 100000, "train_batch_size": 32}
    assert all(isinstance(value, int) for value in read.values())
    with pytest.raises(UserError, match="steps_per_print 應該是 1 以上的整數，得到 1.5"):
        read_text(tmp_path, {"steps_per_print": 1.5})


def test_the_blocks_that_other_projects_wrap_stand_where_deepspeed_looks_for_them(tmp_path):
    monitors = {
        "enabled": True,
        "tag": "x",
        "csv_monitor": {"enabled": False},
        "tensorboard": {"enabled": True},
    }
    read = read_text(tmp_path, {"comms_config": {"verbose": False}, "monitor_config": monitors})
    assert read == {"csv_monitor": {"enabled": False}, "tensorboard": {"enabled": True}}
    read = read_text(tmp_path, {"comms_config": {"enabled": True, "verbose": True}})
    assert read == {"comms_logger": {"enabled": True, "verbose": True}}
    with pytest.raises(UserError, match="monitor_config.tensorbord'，是不是 tensorboard"):
        read_text(tmp_path, {"monitor_config": {"tensorbord": {}}})


@pytest.mark.parametrize("kind", ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"])
def test_a_scheduler_that_leaves_all_to_the_flags_is_no_conflict_but_one_with_numbers_is(kind):
    block = {
        "type": kind,
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
    }
    assert "scheduler" not in deepspeed_config.resolve(
        {**SHIPPED, "scheduler": block}, SETTINGS, 64, "ds.json"
    )
    block = {"type": kind, "params": {**block["params"], "warmup_num_steps": 3}}
    assert "scheduler.params.warmup_num_steps" in problems({**SHIPPED, "scheduler": block})


def test_a_key_that_is_a_flag_here_is_answered_with_that_flag(tmp_path):
    with pytest.raises(UserError) as caught:
        read_text(tmp_path, {"gradient_checkpointing": {"use_reentrant": False}, "learning_rate": 1e-4})
    told = "\n".join(caught.value.problems)
    assert "旗標 --gradient_checkpointing" in told and "旗標 --learning_rate" in told and "是不是" not in told


def test_a_conflict_of_batches_names_a_number_that_works():
    config = {**SHIPPED, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 4}
    assert "--train_batch_size 64（8 × 4 × 2）" in problems(config)
    from dataclasses import replace

    resolved = deepspeed_config.resolve(config, replace(SETTINGS, train_batch=64), 64, "ds.json")
    assert resolved["train_batch_size"] == 64
    assert "--train_batch_size 16" in problems({**SHIPPED, "train_batch_size": 16})


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_quantized_weights"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}}, "zero_quantized_gradients"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3}}, "zero_hpz_partition_size"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param.device"),
        ({"compile": {"disable": False, "backend": "inductor"}}, "compile"),
        ({"amp": {"enabled": True}}, "amp.enabled"),
        ({"hybrid_engine": {"enabled": True}}, "hybrid_engine.enabled"),
        ({"comet": {"enabled": True}}, "comet.enabled"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "torch_autocast.enabled"),
    ],
)
def test_what_cannot_be_done_here_is_named_by_its_key(more, key, monkeypatch):
    monkeypatch.setitem(deepspeed_keys.PACKAGES, "comet", "no_such_package")
    assert key in problems({**SHIPPED, **more})


def test_what_is_switched_off_is_no_obstacle():
    off = {"amp": {"enabled": False}, "hybrid_engine": {"enabled": False}, "compile": {"disable": True}}
    resolved = deepspeed_config.resolve({**SHIPPED, **off}, SETTINGS, 64, "ds.json")
    assert "compile" not in resolved


def test_the_keys_within_zero_and_their_types_are_those_of_this_deepspeed():
    """The table is read without importing DeepSpeed, which takes seconds; here it is held against it."""
    from typing import get_args

    from finetune.training.deepspeed_engine import import_deepspeed

    import_deepspeed(False)
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig, ZeroStageEnum

    kinds = {bool: deepspeed_keys.SWITCH, int: deepspeed_keys.SIZE, ZeroStageEnum: deepspeed_keys.STAGE}
    keys = {}
    for name, field in DeepSpeedZeroConfig.model_fields.items():
        types = {field.annotation, *get_args(field.annotation)} & kinds.keys()
        kind = kinds[types.pop()] if types else deepspeed_keys.BLOCK
        keys |= {key: kind for key in (name, field.alias) if key}
    assert keys == deepspeed_keys.ZERO


def test_deepspeeds_own_reading_of_the_file_is_checked_before_a_model_is_loaded():
    from finetune.training.deepspeed_engine import import_deepspeed

    import_deepspeed(False)
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memry": True}}
    resolved = deepspeed_config.resolve({**SHIPPED, "zero_optimization": zero}, SETTINGS, 64, "ds.json")
    resolved = {**resolved, "train_batch_size": 16}  # of one process
    with pytest.raises(UserError, match="offload_optimizer.pin_memry"):
        deepspeed_config.check_accepted(resolved)
    zero["offload_optimizer"].pop("pin_memry")
    deepspeed_config.check_accepted({**resolved, "zero_optimization": zero})


def test_activation_checkpointing_is_answered_with_the_flag_that_does_it(capsys):
    deepspeed_config.resolve(
        {**SHIPPED, "activation_checkpointing": {"cpu_checkpointing": True}}, SETTINGS, 64, "ds.json"
    )
    assert "--gradient_checkpointing" in capsys.readouterr().err
