"""BERT from its weights alone: one prompt is answered without loading transformers' models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_encoder import COLS, ROWS, ragged
from transformers import AutoModelForMaskedLM

from finetune.models import bert
from finetune.models.forward import TokenLogits, bf16_forward
from finetune.models.loading import load_config


def plain(folder):
    return bert.load(str(folder), load_config(str(folder), "--model_path"))


def test_plain_bert_gives_the_logits_of_transformers_bert(spread_model_dir):
    ids, mask = ragged((16, 3, 9, 5), 16)
    ids = ids % 40
    model = AutoModelForMaskedLM.from_pretrained(spread_model_dir).eval()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits[ROWS, COLS]
        found = TokenLogits(plain(spread_model_dir)).eval()(ids, mask, ROWS, COLS)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        found = bf16_forward(plain(spread_model_dir))(ids, mask, ROWS, COLS)
        torch.testing.assert_close(found, bf16_forward(model)(ids, mask, ROWS, COLS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spoil", ["missing", "extra", "shape", "no file", "activation", "untied"])
def test_whatever_is_not_plain_bert_is_left_to_transformers(spread_model_dir, tmp_path, spoil):
    copied = tmp_path / "m"
    subprocess.run(["cp", "-r", str(spread_model_dir), str(copied)], check=True)
    weights, name = load_file(copied / "model.safetensors"), "bert.encoder.layer.1.output.dense.weight"
    settings = json.loads((copied / "config.json").read_text())
    assert plain(copied) is not None
    if spoil == "missing":
        del weights[name]
    elif spoil == "extra":
        weights["bert.encoder.layer.2.output.dense.weight"] = weights[name].clone()
    elif spoil == "shape":
        weights[name] = weights[name][:, :-1].contiguous()
    elif spoil == "activation":
        settings["hidden_act"] = "relu"
    elif spoil == "untied":
        settings["tie_word_embeddings"] = False
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    (copied / "config.json").write_text(json.dumps(settings))
    if spoil == "no file":
        (copied / "model.safetensors").unlink()
    assert plain(copied) is None


def test_old_names_of_norms_and_weights_that_fill_no_blank_are_read(spread_model_dir, tmp_path):
    copied = tmp_path / "m"
    subprocess.run(["cp", "-r", str(spread_model_dir), str(copied)], check=True)
    weights = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in load_file(copied / "model.safetensors").items()
    }
    weights |= {"bert.pooler.dense.weight": torch.ones(2), "cls.seq_relationship.bias": torch.ones(2)}
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert plain(copied) is not None


@pytest.mark.slow
def test_one_prompt_is_answered_without_the_imports_that_take_longest(spread_model_dir):
    folder = str(spread_model_dir)
    script = (
        "import sys; sys.argv=['inference.py']; import inference\n"
        f"code = inference.main(['--model_path', {folder!r}, '--prompt', '天[MASK]玄黃', '--cpu'])\n"
        "late = {'transformers.modeling_utils', 'torch._dynamo', 'torch.distributed.tensor', 'scipy'}\n"
        "print(sorted(late & sys.modules.keys()), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert "預測結果" in done.stdout
