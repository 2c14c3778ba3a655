"""Examples, masks, batches and the loss."""

import random
from collections import Counter

import pytest
import torch
from conftest import random_text
from torch.nn import functional

from finetune.data.question import Question, Statement
from finetune.objectives.batching import Example, collate, plan_epoch, split_micro_batches
from finetune.objectives.exam import ExamObjective
from finetune.objectives.loss import summed_loss, token_losses
from finetune.prompts.exam import ExamPrompts, mask_positions


@pytest.fixture(scope="module")
def prompts(loaded):
    return ExamPrompts(loaded[1], 128)


def some_questions(count=40):
    rng = random.Random(5)
    return [
        Question(
            random_text(rng, 4, 20),
            tuple(random_text(rng, 1, 5) for _ in range(rng.randint(2, 6))),
            1,
            "s",
            f"q{i}",
        )
        for i in range(count)
    ]


def test_the_target_of_an_answer_example_is_the_letter_where_the_right_option_stands(prompts):
    for question in some_questions():
        example = ExamObjective("answer", prompts, [question], 0).example("answer", 0, epoch=3)
        text = "".join(prompts.tokenizer.convert_ids_to_tokens(list(example.ids)))
        letter = prompts.tokenizer.convert_ids_to_tokens(example.candidates[example.targets[0]])
        assert f"（{letter}）{question.options[1]}" in text
        assert len(example.candidates) == len(question.options)


def test_the_right_letter_does_not_depend_on_the_place_in_the_file(prompts):
    """Options are shuffled anew each epoch, so the key's habit cannot be learnt."""
    question = Question("天？", ("地", "玄", "黃", "宇"), 1, "s", "q")
    objective = ExamObjective("answer", prompts, [question], 0)
    places = Counter(objective.example("answer", 0, epoch).targets[0] for epoch in range(400))
    assert all(70 < places[place] < 130 for place in range(4))


@pytest.mark.parametrize("name", ["answer", "answer+mlm", "mlm"])
def test_the_same_seed_epoch_and_row_give_the_same_example(prompts, name):
    rows = some_questions(10)
    first, second = (ExamObjective(name, prompts, r, 7) for r in (rows, rows[::-1]))
    for kind, row in first.epoch(2):
        assert first.example(kind, row, 2) == second.example(kind, 9 - row, 2)
    assert [first.example(*e, 2) for e in first.epoch(2)] != [first.example(*e, 3) for e in first.epoch(3)]


def test_one_example_in_five_is_plain_masked_language_model_work(prompts):
    kinds = Counter(kind for kind, _ in ExamObjective("answer+mlm", prompts, some_questions(400), 0).epoch(0))
    assert kinds == {"answer": 400, "mlm": 100}


@pytest.mark.parametrize("name", ["answer", "answer+mlm"])
def test_a_statement_has_no_letter_and_is_only_ever_masked(prompts, name):
    rows = [Statement("天是地玄黃。", 2, 5, "s", "t"), *some_questions(8)]
    objective = ExamObjective(name, prompts, rows, 0)
    kinds = list(objective.epoch(0))
    assert ("answer", 0) not in kinds and (("mlm", 0) in kinds) == (name == "answer+mlm")
    assert len({row for kind, row in kinds if kind == "answer"}) == 8
    assert all(objective.example(*key, 0).targets for key in kinds)


def test_mlm_masks_the_whole_answer_in_most_examples_and_something_in_all(prompts):
    question = Question("天地玄黃宇宙洪荒日月？", ("盈昃", "辰"), 0, "s", "q")
    objective = ExamObjective("mlm", prompts, [question, Statement("天是地玄黃。", 2, 5, "s", "t")], 0)
    for row, answer in ((0, "盈昃"), (1, "地玄黃")):
        wanted = []
        for epoch in range(400):
            example = objective.example("mlm", row, epoch)
            assert len(example.positions) == len(example.targets) >= 1
            wanted.append("".join(prompts.tokenizer.convert_ids_to_tokens(list(example.targets))))
        assert 340 < wanted.count(answer) < 400


