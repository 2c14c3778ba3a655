"""Masks for text that is written without spaces, and the words they go by."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from conftest import make_vocabulary, random_text

from finetune.cli.train_args import MASKINGS
from finetune.data.segmentation import token_words, word_spans
from finetune.objectives.masked_lm import MaskingConfig, apply_mask, maskable_units

WORDS = [
    "臺灣",
    "經濟學",
    "人工智慧",
    "天氣",
    "圖書館",
    "我們",
    "研究",
    "的",
    "是",
    "在",
    "學生",
    "馬鈴薯",
    "machine",
    "learning",
    "dna",
    "GPT-4",
    "covid-19",
    "iphone15",
    "T恤",
    "卡拉OK",
    "2,024",
    "3.14%",
    "2024年",
    "１２３",
    "ＤＮＡ",
    "café",
    "naïve",
    "Tâi-gí",
    "русский",
    "İstanbul",
    "한국어",
    "，",
    "。",
    "（",
    "）",
    "😀",
    "👩\u200d🔬",
] + [" ", "  ", "\n", "\u3000", "\u200b"]
MASK = 4  # [MASK] in the vocabulary below
VOCAB = range(1000, 2000)  # replacements, none of them a token of the rows below


def mixed_text(rng: random.Random, low=1, high=40) -> str:
    return "".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


@pytest.fixture(scope="module")
def wordpiece():
    """Like bert-base-chinese: a character a token, but `##` pieces for the rest; it knows no emoji."""
    from transformers import BertTokenizer

    known = make_vocabulary()
    more = sorted(set("".join(WORDS).lower()) - set("😀👩🔬 \n\u3000\u200b\u200d") - set(known))
    vocabulary = [*known, *more, *("##" + letter for letter in more), "learn", "##ing", "cafe", "##３ａ"]
    return BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, do_lower_case=True)


@pytest.fixture(scope="module")
def bytelevel(qwen_dir):
    """Tokens that hold parts of characters, and spaces at the front of words."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(qwen_dir)


