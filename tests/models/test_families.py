"""Any pretrained model by name: every family is trained, saved, loaded by transformers and used; what
cannot be trained is refused with its reason."""

from __future__ import annotations

import json
import random
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import (
    HAN,
    ROOT,
    make_exam_dir,
    make_model_dir,
    random_text,
    write_csv,
    write_texts,
)
from forked import run_bare
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file

import fine_tuning_llm
import inference
from finetune.models.heads import forward_of
from finetune.models.kinds import CLASSES, name_classes
from finetune.models.layer_groups import LayerGroups
from finetune.models.loading import LoadOptions, load_config, load_model
from finetune.models.padding import padded
from finetune.models.tokenizer import AFTER_PADDING, load_tokenizer, prompt_length

MODEL = "my_bert_finetuned_model_hf_format"
FLAG = "--model_name_or_path"
LABELS = ("中立", "正面", "負面")
BERT_LIKE = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
ENCODERS = {
    "bert": {},
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 16},
    "roberta": {
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 130,
        "type_vocab_size": 1,
    },
    "modernbert": {
        "num_hidden_layers": 4, "local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0,
        "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3,
    },
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512}
DECODERS = {"gpt2": {"n_positions": 512}, "qwen2": GROUPED, "llama": GROUPED, "bloom": {}, "falcon": {}}
FAMILIES = (*ENCODERS, *DECODERS)


# ---- models of every family --------------------------------------------------------------------------------


