"""What makes a CPU faster: dropout from cheap random bits, and bf16 where it is measured to pay."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_encoder import model_of
from torch import nn

import fine_tuning_llm
import inference
from finetune.models import cpu

# ---- dropout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_share_that_is_dropped_is_p_and_the_rest_is_scaled_as_torch_scales_it(dtype, p):
    torch.manual_seed(3)
    found = cpu.dropout_mask(torch.empty(0, dtype=dtype), p, (400, 1001))
    assert found.dtype == dtype
    kept = nn.functional.dropout(torch.ones(64, dtype=dtype), p).max()
    assert set(found.unique().tolist()) == {0.0, kept.item()}
    spread = math.sqrt(p * (1 - p) / found.numel())
    assert abs((found == 0).double().mean() - p) < 5 * spread + 2**-16
    dropped = (found == 0).double() - p
    for step in (1, 2, 4, 1001):  # neighbours, and rows, have nothing to do with each other
        together = (dropped.flatten()[step:] * dropped.flatten()[:-step]).mean() / (p * (1 - p))
        assert abs(together) < 5 / math.sqrt(found.numel())


def test_the_same_seed_drops_the_same_and_another_one_does_not():
    layer, inputs = cpu.Dropout(0.3), torch.ones(50, 7)

    def drawn(seed):
        torch.manual_seed(seed)
        return layer(inputs), torch.rand(3)

    assert all(map(torch.equal, drawn(1), drawn(1)))
    assert not torch.equal(drawn(1)[0], drawn(2)[0])
    assert layer.eval()(inputs) is inputs


def test_gradients_pass_where_nothing_was_dropped():
    inputs = torch.ones(1000, requires_grad=True)
    found = cpu.Dropout(0.4)(inputs)
    found.sum().backward()
    assert torch.equal(inputs.grad, found.detach())


def test_all_of_a_models_dropout_becomes_cheap_and_its_weights_keep_their_names():
    model = model_of("bert")
    names = list(model.state_dict())
    cpu.use_fast_dropout(model)
    assert {type(m) for m in model.modules() if isinstance(m, nn.Dropout)} == {cpu.Dropout}
    assert list(model.state_dict()) == names


# ---- precision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "gain", "expected"), [(768, 4.0, "bf16"), (768, 1.2, "fp32"), (64, 9.0, "fp32")]
)
def test_auto_takes_bf16_where_it_was_measured_to_be_faster_and_says_so(hidden, gain, expected, monkeypatch):
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: gain)
    precision, said = cpu.choose_precision(hidden)
    assert precision == expected
    assert f"精度：{expected}" in said


def test_the_gain_of_bf16_is_measured_on_this_machine():
    assert 0.01 < cpu.bf16_speedup() < 100


@pytest.mark.slow
def test_training_and_exam_in_bf16_by_auto_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "SMALL", 1)
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: 3.0)
    losses = {}
    for precision in ("auto", "fp32"):
        home = tmp_path / precision
        flags = ["--demo", "--max_steps", "30", "--precision", precision, "--exam_limit", "20", "--cpu"]
        flags += ["--save_dir", str(home / "c"), "--output_dir", str(home / "m"), "--num_epochs", "1"]
        assert fine_tuning_llm.main(flags) == 0
        assert ("精度：bf16（這顆 CPU 算 bf16 快 3.0 倍" in capsys.readouterr().err) is (precision == "auto")
        lines = map(json.loads, (home / "train_log.jsonl").read_text("utf-8").splitlines())
        losses[precision] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses["auto"]) == 30
    for bf16, fp32 in zip(losses["auto"], losses["fp32"], strict=True):
        assert bf16 == pytest.approx(fp32, rel=0.02)
    assert losses["auto"] != losses["fp32"]


def test_precision_fp32_asked_for_on_the_command_line_stays(spread_model_dir, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "SMALL", 1)
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: 3.0)
    found = {}
    for precision in ("auto", "fp32"):
        argv = [
            "--model_path",
            str(spread_model_dir),
            "--question",
            "天地？",
            "--options",
            "A:玄 B:黃",
            "--json",
            "--cpu",
        ]
        assert inference.main([*argv, "--precision", precision]) == 0
        found[precision] = json.loads(capsys.readouterr().out)
    assert found["auto"] != found["fp32"]
