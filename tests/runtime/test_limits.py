"""Strangers' models without bound: what asks for a billion layers, renders for ever or unpacks to terabytes
ends in one message that names the file, the key, the value and the bound."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, make_causal_dir, peak_memory

import fine_tuning_llm
import inference
from finetune.models import tokenizer_checks
from finetune.runtime import limits, sandbox, strict_json
from finetune.runtime.errors import UserError
from finetune.runtime.listening import listen
from finetune.runtime.sandbox import Sandbox


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """The bounds of a child are the real ones divided, so that a test of them costs a second."""
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    monkeypatch.setattr(sandbox, "MEGABYTES", 256)


@pytest.fixture(scope="session")
def llama_chat_dir(tmp_path_factory) -> Path:
    """A model whose tokenizer is read from tokenizer.json as it stands, with a chat template."""
    return make_causal_dir(tmp_path_factory.mktemp("models") / "llama_chat", "llama")


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs inference.py with a folder; it has to end with 2, and one message that says these words."""
    monkeypatch.chdir(tmp_path)

    def run(model: Path, *says: str, more=("--prompt", "天")) -> None:
        capsys.readouterr()
        began = time.process_time()
        code = inference.main(["--model_path", str(model), "--cpu", *map(str, more)])
        seen = capsys.readouterr()
        assert time.process_time() - began < 20
        assert code == 2 and seen.err.count("✗") == 1 and "Traceback" not in seen.err, seen.err[-2000:]
        assert all(words in seen.err for words in says), (says, seen.err[-2000:])
        assert len(seen.err) < 5000

    return run


def edit(path: Path, change) -> None:
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(said)
    path.write_text(json.dumps(said), encoding="utf-8")


# ---- what is looked at -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "qwen"])
def test_numbers_and_lists_in_a_configuration_beyond_every_models_are_refused_by_key(
    refused, kind, model_dir, qwen_dir, tmp_path
):
    base = {"bert": model_dir, "qwen": qwen_dir}[kind]
    billion = 10**9
    keys = (
        "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings",
        "num_labels", "num_attention_heads", "num_experts", "n_layer", "d_model", "chunk_size_feed_forward",
    )  # fmt: skip
    changes = dict.fromkeys(keys, billion)
    for key, value in changes.items():
        folder = shutil.copytree(base, tmp_path / key)
        edit(folder / "config.json", lambda said: said.update({key: value}))  # noqa: B023
        refused(folder, "config.json", repr(key), "1,000,000,000", "上限是")
    folder = shutil.copytree(base, tmp_path / "nested")
    edit(folder / "config.json", lambda said: said.update(text_config={"vision": [{"num_layers": billion}]}))
    refused(folder, "'num_layers'", "1,000,000,000")
    for key, value in {
        "id2label": {str(i): "x" for i in range(140_000)},
        "eos_token_id": [1] * 70_000,
    }.items():
        folder = shutil.copytree(base, tmp_path / key)
        edit(folder / "config.json", lambda said: said.update({key: value}))  # noqa: B023
        refused(folder, repr(key), f"{len(value):,}", "上限是")


def test_more_layers_than_there_are_tensors_are_refused(refused, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "m")
    edit(folder / "config.json", lambda said: said.update(num_hidden_layers=900))
    refused(folder, "'num_hidden_layers' 是 900", "42 個張量")


def test_files_larger_than_any_models_are_refused_by_name_unread(refused, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "m")
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt",
             "run_card.json",
             "vocab.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
             "adapter_config.json", "model.safetensors.index.json", "chat_template.jinja", "tokenizer.model",
             "additional_chat_templates/x.jinja"]  # fmt: skip
    for name in names:
        kept = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("ab") as stream:
            stream.truncate(1 << 32)  # sparse: nothing on the disk
        refused(folder, name, "4,294,967,296", "上限是")
        (folder / name).unlink()
        if kept is not None:
            (folder / name).write_bytes(kept)