def byte_level(folder, special: list[str], around=(), **roles):
    """A byte-level BPE trained here, as RoBERTa's and most decoders'. `around`: what opens and closes a
    row."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE

    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    corpus = [random_text(rng, 5, 30) for _ in range(300)] + ["題目選項答案：是正確的。ABCDEFGHIJ"] * 30
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator(corpus, trainer)
    if around:
        first, last = around
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", pair=f"{first} $A {last} {last} $B {last}",
            special_tokens=[(word, bpe.token_to_id(word)) for word in around],
        )  # fmt: skip
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **roles)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_family(folder, family: str, head: str = "", **changes):
    """A tiny pretrained model of a family with its tokenizer, as a Hugging Face folder. The padding of a
    decoder is its end of text, as many are shipped.

    Args:
        head: class of transformers; "" is what the family is pretrained as.
    """
    causal = family in DECODERS
    discriminator = "AutoModelForPreTraining" if family == "electra" else "AutoModelForMaskedLM"
    head = head or ("AutoModelForCausalLM" if causal else discriminator)
    if causal:
        # Without <unk> padding needs a new row; Qwen2's class of tokenizers would add its own.
        unknown = {"gpt2": [], "falcon": [], "qwen2": ["<|endoftext|>"]}.get(family, ["<unk>"])
        special = ["<s>", "</s>", *unknown]
        tokenizer = byte_level(folder, special, bos_token="<s>", eos_token="</s>", pad_token="</s>")
        shape = {
            "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "bos_token_id": 0,
            "eos_token_id": 1, "pad_token_id": 1, **DECODERS[family],
        }  # fmt: skip
    elif family in ("roberta", "modernbert"):
        special, ends = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], {}
        pad, unknown, first, last, mask = special
        if family == "roberta":
            special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
            first, pad, last, unknown, mask = special
            ends = {"bos_token": first, "eos_token": last}
        tokenizer = byte_level(
            folder, special, (first, last), cls_token=first, sep_token=last, pad_token=pad, unk_token=unknown,
            mask_token=mask, **ends,
        )  # fmt: skip
        shape = {**BERT_LIKE, "max_position_embeddings": 128, **ENCODERS[family]}
    else:
        make_model_dir(folder, family, **ENCODERS[family])
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        shape = {**BERT_LIKE, "max_position_embeddings": 128, **ENCODERS[family]}
    shape = {"vocab_size": len(tokenizer), "initializer_range": 0.2, **shape, **changes}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **shape)
    getattr(transformers, head).from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_of(tmp_path_factory):
    """The folder of a family's pretrained model, made once."""
    made = {}

    def find(family: str):
        if family not in made:
            made[family] = make_family(tmp_path_factory.mktemp("families") / family, family)
        return made[family]

    return find


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Training data of each task."""
    home, rng = tmp_path_factory.mktemp("sources"), random.Random(5)
    rows = [[random_text(rng, 5, 40), LABELS[number % 3]] for number in range(40)]
    texts = write_texts(home / "texts.json", 8)
    return {
        "exam": make_exam_dir(home / "exam", dev=2, val=3, test=3, subjects=("physics", "trade")),
        "classify": write_csv(home / "labelled.csv", rows, ("text", "label")), "mlm": texts, "cpt": texts,
    }  # fmt: skip


@pytest.fixture
def train_family(monkeypatch, tmp_path, sources):
    """Runs `fine_tuning_llm.main` for a few steps; returns its exit code. `train_family.logits`: those of
    the model that was saved last, as it was in memory."""
    monkeypatch.chdir(tmp_path)
    save = fine_tuning_llm.save_best

    def spy(run, engine, checkpoints, step):
        save(run, engine, checkpoints, step)
        train_family.logits = logits_of(engine.forward_model.model)

    def train_family(base, task, *argv) -> int:
        objective = ["--objective", argv[0]] if task == "exam" else []
        limit = ["--exam_limit", 2] if task == "exam" else []
        argv = argv[1:] if task == "exam" else argv
        words = [
            FLAG, base, "--task", task, "--dataset", sources[task], "--cpu", *objective, *limit,
            "--max_steps", 3, "--train_batch_size", 4, "--max_length", 128, "--learning_rate", 1e-2, *argv,
        ]  # fmt: skip
        return fine_tuning_llm.main(list(map(str, words)))

    monkeypatch.setattr(fine_tuning_llm, "save_best", spy)
    return train_family


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    """Logits of a model for two rows."""
    ids = torch.arange(10, 50).view(2, 20)
    ids = ids[:, None] if type(model).__name__.endswith("ForMultipleChoice") else ids
    was_training = model.training
    logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.clone()
    model.train(was_training)
    return logits


def loaded_by_transformers(folder, kind: str):
    """The model of a folder by the Auto class of its kind, nothing missing in the file and nothing left."""
    loader = getattr(transformers, CLASSES[kind])
    model, info = loader.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.architectures == [type(model).__name__]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= model.config.vocab_size
    return model.eval(), tokenizer


def answers(kind: str, capsys, folder=MODEL) -> dict:
    """Answers of `inference.main`, as JSON."""
    asked = {
        "masked": ["--prompt", "天地[MASK]。"], "classifier": ["--prompt", "天地玄黃"],
        "choice": ["--question", "天地？", "--options", "A:玄 B:黃 C:宇宙"],
        "causal": ["--prompt", "天地", "--max_new_tokens", "5"],
    }[kind]  # fmt: skip
    capsys.readouterr()
    assert inference.main(["--model_path", str(folder), "--cpu", "--json", *asked]) == 0
    return json.loads(capsys.readouterr().out)


def check_answer(kind: str, answer: dict, model, tokenizer) -> None:
    """The answer is the one that transformers alone gives."""
    if kind == "classifier":
        with torch.no_grad():
            logits = model(**tokenizer("天地玄黃", return_tensors="pt")).logits[0]
        shares = dict(zip(LABELS, logits.softmax(-1).tolist(), strict=True))
        assert answer["probabilities"] == pytest.approx(shares, abs=1e-5)
    elif kind == "masked":
        pipe = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device=-1)
        text = f"天地{tokenizer.mask_token}。"
        words = {row["token"]: row["score"] for row in pipe(text, top_k=len(tokenizer))}
        found = answer["predictions"]
        assert len(found) == 5
        assert all(any(abs(share - row["probability"]) < 1e-5 for share in words.values()) for row in found)
    elif kind == "choice":
        assert set(answer["scores"]) == set("ABC")
        assert answer["answer"] == max(answer["scores"], key=answer["scores"].get)
    else:
        assert isinstance(answer["response"], str)


KINDS = {"mlm": "masked", "classify": "classifier", "cpt": "causal"}


def some(cases, quick):
    """The cases, those that are not quick marked as nightly."""
    marked = [(case if isinstance(case, tuple) else (case,), case in quick) for case in cases]
    return [pytest.param(*case, marks=() if fast else pytest.mark.nightly) for case, fast in marked]


def cells():
    """Family × task: quick ones are those that can break each in its own way."""
    quick = {
        ("albert", "answer+mlm"), ("roberta", "answer+mlm"), ("modernbert", "answer+mlm"),
        ("albert", "choice"), ("electra", "choice"), ("modernbert", "choice"),
        ("roberta", "mlm task"), ("modernbert", "cloze"), ("bert", "classify"),
        ("electra", "classify"), ("roberta", "classify"), ("modernbert", "classify"), ("gpt2", "cpt"),
        ("bloom", "cpt"), ("falcon", "cpt"), *((family, "classify") for family in DECODERS),
    }  # fmt: skip
    ways = ("answer+mlm", "mlm", "cloze", "choice", "mlm task", "classify")
    every = [(family, way) for family in ENCODERS for way in ways]
    every = [cell for cell in every if cell[0] != "electra" or cell[1] in ("choice", "classify")]
    every += [(family, way) for family in DECODERS for way in ("cpt", "classify")]
    return some(every, quick)


@pytest.mark.parametrize("family, way", cells())
def test_a_family_is_trained_and_transformers_loads_what_was_saved_with_the_same_logits(
    family, way, base_of, train_family, tmp_path, capsys
):
    task = {"mlm task": "mlm", "classify": "classify", "cpt": "cpt"}.get(way, "exam")
    assert train_family(base_of(family), task, *([way] if task == "exam" else [])) == 0, (
        capsys.readouterr().err
    )
    kind = KINDS.get(task) or ("choice" if way == "choice" else "masked")
    model, tokenizer = loaded_by_transformers(tmp_path / MODEL, kind)
    torch.testing.assert_close(logits_of(model), train_family.logits, atol=1e-5, rtol=1e-4)
    check_answer(kind, answers(kind, capsys), model, tokenizer)


# ---- layers and adapters -----------------------------------------------------------------------------------


def untrained(base, names=LABELS):
    """The classifier that a run with the default seed begins from."""
    config = load_config(base, FLAG, "classifier")
    name_classes(config, names, False)
    tokenizer = load_tokenizer(base, FLAG, "classifier")
    return load_model(base, config, tokenizer, FLAG, LoadOptions(seed=42, kind="classifier")), tokenizer


def save_untrained(base, names, folder):
    for part in untrained(base, names):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", some(FAMILIES, ("albert", "electra", "gpt2")))
def test_frozen_layers_stay_bit_for_bit_and_all_the_others_learn(
    family, base_of, train_family, tmp_path, capsys
):
    frozen = {"embeddings"} if family == "albert" else {"embeddings", "0"}
    assert train_family(base_of(family), "classify", "--freeze", ",".join(sorted(frozen))) == 0
    start, _ = untrained(base_of(family))
    trained, _ = loaded_by_transformers(tmp_path / MODEL, "classifier")
    after, layers = dict(trained.named_parameters()), LayerGroups(start)
    moved = {layers.group_of(n) for n, value in start.named_parameters() if not torch.equal(value, after[n])}
    assert moved == set(layers.names) - frozen


@pytest.mark.slow
@pytest.mark.parametrize("family", some(FAMILIES, ("bert", "modernbert", "gpt2", "falcon")))
def test_with_lora_the_new_head_is_trained_whole_and_all_of_it_is_merged(
    family, base_of, train_family, tmp_path, capsys
):
    assert train_family(base_of(family), "classify", "--lora_rank", 2) == 0, capsys.readouterr().err
    start, _ = untrained(base_of(family))
    model, tokenizer = loaded_by_transformers(tmp_path / MODEL, "classifier")
    torch.testing.assert_close(logits_of(model), train_family.logits, atol=1e-3, rtol=0)
    after = dict(model.named_parameters())
    still = {name for name, value in start.named_parameters() if torch.equal(value, after[name])}
    assert start.new_weights and not start.new_weights & still
    moved = after.keys() - still - start.new_weights
    assert moved and all(name.endswith(".weight") and after[name].ndim == 2 for name in moved)
    embeddings = start.get_input_embeddings().weight
    assert torch.equal(embeddings, model.get_input_embeddings().weight)
    check_answer("classifier", answers("classifier", capsys), model, tokenizer)


@pytest.mark.parametrize("family", some(FAMILIES, ("electra", "roberta", "bloom", "qwen2")))
def test_an_adapter_kept_apart_brings_its_head_along(family, base_of, train_family, tmp_path, capsys):
    assert train_family(base_of(family), "classify", "--lora_rank", 2, "--no_merge") == 0, (
        capsys.readouterr().err
    )
    assert not (tmp_path / MODEL / "model.safetensors").exists()
    model, tokenizer, _ = inference.load_model(tmp_path / MODEL, "cpu")
    torch.testing.assert_close(logits_of(model), train_family.logits, atol=1e-5, rtol=1e-4)
    check_answer("classifier", answers("classifier", capsys), model, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODERS)
def test_a_multiple_choice_head_is_trained_whole_beside_adapters_too(
    family, base_of, train_family, tmp_path, capsys
):
    assert train_family(base_of(family), "exam", "choice", "--lora_rank", 2) == 0, capsys.readouterr().err
    model, _ = loaded_by_transformers(tmp_path / MODEL, "choice")
    torch.testing.assert_close(logits_of(model), train_family.logits, atol=1e-3, rtol=0)


# ---- rows of unequal length --------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["a new head", "a head that was saved"])
@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_a_decoder_reads_a_row_to_its_end_whatever_the_padding_of_its_batch(family, again, base_of, tmp_path):
    model, tokenizer = untrained(base_of(family))
    if again:  # by others, who padded with the end of text
        shutil.copytree(base_of(family), tmp_path / "saved")
        model.config.pad_token_id = tokenizer.eos_token_id
        model.save_pretrained(tmp_path / "saved")
        tokenizer.save_pretrained(tmp_path / "saved")
        model, tokenizer = untrained(tmp_path / "saved")
        assert not model.new_weights
    rng, model = random.Random(1), model.eval()
    rows = [tokenizer(random_text(rng, 3, 40))["input_ids"] for _ in range(12)]
    rows[3].append(tokenizer.eos_token_id)
    ids, mask = padded(rows, tokenizer.pad_token_id)
    together = forward_of(model)(ids, mask, torch.arange(len(rows)), torch.zeros(len(rows), dtype=int))
    body = getattr(model, model.base_model_prefix)
    for row, logits in zip(rows, together, strict=True):
        last = body(input_ids=torch.tensor([row]))[0][0, -1]
        torch.testing.assert_close(logits, model.score(last), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "family",
    (
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "roberta-prelayernorm",
        "data2vec-text",
        "longformer",
        "luke",
        "mpnet",
        "bert",
        "albert",
        "electra",
        "gpt2",
    ),
)
@torch.no_grad()
def test_a_row_is_as_long_as_positions_allow_and_not_a_token_longer(family):
    more = {"embedding_size": 16} if family in ("albert", "electra") else {}
    config = transformers.AutoConfig.for_model(
        family, vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=40 + 2 * (family in AFTER_PADDING), pad_token_id=1,
        bos_token_id=0, eos_token_id=2, attention_window=8, entity_vocab_size=10, entity_emb_size=8, **more,
    )  # fmt: skip
    longest = prompt_length(config, SimpleNamespace(model_max_length=10**30), 100)
    model = transformers.AutoModel.from_config(config).eval()
    model(torch.full((1, longest), 7))
    with pytest.raises((RuntimeError, IndexError)):
        model(torch.full((1, longest + 1), 7))


@pytest.mark.parametrize("family", ["modernbert", "bloom", "falcon"])
@torch.no_grad()
def test_a_family_without_a_table_of_positions_reads_as_far_as_it_is_asked_to(family, base_of):
    config = transformers.AutoConfig.from_pretrained(base_of(family))
    if family == "modernbert":
        config.max_position_embeddings = 8192
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_of(family))
    assert prompt_length(config, tokenizer, 600) == 600
    model = transformers.AutoModel.from_config(config).eval()
    assert torch.isfinite(model(torch.full((1, 600), 7))[0]).all()


# ---- what cannot be trained --------------------------------------------------------------------------------


@pytest.fixture
def refused(train_family, tmp_path, capsys):
    """Runs what must end with exit code 2, one reason and no model; returns what was said."""

    def run(base, task, *argv) -> str:
        capsys.readouterr()
        assert train_family(base, task, *argv) == 2
        told = capsys.readouterr().err
        assert told.count("✗") == 1 and "Traceback" not in told and not (tmp_path / MODEL).exists()
        return told

    return run


def edited(base, folder, change=None, **config):
    """A copy of a model's folder with other weights, or other lines in config.json."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    if change:
        change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def dropping(*parts: str):
    def change(weights):
        for name in [name for name in weights if any(part in name for part in parts)]:
            del weights[name]

    return change


