"""The learning rate where no flag names one, and a run that learnt nothing is told so."""

from __future__ import annotations

import json
import math

import pytest
from conftest import make_model_dir, write_csv
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune.data.labelled import Labelled, class_weights
from finetune.objectives.classification import ClassificationObjective
from finetune.training.learning_rate import rate_to_try

NAME = "my_bert_finetuned_model_hf_format"
TEXTS = [("天天", "天"), ("地地", "地")] * 40
CLASSIFY = ["--task", "classify", "--dataset", "x.csv", "--num_epochs", 1, "--train_batch_size", 32]


def rate(folder) -> float:
    return json.loads((folder / NAME / "run_card.json").read_text(encoding="utf-8"))["flags"]["learning_rate"]


@pytest.fixture
def source(tmp_path):
    return write_csv(
        tmp_path / "x.csv",
        [[f"{text}{n}", label] for n, (text, label) in enumerate(TEXTS)],
        ("text", "label"),
    )


def planned(train, capsys, *more) -> float:
    capsys.readouterr()
    assert train(*CLASSIFY, "--dry_run", *more) == 0
    return json.loads(capsys.readouterr().out)["learning_rate"]


def test_random_weights_have_a_rate_of_their_own_and_a_given_one_wins(train, tmp_path, source, capsys):
    assert planned(train, capsys) == 3e-5
    assert planned(train, capsys, "--from_scratch") == 1e-3
    assert planned(train, capsys, "--from_scratch", "--learning_rate", "3e-5") == 3e-5
    wide = make_model_dir(tmp_path / "wide", hidden_size=256, num_hidden_layers=1)
    assert planned(train, capsys, "--from_scratch", "--model", wide) == 5e-4


@pytest.mark.slow
def test_a_run_without_a_fall_of_the_loss_says_so_with_a_rate_to_try_and_resuming_keeps_the_old_one(
    train, tmp_path, source, capsys
):
    assert train(*CLASSIFY, "--from_scratch", "--learning_rate", "1e-7") == 0
    out = capsys.readouterr().out
    assert "訓練損失幾乎沒有下降" in out and "--learning_rate 0.001" in out
    for name in ("report.md", "index.html"):
        assert "訓練損失幾乎沒有下降" in (tmp_path / "report" / name).read_text(encoding="utf-8")
    assert train(*CLASSIFY, "--from_scratch", "--resume") == 0  # begun when the default was another one
    assert rate(tmp_path) == 1e-7
    capsys.readouterr()
    learns = ["--learning_rate", "5e-3", "--num_epochs", 15, "--save_dir", "b"]
    assert train(*CLASSIFY, "--from_scratch", *learns) == 0
    assert "訓練損失幾乎沒有下降" not in capsys.readouterr().out and rate(tmp_path) == 5e-3


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("multi", [False, True])
def test_the_guess_is_the_least_loss_of_one_answer_for_all_rows(loaded, multi, weighted):
    import torch

    sets = [(0,)] * 50 + [(1,)] * 20 + [(2,)] * 10 + ([(0, 1)] * 7 + [()] * 3 if multi else [])
    rows = [Labelled("天", labels=labels) for labels in sets]
    weights = class_weights(rows, 3, multi) if weighted else None
    known, whole = ClassificationObjective(loaded[1], rows, 16, 3, multi, weights).baseline_loss
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)
    weight = torch.tensor(weights, dtype=torch.float64) if weights else None
    there = torch.tensor([[float(k in row.labels) for k in range(3)] for row in rows], dtype=torch.float64)

    def loss():
        optimizer.zero_grad()
        shown = logits.expand(len(rows), 3)
        if multi:
            found = binary_cross_entropy_with_logits(shown, there, pos_weight=weight)
        else:
            found = cross_entropy(shown, there.argmax(1), weight=weight, reduction="sum") / len(rows)
        found.backward()
        return found

    optimizer.step(loss)
    assert known == pytest.approx(float(loss().detach()), abs=1e-6)
    assert whole == pytest.approx(math.log(2 if multi else 3))


@pytest.mark.parametrize(
    ("used", "usual", "tried"),
    [(3e-5, None, 3e-4), (1e-3, None, 1e-4), (3e-5, 1e-3, 1e-3), (1e-3, 1e-3, 1e-4), (0.1, 5e-4, 5e-4)],
)
def test_the_rate_to_try_is_the_usual_one_or_a_tenfold_step(used, usual, tried):
    assert rate_to_try(used, usual) == pytest.approx(tried)
