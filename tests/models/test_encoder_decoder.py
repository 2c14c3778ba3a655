"""Encoder-decoders write what transformers' `generate` writes, and begin and end as their families do."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from encoder_decoders import FAMILIES, make, make_tokenizer, save

from finetune.models.decoding import Decoding
from finetune.models.encoder_decoder import (
    complete_config,
    mode_of,
    shifted_right,
    take_over_special_tokens,
    target_ids,
)
from finetune.models.generation import Generator, generate_ids
from finetune.models.kinds import kind_of
from finetune.models.kv_cache import BEST, DecodeMode
from finetune.models.loading import LoadOptions, load
from finetune.models.logits import filtered, processed
from finetune.models.tokenizer import load_tokenizer
from finetune.runtime.errors import UserError

ROWS = [[5, 9, 3], [7, 8, 11, 4, 12, 6, 9, 10, 3], [9], [13, 5, 12, 11, 3]]
ROOM = 10


@pytest.fixture(scope="module")
def models():
    """family -> (model, tokenizer); mBART-50 is told its language, as mBART is."""
    made = {family: make(family) for family in FAMILIES}
    for model, tokenizer in made.values():
        take_over_special_tokens(model, tokenizer)
    return made


def by_transformers(model, rows, **options) -> list[list[int]]:
    """New tokens of each row by `generate`, up to the EOS."""
    pad, eos = model.config.pad_token_id, model.config.eos_token_id
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    written = model.generate(ids, attention_mask=mask, max_new_tokens=ROOM, do_sample=False, **options)
    rows = [row[1:] for row in written.tolist()]
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


WAYS = [
    {}, {"repetition_penalty": 1.5, "min_new_tokens": 4}, {"no_repeat_ngram_size": 2},
    {"num_beams": 2}, {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 3, "length_penalty": 0.0, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_generate(models, family, way):
    model, _ = models[family]
    ours = generate_ids(model, ROWS, Decoding(max_new_tokens=ROOM, **way), {model.config.eos_token_id}, 0)
    assert ours == by_transformers(model, ROWS, **way)
    assert mode_of(model) == BEST


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_generate_for_many_texts_and_options(models, family):
    model, _ = models[family]
    rng, top = random.Random(0), model.config.vocab_size
    grid = itertools.product((1, 2, 4), (0.0, 1.0, 2.0), (False, True), (1.0, 1.5), (0, 2), (0, 5))
    for beams, penalty, early, repeats, ngram, least in grid:
        rows = [[rng.randrange(3, top) for _ in range(rng.randint(1, 20))] for _ in range(4)]
        way = {"repetition_penalty": repeats, "no_repeat_ngram_size": ngram, "min_new_tokens": least}
        way |= {"num_beams": beams, "length_penalty": penalty, "early_stopping": early} if beams > 1 else {}
        ours = generate_ids(model, rows, Decoding(max_new_tokens=ROOM, **way), {model.config.eos_token_id}, 0)
        assert ours == by_transformers(model, rows, **way), way


@pytest.mark.parametrize("family", FAMILIES)
def test_slower_modes_write_the_same(models, family):
    model, _ = models[family]
    ends, decoding = {model.config.eos_token_id}, Decoding(max_new_tokens=6, num_beams=2)
    wanted = generate_ids(model, ROWS, decoding, ends, 0)
    try:
        for mode in (DecodeMode(batched=False), DecodeMode(cached=False)):
            object.__setattr__(model, "_decode_mode", mode)
            assert generate_ids(model, ROWS, decoding, ends, 0) == wanted
    finally:
        object.__setattr__(model, "_decode_mode", BEST)


def test_a_draw_has_the_distribution_that_transformers_samples_from(models):
    """First tokens of many draws of one text, against the shares that `generate` computes."""
    model, _ = models["t5"]
    decoding = Decoding(max_new_tokens=1, do_sample=True, temperature=0.8, top_k=5, top_p=0.9, seed=3)
    rows = [ROWS[1]] * 2000
    drawn = [ids[0] for ids in generate_ids(model, rows, decoding, {1}, 0)]
    ids = torch.tensor([ROWS[1]])
    logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[:, -1]
    shares = filtered(processed(logits, ids, decoding), decoding).softmax(-1)[0]
    theirs = model.generate(
        ids, max_new_tokens=1, do_sample=True, temperature=0.8, top_k=5, top_p=0.9, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    torch.testing.assert_close(theirs.scores[0].softmax(-1)[0], shares)
    for token in {*drawn}:
        assert abs(drawn.count(token) / len(rows) - shares[token].item()) < 0.05


def test_the_language_of_the_target_begins_the_text(models):
    zh = {name: models[name][1].convert_tokens_to_ids("zh_CN") for name in ("mbart", "mbart50")}
    assert models["mbart"][0].generation_config.decoder_start_token_id == zh["mbart"]
    assert models["mbart50"][0].generation_config.forced_bos_token_id == zh["mbart50"]
    model = models["mbart50"][0]
    for way in ({}, {"num_beams": 3}):
        ours = generate_ids(model, ROWS, Decoding(max_new_tokens=4, **way), {2}, 0)
        assert all(row[0] == zh["mbart50"] for row in ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_reads_what_transformers_makes_of_the_labels(models, family):
    model, tokenizer = models[family]
    target, cut = target_ids(tokenizer, "天地玄黃", 64)
    assert target == tokenizer(text_target="天地玄黃")["input_ids"] and not cut
    theirs = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([target, target]))
    assert shifted_right(target, model.config) == theirs[0].tolist()
    short, cut = target_ids(tokenizer, "天地玄黃宇宙洪荒", 5)
    assert cut and len(short) == 5
    assert tokenizer.eos_token_id in short[-2:] or family == "bart"


@pytest.mark.parametrize("model_type", ["pegasus", "marian"])
def test_other_families_that_shift_by_their_start_token_read_the_same(model_type):
    from encoder_decoders import BART
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(
        model_type, vocab_size=50, **BART, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0
    )
    model = AutoModelForSeq2SeqLM.from_config(config)
    theirs = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([[4, 5, 6, 1]]))
    assert shifted_right([4, 5, 6, 1], model.config) == theirs[0].tolist()


def test_a_tokenizer_that_writes_no_end_gets_one():
    tokenizer = make_tokenizer("t5")
    plain = tokenizer("天地", add_special_tokens=False)["input_ids"]

    class NoEnd:
        eos_token_id = 1

        def __call__(self, text_target, max_length=99, **options):
            return {"input_ids": plain[:max_length]}

    assert target_ids(NoEnd(), "天地", 9) == ([*plain, 1], False)
    assert target_ids(NoEnd(), "天地", 2) == ([plain[0], 1], True)


def test_a_configuration_that_lacks_its_start_is_completed():
    model, tokenizer = make("t5", decoder_start_token_id=None)
    complete_config(model.config, tokenizer)
    assert model.config.decoder_start_token_id == tokenizer.pad_token_id


def test_texts_stop_strings_streams_and_truncation(models):
    model, tokenizer = models["bart"]
    generator = Generator(model, tokenizer, Decoding(max_new_tokens=12), ())
    whole = generator.generate(["天地玄黃", "日月"])
    assert all(" " not in text for text in whole)  # BERT's tokenizer puts one between Chinese characters
    streams = [generator.stream(tokenizer(text)["input_ids"]) for text in ("天地玄黃", "日月")]
    assert ["".join(stream) for stream in streams] == whole
    assert [stream.truncated for stream in streams] == [text.truncated for text in whole]
    # BART must end with an EOS at the last token: that is no end of its own
    ids = generate_ids(model, [tokenizer("天地玄黃")["input_ids"]], generator.decoding, {3}, 0)[0]
    assert whole[0].truncated == (len(ids) == 12)
    text = next(text for text in whole if len(text) > 2)
    stopped = Generator(model, tokenizer, Decoding(max_new_tokens=12, stop=text[1]), ())
    assert stopped.generate([("天地玄黃", "日月")[whole.index(text)]]) == [text[: text.index(text[1])]]


def test_texts_that_are_empty_or_too_long_are_refused_together(models):
    model, tokenizer = models["bart"]
    generator = Generator(model, tokenizer, Decoding(max_new_tokens=3), ())
    with pytest.raises(UserError) as refused:
        generator.generate([[5, 3], [], [5] * 65])
    assert [problem[:4] for problem in refused.value.problems] == ["第 2 ", "第 3 "]


def test_a_bart_fills_blanks_unless_it_is_loaded_to_write(tmp_path):
    folder = save(tmp_path / "bart", "bart")
    model, _ = load(str(folder), "--model_path")
    assert kind_of(model.config) == "masked"
    model, _ = load(str(folder), "--model_path", LoadOptions(kind="seq2seq"))
    assert kind_of(model.config) == "seq2seq"


def test_a_tokenizer_without_an_end_or_padding_is_refused(tmp_path):
    folder = save(tmp_path / "t5", "t5")
    tokenizer = load_tokenizer(str(folder), "--model", "seq2seq")
    assert tokenizer.mask_token_id is None and tokenizer.eos_token_id == 1
    from transformers import AutoTokenizer

    broken = AutoTokenizer.from_pretrained(folder)
    broken.pad_token = None
    broken.save_pretrained(folder)
    with pytest.raises(UserError, match="pad_token"):
        load_tokenizer(str(folder), "--model", "seq2seq")