WORDS = {
    "bert": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
}
TASK = {"bert": ("exam", "mlm"), "llama": ("cpt",)}


@pytest.mark.parametrize("task", [("exam", "answer+mlm"), ("mlm",)])
def test_an_encoder_without_its_vocabulary_head_is_refused(task, refused, tmp_path):
    bare = make_family(tmp_path / "bare", "bert", "AutoModel")
    told = refused(bare, *task)
    assert "權重只有編碼器" in told and "沒有填 [MASK] 的輸出層" in told and "--task classify" in told


def test_a_classifier_is_refused_for_an_exam_and_for_another_kind_of_head(refused, tmp_path):
    sorts = make_family(tmp_path / "sorts", "bert", "AutoModelForSequenceClassification")
    told = refused(sorts, "exam", "answer+mlm")
    assert "BertForSequenceClassification" in told and "不是填空用的遮罩語言模型" in told
    told = refused(sorts, "exam", "choice")
    assert "已經是文字分類模型，不能改成選擇題模型；請換它的底模" in told


def test_electras_discriminator_fills_no_blanks_and_its_generator_does(
    base_of, refused, train_family, tmp_path
):
    for task in (("exam", "cloze"), ("mlm",)):
        told = refused(base_of("electra"), *task)
        assert "discriminator" in told and "--task classify" in told
    generator = make_family(tmp_path / "generator", "electra", "AutoModelForMaskedLM")
    assert train_family(generator, "mlm") == 0
    model, _ = loaded_by_transformers(tmp_path / MODEL, "masked")
    assert type(model).__name__ == "ElectraForMaskedLM"
    torch.testing.assert_close(logits_of(model), train_family.logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_output_weights_that_are_not_the_embeddings_are_refused_where_both_should_be_one(
    family, base_of, refused, tmp_path
):
    embeddings, output = WORDS[family]

    def change(weights):
        weights[output] = weights[embeddings] + 1

    told = refused(edited(base_of(family), tmp_path / "odd", change, tie_word_embeddings=True), *TASK[family])
    assert "權重檔裡兩者卻不同" in told and '"tie_word_embeddings": false' in told


def test_two_output_biases_of_which_saving_would_lose_one_are_refused(base_of, refused, tmp_path):
    def change(weights):
        weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"] + 1

    told = refused(edited(base_of("bert"), tmp_path / "odd", change), *TASK["bert"])
    assert "cls.predictions.decoder.bias 與 cls.predictions.bias" in told


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_output_weights_that_a_file_lacks_are_refused_unless_they_are_the_embeddings(
    family, base_of, refused, train_family, tmp_path
):
    output = WORDS[family][1]
    lacking = edited(base_of(family), tmp_path / "lacking", dropping(output), tie_word_embeddings=False)
    told = refused(lacking, *TASK[family])
    assert output in told and "輸出層會是隨機初始化" in told and '"tie_word_embeddings": true' in told
    assert train_family(edited(lacking, tmp_path / "mended", tie_word_embeddings=True), *TASK[family]) == 0


def test_a_decoder_that_lacks_more_than_a_head_gets_no_new_head(base_of, refused, tmp_path):
    told = refused(edited(base_of("llama"), tmp_path / "x", dropping("model.norm.weight")), "classify")
    assert "model.norm.weight" in told and "這些權重會是隨機初始化" in told


def test_macbert_fills_no_blanks_and_sorts_texts(base_of, refused, train_family, tmp_path, capsys):
    macbert = tmp_path / "hfl-chinese-MacBERT-base"
    shutil.copytree(base_of("bert"), macbert)
    for task in (("exam", "answer+mlm"), ("mlm",)):
        told = refused(macbert, *task)
        assert "MacBERT" in told and "近義詞" in told and "--objective choice" in told
    assert inference.main(["--model_path", str(macbert), "--cpu", "--prompt", "天[MASK]"]) == 2
    assert "MacBERT" in capsys.readouterr().err
    assert train_family(macbert, "classify", "--lora_rank", 2, "--no_merge") == 0
    assert set(answers("classifier", capsys)["probabilities"]) == set(LABELS)


def test_what_is_named_macbert_and_was_trained_here_to_fill_blanks_may_do_so(
    base_of, train_family, tmp_path, capsys
):
    assert train_family(base_of("bert"), "mlm", "--output_dir", "like_macbert") == 0
    assert answers("masked", capsys, tmp_path / "like_macbert")["predictions"]


@pytest.mark.slow
def test_a_classifier_goes_on_with_its_own_labels_alone(
    refused, train_family, sources, base_of, tmp_path, capsys
):
    told = refused(save_untrained(base_of("bert"), ("好", "壞", "普通"), tmp_path / "other"), "classify")
    assert "好、壞、普通" in told and all(label in told for label in LABELS) and "底模" in told
    assert (
        train_family(base_of("bert"), "classify", "--output_dir", "first/model", "--save_dir", "first/ck")
        == 0
    )
    assert train_family(tmp_path / "first/model", "classify") == 0
    assert "換上新的輸出層" not in capsys.readouterr().err.split("first/model：")[-1]


@pytest.mark.slow
def test_a_classifier_keeps_its_own_order_of_labels_and_those_the_data_do_not_use(
    train_family, base_of, sources, tmp_path, capsys
):
    own, rng = ("無", *LABELS[::-1]), random.Random(6)
    base = save_untrained(base_of("bert"), own, tmp_path / "own")
    rows = [[HAN[number % 3] * 4 + random_text(rng, 3, 9), LABELS[number % 3]] for number in range(60)]
    data = write_csv(tmp_path / "more.csv", rows, ("text", "label"))
    assert train_family(base, "classify", "--dataset", data, "--max_steps", 60, "--train_batch_size", 16) == 0
    assert f"標籤照底模的順序：{'、'.join(own)}；資料沒有用到其中 1 個" in capsys.readouterr().err
    model, tokenizer, device = inference.load_model(tmp_path / MODEL, "cpu")
    assert model.config.id2label == dict(enumerate(own))
    found = inference.classify(model, tokenizer, [text for text, _ in rows], device)
    assert sum(ranked[0][0] == label for ranked, (_, label) in zip(found, rows, strict=True)) > 55


@pytest.mark.parametrize(
    "family, task, says",
    [
        ("qwen2", ("exam", "choice"), ("qwen2", "不能當選擇題模型的底模", "--task sft")),
        ("gpt2", ("exam", "answer"), ("GPT2LMHeadModel", "不是填空用的遮罩語言模型")),
        ("bert", ("sft",), ("BertForMaskedLM", "不是生成文字的因果語言模型", "Qwen/Qwen2.5-0.5B")),
        ("roberta", ("cpt",), ("RobertaForMaskedLM", "不是生成文字的因果語言模型")),
    ],
)
def test_a_model_of_another_kind_is_refused(family, task, says, base_of, refused, sources):
    sources["sft"] = write_csv(
        sources["exam"].parent / "rows.csv", [["天？", "地"]] * 9, ("instruction", "output")
    )
    told = refused(base_of(family), *task)
    assert all(word in told for word in says)


# ---- by name, from the hub ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_base_comes_from_the_hub_by_name_and_macbert_is_refused_before_its_weights_are_fetched(
    tmp_path, base_of, sources
):
    bert = base_of("bert")
    command = [sys.executable, ROOT / "fine_tuning_llm.py", "--cpu", "--max_steps", 2]
    with LoopbackHub({"google-bert/tiny": bert, "hfl/chinese-macbert-base": bert}, {}) as hub:
        more = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        more["HF_HUB_DISABLE_XET"] = "1"
        words = [FLAG, "hfl/chinese-macbert-base", "--dataset", sources["exam"]]
        done = run_bare([*command, *words], tmp_path, **more)
        assert done.returncode == 2 and "MacBERT" in done.stderr and "Traceback" not in done.stderr
        assert any("config.json" in path for path in hub.asked)
        assert not any("safetensors" in path and "resolve" in path for path in hub.asked)
        words = [FLAG, "google-bert/tiny", "--task", "classify", "--dataset", sources["classify"]]
        done = run_bare([*command, *words], tmp_path, **more)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "google-bert/tiny：已載入，換上新的輸出層" in done.stderr
    model, _ = loaded_by_transformers(tmp_path / MODEL, "classifier")
    assert list(model.config.id2label.values()) == list(LABELS)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_a_family_whose_question_head_cannot_find_its_body_is_refused_before_loading(model_type):
    from transformers import AutoConfig

    from finetune.models.kinds import mismatch_reason

    config = AutoConfig.for_model(model_type, architectures=["X", f"{model_type.title()}ForCausalLM"])
    assert "不能當抽取式問答模型的底模" in mismatch_reason(config, "extractor", "x")
    assert not mismatch_reason(config, "tagger", "x")
