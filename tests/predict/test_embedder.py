"""Vectors of every kind of model: equal to sentence-transformers and transformers, whatever stands beside."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
import torch
from conftest import make_causal_dir, make_model_dir, make_vocabulary, random_text

import inference
from finetune.cli.inference_args import POOLINGS
from finetune.predict.embedder import Embedder
from finetune.runtime.errors import UserError

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 140, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3,
    "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.3,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
SIDES = {f"{side}_{what}": size for side in ("encoder", "decoder")
         for what, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
FAMILIES = {  # fast, plain, without a mask, convolutions, two towers, decoders
    "roberta": {}, "modernbert": {}, "fnet": {}, "convbert": {"embedding_size": 32, "head_ratio": 1},
    "t5": T5, "bart": {"d_model": 32, **SIDES}, "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 8},
}  # fmt: skip


def some_texts(count=9):
    rng = random.Random(5)
    return [random_text(rng, 1, 40) for _ in range(count)] + ["天地 玄黃\t宇宙", "hello"]


def body_folder(folder, family="bert", **changes):
    """A body by itself with the tokenizer of the tiny model, as AutoModel saves it."""
    from transformers import AutoConfig, AutoModel, BertTokenizer

    words = make_vocabulary()
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=len(words), **SMALL | changes)
    AutoModel.from_config(config).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def body_dir(tmp_path_factory):
    return body_folder(tmp_path_factory.mktemp("body") / "m")


def load(folder):
    return inference.load_model(folder, "cpu")


def embed(loaded, texts, pooling=None):
    model, tokenizer, device = loaded
    return inference.embed(model, tokenizer, texts, device, pooling)


# ---- against others ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentence_transformers():
    import sentence_transformers

    return sentence_transformers


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["bge", "mean", "dense", "several", "prompt", "lasttoken"])
def test_a_model_that_brings_its_pooling_gives_the_vectors_of_sentence_transformers(
    recipe, sentence_transformers, body_dir, llama_dir, tmp_path
):
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    source = str(llama_dir if recipe == "lasttoken" else body_dir)
    options = {"max_seq_length": 12, "do_lower_case": True} if recipe == "dense" else {}
    side = {"padding_side": "left"} if recipe == "lasttoken" else {}
    body = Transformer(source, processor_kwargs=side, **options)
    modes = {
        "bge": "cls",
        "several": ("max", "weightedmean", "mean_sqrt_len_tokens"),
        "lasttoken": "lasttoken",
    }
    parts = [body, Pooling(32, modes.get(recipe, "mean"), include_prompt=recipe != "prompt")]
    torch.manual_seed(1)
    parts += {"bge": [Normalize()], "dense": [Dense(32, 8), Normalize()]}.get(recipe, [])
    named = {"prompts": {"p": "天地："}, "default_prompt_name": "p"} if recipe == "prompt" else {}
    theirs = sentence_transformers.SentenceTransformer(modules=parts, device="cpu", **named)
    theirs.save(str(tmp_path / "m"))
    texts = [*some_texts(), "宇宙 ABC Σ" * 9]
    loaded = load(tmp_path / "m")
    assert loaded[1].padding_side == side.get("padding_side", "right")
    found = embed(loaded, texts)
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "m"), device="cpu")
    np.testing.assert_allclose(found, again.encode(texts), **CLOSE)
    assert found.dtype == np.float32 and found.shape == (
        len(texts),
        {"dense": 8, "several": 96}.get(recipe, 32),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_other_models_give_the_mean_of_transformers_and_padding_changes_nothing(family, tmp_path):
    from transformers import AutoModel

    folder = body_folder(tmp_path, family, **FAMILIES[family])
    model, tokenizer, device = loaded = load(folder)
    texts = some_texts()
    found = embed(loaded, texts)
    body = AutoModel.from_pretrained(folder).eval()
    body = body.get_encoder() if family in ("t5", "bart") else body
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = body(tokenizer(text, return_tensors="pt")["input_ids"])[0][0]
        np.testing.assert_allclose(vector, hidden.mean(0).numpy(), **CLOSE)
    for at in (0, 4):
        np.testing.assert_allclose(embed(loaded, texts[at : at + 1])[0], found[at], **CLOSE)
        np.testing.assert_allclose(embed(loaded, texts[::-1])[-1 - at], found[at], **CLOSE)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_every_pooling_reads_the_tokens_it_says(body_dir, pooling):
    from transformers import AutoModel

    model, tokenizer, device = loaded = load(body_dir)
    texts = some_texts()
    found = embed(loaded, texts, pooling)
    body = AutoModel.from_pretrained(body_dir).eval()
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = body(**tokenizer(text, return_tensors="pt"))[0][0]
        rows = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0), "lasttoken": hidden[-1]}
        np.testing.assert_allclose(vector, rows[pooling].numpy(), **CLOSE)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_digits_of_a_vector_do_not_depend_on_the_texts_beside_it(body_dir, pooling):
    loaded, texts = load(body_dir), [*some_texts(), "天" * 90]
    together = embed(loaded, texts, pooling)
    alone = np.concatenate([embed(loaded, [text], pooling) for text in texts])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification", "TokenClassification"])
def test_a_head_changes_no_vector(body_dir, tmp_path, head):
    import transformers

    model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(body_dir)
    shutil.copytree(body_dir, tmp_path / "m")
    model.save_pretrained(tmp_path / "m")
    loaded, texts = load(tmp_path / "m"), some_texts()
    bare = load(body_dir)
    np.testing.assert_allclose(embed(loaded, texts), embed(bare, texts), **CLOSE)
    digests = [Embedder(*one).digest for one in (loaded, bare)]
    assert digests[0] == digests[1]  # so that vectors made before fine-tuning a new head alone still serve


def test_a_causal_model_is_read_left_to_right_wherever_its_tokenizer_pads(tmp_path):
    folder = make_causal_dir(tmp_path / "m", "llama")
    model, tokenizer, device = loaded = load(folder)
    texts = some_texts()
    found = embed(loaded, texts, "lasttoken")
    tokenizer.padding_side = "left"
    np.testing.assert_allclose(embed(loaded, texts, "lasttoken"), found, **CLOSE)
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = model.model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))[0][0]
        np.testing.assert_allclose(vector, hidden[-1].numpy(), **CLOSE)


# ---- limits ------------------------------------------------------------------------------------------------


def test_a_text_that_is_too_long_loses_its_end_and_that_is_said_once(body_dir, capsys):
    loaded, text = load(body_dir), "天" * 500
    capsys.readouterr()
    found = embed(loaded, [text, "天" * 138, text + "地"])
    assert capsys.readouterr().err.count("超過 136 個 token") == 1
    np.testing.assert_allclose(found[0], found[1], **CLOSE)
    np.testing.assert_allclose(found[0], found[2], **CLOSE)


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["天", ""], "空的"), (["天", " \n"], "空的"), (["\ud800"], "UTF-8"), ([3], "3"), ([None], "None"),
        ([["天"]], "天"), (["天" * (2 << 20)], "上限"), ("天地", "[文字]"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_what_it_is(loaded, texts, named):
    with pytest.raises(UserError) as refused:
        embed(loaded, texts)
    assert named in str(refused.value)


def test_an_unknown_pooling_is_refused_and_no_texts_have_no_vectors(loaded):
    with pytest.raises(UserError, match="median"):
        embed(loaded, ["天"], "median")
    assert embed(loaded, []).shape == (0, 32)


def test_special_tokens_in_a_text_are_text(loaded):
    masked, brackets = embed(loaded, ["天[MASK]地[SEP]", "天[MASK]地"])
    assert np.abs(masked - brackets).max() > 1e-4
    model, tokenizer, device = loaded
    ids = Embedder(model, tokenizer, device).encode(["天[MASK]"])[0]["input_ids"]
    assert tokenizer.mask_token_id not in ids


def test_memory_is_bounded_however_many_texts_there_are(body_dir, monkeypatch):
    from finetune.predict import embedder

    monkeypatch.setattr(embedder, "BATCH_TOKENS", 64)
    model, tokenizer, device = load(body_dir)
    made = Embedder(model, tokenizer, device)
    seen, inside = [], made._hidden
    monkeypatch.setattr(made, "_hidden", lambda inputs, *at: seen.append(inputs) or inside(inputs, *at))
    made(some_texts(40))
    assert len(seen) > 10
    assert all(inputs["input_ids"].numel() <= 64 or len(inputs["input_ids"]) == 1 for inputs in seen)


def test_bf16_is_near_and_a_model_of_nan_is_no_vector(body_dir):
    model, tokenizer, device = load(body_dir)
    texts = some_texts()
    exact, rough = (Embedder(model, tokenizer, device, bf16=bf16)(texts) for bf16 in (False, True))
    assert 0 < np.abs(exact - rough).max() < 0.1
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        Embedder(model, tokenizer, device)(texts)


# ---- a body without a head ---------------------------------------------------------------------------------


def test_a_body_without_a_head_is_an_encoder_and_says_so(body_dir, capsys):
    model, tokenizer, device = load(body_dir)
    assert type(model).__name__ == "BertModel" and "沒有輸出層" in capsys.readouterr().err
    with pytest.raises(UserError, match="embed"):
        inference.predict_mask(model, tokenizer, "天[MASK]", device)
    with pytest.raises(UserError, match="classify"):
        inference.qa_inference(model, tokenizer, "天？", {"A": "地", "B": "玄"}, device)


def test_a_missing_pooler_is_no_reason_to_refuse_a_missing_layer_is(body_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(body_dir, tmp_path / "m")
    weights = load_file(body_dir / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    np.testing.assert_allclose(embed(load(tmp_path / "m"), ["天地"]), embed(load(body_dir), ["天地"]))
    kept = {name: tensor for name, tensor in kept.items() if "layer.1" not in name}
    save_file(kept, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="少了"):
        load(tmp_path / "m")


def test_weights_that_hold_a_head_keep_it_whatever_the_name_in_the_configuration(tmp_path, model_dir):
    """As bart-base, whose config.json says BartModel."""
    import json

    shutil.copytree(model_dir, tmp_path / "m")
    config = json.loads((model_dir / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    model, tokenizer, device = load(tmp_path / "m")
    assert type(model).__name__ == "BertForMaskedLM"
    assert inference.predict_mask(model, tokenizer, "天[MASK]", device)
    bart = body_folder(tmp_path / "bart", "bart", **FAMILIES["bart"])
    model, tokenizer, device = load(bart)
    assert type(model).__name__ == "BartForConditionalGeneration"
    assert inference.predict_mask(model, tokenizer, "天[MASK]", device)


def test_a_folder_of_sentence_transformers_that_names_a_head_it_lacks_is_an_encoder(body_dir, tmp_path):
    """As all-mpnet-base-v2, whose config.json says MPNetForMaskedLM; without modules.json it is damaged."""
    import json

    shutil.copytree(body_dir, tmp_path / "m")
    config = json.loads((body_dir / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="少了"):
        load(tmp_path / "m")
    (tmp_path / "m" / "modules.json").write_text("[]")
    assert type(load(tmp_path / "m")[0]).__name__ == "BertModel"


def test_the_encoder_of_t5_by_itself_needs_no_decoder(tmp_path):
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    folder = body_folder(tmp_path, "t5", **T5)
    config = T5Config.from_pretrained(folder)
    T5EncoderModel(config).save_pretrained(folder)
    loaded = load(folder)
    assert type(loaded[0]).__name__ == "T5EncoderModel"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        hidden = loaded[0](tokenizer("天地", return_tensors="pt")["input_ids"])[0][0]
    np.testing.assert_allclose(embed(loaded, ["天地"])[0], hidden.mean(0).numpy(), **CLOSE)


def test_training_refuses_a_body_where_a_head_must_be_there_and_puts_a_new_one_on_elsewhere(
    train, body_dir, tmp_path, capsys
):
    texts = tmp_path / "t.csv"
    rows = "".join(f"{text},{'甲乙'[at % 2]}\n" for at, text in enumerate(some_texts(38)))
    texts.write_text("text,label\n" + rows, encoding="utf-8")
    common = ("--cpu", "--model_name_or_path", body_dir, "--dataset", texts, "--max_steps", "1")
    less = ("--min_chars", "1")
    assert train("--task", "mlm", *common, *less, base=False) == 2
    said = capsys.readouterr().err
    assert "BertModel" in said and "--task classify、tag 或 span" in said and "--embed" in said
    assert train("--task", "classify", *common, "--train_batch_size", "4", base=False) == 0


def test_models_whose_head_is_of_no_use_still_give_vectors(tmp_path, capsys):
    folder = make_model_dir(tmp_path / "macbert-base")
    (tmp_path / "t.txt").write_text("天地\n", encoding="utf-8")
    argv = ["--cpu", "--model_path", str(folder), "--embed", str(tmp_path / "t.txt")]
    assert inference.main([*argv, "--output", str(tmp_path / "v.npy")]) == 0
    assert inference.main(["--cpu", "--model_path", str(folder), "--prompt", "天[MASK]"]) == 2
    assert "MacBERT" in capsys.readouterr().err
