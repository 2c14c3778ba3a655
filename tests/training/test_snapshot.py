"""The snapshot of the validation data in a run card: what of it each task has.

That served validation rows have the same features is a law of tests/serving/test_watch.py.
"""

from __future__ import annotations

import random

import pytest
from conftest import write_alpaca, write_rows, write_texts
from test_task_laws import make_t5_dir, paired_rows

from finetune.models.run_card import RunCard
from finetune.training import snapshot

NAME = "my_bert_finetuned_model_hf_format"
INPUT = {"characters", "tokens", "unknown", "han"}
FLAGS = ("--max_steps", 2, "--learning_rate", 1e-3, "--train_batch_size", 4, "--max_length", 96)
EXPECTED = {  # task -> the numbers, the way
    "exam": (INPUT | {"confidence"}, "letter 1"), "mlm": ({"unknown", "han"}, ""),
    "sft": (INPUT, ""), "seq2seq": (INPUT | {"reply"}, ""),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("task", EXPECTED)
def test_a_run_card_has_the_features_that_its_task_measures(task, train, tmp_path, qwen_dir, monkeypatch):
    monkeypatch.setattr(snapshot, "KEPT", 4)
    words = {
        "exam": lambda: ["--exam_limit", 8],
        "mlm": lambda: ["--dataset", write_texts(tmp_path / "texts.json")],
        "sft": lambda: [
            "--dataset", write_alpaca(tmp_path / "rows.csv", 40), "--model", qwen_dir,
            "--split_ratio", "0.5,0.5,0",
        ],
        "seq2seq": lambda: [
            "--dataset", write_rows(tmp_path / "rows.jsonl", paired_rows(random.Random(1), 60)),
            "--model", make_t5_dir(tmp_path / "t5"), "--split_ratio", "0.5,0.5,0",
        ],
    }  # fmt: skip
    assert train("--task", task, *FLAGS, *words[task]()) == 0
    card = RunCard.read(tmp_path / NAME)
    names, way = EXPECTED[task]
    assert card.snapshot["set"] == "validation" and card.snapshot["way"] == way
    assert card.snapshot["numbers"].keys() == names and card.snapshot["rows"] == 4
    assert all(len(values) == 4 and values == sorted(values) for values in card.snapshot["numbers"].values())
    answers = card.snapshot["answers"]
    if task == "exam":
        assert answers["exclusive"] and sum(answers["counts"].values()) == answers["n"] == 4
        assert {*answers["counts"]} <= {*"ABCD"}
    else:
        assert answers == {}