def test_a_safetensors_header_of_many_megabytes_or_of_nonsense_is_refused(refused, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "m")
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    overlapping = json.dumps({"a": {**one, "shape": [2], "data_offsets": [0, 8]},
                              "b": {**one, "shape": [2], "data_offsets": [4, 12]}}).encode()  # fmt: skip
    for header, size, says in ((b"{}", 2**63, "不完整"), (overlapping, None, "權重"),
                               (b"{}" + b" " * 20_000_000, None, "上限是")):  # fmt: skip
        head = struct.pack("<Q", size or len(header))
        (folder / "model.safetensors").write_bytes(head + header + b"\0" * 12)
        refused(folder, says)


def test_a_list_of_a_hundred_thousand_shards_is_refused(refused, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    shards = {f"x{number}": f"{number}.safetensors" for number in range(100_000)}
    edit(folder / "model.safetensors.index.json", lambda said: said.update(weight_map=shards))
    refused(folder, "weight_map", "100,000", "4,096")


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_more_added_tokens_than_the_model_has_words_are_refused(refused, llama_chat_dir, tmp_path, place):
    folder = shutil.copytree(llama_chat_dir, tmp_path / "m")
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = [{"id": 1000 + number, "content": f"<x{number}>", **how} for number in range(5000)]

    def change(said):
        if place == "tokenizer.json":
            said["added_tokens"] += tokens
        elif place == "tokenizer_config.json":
            said["added_tokens_decoder"] = {str(token["id"]): token for token in tokens}
        else:
            said.update({token["content"]: token["id"] for token in tokens})

    edit(folder / place, change)
    refused(folder, place, "5,00", "1,536")


ADAPTERS = {  # what is changed -> what the message says
    "target_modules": (r"(.+)+\.q_proj$X", "不使用"),
    "alpha_pattern": ({r"((.*)*)*X": 4}, "不使用"),
    "modules_to_save": (["(("], "regular expression"),
    "rank_pattern": ({"q_proj": 10**7}, "10000000"), "r": (10**9, "1000000000"),
    "init_lora_weights": ("pissa_niter_1000000000", "上限是 99"),
    "loftq_config": ({"loftq_iter": 10**9}, "loftq_iter"), "layer_replication": ([[0, 900]] * 2, "1,024"),
    "peft_type": ("PROMPT_TUNING", "LORA"), "trainable_token_indices": (list(range(70_000)), "70,000"),
}  # fmt: skip


@pytest.mark.slow
def test_an_adapter_without_bound_is_refused_by_key_and_an_honest_one_with_patterns_is_read(
    refused, qwen_dir, tmp_path, capsys
):
    import peft
    from transformers import AutoModelForCausalLM

    view = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(qwen_dir), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    view.save_pretrained(tmp_path / "adapter")
    edit(
        tmp_path / "adapter/adapter_config.json",
        lambda said: said.update(base_model_name_or_path=str(qwen_dir)),
    )
    for key, (value, says) in ADAPTERS.items():
        folder = shutil.copytree(tmp_path / "adapter", tmp_path / key)
        edit(folder / "adapter_config.json", lambda said: said.update({key: value}))  # noqa: B023
        refused(folder, "adapter_config.json", says)
    edit(
        tmp_path / "adapter/adapter_config.json",
        lambda said: said.update(target_modules=r".*\.(q|v)_proj$|x"),
    )
    refused(tmp_path / "adapter", "LoRA 的權重與底模不合")  # peft's own word: v_proj has no weights
    edit(tmp_path / "adapter/adapter_config.json", lambda said: said.update(target_modules=r".*\.q_proj"))
    assert inference.main(["--model_path", str(tmp_path / "adapter"), "--cpu", "--prompt", "天"]) == 0


# ---- what is run -------------------------------------------------------------------------------------------

TEMPLATES = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(10**9) %}x{% endfor %}", "{{ '%0999999999d' % 1 }}",
    "{{ 10 ** 10 ** 9 }}{{ 1 // 0 }}", "{{ 'a'|center(10**10) }}",
    "{% set ns = namespace(s='a') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
    "{{ ns.s }}",
    "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
    "{{ ns.s }}",
    "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(1) }}",
    "{{ (['a' * 9999] * 9999)|join('b' * 9999) }}", "{{ strftime_now('%Y' * 10**6) }}",
]  # fmt: skip


