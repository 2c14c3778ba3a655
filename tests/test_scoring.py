"""Option scores against slow, plain loops over the bare transformers model."""

import random

import pytest
import torch
from conftest import random_text

from finetune.exams import Question
from finetune.models import BlankLogits
from finetune.prompts import METHODS, ExamPrompts
from finetune.scoring import best, ranking, score_options


@pytest.fixture(scope="module")
def world(loaded):
    model, tokenizer, _ = loaded
    return model, tokenizer, ExamPrompts(tokenizer, 128), BlankLogits(model).eval()


def some_questions(count=12):
    rng = random.Random(3)
    odd = [Question("天？", ("地", "地", "玄黃宇宙", "以上皆是"), 0), Question("DNA？", ("甲", "乙"), 0)]
    return odd + [
        Question(random_text(rng, 3, 40), tuple(random_text(rng, 1, 7) for _ in range(rng.randint(2, 6))), 0)
        for _ in range(count)
    ]


@torch.inference_mode()
def log_probs(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def slow_letter(model, prompts, question, orders):
    count = len(question.options)
    total = [0.0] * count
    for order in orders:
        prompt = prompts.listed(question, order)
        letters = log_probs(model, prompt.ids)[prompt.blank[0], prompts.verbalizer_ids(count)].log_softmax(-1)
        for place, option in enumerate(order):
            total[option] += letters[place].item() / len(orders)
    return total


def slow_text(model, prompts, question, joint):
    scores = []
    for option in range(len(question.options)):
        prompt = prompts.plain(question, option)
        found = []
        for at in prompt.blank:
            hidden = set(prompt.blank) if joint else {at}
            ids = [prompts.mask if i in hidden else token for i, token in enumerate(prompt.ids)]
            found.append(log_probs(model, ids)[at, prompt.ids[at]].item())
        scores.append(sum(found) / len(found))
    return scores


def test_letter_scores_equal_one_pass_an_order_averaged_by_option(world):
    model, _, prompts, forward = world
    questions = some_questions()
    got, _ = score_options(forward, prompts, questions, "letter", "cyclic")
    for question, scores in zip(questions, got, strict=True):
        count = len(question.options)
        if question.options[-1] == "以上皆是":
            orders = [(0, 1, 2, 3), (1, 2, 0, 3), (2, 0, 1, 3)]
        else:
            orders = [tuple((i + by) % count for i in range(count)) for by in range(count)]
        assert scores == pytest.approx(slow_letter(model, prompts, question, orders), abs=1e-4)
    single, _ = score_options(forward, prompts, questions, "letter", "1")
    for question, scores in zip(questions, single, strict=True):
        order = tuple(range(len(question.options)))
        assert scores == pytest.approx(slow_letter(model, prompts, question, [order]), abs=1e-4)


@pytest.mark.parametrize("method", ["joint", "pll"])
def test_text_scores_equal_one_pass_an_option_or_a_character(world, method):
    model, _, prompts, forward = world
    questions = some_questions()
    got, too_long = score_options(forward, prompts, questions, method)
    assert not too_long
    for question, scores in zip(questions, got, strict=True):
        assert scores == pytest.approx(slow_text(model, prompts, question, method == "joint"), abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_what_else_is_in_the_batch(world, method):
    _, _, prompts, forward = world
    questions = some_questions()
    together, _ = score_options(forward, prompts, questions, method, "cyclic")
    for question, scores in zip(questions, together, strict=True):
        alone, _ = score_options(forward, prompts, [question], method, "cyclic")
        assert scores == pytest.approx(alone[0], abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_permuting_the_options_permutes_the_scores(world, method):
    _, _, prompts, forward = world
    question = Question("天地？", ("玄", "黃宇", "宙洪荒", "日"), 0)
    turned = Question("天地？", question.options[1:] + question.options[:1], 0)
    (ours,), _ = score_options(forward, prompts, [question], method, "cyclic")
    (theirs,), _ = score_options(forward, prompts, [turned], method, "cyclic")
    assert ours[1:] + ours[:1] == pytest.approx(theirs, abs=1e-5)


def test_a_question_that_does_not_fit_is_said_and_not_guessed(world):
    _, _, prompts, forward = world
    long = Question("天？", ("地" * 200, "玄" * 200), 0)
    scores, too_long = score_options(forward, prompts, [some_questions()[0], long], "letter")
    assert too_long == [1] and scores[1] == [0.0, 0.0]


def test_the_best_is_the_first_of_equals():
    assert best([-1.0, -0.5, -0.5]) == 1 and ranking([-1.0, -0.5, -0.5]) == [1, 2, 0]


def test_logits_at_the_blanks_are_the_models_own(world):
    model, tokenizer, _, forward = world
    ids = torch.randint(5, len(tokenizer), (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    rows, cols = torch.tensor([0, 1, 2, 2]), torch.tensor([3, 5, 19, 0])
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits[rows, cols]
        torch.testing.assert_close(forward(ids, mask, rows, cols), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["roberta", "albert", "modernbert", "electra"])
def test_logits_at_the_blanks_are_the_models_own_for_every_family(family):
    from transformers import AutoConfig, AutoModelForMaskedLM

    config = AutoConfig.for_model(
        family, vocab_size=50, hidden_size=16, embedding_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForMaskedLM.from_config(config).eval()
    ids = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    rows, cols = torch.tensor([0, 1]), torch.tensor([3, 5])
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[rows, cols]
        torch.testing.assert_close(BlankLogits(model)(ids, torch.ones_like(ids), rows, cols), expected)
