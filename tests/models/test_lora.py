"""LoRA: what is trained, merged, kept apart as an adapter, resumed, and held in four bits."""

import json

import pytest
import torch
from conftest import (
    ROOT,
    assert_same_weights,
    causal_weights,
    losses,
    make_causal_dir,
    make_model_dir,
    write_alpaca,
    write_rows,
)
from forked import run_ranks

MODEL = "my_bert_finetuned_model_hf_format"


@pytest.mark.slow
def test_a_merged_model_gives_the_logits_of_its_adapter(train_causal, tmp_path, qwen_dir):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    data = write_alpaca(tmp_path / "a.csv")
    assert train_causal("sft", data, "--lora_rank", 8, "--max_steps", 6, "--learning_rate", 1e-2) == 0
    base = AutoModelForCausalLM.from_pretrained(qwen_dir)
    apart = PeftModel.from_pretrained(base, tmp_path / "checkpoints/best").eval()
    together = AutoModelForCausalLM.from_pretrained(tmp_path / MODEL).eval()
    ids = torch.arange(100, 130)[None]
    with torch.no_grad():
        said, untuned = (
            apart(input_ids=ids).logits,
            AutoModelForCausalLM.from_pretrained(qwen_dir)(ids).logits,
        )
        torch.testing.assert_close(together(input_ids=ids).logits, said, atol=1e-3, rtol=0)
        assert (said - untuned).abs().max() > 0.01


def test_a_merge_that_changes_the_logits_is_refused_and_nothing_is_published(
    train_causal, tmp_path, monkeypatch, capsys
):
    from peft import LoraModel

    merge = LoraModel.merge_and_unload

    def spoilt(self, *args, **kwargs):
        model = merge(self, *args, **kwargs)
        with torch.no_grad():
            model.get_output_embeddings().weight[:, 0] += 0.1
        return model

    monkeypatch.setattr(LoraModel, "merge_and_unload", spoilt)
    assert train_causal("sft", write_alpaca(tmp_path / "a.csv"), "--lora_rank", 2, "--max_steps", 1) == 1
    assert "合併後的模型與合併前不同" in capsys.readouterr().err
    assert not (tmp_path / MODEL).exists() and (tmp_path / "checkpoints/best/adapter_config.json").exists()


@pytest.mark.slow
def test_an_adapter_kept_apart_loads_with_peft_and_is_used_as_it_is(train_causal, tmp_path, qwen_dir, capsys):
    import inference

    data = write_alpaca(tmp_path / "a.csv")
    assert (
        train_causal("sft", data, "--lora_rank", 8, "--max_steps", 4, "--learning_rate", 1e-2, "--no_merge")
        == 0
    )
    assert (tmp_path / MODEL / "adapter_model.safetensors").exists()
    assert not (tmp_path / MODEL / "model.safetensors").exists()
    capsys.readouterr()
    argv = ["--model_path", MODEL, "--cpu", "--prompt", "天地", "--max_new_tokens", "8", "--json"]
    assert inference.main(argv) == 0
    assert json.loads(capsys.readouterr().out)["response"]
    assert train_causal("sft", data, "--output_dir", "x/model", "--save_dir", "x/ck", model=MODEL) == 2
    assert "只有 LoRA 的權重" in capsys.readouterr().err


