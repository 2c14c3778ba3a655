"""In fp32 on a CPU the digits of a row do not depend on the rows beside it."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import make_model_dir
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune.models import bert
from finetune.models.batch_invariance import is_batch_invariant
from finetune.models.forward import MULTI_LABEL, TokenLogits
from finetune.models.heads import forward_of
from finetune.models.loading import load_config
from finetune.models.merged_calls import Call, merge, split
from finetune.models.padding import padded

WORDS, PAD = 301, 1
TINY = {
    "vocab_size": WORDS, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 100, "max_position_embeddings": 200, "initializer_range": 0.1, "pad_token_id": PAD,
}  # fmt: skip
FAMILIES = ("bert", "roberta", "xlm-roberta", "ernie")
HEADS = {
    "mlm": (AutoModelForMaskedLM, {}),
    "classifier": (AutoModelForSequenceClassification, {"num_labels": 5}),
    "multi": (AutoModelForSequenceClassification, {"num_labels": 5, "problem_type": MULTI_LABEL}),
    "choice": (AutoModelForMultipleChoice, {}),
    "tags": (AutoModelForTokenClassification, {"num_labels": 13}),
    "span": (AutoModelForQuestionAnswering, {}),
}
LENGTHS = (1, 2, 7, 8, 15, 16, 17, 31, 33, 40, 64, 65, 90, 128, 130, 190)


def forward_pass(family: str, head: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    auto, settings = HEADS[head]
    shape = {**TINY, "type_vocab_size": 2, **settings, **changes}
    return forward_of(auto.from_config(AutoConfig.for_model(family, **shape)).eval()).eval()


def calls_of(forward, lengths=LENGTHS) -> list[Call]:
    """A call with one row, sometimes two, for each length; some with segments."""
    draw, calls = random.Random(3), []
    for number, length in enumerate(lengths):
        rows = [
            [draw.randrange(5, WORDS) for _ in range(count)] for count in (length, 5)[: 1 + (number % 4 == 3)]
        ]
        ids, mask = padded(rows, PAD)
        wanted = sorted(draw.choices(range(length), k=draw.choice((1, 1, 2, 9, 40))))
        cols = torch.tensor(wanted) if getattr(forward, "cols_are_tokens", True) else torch.tensor(wanted) % 2
        segments = (torch.arange(ids.shape[1]) >= length // 2).long() * mask if number % 2 else None
        calls.append(
            Call(
                ids,
                mask,
                torch.zeros_like(cols) + len(rows) - 1 - (number % 2) * (len(rows) - 1),
                cols % len(rows[-1]),
                segments,
            )
        )
    return calls


def differing(forward, calls: list[Call], sizes=(16, 5, 2)) -> list[int]:
    """Calls whose output is another one after they were merged with others."""
    wide, found = getattr(forward, "per_token", False), set()
    with torch.inference_mode():
        alone = [forward(*call) for call in calls]
        for size in sizes:
            order = random.Random(size).sample(range(len(calls)), len(calls))
            for some in (order[start : start + size] for start in range(0, len(order), size)):
                asked = [calls[number] for number in some]
                parts = split(forward(*merge(asked, PAD)), asked, wide)
                found |= {n for n, part in zip(some, parts, strict=True) if not torch.equal(part, alone[n])}
    return sorted(found)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_digits_of_a_row_do_not_depend_on_the_rows_beside_it(family, head):
    forward = forward_pass(family, head)
    assert differing(forward, calls_of(forward)) == []
    assert is_batch_invariant(forward, PAD, WORDS, "cpu", 190)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 13},
        {"hidden_size": 64, "num_attention_heads": 2, "hidden_act": "relu"},
        {"hidden_size": 256, "num_attention_heads": 2, "hidden_act": "gelu_new"},
    ],
)
def test_nor_do_they_in_other_sizes(sizes):
    forward = forward_pass("bert", "mlm", **sizes)
    assert differing(forward, calls_of(forward)) == []


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_nor_do_they_in_the_sizes_of_bert_base_whatever_the_number_of_threads(threads):
    forward = forward_pass(
        "bert", "mlm", hidden_size=768, num_attention_heads=12, intermediate_size=3072, vocab_size=21128
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert differing(forward, calls_of(forward), (16, 3)) == []
    finally:
        torch.set_num_threads(before)


def test_bert_without_transformers_gives_the_same_digits(tmp_path):
    folder = make_model_dir(tmp_path / "m", max_position_embeddings=200)
    plain = TokenLogits(bert.load(str(folder), load_config(str(folder), "--model_path"))).eval()
    loaded = TokenLogits(AutoModelForMaskedLM.from_pretrained(folder).eval()).eval()
    calls = [call._replace(input_ids=call.input_ids % 90) for call in calls_of(plain)]
    with torch.inference_mode():
        for call in calls:
            assert torch.equal(plain(*call), loaded(*call))
    assert differing(plain, calls) == []


@torch.no_grad()
def test_weights_that_change_between_passes_count_from_the_next_one_on():
    forward = forward_pass("bert", "mlm")
    call = calls_of(forward)[5]
    before = [forward(*call) for _ in range(12)]  # the first ones without copies of the weights
    assert all(torch.equal(before[0], other) for other in before)
    forward.model.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
    after = forward(*call)
    assert not torch.equal(after, before[0])
    assert torch.equal(after, TokenLogits(forward.model).eval()(*call))


@torch.inference_mode()
def test_a_hook_on_a_linear_layer_is_called():
    forward, seen = forward_pass("bert", "mlm"), []
    call = calls_of(forward)[5]
    expected = forward(*call)
    dense = forward.model.bert.encoder.layer[1].intermediate.dense
    dense.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    torch.testing.assert_close(forward(*call), expected, rtol=0, atol=1e-5)
    assert len(seen) == 1


def test_a_model_whose_digits_depend_on_its_neighbours_is_found_out():
    assert not is_batch_invariant(
        forward_pass("bert", "mlm", hidden_act="relu").train(), PAD, WORDS, "cpu", 190
    )

    def padding_counts(ids, mask, rows, cols, segments=None):
        return ids[rows].sum(1)

    def neighbours_count(ids, mask, rows, cols, segments=None):
        return (ids * mask)[rows].sum(1) + len(ids)

    def row_alone(ids, mask, rows, cols, segments=None):
        return (ids * mask)[rows].sum(1)

    found = [
        is_batch_invariant(one, PAD, WORDS, "cpu") for one in (padding_counts, neighbours_count, row_alone)
    ]
    assert found == [False, False, True]


def test_merged_calls_hold_every_row_and_position_of_each():
    first = Call(
        torch.tensor([[5, 6], [7, PAD]]),
        torch.tensor([[1, 1], [1, 0]]),
        torch.tensor([1, 0]),
        torch.tensor([0, 1]),
    )
    second = Call(*(torch.tensor(part) for part in ([[8, 9, 10]], [[1, 1, 1]], [0], [2], [[0, 1, 1]])))
    merged = merge([first, second], PAD)
    assert merged.input_ids.tolist() == [[5, 6, PAD], [7, PAD, PAD], [8, 9, 10]]
    assert merged.attention_mask.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert merged.segments is not None and merged.segments.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert (merged.rows.tolist(), merged.cols.tolist()) == ([1, 0, 2], [0, 1, 2])
    assert merge([first, first], PAD).segments is None
    output = torch.arange(9).view(3, 3)
    assert [part.tolist() for part in split(output, [first, second])] == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8]]]
    assert [part.shape for part in split(output, [first, second], per_token=True)] == [(2, 2), (1, 3)]
