"""Units of texts and their tokens: no character shifts a span, whatever the tokenizer makes of it."""

from __future__ import annotations

import random

import pytest
from conftest import make_vocabulary

from finetune.data.tag_schemes import TagSet, tag_names
from finetune.data.tagged import TaggedRow
from finetune.data.text_units import Span, text_units
from finetune.evaluation.tagging import gold_tags, text_spans
from finetune.models.unit_tokens import UnitTokenizer

PIECES = (
    *"天地玄黃，。「」（）", "台北", "😀", "👨\u200d👩\u200d👧\u200d👦", "👍🏽", "🇹🇼",
    "❤\ufe0f", "ＡＢＣ", "１２３", "％", "𠀀", "𪚥", "𰻞", "\U00030edd", "Hello", "WORLD", "naïve",
    "cafe\u0301", "İstanbul", "ﬁ", "½", "①", "2026", "3.14", "don't", "[MASK]", "[UNK]", "<s>", "</s>",
    "▁", "Ġ", " ", "  ", "\u3000", "\n", "\t", "한국어", "かな", "ไทย", "Ω", "ß", "ſ", "\u200b",
    "\u00ad", "…",
)  # fmt: skip
TAGS = TagSet(tuple(tag_names(["PER", "地 名"], {"B": "B", "I": "I", "E": "E", "S": "S"}, True)))


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 40)))


def random_spans(rng: random.Random, units) -> tuple[Span, ...]:
    spans, at = [], 0
    while at < len(units):
        at += rng.randint(0, 2)
        end = min(len(units), at + rng.randint(1, 4))
        if at < end:
            spans.append(Span(units[at][0], units[end - 1][1], rng.choice(TAGS.labels)))
        at = end
    return tuple(spans)


def bert(lower: bool = True):
    from transformers import BertTokenizer

    return BertTokenizer(
        vocab={word: number for number, word in enumerate(make_vocabulary())}, do_lower_case=lower
    )