@pytest.mark.slow
def test_a_chat_template_that_loops_or_swells_without_end_is_refused_and_only_its_child_ends(
    refused, llama_chat_dir, tmp_path
):
    folder = shutil.copytree(llama_chat_dir, tmp_path / "m")
    for template in TEMPLATES:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        refused(folder, "")
    edit(folder / "tokenizer_config.json", lambda said: said.update(chat_template="x" * 3_000_000))
    (folder / "chat_template.jinja").unlink()
    refused(folder, "'chat_template'", "3,000,000", "262,144")


def open_files() -> list[str]:
    """What the descriptors of this process beyond its standard streams lead to."""
    places = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd") if int(number) > 2]
    return [os.readlink(place) for place in places if os.path.islink(place)]


def test_a_confined_child_holds_no_file_of_its_parent_open(tmp_path):
    """Else a connection that a server closes stays open while the child lives, and so does its port."""
    with (tmp_path / "x").open("w"), listen("127.0.0.1", 0):
        files = Sandbox(open_files, "x")()
    assert len(files) == 3 and {name.partition(":")[0] for name in files} == {"pipe", os.devnull}


@pytest.mark.slow
def test_what_is_confined_returns_and_raises_as_if_it_were_not(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "PATIENCE", 3.0)

    def work(what, *more):
        if what == "raise":
            raise KeyError("天")
        if what == "swell":
            return len("x" * 10**10)
        while what == "loop":
            pass
        while what == "wait":  # which takes none of the processor's time
            time.sleep(1)
        return [what, *more]

    call = Sandbox(work, "--flag")
    assert call("天\udc80", 1.5, None, {"a": [True]}) == ["天\udc80", 1.5, None, {"a": [True]}]
    with pytest.raises(ValueError, match="天"):
        call("raise")
    assert call("x") == ["x"]  # the same child
    call.close()
    assert call("y") == ["y"]  # another one
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(call, range(200))) == [[number] for number in range(200)]
    call.gives_up = False
    with pytest.raises(UserError, match="執行超過上限"):
        call("swell")
    assert call("z") == ["z"]
    for what in ("swell", "loop", "wait"):
        call, began = Sandbox(work, "--flag 某檔"), time.monotonic()
        for _ in range(2):
            with pytest.raises(UserError, match="--flag 某檔：執行超過上限（1 秒、256 MB）"):
                call(what)
        assert time.monotonic() - began < sandbox.PATIENCE + 3


RULES = {
    "pattern": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                                  "invert": False}},
    "growth": {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}] * 20}},
    "large": {"normalizer": {"type": "Prepend", "prepend": "a" * 5_000_000}},
    "panic": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}},
    "broken": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated",
                                 "invert": False}},
}  # fmt: skip


@pytest.mark.slow
def test_rules_of_a_tokenizer_that_explode_swell_or_panic_are_refused(refused, llama_chat_dir, tmp_path):
    for name, rules in RULES.items():
        folder = shutil.copytree(llama_chat_dir, tmp_path / name)
        edit(folder / "tokenizer.json", lambda said: said.update(rules))  # noqa: B023
        refused(folder, "tokenizer.json", "4,194,304" if name == "large" else "")


HONEST = {  # patterns of published tokenizers, which nobody may refuse
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": tokenizer_checks.WORDS % r"\p{N}{1,3}",
    "Qwen2": tokenizer_checks.WORDS % r"\p{N}",
    "GPT-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "DeepSeek": r"[一-龥぀-ゟ゠-ヿ]+|[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "digits by three": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
}


def test_patterns_of_published_tokenizers_are_read_and_the_commonest_without_a_trial(qwen_dir, monkeypatch):
    from tokenizers import Regex, pre_tokenizers
    from transformers import AutoTokenizer, BertTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen_dir)
    tried = []
    monkeypatch.setattr(tokenizer_checks, "Sandbox", lambda *given: tried.append(1) or Sandbox(*given))
    tokenizer_checks.try_tokenizer(tokenizer, "")  # Qwen2's own pattern, as transformers puts it there
    tokenizer_checks.try_tokenizer(BertTokenizer(vocab={"[UNK]": 0, "a": 1}), "")
    assert not tried
    after = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for pattern in HONEST.values():
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, after])
        tokenizer_checks.try_tokenizer(tokenizer, "")
    assert len(tried) == len(HONEST) - 2


