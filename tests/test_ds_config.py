"""ds_config.json against the flags."""

import json

import pytest
from conftest import ROOT

from finetune import ds_config
from finetune.errors import RunError, UserError

SETTINGS = ds_config.Settings(32, 8, 2, 1.0, "fp32", 3e-5, 0.01, 10, 100)
SHIPPED = json.loads((ROOT / "ds_config.json").read_text())


def problems(config, settings=SETTINGS) -> str:
    with pytest.raises(UserError) as caught:
        ds_config.resolve(config, settings, 64, "ds.json")
    return "\n".join(caught.value.problems)


def test_every_auto_of_the_shipped_file_is_resolved_from_the_flags():
    resolved = ds_config.resolve(SHIPPED, SETTINGS, 64, "ds.json")
    assert '"auto"' not in json.dumps(resolved)
    assert resolved["train_batch_size"] == 32 and resolved["train_micro_batch_size_per_gpu"] == 8
    assert resolved["gradient_accumulation_steps"] == 2 and resolved["gradient_clipping"] == 1.0
    assert (
        not resolved["bf16"]["enabled"]
        and resolved["zero_optimization"]["reduce_bucket_size"] == ds_config.SMALLEST_BUCKET
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
    resolved = ds_config.resolve(
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
    assert ds_config.precision_in({"bf16": {"enabled": True}}) == "bf16"
    assert ds_config.micro_batch_in({"gradient_accumulation_steps": 4}, 32, 2) == 4
    assert ds_config.micro_batch_in({"train_micro_batch_size_per_gpu": 2}, 32, 2) == 2
    assert ds_config.micro_batch_in(SHIPPED, 32, 2) == 0


def test_an_engine_that_believes_something_else_is_an_error():
    class Built:
        def __getattr__(self, name):
            known = {"train_batch_size": 16, "zero_optimization_stage": 2, "gradient_clipping": 1.0}
            return lambda: known.get(
                name, {"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 2}.get(name, False)
            )

    with pytest.raises(RunError, match="train_batch_size：引擎 16，設定 32"):
        ds_config.compare_built(Built(), ds_config.resolve(SHIPPED, SETTINGS, 64, "ds.json"))
