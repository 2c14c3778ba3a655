"""--task mlm: masked words of a person's texts, from the flags to the saved model."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
import torch
from conftest import losses, random_text, write_texts

from finetune.data.cleaning import Text
from finetune.objectives.masked_lm import MaskedLMObjective, MaskingConfig

NAME = "my_bert_finetuned_model_hf_format"


def texts(count=30, low=5, high=90):
    rng = random.Random(2)
    return [Text(random_text(rng, low, high) + "。", id=str(i)) for i in range(count)]


@pytest.mark.slow
def test_a_long_text_is_cut_between_words_and_none_of_it_is_lost(loaded):
    tokenizer = loaded[1]
    rows = [Text("天地玄黃，宇宙洪荒abc123。" * 20), Text("日")]
    objective = MaskedLMObjective(tokenizer, rows, 32, 0, MaskingConfig("word"))
    ids = [token for piece, _ in objective.pieces for token in piece]
    assert ids == [
        token
        for row in rows
        for token in tokenizer(row.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ]
    assert max(objective.lengths) <= 32
    for _, numbers in objective.pieces:  # words begin anew with every piece
        assert list(numbers) == sorted(numbers) and numbers[0] == 0
    assert len(objective.example("mlm", len(objective.pieces) - 1, 0).positions) == 1


def test_validation_masks_the_same_words_each_time_at_15_percent_whatever_the_training_rate(loaded):
    how = MaskingConfig("word", 0.6)
    rows = texts(40, 60, 110)
    training, validation = (
        MaskedLMObjective(loaded[1], rows, 128, 7, one) for one in (how, how.for_checking())
    )
    again = MaskedLMObjective(loaded[1], rows, 128, 7, how.for_checking())

    def drawn(objective, epoch):
        return [objective.example(*entry, epoch) for entry in objective.epoch(epoch)]

    def rate(examples):
        return sum(len(e.positions) for e in examples) / sum(len(e.ids) - 2 for e in examples)

    assert drawn(validation, 0) == drawn(again, 0)
    assert drawn(training, 0) != drawn(training, 1)
    assert rate(drawn(training, 0)) == pytest.approx(0.6, abs=0.03)
    assert rate(drawn(validation, 0)) == pytest.approx(0.15, abs=0.02)
    seen = Counter(e.ids[at] for e in drawn(validation, 0) for at in e.positions)
    assert set(seen) == {loaded[1].mask_token_id}


@pytest.mark.slow
def test_perplexity_and_the_share_restored_are_those_of_a_plain_loop(train, tmp_path, model_dir):
    """transformers' own forward pass, one row after the other."""
    import inference
    from finetune.data.cleaning import CLEANING, Cleaning
    from finetune.data.corpus import read_corpus
    from finetune.data.splits import split_texts

    source = write_texts(tmp_path / "t.json")
    words = ["--task", "mlm", "--model", model_dir, "--dataset", source, "--min_chars", 5, "--max_chars", 60]
    words += ["--max_steps", 8, "--learning_rate", 5e-3, "--cpu", "--split_ratio", "0.7,0.2,0.1"]
    assert train(*words, base=False) == 0
    card = json.loads((tmp_path / NAME / "run_card.json").read_text(encoding="utf-8"))
    corpus = read_corpus(str(source), Cleaning(tuple(CLEANING), 5, 60))
    for who, folder in (("tuned", tmp_path / NAME), ("untuned", model_dir)):
        model, tokenizer, _ = inference.load_model(folder, "cpu")
        parts = split_texts(corpus.texts, (0.7, 0.2, 0.1), 42)
        for name, rows in (("validation", parts[1]), ("held_back", parts[2])):
            objective = MaskedLMObjective(tokenizer, rows, 128, 42, MaskingConfig("word").for_checking())
            total, right, count = 0.0, 0, 0
            for entry in objective.epoch(0):
                example = objective.example(*entry, 0)
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([example.ids])).logits[0]
                for at, token in zip(example.positions, example.targets, strict=True):
                    total += float(-logits[at].log_softmax(-1)[token])
                    right += int(logits[at].argmax()) == token
                    count += 1
            found = card["growth"]["sets"][name][who]
            assert found["tokens"] == count and found["restored"] == pytest.approx(right / count)
            assert found["loss"] == pytest.approx(total / count, rel=1e-4)
    sets = card["growth"]["sets"]
    assert sets["held_back"]["tuned"]["perplexity"] < sets["held_back"]["untuned"]["perplexity"]


def test_masks_can_be_looked_at_before_any_training(train, tmp_path, capfd):
    source = write_texts(tmp_path / "t.json")
    assert train("--task", "mlm", "--dataset", source, "--min_chars", 5, "--preview_masks", 2) == 0
    shown = capfd.readouterr().out.splitlines()
    assert len(shown) == 5 and shown[0].startswith("第 1 列：") and "【" in shown[1]
    assert "換成 [MASK]" in shown[-1] and not (tmp_path / NAME).exists()


@pytest.mark.slow
def test_an_mlm_run_stopped_in_the_middle_goes_on_with_the_same_masks(train, tmp_path):
    source = write_texts(tmp_path / "t.json")
    words = ["--task", "mlm", "--dataset", source, "--min_chars", 5, "--max_chars", 60, "--max_steps", 7]
    words += ["--masking", "span", "--save_interval", 3, "--save_total_limit", 0, "--train_batch_size", 8]
    assert train(*words, "--save_dir", "a") == 0
    found = losses(tmp_path)
    assert train(*words, "--load_dir", "a", "--ckpt_id", "step3", "--save_dir", "b") == 0
    assert losses(tmp_path)[-4:] == found[3:]
    assert train(*words, "--mask_rate", 0.3, "--load_dir", "a", "--ckpt_id", "step3", "--save_dir", "c") == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--task", "mlm"], "--dataset"),
        (["--task", "mlm", "--dataset", "t.json", "--masking", "answer"], "--masking answer"),
        (["--objective", "answer", "--mask_rate", "0.3"], "--mask_rate"),
        (["--objective", "choice", "--masking", "word"], "--masking"),
        (["--task", "mlm", "--dataset", "t.json", "--mask_rate", "1.5"], "--mask_rate"),
        (["--task", "mlm", "--dataset", "t.json", "--label_column", "x"], "--label_column"),
    ],
)
def test_flags_of_masks_that_mean_nothing_are_refused(train, tmp_path, capfd, flags, says):
    write_texts(tmp_path / "t.json")
    assert train(*flags, base="--dataset" not in flags and "mlm" not in flags) == 2
    assert says in capfd.readouterr().err