@pytest.fixture(scope="module")
def metaspace():
    """Like XLM-R's: `▁` for a space, also by itself before a character."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "▁", "▁我們", "的天", "年", "2", "▁mach", "ine", *sorted(set("".join(WORDS)) - {" "})]
    unigram = Tokenizer(models.Unigram([(piece, -float(len(piece) < 2) - 1) for piece in pieces], unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")


def encode(tokenizer, text):
    """(ids, offsets) of a text."""
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    return encoded["input_ids"], encoded["offset_mapping"]


def plain_token_words(tokenizer, text) -> list[list[int]]:
    """Joins whatever shares a visible character or a word until nothing changes."""
    _, places = encode(tokenizer, text)
    word_of = [number for number, (start, end) in enumerate(word_spans(text)) for _ in range(start, end)]
    groups, waiting = [], []
    for token, (start, end) in enumerate(places):
        words = {word_of[at] for at in range(start, end) if not text[at].isspace()}
        waiting.append(token)
        if words:
            groups.append((waiting, words))
            waiting = []
    if waiting:
        tokens, words = groups.pop() if groups else ([], set())
        groups.append((tokens + waiting, words))
    while True:
        met = [(i, j) for i in range(len(groups)) for j in range(i) if groups[i][1] & groups[j][1]]
        if not met:
            return sorted(sorted(tokens) for tokens, _ in groups)
        (tokens, words), (other, more) = groups.pop(met[0][0]), groups.pop(met[0][1])
        groups.append((tokens + other, words | more))


@pytest.mark.parametrize("name", ["wordpiece", "bytelevel", "metaspace"])
def test_the_tokens_of_words_are_those_that_a_slow_search_joins(name, request):
    tokenizer, rng = request.getfixturevalue(name), random.Random(0)
    texts = ["", " ", "\n\n", "天", "[MASK]天", *(mixed_text(rng, 1, 15) for _ in range(300))]
    for text in texts:
        words = token_words(tokenizer, text)
        assert words == plain_token_words(tokenizer, text), text
        assert [token for word in words for token in word] == list(range(len(encode(tokenizer, text)[0])))


def test_a_run_of_letters_or_digits_and_a_number_are_one_word():
    for text, words in {
        "machine learning是": "machine| |learning|是",
        "GPT-4與covid-19": "GPT|-|4|與|covid|-|19",
        "2,024元與3.14%": "2,024|元|與|3.14%",
        "iPhone15手機": "iPhone15|手機",
        "１２３．５％ＤＮＡ": "１２３．５％|ＤＮＡ",
        "café Tâi-gí o\u0358": "café| |Tâi|-|gí| |o\u0358",
        "選1,2,3，12，345": "選|1|,|2|,|3|，|12|，|345",
        "3×4臺灣": "3|×|4|臺灣",
        "12,3456是第3.章": "12|,|3456|是|第|3|.|章",
    }.items():
        assert [text[start:end] for start, end in word_spans(text)] == words.split("|")


def rows_of_words(rng, low, high, tokens=100_000):
    """Rows of words of 1 to 4 positions, behind a [CLS]: (ids, words)."""
    rows = []
    while tokens > 0:
        left, words, at = rng.randint(low, high), [], 1
        while left > 0:
            size = min(left, rng.choices((1, 2, 3, 4), (5, 4, 1, 1))[0])
            words.append(list(range(at, at + size)))
            at, left = at + size, left - size
        rows.append(([2, *range(100, 99 + at), 3], words))
        tokens -= at - 1
    return rows


def is_near(samples, expected):
    """Whether the mean of independent samples is what it should be, within three standard errors."""
    mean = sum(samples) / len(samples)
    variance = sum((x - mean) ** 2 for x in samples) / (len(samples) - 1)
    return abs(mean - expected) <= 3 * (variance / len(samples)) ** 0.5 + 1e-12


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_share_masked_is_the_rate_whatever_is_masked_together(masking, rate):
    rng, over = random.Random(1), []
    for ids, words in rows_of_words(rng, 27 if masking == "word" else 35, 200):  # no unit beyond its budget
        _, chosen = apply_mask(ids, words, MASK, VOCAB, rng, MaskingConfig(masking, rate))
        assert set(chosen) <= set(range(1, len(ids) - 1)) and list(chosen) == sorted(set(chosen))
        over.append(len(chosen) - rate * (len(ids) - 2))
        assert abs(over[-1]) < {"token": 1, "word": 4, "span": 13}[masking]
    assert is_near(over, 0)


def test_single_tokens_of_short_rows_are_masked_at_the_exact_rate():
    rng, tokens = random.Random(0), MaskingConfig("token")
    for size in (7, 8, 10, 13, 19):
        over = [
            len(apply_mask([9] * size, [range(size)], MASK, VOCAB, rng, tokens)[1]) - 0.15 * size
            for _ in range(20_000)
        ]
        assert min(over) > -1 and max(over) < 1 and is_near(over, 0)


def test_a_unit_beyond_the_budget_adds_what_the_docstring_says():
    rng, words = random.Random(2), [[0], [1, 2], [3], [4, 5, 6, 7, 8], [9], [10, 11]]
    budget = 0.15 * 12
    counts = [len(apply_mask(range(100, 112), words, MASK, VOCAB, rng)[1]) for _ in range(40_000)]
    assert min(counts) == 1
    assert is_near(counts, budget + sum(max(0, len(word) - budget) for word in words) / len(words))


def test_every_word_has_the_same_chance_however_long():
    rng, words = random.Random(3), [[0], [1, 2], [3], [4, 5, 6], [7], [8, 9], *([i] for i in range(10, 20))]
    draws = 40_000
    masked = Counter(p for _ in range(draws) for p in apply_mask([9] * 20, words, MASK, VOCAB, rng)[1])
    for word in words:
        assert {masked[p] for p in word} == {masked[word[0]]}
        assert masked[word[0]] / draws == pytest.approx(0.15, abs=3.5 * (0.15 * 0.85 / draws) ** 0.5)


@pytest.mark.slow
def test_every_token_has_the_same_chance_in_spans_also_at_the_ends_of_a_row():
    rng, draws = random.Random(4), 20_000
    units = [[i] for i in range(80)]
    spans = MaskingConfig("span")
    masked = Counter(p for _ in range(draws) for p in apply_mask([9] * 80, units, MASK, VOCAB, rng, spans)[1])
    off = [(masked[p] / draws - 0.15) / (0.15 * 0.85 / draws) ** 0.5 for p in range(80)]
    assert max(map(abs, off)) < 4 and abs(off[0]) < 3 and abs(off[-1]) < 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wordpiece", "bytelevel"])
@pytest.mark.parametrize("masking", ["word", "span"])
def test_no_word_is_half_masked(name, masking, request):
    """Checked by characters: a word's tokens are those that lie over it."""
    tokenizer, rng, split, masked = request.getfixturevalue(name), random.Random(5), 0, 0
    unknown = tokenizer.unk_token_id
    for _ in range(400):
        text = mixed_text(rng, 1, 60)
        ids, places = encode(tokenizer, text)
        units = maskable_units(token_words(tokenizer, text), ids, {unknown})
        if all(token == unknown for token in ids):
            continue
        seen, chosen = apply_mask(ids, units, MASK, VOCAB, rng, MaskingConfig(masking, 0.3, all_masked=True))
        assert [i for i, token in enumerate(seen) if token == MASK] == list(chosen)
        for start, end in word_spans(text):
            over = {i for i, (s, e) in enumerate(places) if text[max(s, start) : min(e, end)].strip()}
            if any(any(set(unit) & over for unit in units) and ids[i] == unknown for i in over):
                continue  # a row of which every word holds an [UNK]
            assert not over & set(chosen) or over <= set(chosen), (text, text[start:end])
            masked += bool(over & set(chosen))
            split += len(over) > 1
    assert split > 1000 and masked > 500


