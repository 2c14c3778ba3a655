"""Option scores against slow, plain loops over the bare transformers model, token by token."""

import hashlib
import math
import random

import pytest
import torch
from conftest import random_text
from transformers import AutoModelForMaskedLM

from finetune.data.question import Question
from finetune.data.segmentation import simplified, word_spans
from finetune.evaluation import scoring
from finetune.evaluation.scores import Ranking, Scores, best, ranking, tied
from finetune.evaluation.scoring import Scorer, ScoringConfig, score_options
from finetune.models.forward import TokenLogits, bf16_forward
from finetune.models.tokenizer import load_tokenizer
from finetune.prompts.exam import ExamPrompts
from finetune.prompts.scoring_methods import METHODS, ORDERS, TEXT, parse


@pytest.fixture(scope="module")
def world(loaded):
    model, tokenizer, _ = loaded
    return model, tokenizer, ExamPrompts(tokenizer, 128), TokenLogits(model).eval()


def some_questions(count=12):
    rng = random.Random(3)
    odd = [
        Question("天？", ("地", "地", "玄黃宇宙", "以上皆是"), 0, "physics"),
        Question("DNA？", ("甲", "乙"), 0, "trade"),
        Question("日月？", ("地球", "A與C", "黃", "地"), 0),
    ]
    return odd + [
        Question(random_text(rng, 3, 40), tuple(random_text(rng, 1, 7) for _ in range(rng.randint(2, 6))), 0)
        for _ in range(count)
    ]


# ---- the reference: one forward pass a token, nothing shared, nothing batched ------------------------------