def byte_level():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "<pad>"])
    bpe.train_from_iterator(["".join(PIECES)] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>")


def sentencepiece(algorithm: str = "unigram"):
    """A tokenizer as XLM-R's and ALBERT's: NFKC, white space as ▁, words of several characters."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>", "<pad>"]
    piece = Tokenizer(models.Unigram())
    piece.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    piece.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    piece.train_from_iterator(["".join(PIECES), "台北天地玄黃"] * 20, trainer)
    piece.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=piece, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.slow
def test_ten_thousand_spans_come_back_exactly_from_a_tokenizer_that_lower_cases():
    rng, count = random.Random(7), 0
    texts = [random_text(rng) for _ in range(1600)]
    encoded = UnitTokenizer(bert(), 24, 6).encode(texts)
    for text, parts in zip(texts, encoded, strict=True):
        assert list(parts.units) == text_units(text)  # all of them, whatever the vocabulary holds
        spans = random_spans(rng, parts.units)
        gold, exact = gold_tags(TaggedRow(text, spans), parts.units, TAGS)
        back = [span for span, _ in text_spans(text, parts.units, gold, TAGS)]
        assert exact and back == list(spans)
        count += len(spans)
    assert count > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_spans_that_its_tokens_can_write_come_back_from_a_tokenizer_that_does_not_split_characters(make):
    rng, tokenizer, count = random.Random(8), make(), 0
    texts = [random_text(rng) for _ in range(500)]
    for text, parts in zip(texts, UnitTokenizer(tokenizer, 24, 6).encode(texts), strict=True):
        spans = random_spans(rng, parts.units)
        gold, exact = gold_tags(TaggedRow(text, spans), parts.units, TAGS)
        back = [span for span, _ in text_spans(text, parts.units, gold, TAGS)]
        assert exact and back == list(spans)
        count += len(spans)
        finest = {edge for unit in text_units(text) for edge in unit}
        assert {edge for unit in parts.units for edge in unit} <= finest  # joined, never divided
        if parts.units:
            whole = "".join(text[start:end] for start, end in parts.units)
            assert "".join(whole.split()) == "".join(text.split())  # no character is left out
    assert count > 1500


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_no_token_lies_in_two_units_and_each_unit_is_read_at_its_first(make):
    rng, tokenizer = random.Random(9), make()
    texts = [random_text(rng) for _ in range(200)]
    for text, parts in zip(texts, UnitTokenizer(tokenizer, 4096).encode(texts), strict=True):
        encoding = tokenizer(text, return_offsets_mapping=True, split_special_tokens=True)
        if not parts.units:
            continue
        (window,) = parts.windows
        assert list(window.ids) == encoding["input_ids"]
        offsets = encoding["offset_mapping"]
        first = dict(zip(window.units, window.positions, strict=True))
        for number, (unit_start, unit_end) in enumerate(parts.units):
            inside = [
                at for at, (start, end) in enumerate(offsets)
                if start < unit_end and end > unit_start and text[start:end].strip()
            ]  # fmt: skip
            blank = [at for at in inside if tokenizer.convert_ids_to_tokens(window.ids[at]) in ("▁", "Ġ")]
            assert first[number] == min(at for at in inside if at not in blank)
            for at in inside:
                start, end = offsets[at]
                visible = text[start:end]
                start += len(visible) - len(visible.lstrip())
                end -= len(visible) - len(visible.rstrip())
                assert at in blank or (unit_start <= start and end <= unit_end)


def test_characters_that_the_vocabulary_lacks_keep_a_token_each():
    tokenizer = bert()
    text = "天😀𠀀Ａ\u200d地"
    (parts,) = UnitTokenizer(tokenizer, 64).encode([text])
    (window,) = parts.windows
    ids = list(window.ids)
    assert len(parts.units) == 6 and ids.count(tokenizer.unk_token_id) == 4
    inside = tokenizer.convert_tokens_to_ids(["天", *["[UNK]"] * 4, "地"])
    assert ids == [tokenizer.cls_token_id, *inside, tokenizer.sep_token_id]


def test_special_tokens_in_a_text_are_text():
    tokenizer = bert()
    (parts,) = UnitTokenizer(tokenizer, 64).encode(["天[MASK]地[SEP]"])
    ids = list(parts.windows[0].ids)
    assert tokenizer.mask_token_id not in ids and ids.count(tokenizer.sep_token_id) == 1
    assert list(parts.units) == [
        (0, 1),
        (1, 2),
        (2, 6),
        (6, 7),
        (7, 8),
        (8, 9),
        (9, 12),
        (12, 13),
    ]


@pytest.mark.parametrize("make", [bert, byte_level, sentencepiece])
def test_each_unit_of_a_long_text_is_predicted_once_with_context_around_it(make):
    tokenizer = make()
    units = UnitTokenizer(tokenizer, 20, 8)
    text = "天地玄黃，" * 40 + "Hello naïve"
    (parts,) = units.encode([text])
    assert len(parts.windows) > 5 and all(len(window.ids) <= 20 for window in parts.windows)
    predicted = [unit for window in parts.windows for unit in window.units]
    assert sorted(predicted) == list(range(len(parts.units)))
    (whole,) = UnitTokenizer(tokenizer, 4096, 8).encode([text])
    assert list(whole.units) == list(parts.units)
    ids = dict(zip(whole.windows[0].units, whole.windows[0].positions, strict=True))
    for number, window in enumerate(parts.windows):
        for unit, position in zip(window.units, window.positions, strict=True):
            assert window.ids[position] == whole.windows[0].ids[ids[unit]]
            edge = 1 if number else 0, 1 if number + 1 < len(parts.windows) else 0
            # the overlap is shared: at least half of it, less one, stands on the side of the next window
            assert position >= edge[0] * 3 and len(window.ids) - 1 - position >= edge[1] * 3


def test_a_tokenizer_without_offsets_gets_the_units_one_by_one(tmp_path):
    from transformers import BertJapaneseTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(make_vocabulary()) + "\n", encoding="utf-8")
    tokenizer = BertJapaneseTokenizer(
        str(tmp_path / "vocab.txt"), word_tokenizer_type="basic", subword_tokenizer_type="character"
    )
    assert not tokenizer.is_fast
    text = "天😀Hello 地１"
    (parts,) = UnitTokenizer(tokenizer, 64).encode([text])
    assert list(parts.units) == text_units(text)
    assert len(parts.windows[0].positions) == len(parts.units)


@pytest.mark.parametrize("make", [bert, byte_level, sentencepiece])
def test_a_text_of_white_space_has_no_unit(make):
    for parts in UnitTokenizer(make(), 16).encode(["", " \n\u3000"]):
        assert not parts.windows and not list(parts.units)
