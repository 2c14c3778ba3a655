"""Folders of models as people really have them: half downloaded, quantized, from a cache, without a word on
where a text ends. Used where that can be, else refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import make_causal_dir, make_model_dir, write_csv
from families import make
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import fine_tuning_llm
import inference
from finetune.models.generation import eos_ids
from finetune.models.lora import Lora, attach
from finetune.models.lora_checks import check_fit
from finetune.models.saving import save_model
from finetune.models.tokenizer import load_tokenizer
from finetune.models.weight_files import QUANTIZED
from finetune.runtime import git_lfs
from finetune.runtime.errors import UserError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 411577189\n"


@pytest.fixture
def folder(llama_dir, tmp_path):
    shutil.copytree(llama_dir, tmp_path / "model")
    return tmp_path / "model"


def refused(capsys, folder, *more) -> str:
    """Message of both scripts about a model that they refuse, with exit code 2."""
    words = ["--model_path", folder, "--cpu", "--prompt", "天地", "--max_new_tokens", 4]
    assert inference.main([*map(str, [*words, *more])]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    texts = write_csv(folder.parent / "texts.csv", [["天地玄黃宇宙洪荒"]] * 9, ("text",))
    words = ["--model_name_or_path", folder, "--task", "cpt", "--dataset", texts, "--cpu", "--max_steps", 1]
    assert fine_tuning_llm.main([*map(str, [*words, *more])]) == 2
    assert "Traceback" not in capsys.readouterr().err
    return told


def change(folder, name="config.json", **values):
    said = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**said, **values}))


# ---- files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named_as_such(name, folder, capsys):
    (folder / name).write_text(POINTER)
    told = refused(capsys, folder)
    assert f"{name} 是 git-lfs 的指標" in told and "git lfs pull" in told


def test_a_pointer_in_the_place_of_weights_in_a_pickle_or_of_a_vocabulary_is_named_too(tmp_path, capsys):
    folder = make_model_dir(tmp_path / "bert")
    (folder / "vocab.txt").write_text(POINTER)
    words = ["--model_path", str(folder), "--cpu", "--prompt", "天[MASK]"]
    assert inference.main(words) == 2 and "vocab.txt 是 git-lfs 的指標" in capsys.readouterr().err
    folder = make_model_dir(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text(POINTER)
    words = ["--model_path", str(folder), "--cpu", "--prompt", "天[MASK]", "--allow_pickle"]
    assert inference.main(words) == 2 and "pytorch_model.bin 是 git-lfs 的指標" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "rows.json", "rows.tsv"])
def test_a_pointer_in_the_place_of_data_is_named_as_such(name, model_dir, tmp_path, capsys):
    (tmp_path / name).write_text(POINTER)
    words = [
        "--model_path",
        model_dir,
        "--input",
        tmp_path / name,
        "--output",
        tmp_path / "out.jsonl",
        "--cpu",
    ]
    assert inference.main(list(map(str, words))) == 2
    assert "git-lfs 的指標" in capsys.readouterr().err
    words = ["--model_name_or_path", model_dir, "--dataset", tmp_path / name, "--cpu"]
    assert fine_tuning_llm.main(list(map(str, words))) == 2
    assert "git-lfs 的指標" in capsys.readouterr().err


def test_what_only_begins_like_a_pointer_is_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("version 2")
    (tmp_path / "b.txt").write_text(POINTER + "x" * 2000)
    assert not any(git_lfs.is_pointer(tmp_path / name) for name in ("a.txt", "b.txt", "none.txt"))


def sharded(folder):
    """The same model in three files and their list."""
    weights = load_file(folder / "model.safetensors")
    names, placed = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)], {}
    for number, file in enumerate(names):
        part = {name: tensor for at, (name, tensor) in enumerate(weights.items()) if at % 3 == number}
        save_file(part, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    listed = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    return names


def test_a_shard_that_is_missing_broken_off_or_a_pointer_is_named(folder, capsys):
    names = sharded(folder)
    whole = (folder / names[1]).read_bytes()
    words = ["--model_path", str(folder), "--cpu", "--prompt", "天地", "--max_new_tokens", "2"]
    assert inference.main(words) == 0
    (folder / names[1]).write_bytes(whole[:-100])
    told = refused(capsys, folder)
    assert names[1] in told and f"{len(whole) - 100:,}" in told and f"{len(whole):,}" in told
    (folder / names[1]).write_text(POINTER)
    assert f"{names[1]} 是 git-lfs 的指標" in refused(capsys, folder)
    (folder / names[1]).unlink()
    told = refused(capsys, folder)
    assert f"少了權重檔 {names[1]}" in told and "列了 3 個" in told and names[0] not in told


@pytest.mark.parametrize(
    "raw", [b"", b"PK\x03\x04" * 9, b"<html>" * 99, (9).to_bytes(8, "little") + b"{}       x"]
)
def test_weights_that_are_no_safetensors_are_named(raw, folder, capsys):
    (folder / "model.safetensors").write_bytes(raw)
    told = refused(capsys, folder)
    assert "model.safetensors" in told and "請重新下載" in told


def test_a_folder_of_the_hubs_cache_is_its_snapshot(folder, tmp_path, capsys):
    cache, commits = tmp_path / "models--a--b", ("a" * 40, "b" * 40)
    for commit in commits:
        shutil.copytree(folder, cache / "snapshots" / commit)
    change(cache / "snapshots" / commits[0], model_type="nonsense")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commits[1])
    words = ["--model_path", str(cache), "--cpu", "--prompt", "天地", "--max_new_tokens", "2"]
    assert inference.main(words) == 0
    capsys.readouterr()
    (cache / "refs" / "main").unlink()
    told = refused(capsys, cache)
    assert "好幾個版本" in told and commits[0] in told
    shutil.rmtree(cache / "snapshots" / commits[0])
    assert inference.main(words) == 0
    shutil.rmtree(cache / "snapshots" / commits[1])
    assert "沒有下載好的版本" in refused(capsys, cache)


# ---- weights -------------------------------------------------------------------------------------------


def test_weights_that_are_no_floats_are_refused_by_name(folder, capsys):
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = (weights[name] * 100).to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    told = refused(capsys, folder)
    assert f"{name} 是 I8" in told and "未量化" in told


@pytest.mark.parametrize("method", [*QUANTIZED, "of_my_own"])
def test_a_quantization_that_would_be_left_out_is_refused_by_name(method, folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    change(folder, quantization_config={"quant_method": method, "bits": 4})
    told = refused(capsys, folder)
    assert f"quant_method 是 '{method}'" in told and "未量化的原版模型" in told


def test_a_quantization_of_old_that_names_no_method_is_refused_too(folder, model_dir, tmp_path, capsys):
    change(folder, quantization_config={"load_in_8bit": True})
    assert "'bitsandbytes'" in refused(capsys, folder)
    shutil.copytree(model_dir, tmp_path / "bert")  # which is read without transformers
    change(tmp_path / "bert", quantization_config={"quant_method": "gptq", "bits": 4})
    assert inference.main(["--model_path", str(tmp_path / "bert"), "--cpu", "--prompt", "天[MASK]"]) == 2
    assert "'gptq'" in capsys.readouterr().err


def test_a_vocabulary_of_another_size_than_the_embedding_is_reported_with_both(folder, capsys):
    had = json.loads((folder / "config.json").read_text())["vocab_size"]
    change(folder, vocab_size=had + 5)
    told = refused(capsys, folder)
    assert f"vocab_size 是 {had + 5}" in told and f"{had} 列" in told
    change(folder, vocab_size=had, intermediate_size=65)
    told = refused(capsys, folder)
    assert "(32, 64)" in told and "(32, 65)" in told


# ---- special tokens ------------------------------------------------------------------------------------


def test_the_end_of_text_comes_from_the_configuration_where_the_tokenizer_names_none(folder, capsys):
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "generation_config.json").unlink(missing_ok=True)
    change(folder, eos_token_id=2)
    tokenizer = load_tokenizer(str(folder), "--model_path", "causal")
    assert tokenizer.eos_token_id == 2 and "照 config.json 用 <|im_end|>" in capsys.readouterr().err
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 0]}))
    tokenizer = load_tokenizer(str(folder), "--model_path", "causal")
    assert tokenizer.eos_token_id == 1
    model, tokenizer, _ = inference.load_model(folder, "cpu")
    assert {0, 1} <= eos_ids(model, tokenizer)
    (folder / "generation_config.json").unlink()
    change(folder, eos_token_id=None)
    with pytest.raises(UserError, match="沒有結束符號.*eos_token_id"):
        load_tokenizer(str(folder), "--model_path", "causal")


def test_a_padding_token_that_was_added_is_said_and_the_configuration_agrees_when_saved(tmp_path, capsys):
    folder = make_causal_dir(tmp_path / "base", "llama", chat=False)
    change(folder, "tokenizer_config.json", pad_token="<|endoftext|>", bos_token="<|im_start|>")
    change(folder, pad_token_id=None, eos_token_id=7, bos_token_id=None)
    tokenizer = load_tokenizer(str(folder), "--model_path", "causal")
    assert "沒有 padding token，改用 <|pad|>" in capsys.readouterr().err
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (tmp_path / "saved").mkdir()
    save_model(tmp_path / "saved", config, tokenizer, model.state_dict(), {0, 2})
    saved, tokenizer = (
        AutoConfig.from_pretrained(tmp_path / "saved"),
        AutoTokenizer.from_pretrained(tmp_path / "saved"),
    )
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        assert getattr(saved, name) == getattr(tokenizer, name) is not None
    assert saved.vocab_size == len(tokenizer)


# ---- LoRA ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, goes_round, fits", [("mamba", "out_proj", "in_proj,x_proj"), ("jamba", "dt_proj", "in_proj")]
)
def test_lora_on_layers_that_do_not_fit_a_family_is_refused_before_training(family, goes_round, fits):
    with pytest.raises(UserError) as error:
        attach(make(family), Lora(4, 8, 0.1), "base")
    told = str(error.value)
    assert "--lora_target_modules auto" in told and family in told and goes_round in told.split("請改用")[0]
    assert goes_round not in told.split("請改用")[1]
    attach(make(family), Lora(4, 8, 0.1, fits), "base")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_look_at_perturbed_adapters_leaves_all_as_it_was(family):
    model = make(family)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    model.train()
    random = torch.get_rng_state()
    attach(model, Lora(4, 8, 0.1), "base", seed=3)
    first = {name: weight.clone() for name, weight in model.named_parameters()}
    check_fit(model, "--lora_target_modules auto")
    assert model.training and not torch.equal(random, torch.get_rng_state())  # of the adapters alone
    for name, weight in model.named_parameters():
        assert torch.equal(weight, first[name])
        plain = name.replace(".base_layer", "")
        assert plain not in before or torch.equal(weight, before[plain])


def test_an_adapter_whose_merging_changes_the_logits_is_refused():
    model = make("llama")
    layer = model.model.layers[0].self_attn.q_proj

    def also_by_itself(module, given, out):  # as if the weight were used beside the layer
        return out + 0.5 * given[0] @ module.get_base_layer().weight.T

    attach(model, Lora(4, 8, 0.0), "base")
    model.model.layers[0].self_attn.q_proj.register_forward_hook(also_by_itself)
    assert layer is not None
    with pytest.raises(UserError, match="合併 LoRA 之後的輸出與合併前不同"):
        check_fit(model, "--lora_target_modules auto")


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_attention_heads", 3), ("num_attention_heads", 16_000), ("hidden_act", "x"), ("vocab_size", -5)],
)
def test_a_configuration_that_makes_no_sense_is_refused(key, value, model_dir, tmp_path, capsys):
    shutil.copytree(model_dir, tmp_path / "bert")
    change(tmp_path / "bert", **{key: value})
    assert inference.main(["--model_path", str(tmp_path / "bert"), "--cpu", "--prompt", "天[MASK]"]) == 2
    told = capsys.readouterr().err
    assert told.count("✗") == 1 and "--model_path" in told
    words = [
        "--model_name_or_path",
        tmp_path / "bert",
        "--from_scratch",
        "--task",
        "mlm",
        "--cpu",
        "--max_steps",
        1,
    ]
    texts = write_csv(tmp_path / "texts.csv", [["天地玄黃宇宙洪荒"]] * 9, ("text",))
    assert fine_tuning_llm.main([*map(str, [*words, "--dataset", texts, "--min_chars", 1])]) == 2
    assert "Traceback" not in capsys.readouterr().err