@torch.inference_mode()
def log_probs(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def slow_orders(question, orders):
    """The orders, worked out by hand for the odd questions."""
    count = len(question.options)
    written = tuple(range(count))
    if orders == "1" or question.options[1] == "A與C":
        return [written]
    if question.options[-1] == "以上皆是":
        rotations, everything = [(0, 1, 2), (1, 2, 0), (2, 0, 1)], [(0, 1, 2), (0, 2, 1), (1, 0, 2)]
        everything += [(1, 2, 0), (2, 0, 1), (2, 1, 0)]
        return [(*order, 3) for order in (rotations if orders == "cyclic" else everything)]
    if orders == "cyclic":
        return [tuple((i + by) % count for i in range(count)) for by in range(count)]
    return permutations_of(list(written))


def permutations_of(items):
    if not items:
        return [()]
    return [(x, *rest) for x in items for rest in permutations_of([y for y in items if y != x])]


def slow_letter(model, prompts, question, orders):
    """Of each order, the log-probability of each option's letter; by option."""
    count, rows = len(question.options), []
    for order in orders:
        prompt = prompts.mcq_prompt(question, order)
        letters = log_probs(model, prompt.ids)[prompt.blank[0], prompts.verbalizer_ids(count)].log_softmax(-1)
        row = [0.0] * count
        for place, option in enumerate(order):
            row[option] = letters[place].item()
        rows.append(row)
    return rows


def shared(prompts, question, row):
    """Options of the same tokens have the mean of their probabilities."""
    texts = [prompts.option_ids(question, option) for option in range(len(row))]
    means = []
    for text in texts:
        same = [math.exp(score) for score, other in zip(row, texts, strict=True) if other == text]
        means.append(math.log(sum(same) / len(same)))
    return means


def mean_rows(rows):
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def slow_text(model, prompts, question, name):
    """Sum or mean over an option's tokens; its words are found by hand: the tests' jieba knows only 地球."""
    base, summed = name.removesuffix("_sum"), name.endswith("_sum")
    neutral = base.endswith("+pmi")
    base, summed = base.removesuffix("+pmi").removesuffix("_sum"), summed or "_sum+" in name
    scores = []
    for option, text in enumerate(question.options):
        prompt = prompts.cloze_prompt(question, option)
        if base == "first":
            prompt = prompts.cloze_prompt_ids(question, [prompt.ids[prompt.blank[0]]])
        scores.append(slow_tokens(model, prompts, prompt, base, summed, text))
        if neutral:
            ids = [prompt.ids[i] for i in prompt.blank]
            alone = prompts.unconditional_prompt(question, ids)
            scores[-1] -= slow_tokens(model, prompts, alone, base, summed, text)
    return scores


def slow_tokens(model, prompts, prompt, base, summed, text):
    found = []
    for number, at in enumerate(prompt.blank):
        if base in ("joint", "first"):
            masked = set(prompt.blank)
        elif base == "pll":
            masked = {at}
        elif base == "pll_l2r":
            masked = set(prompt.blank[number:])
        else:
            ends = {0: 2, 1: 2} if text == "地球" else {}
            if text == "以上皆是":  # jieba: 以上|皆|是
                ends = {0: 2, 1: 2, 2: 3, 3: 4}
            masked = set(prompt.blank[number : ends.get(number, number + 1)])
        ids = [prompts.mask if i in masked else token for i, token in enumerate(prompt.ids)]
        found.append(log_probs(model, ids)[at, prompt.ids[at]].item())
    return sum(found) if summed else sum(found) / len(found)


class Words:
    """A jieba that knows two words, so that the reference need not know a dictionary."""

    def cut(self, text, HMM):
        for known in ("地球", "以上"):
            if text.startswith(known):
                return [known, *text[len(known) :]]
        return list(text)


# ---- the laws ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("orders", ORDERS)
def test_letter_scores_equal_one_pass_an_order_averaged_by_option(world, orders):
    model, tokenizer, prompts, _ = world
    questions = [q for q in some_questions() if len(q.options) <= 5]
    got = score_options(model, tokenizer, questions, "letter", orders, prompts=prompts)
    for question, scores, asked in zip(questions, got, got.by_order, strict=True):
        expected_orders = slow_orders(question, orders)
        rows = slow_letter(model, prompts, question, expected_orders)
        assert scores == pytest.approx(shared(prompts, question, mean_rows(rows)), abs=1e-4)
        assert [order for order, _ in asked] == expected_orders
        rows = [shared(prompts, question, row) for row in rows]
        assert [row for _, row in asked] == [pytest.approx(row, abs=1e-4) for row in rows]


def test_options_that_the_tokenizer_makes_the_same_tokens_of_are_a_tie_in_every_method(world):
    model, tokenizer, prompts, _ = world
    rare = Question("笑臉是？", ("😀", "天", "😡", "😱"), 0)
    for method in ("letter", "letter+prior", "pll", "joint", "pmi"):
        for orders in ("1", "cyclic") if "letter" in method else ("1",):
            found = score_options(model, tokenizer, [rare], method, orders, prompts=prompts)
            row = found[0]
            assert row[0] == row[2] == row[3] != row[1], method
            assert tied(row) == ((0, 2, 3) if row[0] > row[1] else (1,))
            assert all(one[0] == one[2] == one[3] for _, one in found.by_order[0])
            ranked = Ranking.of(dict(zip("ABCD", rare.options, strict=True)), row, 4)
            assert ranked.tied == (("A", "C", "D") if row[0] > row[1] else ())


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("letter")])
def test_text_scores_equal_one_pass_a_token(world, method, monkeypatch):
    model, tokenizer, prompts, _ = world
    monkeypatch.setattr("finetune.data.segmentation._jieba", Words)
    questions = some_questions()
    got = score_options(model, tokenizer, questions, method, prompts=prompts)
    assert not got.skipped
    for question, scores in zip(questions, got, strict=True):
        assert scores == pytest.approx(slow_text(model, prompts, question, method), abs=2e-4)


