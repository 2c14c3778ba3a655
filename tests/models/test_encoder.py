"""The encoder's own pass: the numbers of transformers with less work, in fp32, under autocast and in
bf16."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
)

from finetune.models import cpu
from finetune.models.forward import TokenLogits, bf16_forward
from finetune.models.heads import SequenceLogits

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 66, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES = ("bert", "roberta", "xlm-roberta", "ernie")


def model_of(family: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPE, **changes})
    return AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa").eval()


def ragged(lengths, width, pad_id=0):
    """(input_ids, attention_mask) of rows of these lengths."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 300, (len(lengths), width), generator=draw)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, pad_id), mask


def compare_gradients(ours, theirs):
    """Some are zero but for rounding: a key's bias moves all scores alike."""
    limit = 1e-5 * max(float(weight.grad.abs().max()) for weight in theirs.parameters())
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=limit, msg=name)


# several in a row, none in one, one wanted twice, out of order
ROWS, COLS = torch.tensor([3, 0, 0, 1, 3, 3, 0]), torch.tensor([4, 3, 5, 0, 0, 4, 1])


@pytest.mark.parametrize("lengths", [(16, 16, 16, 16), (16, 3, 9, 5), (6, 1, 1, 5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_transformers_own_pass(family, lengths):
    theirs = model_of(family)
    ours = copy.deepcopy(theirs)
    forward = TokenLogits(ours).eval()
    assert forward.has_fast_path
    ids, mask = ragged(lengths, 16, theirs.config.pad_token_id)
    expected = theirs(input_ids=ids, attention_mask=mask).logits[ROWS, COLS]
    found = forward(ids, mask, ROWS, COLS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    compare_gradients(ours, theirs)


@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForMultipleChoice])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_that_read_whole_rows_say_what_they_say_after_transformers_own_pass(family, head):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPE, "type_vocab_size": 2, "num_labels": 5})
    theirs = head.from_config(config).eval()
    ours = copy.deepcopy(theirs)
    ids, mask = ragged((16, 3, 9, 5), 16, config.pad_token_id)
    for segments in (None, (torch.arange(16) > 2).long().expand(4, 16)):
        given = {"input_ids": ids, "attention_mask": mask}
        given |= {} if segments is None else {"token_type_ids": segments}
        if head is AutoModelForMultipleChoice:
            given = {name: value[:, None] for name, value in given.items()}
        expected = theirs(**given).logits[[2, 0, 0]]
        found = SequenceLogits(ours).eval()(
            ids, mask, torch.tensor([2, 0, 0]), torch.zeros(3).long(), segments
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        expected.square().sum().backward()
        found.square().sum().backward()
    compare_gradients(ours, theirs)


def test_what_stands_in_padding_changes_nothing():
    forward = TokenLogits(model_of("bert")).eval()
    ids, mask = ragged((16, 3, 9, 5), 16)
    other = torch.where(mask == 0, 77, ids)
    assert torch.equal(forward(ids, mask, ROWS, COLS), forward(other, mask, ROWS, COLS))


def test_in_bf16_the_pass_is_as_near_to_fp32_as_transformers_own():
    model = model_of("bert")
    ids, mask = ragged((16, 3, 9, 5), 16)
    with torch.no_grad():
        exact = model(input_ids=ids, attention_mask=mask).logits[ROWS, COLS]
        with torch.autocast("cpu", torch.bfloat16):
            theirs = model(input_ids=ids, attention_mask=mask).logits[ROWS, COLS].float()
            ours = TokenLogits(model).eval()(ids, mask, ROWS, COLS)
        bf16 = bf16_forward(model)(ids, mask, ROWS, COLS)
    limit = 1.5 * (theirs - exact).abs().mean()
    assert 0 < (ours - exact).abs().mean() < limit
    assert 0 < (bf16 - exact).abs().mean() < limit


def test_the_bf16_copies_are_refreshed_after_training():
    model = model_of("bert")
    bf16 = bf16_forward(model)
    ids, mask = ragged((9, 9, 9, 9), 9)
    with torch.no_grad():
        before = bf16(ids, mask, ROWS, COLS)
        assert torch.equal(bf16(ids, mask, ROWS, COLS), before)
        model.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
        after = bf16(ids, mask, ROWS, COLS)
        assert not torch.equal(after, before)
        assert torch.equal(after, bf16_forward(model)(ids, mask, ROWS, COLS))


@pytest.mark.parametrize(
    "changes", [{"family": "albert", "embedding_size": 16}, {"chunk_size_feed_forward": 2}]
)
def test_families_with_other_layers_are_left_to_transformers(changes):
    assert not TokenLogits(model_of(**{"family": "bert", **changes})).has_fast_path


def test_gradient_checkpointing_drops_the_same_again_when_it_computes_again():
    found = {}
    ids, mask = ragged((16, 3, 9, 5), 16)
    for checkpointing in (True, False):
        model = cpu.use_fast_dropout(
            model_of("bert", attention_probs_dropout_prob=0.4, hidden_dropout_prob=0.4)
        )
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(6)
        TokenLogits(model).train()(ids, mask, ROWS, COLS).square().sum().backward()
        found[checkpointing] = [weight.grad for weight in model.parameters()]
    for again, once in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(again, once)