def test_a_word_with_a_special_token_is_not_masked_unless_there_is_no_other():
    assert maskable_units([[1], [2, 3], [4, 5]], [2, 7, 1, 8, 9, 9, 3], {1, 2, 3}) == [[1], [4, 5]]
    assert maskable_units([[1, 2, 3], [4, 5]], [2, 7, 1, 8, 9, 1, 3], {1, 2, 3}) == [[1], [3], [4]]
    assert maskable_units([[0], [1]], [1, 1], {1}) == [] == maskable_units([], [2, 3], {2, 3})


@pytest.mark.parametrize("masking", MASKINGS)
def test_special_tokens_and_padding_are_never_masked(masking, wordpiece):
    rng, special = random.Random(6), set(wordpiece.all_special_ids)
    for _ in range(300):
        text = mixed_text(rng) + "天"
        ids = wordpiece("[MASK]" + text, split_special_tokens=True)["input_ids"]
        ids += [wordpiece.pad_token_id] * 9
        words = [[1 + token for token in word] for word in token_words(wordpiece, "[MASK]" + text)]
        units = maskable_units(words, ids, special)
        seen, chosen = apply_mask(ids, units, MASK, VOCAB, rng, MaskingConfig(masking, 0.5))
        assert not special & {ids[i] for i in chosen}
        assert all(seen[i] == token for i, token in enumerate(ids) if i not in chosen)


@pytest.mark.parametrize("masking", MASKINGS)
def test_a_row_of_one_character_still_has_its_target(masking):
    for seed in range(50):
        _, chosen = apply_mask((2, 9, 3), [[1]], MASK, VOCAB, random.Random(seed), MaskingConfig(masking))
        assert chosen == (1,)
    with pytest.raises(ValueError):
        apply_mask((2, 3), [], MASK, VOCAB, random.Random(0), MaskingConfig(masking))
    with pytest.raises(ValueError):
        apply_mask((2, 9, 3), [[1]], MASK, VOCAB, random.Random(0), MaskingConfig("words"))


@pytest.mark.parametrize("masking", MASKINGS)
def test_masked_tokens_are_80_10_10_each_for_itself_or_all_masks(masking):
    rng, kinds, words_alike, long_words = random.Random(7), Counter(), 0, 0
    for ids, words in rows_of_words(rng, 20, 200):
        seen, chosen = apply_mask(ids, words, MASK, VOCAB, rng, MaskingConfig(masking))
        what = {i: "mask" if seen[i] == MASK else "same" if seen[i] == ids[i] else "random" for i in chosen}
        kinds.update(what.values())
        assert all(seen[i] in VOCAB for i in chosen if what[i] == "random")
        whole = [word for word in words if len(word) == 2 and set(word) <= set(chosen)]
        long_words += len(whole)
        words_alike += sum(what[a] == what[b] for a, b in whole)
        masked, chosen = apply_mask(ids, words, MASK, VOCAB, rng, MaskingConfig(masking, all_masked=True))
        assert {masked[i] for i in chosen} == {MASK}
    total = sum(kinds.values())
    for kind, share in (("mask", 0.8), ("random", 0.1), ("same", 0.1)):
        assert kinds[kind] / total == pytest.approx(share, abs=3 * (share * (1 - share) / total) ** 0.5)
    alike = 0.8**2 + 2 * 0.1**2  # of two tokens that are drawn independently
    assert words_alike / long_words == pytest.approx(alike, abs=3 * (alike * (1 - alike) / long_words) ** 0.5)


