"""--task tag: the loss, and runs from the flags to the saved model."""

from __future__ import annotations

import json
import random

import pytest
import torch
from conftest import HAN, make_model_dir, make_vocabulary, write_rows

import inference
from finetune.data.tagged import TaggedRow
from finetune.data.text_units import Span
from finetune.models.heads import TaggingLogits
from finetune.objectives.batching import collate
from finetune.objectives.loss import summed_loss, token_losses
from finetune.objectives.tagging import TaggingObjective

NAME = "my_bert_finetuned_model_hf_format"
NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def tagged_rows(count: int, seed: int = 3, **changes) -> list[dict]:
    """Texts in which 天x is a PER and 地xx a LOC."""
    rng, rows = random.Random(seed), []
    plain = [c for c in HAN if c not in "天地"]
    for number in range(count):
        text, entities = "", []
        for _ in range(rng.randint(1, 3)):
            text += "".join(rng.choices(plain, k=rng.randint(1, 4)))
            label, first, length = rng.choice([("PER", "天", 2), ("LOC", "地", 3)])
            entities.append({"start": len(text), "end": len(text) + length, "label": label})
            text += first + "".join(rng.choices(plain, k=length - 1))
        rows.append({"id": f"r{seed}-{number}", "text": text, "entities": entities, **changes})
    return rows