def test_the_prior_is_that_of_pride_and_leaves_the_questions_it_comes_from_to_their_rotations(world):
    model, tokenizer, prompts, _ = world
    rng = random.Random(5)
    questions = [
        Question(random_text(rng, 5, 20), tuple(random_text(rng, 1, 4) for _ in range(4)), 0)
        for _ in range(40)
    ]
    got = score_options(model, tokenizer, questions, "letter+prior", prompts=prompts)
    by_draw = sorted(
        range(40), key=lambda i: hashlib.sha256(f"0:{questions[i].fingerprint}".encode()).digest()
    )
    sample = by_draw[:2]  # 5 %
    shares = []
    for index in sample:
        rows = slow_letter(model, prompts, questions[index], slow_orders(questions[index], "cyclic"))
        places = [[row[(place + by) % 4] for place in range(4)] for by, row in enumerate(rows)]
        mean = torch.tensor(mean_rows(places))
        shares.append(mean.softmax(-1))
        assert got[index] == pytest.approx(mean_rows(rows), abs=1e-4)
    prior = torch.stack(shares).mean(0)
    assert [math.exp(value) for value in got.prior[4]] == pytest.approx(prior.tolist(), abs=1e-5)
    for index in set(range(40)) - set(sample):
        (row,) = slow_letter(model, prompts, questions[index], [(0, 1, 2, 3)])
        assert got[index] == pytest.approx(
            (torch.tensor(row) - prior.log()).log_softmax(-1).tolist(), abs=1e-4
        )


def test_a_prior_belongs_to_the_place_and_not_to_the_option(world):
    model, _, prompts, _ = world
    question, prior = Question("天地？", ("玄", "黃宇", "宙洪荒"), 0), [-0.2, -2.0, -3.0]
    got = Scorer.of(model, prompts).score([question], ScoringConfig("letter+prior", "cyclic", {3: prior}))
    orders = slow_orders(question, "cyclic")
    plain = slow_letter(model, prompts, question, orders)
    for (order, row), before, expected_order in zip(got.by_order[0], plain, orders, strict=True):
        assert order == expected_order
        at_place = torch.tensor([before[option] for option in order]) - torch.tensor(prior)
        corrected = at_place.log_softmax(-1)
        assert [row[option] for option in order] == pytest.approx(corrected.tolist(), abs=1e-4)
    assert got[0] == pytest.approx(mean_rows([row for _, row in got.by_order[0]]), abs=1e-6)


def test_a_prior_makes_a_model_that_always_says_one_letter_answer_like_one_without_that_habit(world):
    _, tokenizer, prompts, forward = world
    habit = torch.zeros(len(tokenizer))
    habit[prompts.verbalizer_ids(4)[2]] = 9.0  # C, whatever the question
    rng = random.Random(6)
    questions = [
        Question(random_text(rng, 5, 20), tuple(random_text(rng, 1, 4) for _ in range(4)), 0)
        for _ in range(60)
    ]

    def biased(*inputs):
        return forward(*inputs) + habit

    def chosen(of, method):
        return [best(row) for row in score_options(of, tokenizer, questions, method, prompts=prompts)]

    assert set(chosen(biased, "letter")) == {2}
    plain, mended = chosen(forward, "letter+prior"), chosen(biased, "letter+prior")
    assert sum(a == b for a, b in zip(plain, mended, strict=True)) >= 0.9 * len(plain)


