"""Our own paths: what they answer is what --json prints."""

from __future__ import annotations

import json

import pytest
from live_server import LiveServer

import inference


@pytest.fixture(scope="module")
def server(model_dir):
    with LiveServer(model_dir) as server:
        yield server


def cli(capsys, folder, *argv) -> dict:
    capsys.readouterr()
    assert inference.main(["--model_path", str(folder), "--cpu", "--precision", "fp32", "--json", *argv]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_filled_blank_is_that_of_the_command_line(server, model_dir, capsys):
    body = {"prompt": "天[MASK]玄黃", "top_k": 3}
    assert server.request("/v1/fill", body) == (
        200, cli(capsys, model_dir, "--prompt", "天[MASK]玄黃", "--top_k", "3"),
    )  # fmt: skip


def test_a_path_for_another_kind_of_model_is_refused_with_those_that_it_answers(server):
    status, answer = server.request("/v1/classify", {"text": "天地"})
    assert status == 400 and "/v1/fill" in answer["error"]["message"]
