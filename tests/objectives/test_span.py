"""Objective of extractive question answering: the loss of transformers' own heads, targets, remarks."""

from __future__ import annotations

import pytest
import torch
from conftest import make_vocabulary
from span_rows import make_spans
from transformers import AutoConfig, AutoModelForQuestionAnswering, BertTokenizer

from finetune.data.span_rows import Answer, SpanRow
from finetune.evaluation.extraction import SpanSettings
from finetune.models.heads import forward_of
from finetune.objectives.batching import collate
from finetune.objectives.loss import summed_loss, token_losses
from finetune.objectives.span import WITHIN_A_TOKEN, SpanObjective

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "bert": {}, "roberta": {"max_position_embeddings": 130}, "albert": {"embedding_size": 16},
    "modernbert": {
        "global_attn_every_n_layers": 2, "local_attention": 16, "cls_token_id": 2, "sep_token_id": 3,
    },
    "deberta-v2": {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
}  # fmt: skip
SLOW = ("modernbert", "deberta-v2")


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(vocab={word: at for at, word in enumerate(make_vocabulary())}, do_lower_case=True)


def rows_of(flat) -> list[SpanRow]:
    return [
        SpanRow(
            row["question"], row["context"],
            (Answer(row["answer"], row["answer_start"]),) if row["answer"] else (), row["id"],
        )
        for row in flat
    ]  # fmt: skip


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=pytest.mark.nightly if f in SLOW else ()) for f in FAMILIES]
)
def test_the_loss_is_that_of_transformers_own_heads(family, tokenizer):
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family], vocab_size=len(tokenizer))
    torch.manual_seed(1)
    model = AutoModelForQuestionAnswering.from_config(config).eval()
    rows = rows_of(make_spans(12, unanswerable=4))
    objective = SpanObjective(tokenizer, rows, SpanSettings(64, 16))
    total = wanted = 0.0
    for index in range(len(rows)):
        example = objective.example("span", index, 0)
        batch = collate([example], 0)
        with torch.no_grad():
            total += summed_loss(token_losses(forward_of(model).eval()(*batch.inputs), batch), batch)
            inputs = tokenizer(rows[index].question, rows[index].context, return_tensors="pt")
            assert inputs["input_ids"][0].tolist() == list(example.ids)
            if getattr(config, "type_vocab_size", 0) < 2:
                del inputs["token_type_ids"]
            start, end = (torch.tensor([target]) for target in example.targets)
            wanted += model(**inputs, start_positions=start, end_positions=end).loss
    torch.testing.assert_close(total / len(rows), wanted / len(rows), atol=1e-5, rtol=1e-5)


def test_a_window_without_the_answer_points_at_the_first_token(tokenizer):
    context = "天地玄黃宇宙洪荒日月盈昃" * 6 + "（成歲律呂）" + "辰宿列張寒來暑往" * 6
    start = context.index("成歲")
    row = SpanRow("天？", context, (Answer("成歲律呂", start), Answer("天地", 0)), "x")
    objective = SpanObjective(tokenizer, [row], SpanSettings(48, 8))
    found = []
    for kind, index in objective.epoch(0):
        example = objective.example(kind, index, 0)
        first, last = example.targets
        if (first, last) == (0, 0):
            assert not set(tokenizer.convert_tokens_to_ids(list("成歲律呂"))) < set(example.ids)
        else:
            found.append(tokenizer.convert_ids_to_tokens(list(example.ids[first : last + 1])))
        assert "成歲律呂" in objective.show(index) or "沒有答案" in objective.show(index)
    assert found and all(tokens == list("成歲律呂") for tokens in found)  # the first of two golds
    none = SpanObjective(tokenizer, [SpanRow("天？", context)], SpanSettings(48, 8))
    assert {none.example(*key, 0).targets for key in none.epoch(0)} == {(0, 0)}


def test_answers_that_no_token_ends_with_or_that_are_too_long_are_counted(tokenizer):
    rows = [
        SpanRow("天？", "天地10年", (Answer("1", 2),)),
        SpanRow("天？", "天地玄黃宇宙洪荒", (Answer("天地玄黃宇宙", 0),)),
        SpanRow("天？", "天地玄黃", (Answer("地", 1),)),
    ]
    objective = SpanObjective(tokenizer, rows, SpanSettings(48, 8, max_answer_length=5))
    assert list(objective.remarks.values()) == [1, 1] and WITHIN_A_TOKEN in objective.remarks
    objective = SpanObjective(
        tokenizer, [SpanRow("天" * 99, "地" * 99, (), "long"), *rows], SpanSettings(48, 8)
    )
    assert objective.too_long == ["long"] and len(objective.rows) == 3