@pytest.mark.slow
def test_lora_trains_its_own_weights_alone_and_a_masked_model_too(train, tmp_path, model_dir):
    from safetensors.torch import load_file

    from finetune.models.loading import load_config, load_model
    from finetune.models.tokenizer import load_tokenizer

    assert train("--lora_rank", 4, "--max_steps", 4, "--exam_limit", 4, "--learning_rate", 1e-2) == 0
    base, tuned = (load_file(f / "model.safetensors") for f in (model_dir, tmp_path / MODEL))
    changed = {name for name in base if name in tuned and not torch.equal(base[name], tuned[name])}
    assert changed and all(name.endswith("weight") and "encoder.layer" in name for name in changed)
    load_model(
        tmp_path / MODEL, load_config(tmp_path / MODEL, "x"), load_tokenizer(tmp_path / MODEL, "x"), "x"
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.nightly), 3])
def test_lora_under_zero_goes_on_where_it_stopped(tmp_path, qwen_dir, stage):
    data = write_alpaca(tmp_path / "a.csv")
    config = json.loads((ROOT / "ds_config.json").read_text())
    config["zero_optimization"] |= {"stage": stage}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    common = [
        ROOT / "fine_tuning_llm.py", "--task", "sft", "--dataset", data, "--model_name_or_path", qwen_dir,
        "--cpu", "--train_batch_size", 8, "--max_steps", 6, "--learning_rate", 1e-3, "--lora_rank", 4,
        "--save_interval", 3, "--save_total_limit", 0, "--engine", "deepspeed",
        "--deepspeed_config", tmp_path / "ds.json",
    ]  # fmt: skip
    for name, more in (("whole", []), ("again", ["--load_dir", "whole/ck", "--ckpt_id", "step3"])):
        more = [*more, "--output_dir", f"{name}/model", "--save_dir", f"{name}/ck"]
        done = run_ranks(tmp_path, *common, *more)
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "whole")[3:] == losses(tmp_path / "again")
    assert_same_weights(
        causal_weights(tmp_path / "whole/model"), causal_weights(tmp_path / "again/model"), atol=0, rtol=0
    )


def test_an_adapter_is_not_gone_on_with_beside_other_weights(train_causal, tmp_path, capsys):
    data = write_alpaca(tmp_path / "a.csv")
    first, second = (make_causal_dir(tmp_path / name) for name in ("one", "two"))
    from safetensors.torch import load_file, save_file

    changed = {name: tensor * 1.1 for name, tensor in load_file(second / "model.safetensors").items()}
    save_file(changed, second / "model.safetensors", metadata={"format": "pt"})
    flags = ["--lora_rank", 2, "--max_steps", 4, "--save_interval", 2, "--save_total_limit", 0]
    assert train_causal("sft", data, *flags, model=first) == 0
    more = [
        "--load_dir",
        "checkpoints",
        "--ckpt_id",
        "step2",
        "--output_dir",
        "b/model",
        "--save_dir",
        "b/ck",
    ]
    assert train_causal("sft", data, *flags, *more, model=second) == 2
    assert "底模的權重：與檢查點的不同" in capsys.readouterr().err


def test_four_bits_without_bitsandbytes_are_refused_with_the_install_line(
    train_causal, tmp_path, capsys, monkeypatch
):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    assert train_causal("sft", write_alpaca(tmp_path / "a.csv"), "--lora_rank", 4, "--load_in_4bit") == 2
    assert "pip install -r requirements-4bit.txt" in capsys.readouterr().err


@pytest.mark.slow
def test_four_bits_are_trained_and_merged_into_full_precision(train_causal, tmp_path):
    base = make_causal_dir(tmp_path / "base", hidden_size=64, intermediate_size=128)
    flags = ["--lora_rank", 4, "--load_in_4bit", "--num_epochs", 20, "--learning_rate", 1e-2]
    assert train_causal("sft", write_alpaca(tmp_path / "a.csv"), *flags, model=base) == 0
    found = losses(tmp_path)
    assert found[-1] < 0.7 * found[0]
    assert all(tensor.dtype == torch.float32 for tensor in causal_weights(tmp_path / MODEL).values())


@pytest.mark.slow
def test_a_new_head_is_trained_in_full_precision_beside_four_bits(train, tmp_path):
    base = make_model_dir(tmp_path / "base", hidden_size=64, intermediate_size=128)
    row = {"text": "天地玄黃", "entities": [{"start": 0, "end": 2, "label": "A"}]}
    data = write_rows(tmp_path / "x.jsonl", [{**row, "text": row["text"] + "日月" * n} for n in range(30)])
    flags = ["--lora_rank", 2, "--load_in_4bit", "--max_steps", 2]
    words = ["--task", "tag", "--model_name_or_path", base, "--dataset", data, "--cpu"]
    assert train(*words, *flags, base=False) == 0