def test_masked_tokens_do_not_appear_in_the_input(prompts):
    """Labels equal to unmasked inputs train copying: the predecessor's fault."""
    for question in some_questions():
        plain = prompts.cloze_prompt(question, 1)
        for epoch in range(5):
            example = ExamObjective("mlm", prompts, [question], 0).example("mlm", 0, epoch)
            if example.positions == plain.blank and len(plain.blank) > 1:  # the whole answer
                assert {example.ids[i] for i in example.positions} == {prompts.mask}
    assert mask_positions((5, 6, 7), [1], 4) == (5, 4, 7)


def test_an_epoch_holds_every_row_once_and_batches_rows_of_like_length():
    rng = random.Random(0)
    lengths = [rng.randint(5, 500) for _ in range(1000)]
    plan = plan_epoch(lengths, 32, seed=1, epoch=0)
    assert sorted(row for batch in plan for row in batch) == list(range(1000))
    assert [len(batch) for batch in plan].count(32) == 31
    spread = [max(lengths[r] for r in batch) - min(lengths[r] for r in batch) for batch in plan]
    assert sorted(spread)[len(spread) // 2] < 40
    assert plan == plan_epoch(lengths, 32, 1, 0) != plan_epoch(lengths, 32, 1, 1)


@pytest.mark.parametrize(("rows", "world", "micros"), [(32, 2, 4), (7, 2, 4), (1, 4, 2), (5, 3, 1)])
def test_a_global_batch_is_cut_without_loss_and_alike_on_every_rank(rows, world, micros):
    parts = [split_micro_batches(list(range(rows)), rank, world, micros) for rank in range(world)]
    assert {len(part) for part in parts} == {micros}
    flat = [row for part in parts for micro in part for row in micro]
    assert sorted(row for row in flat if row is not None) == list(range(rows))
    assert all(micro for part in parts for micro in part)


def plain_loss(logits, example):
    """One target after the other, as the formula says it."""
    total = 0.0
    for row, target in zip(logits, example.targets, strict=True):
        scores = row[list(example.candidates)] if example.candidates else row
        total += functional.cross_entropy(scores[None], torch.tensor([target])).item()
    return total / len(example.targets)


def test_the_loss_is_each_examples_mean_summed_over_examples():
    examples = [
        Example((1, 2, 3), (1,), (2,), (7, 8, 9)),
        Example((1, 2, 3, 4), (1, 2), (5, 6)),
        Example((1, 2), (0,), (1,), (3, 4)),
    ]
    batch = collate(examples, 0)
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    expected = sum(
        plain_loss(logits[i:j], e) for (i, j), e in zip(((0, 1), (1, 3), (3, 4)), examples, strict=True)
    )
    assert summed_loss(token_losses(logits, batch), batch).item() == pytest.approx(expected, rel=1e-6)


def test_a_row_that_only_keeps_ranks_in_step_weighs_nothing():
    example = Example((1, 2, 3), (1,), (2,))
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
    with_filler, alone = collate([example, None], 0), collate([example], 0)
    assert with_filler.num_targets == alone.num_targets == 1
    assert summed_loss(token_losses(logits, with_filler), with_filler) == summed_loss(
        token_losses(logits[:1], alone), alone
    )
    empty = collate([None], 0)
    assert empty.num_targets == 0 and summed_loss(token_losses(logits[:1], empty), empty) == 0


def test_validation_rows_are_drawn_alike_every_time(prompts):
    def drawn():
        objective = ExamObjective("mlm", prompts, some_questions(5), 3)
        return [objective.example(*entry, 0) for entry in objective.epoch(0)]

    first = drawn()
    random.seed(7)
    torch.manual_seed(7)
    ExamObjective("mlm", prompts, some_questions(9), 4).example("mlm", 0, 5)
    assert drawn() == first