@pytest.mark.parametrize("masking", MASKINGS)
def test_the_same_seed_masks_the_same_and_another_seed_others(masking):
    rows = rows_of_words(random.Random(8), 20, 200, 5000)

    def drawn(seed):
        rng = random.Random(seed)
        return [apply_mask(*row, MASK, VOCAB, rng, MaskingConfig(masking)) for row in rows]

    random.seed(1)  # of no account
    first = drawn(1)
    random.seed(2)
    assert drawn(1) == first != drawn(2)


def runs(chosen):
    """Lengths of the runs of neighbouring positions."""
    ends = [i for i, (a, b) in enumerate(pairwise(chosen), 1) if b != a + 1]
    return [b - a for a, b in pairwise([0, *ends, len(chosen)])]


@pytest.mark.slow
def test_spans_are_as_long_as_those_of_spanbert():
    """On long rows of single characters, with so few spans that hardly two touch."""
    lengths, chances = range(1, 11), [0.2 * 0.8**k for k in range(10)]
    expected = sum(n * p for n, p in zip(lengths, chances, strict=True)) / sum(chances)
    assert round(expected, 1) == 3.8  # as the paper says
    rate, rng, units = 0.01, random.Random(9), [[i] for i in range(4000)]
    found: list[int] = []
    for _ in range(300):
        found += runs(apply_mask([9] * 4000, units, MASK, VOCAB, rng, MaskingConfig("span", rate))[1])
    assert is_near(found, expected / (1 - rate))  # a span meets another at its end with probability `rate`
    for n, chance in zip(lengths, chances, strict=True):
        assert found.count(n) / len(found) == pytest.approx(chance / sum(chances), abs=0.03)


def test_a_span_grows_by_whole_words_and_never_over_a_gap_nor_the_budget():
    rng = random.Random(10)
    words = [[0, 1, 2], [3], [4, 5], [8, 9], [10], [11], [12, 13, 14], [20], *([i] for i in range(21, 61))]
    longest = 0
    for _ in range(3000):
        # a budget of 1.6 tokens
        _, chosen = apply_mask([9] * 61, words, MASK, VOCAB, rng, MaskingConfig("span", 0.03))
        assert len(runs(chosen)) <= 2
        assert any(set(chosen) >= set(word) for word in words)
        longest = max(longest, len(chosen))
    assert longest == 4  # two words that begin within the budget, not ten tokens
    spans = MaskingConfig("span", 0.2)
    whole = {tuple(apply_mask([9] * 61, words, MASK, VOCAB, rng, spans)[1]) for _ in range(3000)}
    assert all(len(set(chosen) & set(word)) in (0, len(word)) for chosen in whole for word in words)
    apart = [[i] for i in range(0, 200, 2)]  # nothing to grow into: masked as single tokens are
    assert {len(apply_mask([9] * 200, apart, MASK, VOCAB, rng, spans)[1]) for _ in range(99)} == {20}
    assert apply_mask([9] * 61, words, MASK, VOCAB, rng, MaskingConfig("span", 1.0))[1] == tuple(
        p for word in words for p in word
    )


def test_whole_word_masks_of_transformers_take_a_chinese_sentence_for_one_word(wordpiece):
    from transformers import DataCollatorForLanguageModeling

    text = random_text(random.Random(0), 30, 30)
    row = wordpiece(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    with pytest.warns(UserWarning, match="mask_replace_prob to 1"):
        collate = DataCollatorForLanguageModeling(wordpiece, whole_word_mask=True, seed=0)
    theirs = Counter(int((collate([dict(row)])["labels"] != -100).sum()) for _ in range(200))
    assert set(theirs) == {0, 30}
    units = [[1 + token for token in word] for word in token_words(wordpiece, text)]
    rng = random.Random(0)
    ours = {len(apply_mask(row["input_ids"], units, MASK, VOCAB, rng)[1]) for _ in range(200)}
    assert ours <= set(range(3, 8))
