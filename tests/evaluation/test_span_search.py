"""Search for the best answer: against a loop over all answers, and against run_qa of transformers."""

from __future__ import annotations

import math
import random

import pytest
import torch
from conftest import HAN, make_vocabulary
from transformers import BertTokenizer

from finetune.evaluation.span_search import SpanAnswers, SpanSearch, search_window
from finetune.models.span_windows import SpanWindows


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(vocab={word: at for at, word in enumerate(make_vocabulary())}, do_lower_case=True)


def slow(logits, windows, longest) -> dict[tuple[int, int], float]:
    """Score of every answer that may be given, the best of its windows."""
    found: dict[tuple[int, int], float] = {}
    for of_window, window in zip(logits, windows, strict=True):
        start, end = of_window.double().log_softmax(-1)
        tokens = window.tokens
        for begin in window.part:
            for stop in window.part:
                if not begin <= stop < begin + longest:
                    continue
                shift = window.first - window.part.start
                score = float(start[begin + shift] + end[stop + shift])
                place = tokens.starts[begin], tokens.ends[stop]
                found[place] = max(score, found.get(place, -math.inf))
    return found


@pytest.mark.parametrize("longest", [1, 3, 30, 500])
def test_the_best_answers_over_all_windows_are_those_of_a_slow_loop(longest, tokenizer):
    rng = random.Random(longest)
    generator = torch.Generator().manual_seed(longest)
    for _ in range(8):
        context = "".join(rng.choice(HAN + "😀a ") for _ in range(rng.randint(1, 60)))
        if not context.strip():
            continue
        windows = SpanWindows(tokenizer, 32, 8)("天地？", context)
        logits = [4 * torch.randn(2, len(window), generator=generator) for window in windows]
        made = [search_window(of, window, longest) for of, window in zip(logits, windows, strict=True)]
        answers = SpanAnswers.of(made)
        wanted = slow(logits, windows, longest)
        assert [(one.start, one.end) for one in answers.best[:5]] == sorted(wanted, key=lambda p: -wanted[p])[
            :5
        ]
        for one in answers.best:
            assert one.score == pytest.approx(wanted[one.start, one.end], abs=1e-4)
            assert 0 <= one.start < one.end <= len(context)
        null = min(float(of.double().log_softmax(-1)[:, 0].sum()) for of in logits)
        assert answers.null == pytest.approx(null, abs=1e-4)
        chosen = answers.choose(True)
        assert (chosen is None) == (null > answers.best[0].score)
        assert answers.choose(False) is not None


def test_within_a_window_the_order_is_that_of_run_qa(tokenizer):
    """run_qa of transformers adds raw logits, and refuses ends before starts, long ones, other tokens."""
    generator = torch.Generator().manual_seed(0)
    window = SpanWindows(tokenizer, 64, 8)("天地玄黃？", "宇宙洪荒日月盈昃辰宿列張寒來暑往")[0]
    logits = 3 * torch.randn(2, len(window), generator=generator)
    start, end = logits.tolist()
    theirs = [
        (start[a] + end[b], a, b)
        for a in range(len(window))
        for b in range(len(window))
        if window.first <= a <= b < window.first + len(window.part) and b - a + 1 <= 7
    ]
    theirs.sort(reverse=True)
    ours = search_window(logits, window, 7)
    shift, tokens = window.first, window.tokens
    assert [(one.start, one.end) for one in ours.best] == [
        (tokens.starts[a - shift], tokens.ends[b - shift]) for _, a, b in theirs[:20]
    ]
    null = start[0] + end[0]
    gap = theirs[0][0] - null  # what run_qa compares with its threshold
    assert ours.best[0].score - ours.null == pytest.approx(gap, abs=1e-4)


def test_probabilities_of_all_answers_add_up_to_one(tokenizer):
    window = SpanWindows(tokenizer, 64, 8)("天？", "宇宙洪荒")[0]
    answers = SpanAnswers.of([search_window(torch.randn(2, len(window)), window, 30)])
    assert len(answers.best) == 10
    for may_be_none in (False, True):
        candidates = [*answers.best, *([None] if may_be_none else [])]
        total = sum(answers.probability(one, may_be_none) for one in candidates)
        assert total == pytest.approx(1, abs=1e-5)


def test_batches_and_their_order_change_no_answer(tokenizer, loaded):
    from transformers import AutoModelForQuestionAnswering

    from finetune.models.heads import forward_of

    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(loaded[0].config).eval()
    windows_of = SpanWindows(loaded[1], 48, 8)
    rng = random.Random(0)
    questions = [
        windows_of("天地？", "".join(rng.choice(HAN) for _ in range(rng.randint(3, 120)))) for _ in range(9)
    ]
    search = SpanSearch(forward_of(model).eval(), 0, 30)
    together = search(questions, [[(0, 0)] * len(windows) for windows in questions])
    for answers, windows in zip(together, questions, strict=True):
        alone = search([windows])[0]
        assert [(one.start, one.end) for one in alone.best[:1]] == [
            (o.start, o.end) for o in answers.best[:1]
        ]
        assert alone.null == pytest.approx(answers.null, abs=1e-4)
        assert len(answers.losses) == len(windows) and not alone.losses
        direct = [model(input_ids=torch.tensor([window.ids]), token_type_ids=torch.tensor([window.segments]),
                        start_positions=torch.tensor([0]), end_positions=torch.tensor([0])).loss.item()
                  for window in windows]  # fmt: skip
        assert answers.losses == pytest.approx(direct, abs=1e-4)
