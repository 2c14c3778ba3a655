"""--task classify: the loss, its weights, and runs from the flags to the saved model."""

from __future__ import annotations

import json
import random

import pytest
import torch
from conftest import ROOT, losses, make_model_dir, random_text, write_csv
from forked import run_ranks
from torch.nn import functional

from finetune.models.heads import SequenceLogits
from finetune.objectives.batching import collate
from finetune.objectives.loss import summed_loss, token_losses

NAME = "my_bert_finetuned_model_hf_format"


def write_labelled(path, count=60, pair=False, multi=False, seed=3):
    """Texts whose label is told by a character in them."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        label = ("天", "地", "人")[number % 3] if number % 7 else "天"
        marks = [label] if not multi else sorted(set(rng.sample("天地人", rng.randint(0, 3))))
        text = random_text(rng, 3, 12).replace("天", "雲").replace("地", "雲")
        text += "".join({"天": "天", "地": "地", "人": "玉"}[m] for m in marks) + random_text(rng, 1, 3)[:1]
        text = text.replace("玉玉", "玉")
        rows.append([text, *([random_text(rng, 2, 6)] if pair else []), "|".join(marks)])
    header = ("sentence1", "sentence2", "label") if pair else ("text", "label")
    return write_csv(path, rows, header)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("multi", [False, True])
def test_the_loss_is_that_of_transformers_own_heads(loaded, tmp_path, pair, multi):
    from transformers import AutoModelForSequenceClassification

    from finetune.data.labelled import LabelledOptions, read_labelled
    from finetune.models.kinds import name_classes
    from finetune.objectives.classification import ClassificationObjective

    file = write_labelled(tmp_path / "x.csv", 12, pair, multi)
    source = read_labelled(str(file), options=LabelledOptions(multi_label=multi))
    rows = [row for part in source.rows.values() for row in part]
    config = type(loaded[0].config).from_dict(loaded[0].config.to_dict())
    name_classes(config, source.names, source.multi)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    objective = ClassificationObjective(loaded[1], rows, 64, 3, multi)
    batch = collate([objective.example(*entry, 0) for entry in objective.epoch(0)], 0)
    with torch.no_grad():
        found = summed_loss(token_losses(SequenceLogits(model)(*batch.inputs), batch), batch) / len(rows)
        given = [row.text for row in rows], [row.pair for row in rows] if pair else None
        inputs = loaded[1](*given, padding=True, return_tensors="pt", split_special_tokens=True)
        wanted = torch.tensor([row.labels[0] for row in rows]) if not multi else None
        if multi:
            wanted = torch.tensor([[float(at in row.labels) for at in range(3)] for row in rows])
        theirs = model(**inputs, labels=wanted).loss
    torch.testing.assert_close(found, theirs)


def test_class_weights_weigh_the_rows_of_a_class_as_torch_does(loaded):
    from finetune.data.labelled import Labelled
    from finetune.objectives.classification import ClassificationObjective

    rows = [Labelled("天地", labels=(at,)) for at in (0, 1, 1, 2)]
    weights = [2.0, 0.5, 1.0]
    objective = ClassificationObjective(loaded[1], rows, 32, 3, False, weights)
    batch = collate([objective.example(*entry, 0) for entry in objective.epoch(0)], 0)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    found = summed_loss(token_losses(logits, batch), batch)
    wanted = functional.cross_entropy(logits, batch.targets, torch.tensor(weights), reduction="sum")
    torch.testing.assert_close(found, wanted)
    rows = [Labelled("天地", labels=labels) for labels in ((), (0,), (1, 2), (0, 2))]
    objective = ClassificationObjective(loaded[1], rows, 32, 3, True, weights)
    batch = collate([objective.example(*entry, 0) for entry in objective.epoch(0)], 0)
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0))
    found = summed_loss(token_losses(logits, batch), batch) / 4
    targets = batch.targets.view(4, 3).float()
    weighted = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights))
    torch.testing.assert_close(found, weighted(logits.view(4, 3), targets))


def classify(train, tmp_path, *more, pair=False, multi=False):
    source = write_labelled(tmp_path / "x.csv", 240, pair, multi)
    words = ["--task", "classify", "--dataset", source, "--learning_rate", 5e-3, "--num_epochs", 12, *more]
    return train(*words, *(["--multi_label"] if multi else []))


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "multi"), [(False, False), (True, False), (False, True)])
def test_labels_are_learnt_reported_and_kept_by_name(train, tmp_path, model_dir, pair, multi):
    import inference

    # slowly: at a higher rate a model this small gets stuck with one seed in three
    rate, epochs = (2e-3, 40) if multi else (1e-3, 40)
    slowly = "--learning_rate", rate, "--num_epochs", epochs
    assert classify(train, tmp_path, *slowly, pair=pair, multi=multi) == 0
    config = json.loads((tmp_path / NAME / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "人", "1": "地", "2": "天"}
    assert config["problem_type"] == ("multi_label" if multi else "single_label") + "_classification"
    card = json.loads((tmp_path / NAME / "run_card.json").read_text(encoding="utf-8"))
    found = card["labels"]["held_back"]
    assert found["macro_f1"] > 0.8 and set(found["per_class"]) == {"天", "地", "人"}
    assert found["baseline"]["n"] == found["n"] and found["baseline"]["trained_on"] == 192
    for name in ("report/report.md", "report/index.html", f"{NAME}/README.md"):
        assert "TF-IDF＋邏輯迴歸" in (tmp_path / name).read_text(encoding="utf-8")
    curve = [entry["validation_macro_f1"] for entry in card["history"]]
    best = max(range(len(curve)), key=lambda at: (curve[at], -card["history"][at]["validation_loss"]))
    assert card["history"][best]["step"] == card["step"]
    assert (tmp_path / "report/index.html").exists()
    model, tokenizer, device = inference.load_model(tmp_path / NAME, "cpu")
    texts = [("宇宙天洪", "荒")] if pair else ["宇宙天洪荒"]
    assert inference.classify(model, tokenizer, texts, device)[0][0][0] == "天"


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--lora_rank", 8], ["--lora_rank", 8, "--no_merge"], ["--freeze", "embeddings"]]
)
def test_labels_are_learnt_with_adapters_and_frozen_layers_too(train, tmp_path, flags):
    assert classify(train, tmp_path, *flags, "--class_weights") == 0
    card = json.loads((tmp_path / NAME / "run_card.json").read_text(encoding="utf-8"))
    found = card["labels"]["held_back"]
    assert found["macro_f1"] > found["macro_f1_majority"] + 0.2


def test_official_test_rows_are_only_ever_scored(train, tmp_path):
    for split, count in (("train", 60), ("dev", 30), ("test", 45)):
        write_labelled(tmp_path / f"data/{split}.csv", count, seed=len(split))
    words = ["--task", "classify", "--dataset", tmp_path / "data", "--num_epochs", 1]
    assert train(*words) == 0
    card = json.loads((tmp_path / NAME / "run_card.json").read_text(encoding="utf-8"))
    assert {name: found["n"] for name, found in card["labels"].items()} == {"validation": 30, "test": 45}


@pytest.mark.parametrize(
    ("rows", "flags", "says"),
    [
        (None, ["--label_column", "lable"], "lable：沒有這一欄，有的是 text、label"),
        (None, ["--text_column", "body"], "body：沒有這一欄，有的是 text、label"),
        ([["天地", "好"], ["玄黃", "好"]], [], "只有一種"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_refused_with_the_reason(
    train, tmp_path, capfd, rows, flags, says
):
    source = write_labelled(tmp_path / "x.csv")
    if rows:
        write_csv(source, rows, ("text", "label"))
    assert train("--task", "classify", "--dataset", source, *flags) == 2
    assert says in capfd.readouterr().err and not (tmp_path / NAME).exists()


def test_a_test_label_that_training_never_saw_is_refused(train, tmp_path, capfd):
    write_labelled(tmp_path / "data/train.csv")
    write_csv(tmp_path / "data/test.csv", [["天地", "鬼"], ["玄黃", "天"]], ("text", "label"))
    assert train("--task", "classify", "--dataset", tmp_path / "data") == 2
    assert "鬼" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
@pytest.mark.parametrize("task", ["choice", pytest.param("classify", marks=pytest.mark.nightly)])
def test_two_ranks_train_heads_as_one_does(train, tmp_path, exam_dir, engine, task):

    still = make_model_dir(tmp_path / "still", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    source = write_labelled(tmp_path / "x.csv", 100) if task == "classify" else exam_dir
    what = ["--task", "classify"] if task == "classify" else ["--objective", "choice", "--exam_limit", "4"]
    words = [*what, "--max_steps", "6", "--learning_rate", "1e-3"]
    assert train("--model", still, "--dataset", source, *words) == 0
    (tmp_path / "two").mkdir()
    two = run_on_two(engine, tmp_path / "two", still, source, *words)
    assert losses(tmp_path) == pytest.approx(two, rel=1e-4)


def run_on_two(engine, folder, model, source, *words):
    flags = ["--model", model, "--dataset", source, "--cpu", "--engine", engine, *words]
    done = run_ranks(folder, ROOT / "fine_tuning_llm.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(folder)


def test_one_label_alone_is_no_classification(train, tmp_path, capfd):
    rows = [{"text": f"天地{at}", "labels": ["甲"] if at % 2 else []} for at in range(12)]
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert train("--task", "classify", "--dataset", source) == 2
    assert "只有一個標籤（甲）" in capfd.readouterr().err
