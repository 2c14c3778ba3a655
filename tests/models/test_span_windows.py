"""Windows of questions and passages: no character is shifted, none is left out."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from conftest import HAN, make_vocabulary
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from finetune.models.span_windows import LEAST_ROOM, QuestionTooLongError, SpanWindows

ODD = (  # emoji (families, flags, keycaps, skin), full-width, Ext-B and later, accents, digits, scripts
    "😀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇹🇼", "1️⃣", "👍🏽", "Ａ", "ｂ", "２", "％", "　", "𠮷", "𪜶", "𫝀", "𬺰", "𮯠",
    "𰻞", "㐀", "é", "İ", "ß", "ﬁ", "2018", "iPhone", "ATP", "、", "。", " ", "\n", "한국", "かな", "ไทย",
    "\u00ad",
)  # fmt: skip


@pytest.fixture(scope="module")
def lower_casing():
    """A lower-casing BERT tokenizer that knows few of the odd characters."""
    vocabulary = make_vocabulary()
    return BertTokenizer(vocab={word: at for at, word in enumerate(vocabulary)}, do_lower_case=True)


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of another family with its own separators: `roberta` (byte-level), `albert` (Unigram)."""
    corpus = ["天地玄黃 hello world", "日月盈昃 the passage and the question"] * 50 + list(HAN)
    if kind == "roberta":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
        made.train_from_iterator(corpus, trainer)
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    else:
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["<pad>", "<unk>", "[CLS]", "[SEP]"]
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>")
        made.train_from_iterator(corpus, trainer)
        made.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )  # fmt: skip
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def pieces_of(rng: random.Random) -> list[str]:
    """A text in pieces: an answer may begin and end with any of them."""
    return [rng.choice(ODD) if rng.random() < 0.6 else rng.choice(HAN) for _ in range(rng.randint(20, 90))]


def test_10000_spans_with_emoji_and_rare_characters_are_the_characters_that_were_marked(lower_casing):
    rng, checked = random.Random(1), 0
    windows_of = SpanWindows(lower_casing, 64, 8)
    while checked < 10_000:
        pieces = pieces_of(rng)
        starts, text = [], ""
        for piece in pieces:
            starts.append(len(text))
            text += piece
        made = windows_of("何？", text)
        for _ in range(60):
            first = rng.randrange(len(pieces))
            last = min(len(pieces) - 1, first + rng.randrange(5))
            start, end = starts[first], starts[last] + len(pieces[last])
            gold = text[start:end]
            if gold != gold.strip() or not _whole_words(text, start, end):
                continue
            checked += 1
            tokens = made[0].tokens
            begin, stop = tokens.cover(start, end)
            assert text[tokens.starts[begin] : tokens.ends[stop]] == gold
            for window in made:
                places = window.places(start, end)
                if places != (window.null, window.null):
                    shift = window.part.start - window.first
                    found = text[tokens.starts[places[0] + shift] : tokens.ends[places[1] + shift]]
                    assert found == gold


def _whole_words(text: str, start: int, end: int) -> bool:
    """Whether no word of letters is divided: what lies within a word has no token of its own anywhere."""
    from finetune.data.text_units import text_units

    borders = {border for unit in text_units(text) for border in unit}
    return start in borders and end in borders


def test_single_characters_are_told_apart_wherever_an_answer_ends(lower_casing):
    """Of scripts without words, emoji, full-width letters and unknown words, any two can be divided."""
    text = "甲😀👨‍👩‍👧ＡＢ２０𠮷𰻞𰻞，「乙」 Москва 1️⃣"
    tokens = SpanWindows(lower_casing, 64, 8)("何？", text)[0].tokens
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            if text[start].isspace() or text[end - 1].isspace():
                continue
            first, last = tokens.cover(start, end)
            assert (tokens.starts[first], tokens.ends[last]) == (start, end)


@pytest.mark.parametrize("length", [32, 48, 64, 512])
@pytest.mark.parametrize("stride", [0, 8, 300])
def test_windows_hold_all_of_the_passage_and_none_is_too_long(lower_casing, length, stride):
    rng = random.Random(2)
    text = "".join(pieces_of(rng) + pieces_of(rng))
    made = SpanWindows(lower_casing, length, stride)("天地玄黃？", text)
    assert all(len(window) == len(window.ids) == len(window.segments) <= length for window in made)
    assert {at for window in made for at in window.part} == set(range(len(made[0].tokens)))
    covered = {
        at for a, b in zip(made[0].tokens.starts, made[0].tokens.ends, strict=True) for at in range(a, b)
    }
    assert covered == {at for at, char in enumerate(text) if not char.isspace()}
    for one, other in pairwise(made):
        shared = one.part.stop - other.part.start
        assert shared >= min(stride, len(one.part) // 2)


def test_a_question_leaves_room_for_the_passage_or_is_refused(lower_casing):
    windows_of = SpanWindows(lower_casing, 64, 8)
    longest = 64 - 3 - LEAST_ROOM
    assert all(len(window.part) >= LEAST_ROOM for window in windows_of("天" * longest, "地" * 99))
    with pytest.raises(QuestionTooLongError, match=f"{longest + 1} 個 token"):
        windows_of("天" * (longest + 1), "地" * 99)
    assert len(windows_of("天" * (longest + 10), "地" * 6)) == 1  # a short passage needs less


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert"])
def test_pairs_are_written_as_the_tokenizer_writes_them(kind, lower_casing):
    tokenizer = lower_casing if kind == "bert" else trained(kind)
    for question, context in (("天地？", "玄黃 hello 宇宙"), ("the question", "Hello world, 日月盈昃。")):
        window = SpanWindows(tokenizer, 256, 8)(question, context)[0]
        theirs = tokenizer(question, context, return_token_type_ids=True)
        assert list(window.ids) == theirs["input_ids"]
        assert list(window.segments) == theirs["token_type_ids"]
        assert window.ids[window.null] == tokenizer.cls_token_id


@pytest.mark.parametrize("kind", ["roberta", "albert"])
def test_other_tokenizers_cover_an_answer_by_their_offsets(kind):
    rng, tokenizer = random.Random(3), trained(kind)
    for _ in range(40):
        text = "".join(rng.choice(ODD) if rng.random() < 0.3 else rng.choice(HAN + "ab ") for _ in range(40))
        tokens = SpanWindows(tokenizer, 512, 8)("何？", text)[0].tokens
        for _ in range(20):
            start = rng.randrange(len(text))
            end = min(len(text), start + rng.randint(1, 5))
            if text[start:end].strip() != text[start:end]:
                continue
            first, last = tokens.cover(start, end)
            assert tokens.starts[first] <= start and end <= tokens.ends[last]
            assert first == last or tokens.ends[first] > start and tokens.starts[last] < end


def test_special_tokens_in_a_passage_are_text(lower_casing):
    window = SpanWindows(lower_casing, 64, 8)("[MASK]？", "天[SEP]地[CLS]")[0]
    assert list(window.ids).count(lower_casing.sep_token_id) == 2
    assert lower_casing.mask_token_id not in window.ids
