"""Requests that are there together share passes, and none of them can be told from its answer."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import HAN, random_text
from live_server import LiveServer
from test_classifier import make_head
from test_tagger import make_tagger

import inference

CLIENTS = 64
KINDS = {  # kind -> how many of 200 requests it gets, as made by `requests_for`
    "masked": 80, "choice": 20, "classifier": 30, "multi": 10, "tagger": 30, "extractor": 30,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory, spread_model_dir):
    """A folder of each kind, with weights so wide that its answers differ."""
    home, wide = tmp_path_factory.mktemp("kinds"), spread_model_dir
    return {
        "masked": wide,
        "choice": make_head(home / "choice", wide, "AutoModelForMultipleChoice"),
        "classifier": make_head(home / "single", wide, "AutoModelForSequenceClassification"),
        "multi": make_head(home / "multi", wide, "AutoModelForSequenceClassification", multi=True),
        "tagger": make_tagger(home / "tagger", wide),
        "extractor": make_head(home / "reader", wide, "AutoModelForQuestionAnswering"),
    }  # fmt: skip


def requests_for(kind: str, count: int, seed: int = 5) -> list[tuple[str, dict]]:
    """Requests of all lengths, with all that a path can be asked for: (path, body)."""
    rng = random.Random(seed)
    asked = []
    for number in range(count):
        text = random_text(rng, 1, rng.choice((4, 12, 30, 90)))
        options = {letter: random_text(rng, 1, 6) for letter in "ABCDE"[: rng.randint(2, 5)]}
        if number % 7 == 3 and kind != "choice":
            asked.append(("/v1/embeddings", {"input": [text, text[:2]]}))
        elif kind == "choice" or (kind == "masked" and number % 3 == 0):
            body = {"question": text + "？", "options": options}
            if kind == "masked":
                body["scoring"] = rng.choice(("letter", "pll", "joint", "pll_l2r", "pll+pmi"))
                body["orders"] = rng.choice(("1", "cyclic"))
            asked.append(("/v1/answer", body))
        elif kind == "masked":
            blanks = rng.choice(("[MASK]", "[MASK][MASK]", "[MASK]黃[MASK]"))
            body = {"prompt": text + blanks + text[:3], "top_k": rng.randint(1, 20)}
            body |= rng.choice(({}, {"word_length": 3}, {"candidates": [*HAN[:4]]}))
            asked.append(("/v1/fill", body))
        elif kind in ("classifier", "multi"):
            pair = {"pair": random_text(rng, 1, 20)} if number % 2 else {}
            asked.append(("/v1/classify", {"text": text, **pair}))
        elif kind == "tagger":
            asked.append(("/v1/tag", {"text": text * rng.choice((1, 3))}))
        else:
            asked.append(("/v1/span", {"question": text[:5], "context": text * 2, "top_k": 3}))
    return asked


@pytest.mark.parametrize("kind", KINDS)
def test_requests_at_once_get_the_answers_that_they_get_one_after_another(folders, kind):
    asked = requests_for(kind, KINDS[kind])
    with LiveServer(folders[kind], max_queue=1000) as server:
        alone = [server.request(*request) for request in asked]
        assert {status for status, _ in alone} == {200}
        passes = server.service.predictor.forward.calls
        assert passes.num_calls == passes.num_rounds > 0
        before = passes.num_rounds
        with ThreadPoolExecutor(CLIENTS) as clients:
            together = list(clients.map(lambda request: server.request(*request), asked))
    assert together == alone
    assert passes.num_calls == 2 * before and passes.num_rounds < 1.9 * before  # else nothing was shared


def argv_of(path: str, body: dict) -> list[str]:
    """The flags of the command line for a request."""
    words = []
    for name, value in body.items():
        if name == "options":
            value = " ".join(f"{letter}:{text}" for letter, text in value.items())
        value = ",".join(value) if isinstance(value, list) else str(value)
        words += [f"--{'prompt' if name == 'text' else name}", value]
    return words


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_that_of_the_command_line_to_the_last_digit(folders, kind, capsys):
    asked = [request for request in requests_for(kind, 40) if request[0] != "/v1/embeddings"][:9]
    with LiveServer(folders[kind]) as server, ThreadPoolExecutor(len(asked)) as clients:
        answers = list(clients.map(lambda request: server.request(*request), asked))
    for request, answer in zip(asked, answers, strict=True):
        capsys.readouterr()
        flags = ["--model_path", str(folders[kind]), "--cpu", "--precision", "fp32", "--json"]
        assert inference.main([*flags, *argv_of(*request)]) == 0
        assert answer == (200, json.loads(capsys.readouterr().out)), request
