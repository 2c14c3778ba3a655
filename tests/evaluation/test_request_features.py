"""Features of requests: what they are of an input and of an answer, and that they are no texts."""

from __future__ import annotations

import json
import math

import pytest
from transformers import AutoTokenizer

from finetune.evaluation.request_features import (
    ANSWER,
    NUMBERS,
    PATHS,
    FeatureSample,
    option_features,
    record_features,
    text_features,
    way_of,
)
from finetune.models.run_card import TASK_TITLES
from finetune.serving import paths

RECORDS = {  # a record of predict/records.py, with the names of options -> its features
    "label": ({"text": "天", "label": "甲", "probabilities": {"甲": 0.9, "乙": 0.1}}, ()),
    "labels": ({"text": "天", "labels": [], "probabilities": {"甲": 0.4, "乙": 0.1}}, ()),
    "entities": (
        {"text": "天地", "entities": [
            {"start": 0, "end": 1, "label": "人", "text": "天", "score": 0.9},
            {"start": 1, "end": 2, "label": "人", "text": "地", "score": 0.7},
        ]}, (),
    ),
    "no entities": ({"text": "天地", "entities": []}, ()),
    "span": ({"question": "誰", "answer": "天", "start": 0, "end": 1, "score": 0.8}, ()),
    "no span": ({"question": "誰", "answer": "", "start": None, "end": None, "score": 0.6}, ()),
    "word": ({"prompt": "天", "predictions": [{"word": "地", "probability": 0.3}]}, ()),
    "words": ({"prompt": "天", "predictions": [{"word": "天地", "score": math.log(0.2)}]}, ()),
    "reply": ({"prompt": "天", "response": "地玄黃", "truncated": False}, ()),
    "options": ({"question": "誰", "answer": "天", "scores": {"天": -0.1, "地": -3.0}}, ("地", "天")),
}  # fmt: skip
EXPECTED = {
    "label": {"confidence": 0.9, "answer": "甲"},
    "labels": {"confidence": 0.4, "found": 0, "answer": {}},
    "entities": {"confidence": 0.7, "found": 2, "answer": {"人": 2}},
    "no entities": {"found": 0, "answer": {}},
    "span": {"confidence": 0.8, "answer": "span"},
    "no span": {"confidence": 0.6, "answer": "none"},
    "word": {"confidence": 0.3},
    "words": {"confidence": 0.2},
    "reply": {"reply": 3},
    "options": {"confidence": round(1 / (1 + math.exp(-2.9)), 6), "answer": "B"},
}


@pytest.fixture(scope="module")
def tokenizer(model_dir):
    return AutoTokenizer.from_pretrained(model_dir)


def test_the_features_of_an_input_are_counted_over_all_its_texts(tokenizer):
    features = text_features(tokenizer, ["天地Ω", "玄 x5"])
    assert features == {"characters": 7, "tokens": 6, "unknown": round(1 / 6, 6), "han": 0.5}
    assert text_features(tokenizer, [""]) == {"characters": 0, "tokens": 0, "unknown": 0, "han": 0}


def test_a_special_token_that_stands_in_a_text_is_text(tokenizer):
    assert text_features(tokenizer, ["[SEP]"])["tokens"] > 1


def test_a_tokenizer_without_an_unknown_token_has_no_share_of_it(qwen_dir):
    tokenizer = AutoTokenizer.from_pretrained(qwen_dir)
    tokenizer.unk_token = None
    assert "unknown" not in text_features(tokenizer, ["天地Ω"])


@pytest.mark.parametrize("name", RECORDS)
def test_of_an_answer_its_confidence_is_kept_and_nothing_that_comes_from_a_text(name):
    record, options = RECORDS[name]
    features = record_features(record, options)
    assert features == EXPECTED[name]
    kept = json.dumps(features, ensure_ascii=False)
    assert not any(text in kept for text in ("天", "地", "誰"))


def test_the_option_is_named_by_its_place_whatever_the_client_calls_it():
    scores = {"王小明": -2.0, "0912345678": -1.0}
    assert option_features(list(scores.values()))[ANSWER] == "B"
    assert option_features([-math.inf, -math.inf]) == {ANSWER: "A"}  # no confidence


def test_orders_belong_to_the_way_only_where_they_matter():
    assert way_of("letter", "cyclic") == "letter cyclic" and way_of("prior", "1") == "letter+prior 1"
    assert way_of("pll", "cyclic") == way_of("pll", "1") == "pll"


def test_every_task_has_paths_that_a_server_has():
    assert {*PATHS} == {*TASK_TITLES}
    assert {path for of_task in PATHS.values() for path in of_task} <= {*paths.PATHS}


def test_a_sample_is_read_back_as_it_was():
    rows = [{"tokens": 5, "confidence": 0.5, "answer": "甲"}, {"tokens": 3, "answer": "乙"}, {"tokens": 4}]
    sample = FeatureSample.of(rows)
    assert sample.numbers == {"tokens": [3, 4, 5], "confidence": [0.5]} and sample.answered == 2
    assert FeatureSample.from_dict(json.loads(json.dumps(sample.as_dict()))) == sample
    several = FeatureSample.of([{"answer": {"人": 2, "地": 1}}, {"answer": {}}, {"answer": {"人": 1}}])
    assert several.answers == {"人": 2, "地": 1} and several.answered == 3 and not several.exclusive
    assert FeatureSample.from_dict(several.as_dict()) == several
    assert {*sample.numbers} <= {*NUMBERS}
