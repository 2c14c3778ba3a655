"""Words into blanks, against an exhaustive loop over the bare model."""

import itertools
import math

import pytest
import torch

import inference
from finetune.predict.predictor import MaskedLMPredictor
from finetune.runtime.errors import UserError


@pytest.fixture(scope="module")
def world(loaded):
    model, tokenizer, device = loaded
    return model, tokenizer, MaskedLMPredictor.of(model, tokenizer, device)


@torch.inference_mode()
def log_prob(model, ids, at, token):
    return model(input_ids=torch.tensor([ids])).logits[0, at].log_softmax(-1)[token].item()


def slow_score(model, tokenizer, before, tokens, after):
    """Mean log-probability of `tokens` in turn, those to the right masked."""
    found, mask = [], tokenizer.mask_token_id
    for number, token in enumerate(tokens):
        inside = [*tokens[:number], *[mask] * (len(tokens) - number)]
        ids = [tokenizer.cls_token_id, *before, *inside, *after, tokenizer.sep_token_id]
        found.append(log_prob(model, ids, 1 + len(before) + number, token))
    return sum(found) / len(found)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_two_blanks_are_filled_with_the_best_pair_of_all(world):
    model, tokenizer, predictor = world
    few = encode(tokenizer, "地玄黃宇宙洪")
    before, after = encode(tokenizer, "天"), encode(tokenizer, "日。")
    scores = {
        pair: slow_score(model, tokenizer, before, list(pair), after)
        for pair in itertools.product(few, repeat=2)
    }
    everything = len(tokenizer) ** 2
    got = predictor.search.words("天[MASK][MASK]日。", everything, 1, beam=everything)
    by_word = {filling.word: filling.score for filling in got}
    for pair, score in scores.items():
        assert by_word[tokenizer.decode(list(pair)).replace(" ", "")] == pytest.approx(score, abs=1e-4)
    ranked = [filling.score for filling in got]
    assert ranked == sorted(ranked, reverse=True)
    narrow = predictor.words("天[MASK][MASK]日。", 3)
    assert [filling.word for filling in narrow] == [filling.word for filling in got[:3]]
    assert narrow[0].sentence == f"天{narrow[0].word}日。"


def test_a_single_blank_becomes_the_best_words_of_every_length(world):
    model, tokenizer, predictor = world
    got = {f.word: f.score for f in predictor.words("天[MASK]日。", 400, word_length=2)}
    assert {len(word) for word in got} >= {1, 2}
    before, after = encode(tokenizer, "天"), encode(tokenizer, "日。")
    for word in list(got)[:20]:
        if all("一" <= c <= "鿿" for c in word):
            expected = slow_score(model, tokenizer, before, encode(tokenizer, word), after)
            assert got[word] == pytest.approx(expected, abs=1e-4)
    assert not any(c in "，。？！：（）" for word in got for c in word)


def test_runs_of_blanks_apart_are_filled_together_and_shown_in_their_sentence(world):
    _, _, predictor = world
    best = predictor.words("[MASK]地[MASK][MASK]。", 1)[0]
    assert [len(word) for word in best.words] == [1, 2]
    assert best.sentence == f"{best.words[0]}地{best.words[1]}。"
    assert best.word == f"{best.words[0]}…{best.words[1]}"


def test_candidates_are_ranked_by_the_same_score_and_all_of_them_come_back(world):
    model, tokenizer, device = world[0], world[1], "cpu"
    ranked = inference.predict_words(
        model, tokenizer, "天[MASK]日。", torch.device(device), candidates=["玄黃", "地", "宇宙洪荒"]
    )
    assert {word for word, _ in ranked} == {"玄黃", "地", "宇宙洪荒"}
    before, after = encode(tokenizer, "天"), encode(tokenizer, "日。")
    for word, score in ranked:
        expected = slow_score(model, tokenizer, before, encode(tokenizer, word), after)
        assert score == pytest.approx(expected, abs=1e-4)
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


def test_a_candidate_the_model_cannot_read_is_named(world):
    _, _, predictor = world
    with pytest.raises(UserError, match="'龘'"):
        predictor.words("天[MASK]日。", 5, candidates=["地", "龘"])
    with pytest.raises(UserError, match="128 個"):
        predictor.words("天[MASK]日。", 5, candidates=["地" * 200])


def test_the_first_token_of_a_word_is_what_predict_mask_says(world):
    model, tokenizer, predictor = world
    words = inference.predict_words(model, tokenizer, "天[MASK]日。", torch.device("cpu"), 3, word_length=1)
    letters = [w for w in inference.predict_mask(model, tokenizer, "天[MASK]日。", "cpu", 60) if w.isalnum()]
    assert [word for word, _ in words] == letters[:3]
    shares = dict(predictor.fill([predictor.read("天[MASK]日。")], 100)[0])
    assert math.exp(words[0][1]) == pytest.approx(shares[words[0][0]], abs=1e-5)


def test_prompts_are_filled_alike_alone_and_in_a_batch(world):
    _, _, predictor = world
    prompts = [
        predictor.read(text) for text in ("天[MASK]", "天地玄黃[MASK]宇宙", "[MASK]", "日[MASK]月[MASK]")
    ]
    together = predictor.fill(prompts, 5)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = predictor.fill([prompt], 5)
        assert [word for word, _ in alone] == [word for word, _ in found]


def test_a_vocabulary_without_single_characters_fills_words_of_one_token(tmp_path):
    from conftest import make_model_dir

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "abc", "def", "ghi"]
    loaded = inference.load_model(make_model_dir(tmp_path / "latin", vocabulary=words), "cpu")
    found = inference.predict_words(*loaded[:2], "abc [MASK]", loaded[2], word_length=3)
    assert {word for word, _ in found} == {"abc", "def", "ghi"}


def test_a_word_too_long_for_the_sentence_leaves_the_shorter_ones(world):
    _, _, predictor = world
    full = "天" * 125 + "[MASK]"
    assert {len(f.word) for f in predictor.words(full, 5, word_length=4)} == {1}
