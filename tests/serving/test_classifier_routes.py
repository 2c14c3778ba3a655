"""POST /predict: classifiers in the shape of text-embeddings-inference."""

from __future__ import annotations

import pytest
import torch
from live_server import LiveServer
from test_classifier import NAMES, make_head, trained_card

import inference

PAIR = ["天地玄黃", "宇宙洪荒"]


@pytest.fixture(scope="module", params=[False, True], ids=["single", "multi"])
def server(request, tmp_path_factory, model_dir):
    folder = tmp_path_factory.mktemp("heads") / "classifier"
    head = "AutoModelForSequenceClassification"
    with LiveServer(make_head(folder, model_dir, head, multi=request.param, card=trained_card())) as server:
        server.folder = folder
        yield server


def test_a_text_a_pair_and_a_list_of_them_get_the_probabilities_of_classify(server):
    model = inference.load_model(server.folder, "cpu")
    found = inference.classify(*model[:2], [PAIR[0], tuple(PAIR)], "cpu")
    rows = [[{"score": score, "label": label} for label, score in ranked] for ranked in found]
    assert server.request("/predict", {"inputs": PAIR[0]}) == (200, rows[0])
    assert server.request("/predict", {"inputs": PAIR}) == (200, rows[1])
    assert server.request("/predict", {"inputs": [[PAIR[0]], PAIR]}) == (200, rows)


def test_raw_scores_are_the_logits(server):
    status, raw = server.request("/predict", {"inputs": PAIR[0], "raw_scores": True})
    _, shown = server.request("/predict", {"inputs": PAIR[0]})
    assert status == 200 and [row["label"] for row in raw] == [row["label"] for row in shown]
    logits = torch.tensor([row["score"] for row in raw])
    multi = server.service.predictor.multi
    expected = logits.sigmoid() if multi else logits.softmax(-1)
    torch.testing.assert_close(expected, torch.tensor([row["score"] for row in shown]))


def test_a_text_that_is_too_long_is_refused_unless_it_may_lose_its_end(server):
    long = "天" * 100
    status, answer = server.request("/predict", {"inputs": long})
    assert status == 422 and "48 個 token" in answer["error"]["message"]
    status, answer = server.request("/predict", {"inputs": long, "truncate": True})
    assert status == 200 and {row["label"] for row in answer} == {*NAMES}