@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_what_else_is_in_the_batch(world, method):
    model, _, prompts, _ = world
    config = ScoringConfig(method, "cyclic", {count: [0.0] * count for count in range(2, 7)})
    questions, scorer = some_questions(), Scorer.of(model, prompts)
    together = scorer.score(questions, config)
    for question, scores in zip(questions, together, strict=True):
        alone = scorer.score([question], config)
        assert scores == pytest.approx(alone[0], abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_permuting_the_options_permutes_the_scores_and_the_predictions(world, method):
    model, tokenizer, prompts, _ = world
    questions = [
        Question("天地？", ("玄", "黃宇", "宙洪荒", "日"), 0),
        Question("日月？", ("盈昃", "辰宿列", "張"), 0),
    ]
    turned = [Question(q.stem, q.options[1:] + q.options[:1], 0) for q in questions]
    orders = "cyclic" if method == "letter" else "all"
    ours, theirs = (
        score_options(model, tokenizer, rows, method, orders, prompts=prompts) for rows in (questions, turned)
    )
    for mine, their in zip(ours, theirs, strict=True):
        assert mine[1:] + mine[:1] == pytest.approx(their, abs=1e-4)
        assert best(mine) == (best(their) + 1) % len(mine)


def test_equal_option_texts_get_equal_scores(world):
    model, tokenizer, prompts, _ = world
    question = Question("天？", ("地", "玄黃", "地"), 0)
    for method in METHODS:
        if parse(method).base in TEXT:
            (row,) = score_options(model, tokenizer, [question], method, prompts=prompts)
            assert row[0] == row[2] and ranking(row).index(0) < ranking(row).index(2)


def test_a_question_that_does_not_fit_is_said_and_not_guessed(world):
    model, tokenizer, prompts, _ = world
    long = Question("天？", ("地" * 200, "玄" * 200), 0)
    for method in METHODS:
        if parse(method).base != "first":
            scores = score_options(model, tokenizer, [some_questions()[0], long], method, prompts=prompts)
            assert list(scores.skipped) == [1] and scores[1] == [0.0, 0.0], method


def test_all_orders_of_six_options_are_refused_with_the_way_out(world):
    model, tokenizer, prompts, _ = world
    six = Question("天？", tuple("地玄黃宇宙洪"), 0)
    scores = score_options(model, tokenizer, [six], "letter", "all", prompts=prompts)
    assert "720" in scores.skipped[0] and "cyclic" in scores.skipped[0]


@pytest.mark.slow
def test_a_long_question_with_ten_options_is_scored_in_batches_of_bounded_size(world):
    _, tokenizer, prompts, forward = world
    sizes, blanks = [], []

    def watched(ids, mask, rows, cols):
        sizes.append(ids.numel())
        blanks.append(len(rows))
        return forward(ids, mask, rows, cols)

    question = Question("天地玄黃" * 250, tuple(letter * 12 for letter in "地玄黃宇宙洪荒日月盈"), 0)
    for method in METHODS:
        score_options(watched, tokenizer, [question] * 8, method, "cyclic", prompts=prompts)
    assert max(sizes) <= 4096 and max(blanks) <= 512 and len(sizes) > 100


def test_memory_is_bounded_by_tokens_and_not_by_questions(world, monkeypatch):
    from finetune.evaluation import queries

    model, tokenizer, prompts, _ = world
    held = []
    run = queries.LogprobRunner.__call__
    monkeypatch.setattr(
        queries.LogprobRunner, "__call__",
        lambda self, rows: held.append(sum(len(row.ids) for row in rows)) or run(self, rows),
    )  # fmt: skip
    monkeypatch.setattr("finetune.evaluation.scoring.WINDOW_TOKENS", 20_000)
    question = Question("天地玄黃" * 250, tuple(letter * 6 for letter in "地玄黃宇宙洪荒日月盈"), 0)
    scores = score_options(model, tokenizer, [question] * 12, "pll", prompts=prompts)
    assert len(held) > 3 and max(held) <= 20_000 + 10 * 6 * 128
    assert scores.truncated == set(range(12)) and len({tuple(row) for row in scores}) == 1


def test_with_a_vocabulary_without_letters_questions_are_scored_by_the_texts_of_their_options(tmp_path):
    import conftest

    from finetune.runtime.errors import UserError

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地玄黃宇宙"]
    folder = conftest.make_model_dir(tmp_path / "han", vocabulary=words)
    import inference

    model, tokenizer, device = inference.load_model(folder, "cpu")
    assert len(inference.predict_mask(model, tokenizer, "天[MASK]", device)) == 5
    assert inference.qa_inference(model, tokenizer, "天？", {"A": "地", "B": "玄"}, device, scoring="pll")
    with pytest.raises(UserError, match="沒有能代表選項的字"):
        inference.qa_inference(model, tokenizer, "天？", {"A": "地", "B": "玄"}, device, scoring="letter")


def test_an_unknown_method_or_order_is_an_error_that_names_the_known(world):
    model, tokenizer, *_ = world
    for method, orders in (("letters", "1"), ("letter", "2"), (None, "1")):
        with pytest.raises(ValueError, match="known"):
            score_options(model, tokenizer, some_questions(1), method, orders)


def test_short_names_stand_for_their_usual_base():
    assert str(parse("prior")) == "letter+prior" and parse("pmi").correction == "pmi"
    assert [str(parse(name)) for name in METHODS] == list(METHODS)


def test_the_best_is_the_first_of_equals():
    assert best([-1.0, -0.5, -0.5]) == 1 and ranking([-1.0, -0.5, -0.5]) == [1, 2, 0]


def test_words_of_traditional_text_are_found_and_cover_it():
    text = "臺灣黑熊屬於哺乳類動物，DNA有12個。"
    spans = word_spans(text)
    assert [text[start:end] for start, end in spans][:5] == ["臺灣", "黑熊", "屬於", "哺乳類", "動物"]
    assert "".join(text[start:end] for start, end in spans) == text and len(simplified(text)) == len(text)


def test_every_token_of_an_option_ends_with_its_word(world):
    _, tokenizer, prompts, _ = world
    assert prompts.word_ends("地球") in ([2, 2], [1, 2]) and prompts.word_ends("") == []
    assert prompts.word_ends("dna與天") == [3, 3, 3, 4, 5]  # d ##n ##a


# ---- the forward pass --------------------------------------------------------------------------------------


def test_logits_at_the_blanks_are_the_models_own(world):
    model, tokenizer, _, forward = world
    ids = torch.randint(5, len(tokenizer), (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    rows, cols = torch.tensor([0, 1, 2, 2]), torch.tensor([3, 5, 19, 0])
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits[rows, cols]
        torch.testing.assert_close(forward(ids, mask, rows, cols), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["roberta", "albert", "modernbert", "electra"])
def test_logits_at_the_blanks_are_the_models_own_for_every_family(family):
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        family, vocab_size=50, hidden_size=16, embedding_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForMaskedLM.from_config(config).eval()
    ids = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    rows, cols = torch.tensor([0, 1]), torch.tensor([3, 5])
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[rows, cols]
        torch.testing.assert_close(TokenLogits(model)(ids, torch.ones_like(ids), rows, cols), expected)


# ---- close calls of the bf16 pass --------------------------------------------------------------------------


def questions_of_four(count):
    rng = random.Random(5)
    return [
        Question(random_text(rng, 4, 20), tuple(random_text(rng, 1, 6) for _ in range(4)), 0, "s", f"q{i}")
        for i in range(count)
    ]


@pytest.mark.parametrize("method", ["letter", "letter+prior", "pll", "joint"])
def test_close_calls_of_a_bf16_pass_are_decided_by_the_exact_one(spread_model_dir, method, monkeypatch):
    monkeypatch.setattr(scoring, "CLOSE", math.inf)
    monkeypatch.setattr(scoring, "GUESSING", 1.0)
    tokenizer = load_tokenizer(str(spread_model_dir), "--model_path")
    model = AutoModelForMaskedLM.from_pretrained(spread_model_dir).eval()
    bf16, prompts, rows = bf16_forward(model), ExamPrompts(tokenizer, 128), questions_of_four(30)
    exact = scoring.score_options(bf16.fp32_forward, tokenizer, rows, method, prompts=prompts)
    config = scoring.ScoringConfig(method, prior=exact.prior or None)
    scorer = scoring.Scorer.of(bf16, prompts)
    found = scorer.score(rows, config)
    monkeypatch.setattr(scoring, "CLOSE", 0.0)
    rough = scorer.score(rows, config)
    at = [i for i in range(30) if i not in exact.rotated]
    for i in at:
        assert found[i] == pytest.approx(exact[i], abs=1e-5)
    assert max(abs(a - b) for i in at for a, b in zip(rough[i], exact[i], strict=True)) > 1e-4


def scores_apart(margins, orders=1):
    """Scores of questions of three options, in so many orders."""
    scores = Scores([0.0, -margin, -9.0] for margin in margins)
    scores.by_order = [[((0, 1, 2), row)] * orders for row in scores]
    return scores


def test_every_close_call_is_scored_again_and_the_closest_first():
    assert scoring._close(scores_apart([1.0, 0.019, 0.0, 0.021, 1.0, 1.0])) == [2, 1]


def test_a_mean_over_four_orders_is_close_at_half_the_distance():
    assert scoring._close(scores_apart([1.0, 0.011, 0.009, 1.0], orders=4)) == [2]


def test_of_a_model_that_guesses_only_the_closest_few_questions_are_scored_again():
    scores = scores_apart([*(1e-9 * i for i in range(1, 301)), 1.0])
    scores.skipped[0] = "?"
    assert scoring._close(scores) == [1, 2, 3, 4, 5, 6]
