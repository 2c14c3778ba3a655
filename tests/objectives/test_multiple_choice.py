"""Multiple choice: the options of a question compete, by a head or by the words in a blank."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from conftest import random_text
from torch.nn import functional

from finetune.data.question import Question
from finetune.evaluation.scoring import score_options
from finetune.models.forward import TokenLogits
from finetune.models.heads import SequenceLogits
from finetune.objectives.batching import collate, split_micro_batches
from finetune.objectives.loss import correct, option_scores, summed_loss, token_losses
from finetune.objectives.multiple_choice import MultipleChoiceObjective
from finetune.prompts.exam import ExamPrompts

NAME = "my_bert_finetuned_model_hf_format"


def questions(count=6, seed=5):
    rng = random.Random(seed)
    return [
        Question(
            random_text(rng, 4, 20),
            tuple(random_text(rng, 1, 5) for _ in range(2 + i % 4)),
            i % 2,
            "s",
            f"q{i}",
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def prompts(loaded):
    return ExamPrompts(loaded[1], 128)


@pytest.fixture(scope="module")
def chooser(loaded, tmp_path_factory):
    """A multiple-choice head on a tiny BERT, of transformers."""
    from transformers import AutoModelForMultipleChoice

    torch.manual_seed(0)
    return AutoModelForMultipleChoice.from_config(loaded[0].config).eval()


def examples_of(name, prompts, rows):
    objective = MultipleChoiceObjective(name, prompts, rows)
    return [objective.example(*entry, 0) for entry in objective.epoch(0)]


def test_cloze_trains_the_very_scores_that_joint_scoring_gives(loaded, prompts):
    rows = questions()
    batch = collate(examples_of("cloze", prompts, rows), 0)
    with torch.no_grad():
        found = token_losses(TokenLogits(loaded[0]).eval()(*batch.inputs), batch)
    scores = score_options(loaded[0], loaded[1], rows, "joint", prompts=prompts)
    wanted = [
        functional.cross_entropy(torch.tensor([s]), torch.tensor([q.answer]))
        for s, q in zip(scores, rows, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-5, atol=1e-5)


def test_choice_trains_with_the_loss_of_transformers_where_all_questions_have_as_many_options(
    chooser, prompts
):
    rows = [q for q in questions(12) if len(q.options) == 4]
    examples = examples_of("choice", prompts, rows)
    batch = collate(examples, 0)
    with torch.no_grad():
        found = token_losses(SequenceLogits(chooser)(*batch.inputs), batch).mean()
        shape = len(rows), 4, -1
        more = {"input_ids": batch.input_ids.view(shape), "attention_mask": batch.attention_mask.view(shape)}
        wanted = chooser(**more, labels=torch.tensor([q.answer for q in rows])).loss
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["choice", "cloze"])
def test_questions_with_fewer_options_lose_nothing_to_those_with_more(loaded, chooser, prompts, name):
    forward = SequenceLogits(chooser) if name == "choice" else TokenLogits(loaded[0]).eval()
    examples = examples_of(name, prompts, questions())
    with torch.no_grad():
        batch = collate(examples, 0)
        logits = forward(*batch.inputs)
        together, right = token_losses(logits, batch), correct(logits, batch)
        scores = option_scores(logits.float(), batch)
        alone = []
        for example in examples:
            one = collate([example], 0)
            alone.append(token_losses(forward(*one.inputs), one)[0])
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-5)
    for row, example, is_right in zip(scores, examples, right, strict=True):
        assert row.isfinite().sum() == example.options
        assert bool(is_right) == (int(row.argmax()) == example.answer)


@pytest.mark.parametrize("name", ["choice", "cloze"])
@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_a_multiple_choice_batch_gives_one_gradient_however_it_is_cut(
    loaded, chooser, prompts, name, micro_batches
):
    forward = SequenceLogits(chooser) if name == "choice" else TokenLogits(loaded[0]).eval()
    examples = examples_of(name, prompts, questions())

    def gradient(parts):
        forward.zero_grad()
        for part in parts:
            batch = collate([None if i is None else examples[i] for i in part], 0)
            (summed_loss(token_losses(forward(*batch.inputs), batch), batch) / len(examples)).backward()
        return {n: p.grad.clone() for n, p in forward.named_parameters() if p.grad is not None}

    whole, parts = gradient([range(6)]), gradient(split_micro_batches(range(6), 0, 1, micro_batches))
    assert whole.keys() == parts.keys()
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6, msg=key)


def test_options_of_one_length_share_a_row_and_the_shown_options_never_stand_in_it(prompts):
    question = Question("天？", ("地玄", "黃宇", "宙"), 0, "s", "q")
    (example,) = examples_of("cloze", prompts, [question])
    assert len(example.rows) == 2
    written = "".join(prompts.tokenizer.convert_ids_to_tokens([i for row in example.rows for i in row]))
    assert not set("地玄黃宇宙") & set(written)


def test_the_best_of_a_bf16_run_is_chosen_by_scores_that_keep_their_digits(chooser):
    forward = SequenceLogits(chooser).eval()
    ids = torch.tensor([[2, 9, 3], [2, 8, 3]])
    inputs = ids, torch.ones_like(ids), torch.arange(2), torch.zeros(2, dtype=torch.long)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = forward(*inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, forward(*inputs).detach())


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "scoring"), [("choice", "choice"), ("cloze", "joint")])
def test_a_multiple_choice_model_is_saved_and_scored_as_it_was_trained(train, tmp_path, objective, scoring):
    import inference

    words = ["--objective", objective, "--max_steps", 6, "--learning_rate", 1e-3]
    assert train(*words) == 0
    card = json.loads((tmp_path / NAME / "run_card.json").read_text(encoding="utf-8"))
    assert card["scoring"] == scoring and card["results"]["test"]["method"] == scoring
    model, tokenizer, device = inference.load_model(tmp_path / NAME, "cpu")
    ranked = inference.qa_inference(model, tokenizer, "天地玄黃？", {"A": "宇宙", "B": "洪荒"}, device)
    assert {label for label, _, _ in ranked} == {"A", "B"}
    if scoring == "choice":  # the options compete
        assert sum(math.exp(score) for _, _, score in ranked) == pytest.approx(1)