def test_a_panic_of_the_tokenizer_in_the_middle_of_work_is_one_message(monkeypatch, capsys, model_dir):
    panic = type("PanicException", (BaseException,), {})

    def fail(*_, **__):
        raise panic("Onig: Regex search error: retry-limit-in-match over")

    monkeypatch.setattr("finetune.predict.predictor.MaskedLMPredictor.read", fail)
    assert inference.main(["--model_path", str(model_dir), "--cpu", "--prompt", "天[MASK]"]) == 2
    err = capsys.readouterr().err
    assert err.count("✗") == 1 and "tokenizer" in err and "retry-limit" in err


# ---- texts -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_texts_of_ten_megabytes_are_refused_at_every_door_before_a_tokenizer_sees_them(
    refused, model_dir, qwen_dir, loaded, tmp_path, monkeypatch, capsys
):
    long = "天" * 3_400_000  # 10 MB
    for model in (model_dir, qwen_dir):
        for more in (["--prompt", long], ["--question", long, "--options", "A:地 B:玄"],
                     ["--question", "天？", "--options", f"A:地 B:{long}"]):  # fmt: skip
            refused(model, more[-2] if more[-2] != "--options" or long in more[-1] else "--question",
                    "3,400,00", "1,048,576", more=more)  # fmt: skip
    with pytest.raises(UserError, match="1,048,576"):
        inference.qa_inference(loaded[0], loaded[1], long, {"A": "地", "B": "玄"}, loaded[2])
    with pytest.raises(UserError, match="1,048,576"):
        inference.predict_mask(*loaded[:2], long, loaded[2])
    rows = [{"question": text, "A": "地", "B": "玄", "answer": "A"} for text in (long, "天？")]
    written = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "r.jsonl").write_text(written, encoding="utf-8")
    refused(model_dir, "r.jsonl", "1,048,576", more=["--exam", "r.jsonl", "--split", "all"])
    words = ["--model_path", str(model_dir), "--cpu", "--input", "r.jsonl", "--output", "o.jsonl"]
    assert inference.main(words) == 0
    errors = [json.loads(line)["error"] for line in Path("o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "1,048,576" in errors[0] and not errors[1]
    typed = iter([long, "qa", long, "A:地 B:玄", "天[MASK]", "q"])
    monkeypatch.setattr("builtins.input", lambda *_: next(typed))
    capsys.readouterr()
    assert inference.main(["--model_path", str(model_dir), "--cpu"]) == 0
    seen = capsys.readouterr()
    assert (seen.out + seen.err).count("1,048,576") == 2 and "👋" in seen.out
    words = ["--model", str(model_dir), "--dataset", "r.jsonl", "--cpu", "--max_steps", "1"]
    assert fine_tuning_llm.main(words) == 2 and "1,048,576" in capsys.readouterr().err


@pytest.mark.slow
def test_the_worst_of_them_costs_less_than_twenty_seconds_and_two_gigabytes(llama_chat_dir, tmp_path):
    folder = shutil.copytree(llama_chat_dir, tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ 'a' * 10**8 ~ 'b' * 9 }}", encoding="utf-8")
    began = time.process_time()
    words = [sys.executable, ROOT / "inference.py", "--model_path", folder, "--cpu", "--prompt", "天"]
    code, peak = peak_memory(words, tmp_path)
    assert code == 2 and peak < 2 << 30 and time.process_time() - began < 20


def test_the_bounds_lie_above_what_is_published():
    assert limits.most_bytes("tokenizer.json") > 2 * 33_400_000  # Gemma 3
    llama4 = {"text_config": {"max_position_embeddings": 10_485_760, "num_hidden_layers": 48,
                              "rope_theta": 500_000_000}}  # fmt: skip
    llama405 = {"num_hidden_layers": 126, "hidden_size": 16_384, "intermediate_size": 53_248,
                "vocab_size": 128_256, "eos_token_id": [128_001, 128_008]}  # fmt: skip
    old = {"pad_token_id": -1, "n_positions": 1024, "task_specific_params": None, "layer_norm_eps": 1e-5}
    for said in (llama4, llama405, old, {"vocab_size": 901_629}, {"num_local_experts": 2048}):
        assert limits.check_numbers(said, "x") == []
    assert strict_json.too_long("天" * 10**6) == ""
