"""Teacher forcing: the loss of a step is that of transformers' own heads; lengths, prefix, cuts."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import random_text
from encoder_decoders import make

from finetune.data.text_pairs import TextPair
from finetune.models.heads import forward_of
from finetune.objectives.batching import collate
from finetune.objectives.loss import loss_stats, token_losses
from finetune.objectives.seq2seq import Lengths, Seq2SeqObjective
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import UserError

RNG = random.Random(0)
ROWS = [
    TextPair(str(number), random_text(RNG, 2, 30), random_text(RNG, 1, 20)) for number in range(7)
]  # fmt: skip


LENGTHS = Lengths(64, 64)


def objective_of(family, rows=ROWS, lengths=LENGTHS, prefix=""):
    model, tokenizer = make(family, spread=0.1)
    return Seq2SeqObjective(tokenizer, rows, model.config, lengths, prefix), model, tokenizer


@pytest.mark.parametrize("family", ["t5", "mt5", "bart", "mbart", "mbart50"])
def test_the_loss_of_a_padded_batch_is_that_of_transformers(family):
    objective, model, tokenizer = objective_of(family)
    examples = [objective.example(*key, 0) for key in objective.epoch(0)]
    batch = collate([*examples, None], tokenizer.pad_token_id)  # a row that only keeps ranks in step
    count, total = loss_stats(token_losses(forward_of(model)(*batch.inputs), batch), batch)[:2].tolist()
    source = tokenizer([row.source for row in ROWS], padding=True, return_tensors="pt")
    labels = tokenizer(text_target=[row.target for row in ROWS], padding=True, return_tensors="pt")[
        "input_ids"
    ]
    labels = labels.masked_fill(labels == tokenizer.pad_token_id, -100)
    theirs = model(input_ids=source["input_ids"], attention_mask=source["attention_mask"], labels=labels).loss
    assert count == batch.num_targets == int((labels != -100).sum())
    assert total / count == pytest.approx(theirs.item(), abs=1e-5)


def test_every_token_of_a_target_counts_once_and_lengths_hold_both_sides():
    objective, _, tokenizer = objective_of("t5")
    for (kind, index), length in zip(objective.epoch(0), objective.lengths, strict=True):
        example = objective.example(kind, index, 0)
        assert example.by_token and set(example.weights) == {1.0}
        assert example.targets[-1] == tokenizer.eos_token_id
        assert (
            length == len(example.ids) + len(example.targets) == len(example.ids) + len(example.decoder_ids)
        )


def test_the_prefix_stands_before_a_source_and_long_texts_lose_their_ends():
    rows = [TextPair("a", "天地玄黃宇宙洪荒", "日月盈昃辰宿列張"), TextPair("b", "天", "日")]
    objective, _, tokenizer = objective_of("t5", rows, Lengths(6, 4), "abc")
    long, short = (objective.example("pair", index, 0) for index in range(2))
    assert tokenizer.decode(short.ids[:-1]).startswith("abc天")
    assert len(long.ids) == 6 and long.ids[-1] == tokenizer.eos_token_id
    assert len(long.targets) == 4 and long.targets[-1] == tokenizer.eos_token_id
    assert objective.truncated == 1 and list(objective.remarks.values()) == [1]


def test_a_sample_of_the_rows_is_written_always_the_same_and_by_all_ranks(monkeypatch):
    objective, model, _ = objective_of("bart", lengths=Lengths(64, 8, rows=4))
    again = objective_of("bart", [*reversed(ROWS)], Lengths(64, 8, rows=4))[0]
    assert {objective.rows[i].id for i in objective.written} == {again.rows[i].id for i in again.written}
    forward = forward_of(model).eval()
    alone = objective.predict(forward, model.config, Distributed(0, 1, torch.device("cpu")))
    assert len(alone) == 4
    parts = {}

    class Rank(Distributed):
        def all_gather(self, items):
            parts[self.rank] = items
            return [item for part in parts.values() for item in part]

    with pytest.raises(KeyError):  # the other rank's rows are missing yet
        objective.predict(forward, model.config, Rank(0, 2, torch.device("cpu")))
    assert objective.predict(forward, model.config, Rank(1, 2, torch.device("cpu"))) == alone
    metrics = objective.metrics(alone, model.config, alone)
    assert metrics["n"] == 4 and metrics["rows"] == 7 and metrics["difference"]["rougeL"]["difference"] == 0


def test_a_prefix_that_leaves_no_room_is_refused_and_a_models_own_limit_is_named():
    with pytest.raises(UserError, match="--prefix 有 .*放不下輸入"):
        objective_of("t5", prefix="天" * LENGTHS.source)
    long = [TextPair("1", "天地", "天地玄黃" * 40)]
    for longest, said in ((1000, "這個模型最多寫這麼長"), (16, "可加大 --max_target_length")):
        objective, _, _ = objective_of("bart", long, Lengths(32, longest))
        assert [said in note for note in objective.remarks] == [True]