FAMILIES = {
    "bert": {}, "roberta": {"pad_token_id": 0}, "albert": {"embedding_size": 16}, "modernbert": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_step_is_that_of_transformers_own_head(loaded, family):
    from transformers import AutoConfig, AutoModelForTokenClassification

    shape = {
        "vocab_size": len(make_vocabulary()), "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
        "num_labels": len(NAMES), "pad_token_id": 0,
        "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3,
        **FAMILIES[family],
    }  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForTokenClassification.from_config(AutoConfig.for_model(family, **shape)).eval()
    rows = [TaggedRow(row["text"], tuple(Span(**one) for one in row["entities"])) for row in tagged_rows(12)]
    objective = TaggingObjective(loaded[1], rows, 64, 16, NAMES)
    batch = collate([objective.example(*key, 0) for key in objective.epoch(0)], 0)
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.rows, batch.cols] = batch.targets
    with torch.no_grad():
        losses = token_losses(TaggingLogits(model).eval()(*batch.inputs), batch)
        found = summed_loss(losses, batch) / batch.num_targets
        wanted = model(batch.input_ids, batch.attention_mask, labels=labels).loss
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert batch.num_targets == sum(len(row.text) for row in rows)


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory):
    """A base that learns in a few steps."""
    return make_model_dir(tmp_path_factory.mktemp("models") / "wide", hidden_size=64, num_attention_heads=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, wide_dir):
    """A folder where a tagger was trained on an official train, dev and test split."""
    import fine_tuning_llm

    home = tmp_path_factory.mktemp("tagger")
    for split, count, seed in (("train", 160, 1), ("dev", 30, 2), ("test", 30, 3)):
        write_rows(home / "data" / f"{split}.jsonl", tagged_rows(count, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        code = fine_tuning_llm.main([
            "--task", "tag", "--dataset", "data", "--model_name_or_path", str(wide_dir), "--cpu",
            "--num_epochs", "8", "--train_batch_size", "16", "--learning_rate", "3e-3", "--max_length", "16",
            "--stride", "4", "--precision", "fp32",
        ])  # fmt: skip
    assert code == 0
    return home


@pytest.mark.slow
def test_a_trained_tagger_finds_what_the_rule_does_not_and_its_report_says_so(trained):
    card = json.loads((trained / NAME / "run_card.json").read_text(encoding="utf-8"))
    test = card["metrics"]["test"]
    assert test["f1"] > 0.2 > test["baseline"]["f1"] and test["baseline"]["difference_interval_95"][0] > 0
    assert set(test["per_label"]) == {"PER", "LOC"} and card["task"] == "tag"
    config = json.loads((trained / NAME / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == NAMES
    flat = json.loads((trained / NAME / "all_results.json").read_text(encoding="utf-8"))
    assert flat["test_f1"] == test["f1"] and flat["test_baseline_f1"] == test["baseline"]["f1"]
    page = (trained / "report" / "index.html").read_text(encoding="utf-8")
    for words in ("序列標註報告", "每個字最常見的標記", "<td>", 'class="right"'):
        assert words in page
    readme = (trained / NAME / "README.md").read_text(encoding="utf-8")
    assert "token-classification" in readme


@pytest.mark.slow
def test_the_saved_tagger_is_transformers_own_and_tags_as_python_is_told(trained):
    from transformers import AutoModelForTokenClassification

    lines = (trained / "data/test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    model, tokenizer, device = inference.load_model(trained / NAME, "cpu")
    texts = [row["text"] for row in rows]
    found = inference.tag(model, tokenizer, texts, device)
    theirs = AutoModelForTokenClassification.from_pretrained(trained / NAME).eval()
    for text, spans in zip(texts[:5], found, strict=False):
        if len(text) > 14:
            continue
        inputs = tokenizer(list(text), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            probabilities = theirs(**inputs).logits[0, 1:-1].softmax(-1)
        for span in spans:
            assert text[span["start"] : span["end"]] == span["text"]
            inside = range(span["start"], span["end"])
            tags = [NAMES.index(f"{'I' if at > span['start'] else 'B'}-{span['label']}") for at in inside]
            lowest = min(float(probabilities[at, tag]) for at, tag in zip(inside, tags, strict=True))
            assert span["score"] == pytest.approx(lowest, abs=1e-4)
    right = sum(
        {key: span[key] for key in ("start", "end", "label")} in row["entities"]
        for row, spans in zip(rows, found, strict=True)
        for span in spans
    )
    card = json.loads((trained / NAME / "run_card.json").read_text(encoding="utf-8"))
    assert right == card["metrics"]["test"]["right"] > 0


@pytest.mark.slow
def test_a_long_text_is_tagged_in_windows_to_its_end(trained):
    model, tokenizer, device = inference.load_model(trained / NAME, "cpu")
    text = "宇宙天玄洪荒。" * 60
    spans = inference.tag(model, tokenizer, [text, ""], device)
    assert spans[1] == [] and len(spans[0]) > 50
    assert all(span["text"] == text[span["start"] : span["end"]] for span in spans[0])
    assert spans[0][-1]["start"] > len(text) - 10


@pytest.mark.slow
def test_a_tagger_that_knows_all_labels_is_trained_on_in_its_own_scheme(trained, train, tmp_path, capsys):
    rows = [
        {**row, "entities": [one for one in row["entities"] if one["label"] == "PER"]}
        for row in tagged_rows(12)
    ]
    write_rows(tmp_path / "per.jsonl", rows)
    code = train(
        "--task", "tag", "--dataset", tmp_path / "per.jsonl", "--model_name_or_path", trained / NAME, "--cpu",
        "--max_steps", "1", "--precision", "fp32", base=False,
    )  # fmt: skip
    assert code == 0 and "標記照底模的寫法與順序" in capsys.readouterr().err
    config = json.loads((tmp_path / NAME / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == NAMES


@pytest.mark.slow
def test_a_tagger_with_other_labels_is_refused_with_both_lists(trained, train, tmp_path, capsys):
    write_rows(
        tmp_path / "x.jsonl", [{"text": f"天玄宇{n}", "entities": [[0, 2, "公司"]]} for n in range(12)]
    )
    code = train(
        "--task",
        "tag",
        "--dataset",
        tmp_path / "x.jsonl",
        "--model_name_or_path",
        trained / NAME,
        "--cpu",
        base=False,
    )
    error = capsys.readouterr().err
    assert code == 2 and "B-公司" in error and "B-PER" in error


def test_labels_that_only_the_test_split_has_are_refused(train, tmp_path, capsys):
    write_rows(tmp_path / "d/train.jsonl", tagged_rows(12))
    write_rows(tmp_path / "d/test.jsonl", [{"text": "天玄", "entities": [[0, 2, "ORG"]]}])
    assert train("--task", "tag", "--dataset", tmp_path / "d") == 2
    error = capsys.readouterr().err
    assert "test 有 1 句的標籤是訓練資料裡沒有的：ORG" in error


def test_bad_rows_are_reported_together_and_may_be_skipped(train, tmp_path, capsys):
    rows = tagged_rows(20)
    rows[3]["entities"] = [[0, 99, "PER"]]
    rows[5]["entities"] = [[0, 2, "PER"], [1, 3, "LOC"]]
    write_rows(tmp_path / "x.jsonl", rows)
    assert train("--task", "tag", "--dataset", "x.jsonl") == 2
    error = capsys.readouterr().err
    assert "x.jsonl:4：" in error and "超出文字" in error and "x.jsonl:6：" in error and "交錯" in error
    code = train("--task", "tag", "--dataset", "x.jsonl", "--on_bad_rows", "skip", "--max_steps", "1")
    assert code == 0 and "略過 2 列" in capsys.readouterr().err


def test_rows_with_a_border_inside_a_word_and_long_ones_are_counted_in_remarks(train, tmp_path, capsys):
    rows = [{"text": f"天abc地{n}", "entities": [[1, 3, "PER"]]} for n in range(8)] + tagged_rows(20)
    rows += [{"text": "宙洪" * 40 + str(n), "entities": []} for n in range(4)]
    write_rows(tmp_path / "x.jsonl", rows)
    assert (
        train(
            "--task",
            "tag",
            "--dataset",
            "x.jsonl",
            "--max_steps",
            "1",
            "--max_length",
            "32",
            "--split_ratio",
            "1,0,0",
        )
        == 0
    )
    error = capsys.readouterr().err
    assert (
        "邊界落在字的中間" in error
        and "（8 列）" in error
        and "分成幾段來讀" in error
        and "（4 列）" in error
    )


@pytest.mark.parametrize("scheme", ["plain", "bmes", "one label"])
def test_parts_of_speech_words_without_types_and_a_single_label_are_trained(train, tmp_path, scheme):
    rng = random.Random(5)
    rows = []
    for _ in range(24):
        words = ["".join(rng.choices(HAN, k=rng.randint(1, 3))) for _ in range(4)]
        if scheme == "plain":
            rows.append({"tokens": words, "pos_tags": [("NN", "VV")[len(word) % 2] for word in words]})
        elif scheme == "bmes":
            tags = [
                t for word in words for t in (["S"] if len(word) == 1 else ["B", *"M" * (len(word) - 2), "E"])
            ]
            rows.append({"tokens": list("".join(words)), "tags": tags})
        else:
            rows.append({"text": "".join(words), "entities": [[0, 1, "公司 名稱"]]})
    write_rows(tmp_path / "x.jsonl", rows)
    assert train("--task", "tag", "--dataset", "x.jsonl", "--max_steps", "1", "--precision", "fp32") == 0
    names = {
        "plain": ["NN", "VV"], "bmes": ["B", "M", "E", "S"], "one label": ["O", "B-公司 名稱", "I-公司 名稱"],
    }[scheme]  # fmt: skip
    config = json.loads((tmp_path / NAME / "config.json").read_text(encoding="utf-8"))
    if scheme == "bmes":
        assert sorted(config["id2label"].values()) == sorted(names)
    else:
        assert list(config["id2label"].values()) == names
    text = "".join(random.Random(6).choices(HAN, k=9))
    found = inference.tag(*inference.load_model(tmp_path / NAME, "cpu")[:2], [text], "cpu")[0]
    if scheme != "one label":  # every character is in a word
        assert "".join(span["text"] for span in found) == text
