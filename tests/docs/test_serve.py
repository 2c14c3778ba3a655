"""docs/serve.md: its commands run, and every request that it shows is answered as it shows."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, free_port
from forked import STEPS, WITH_PICTURES, quick_python
from live_server import LiveServer
from test_docs import LINK, LONGEST, OF_THIS_MACHINE, both, page, text_of
from test_readme import commands, python_blocks

from finetune.cli import inference_checks, serve_checks
from finetune.serving.metrics import Metrics

NAME = "serve"
CURL = re.compile(r"^curl \S+ http://127\.0\.0\.1:8000(/\S+) --json '(.*)'\n(?:# (.*))?", re.M)
MADE_BY = {  # path -> the fixture with a model that answers it
    "/v1/fill": "model_dir", "/v1/answer": "model_dir", "/v1/embeddings": "model_dir",
    "/v1/classify": "classifier_dir", "/predict": "classifier_dir", "/v1/tag": "tagger_dir",
    "/v1/span": "extractor_dir", "/v1/completions": "qwen_dir", "/v1/chat/completions": "qwen_dir",
}  # fmt: skip


@pytest.fixture(scope="module")
def heads(tmp_path_factory, model_dir):
    """Makes a model of another kind from the tiny BERT."""
    import transformers
    from transformers import AutoTokenizer, BertConfig

    def make(architecture: str, labels: list[str]):
        folder = tmp_path_factory.mktemp("heads") / architecture
        config = BertConfig.from_pretrained(model_dir)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        getattr(transformers, architecture)(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def classifier_dir(heads):
    return heads("BertForSequenceClassification", ["好評", "負評"])


@pytest.fixture(scope="module")
def tagger_dir(heads):
    return heads("BertForTokenClassification", ["O", "B-人名", "I-人名"])


@pytest.fixture(scope="module")
def extractor_dir(heads):
    return heads("BertForQuestionAnswering", ["LABEL_0", "LABEL_1"])


def requests() -> list[tuple[str, dict, set[str]]]:
    """(path, body, fields of the answer) of each request of the page; … stands for what is left out."""
    found = []
    for path, body, shown in CURL.findall(text_of(page(NAME))):
        shown = re.sub(r", …|…", "", shown)
        answer = json.loads(shown) if shown else {}
        found.append((path, json.loads(body), _fields(answer)))
    return found


def _fields(answer) -> set[str]:
    return set(answer[0] if isinstance(answer, list) else answer)


def test_both_languages_hold_the_same_commands_requests_and_files():
    english, chinese = both(NAME)
    assert commands(english) == commands(chinese) and commands(english)[0]
    assert python_blocks(english) == python_blocks(chinese) and python_blocks(english)
    for pattern in (r"```(?:sh|bash)\n(.*?)```", r"`([a-z_]+(?:\.\w+)?|/[\w/]+|--\w+)`"):
        first, second = (sorted(set(re.findall(pattern, text_of(one), re.S))) for one in (english, chinese))
        assert first == second
    for one in (english, chinese):
        assert len(text_of(one).splitlines()) <= LONGEST and not OF_THIS_MACHINE.search(text_of(one))
        for link in LINK.findall(text_of(one)):
            assert link.startswith("https://") or (ROOT / "docs" / link).is_file(), link


def test_every_file_of_deploy_is_in_its_table():
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", text_of(page(NAME)), re.M)
    for name, _ in rows:
        assert (ROOT / "deploy" / name).is_file(), name
    named = {word for name, cell in rows for word in (name, *re.findall(r"`([\w.]+)/?`", cell))}
    assert {path.name for path in (ROOT / "deploy").iterdir() if path.suffix != ".txt"} <= named


def test_every_figure_that_is_named_is_one_of_the_server():
    class Nothing:
        accepted, draining = 0, False

    shown = Metrics(Nothing(), {"name": "x"}, 1).page("")[0].decode()
    there = set(re.findall(r"^# TYPE finetune_(\w+)", shown, re.M))
    (part,) = re.findall(r"^\*\*Figures\*\*.*?(?=^\n|^## )", text_of(page(NAME)), re.M | re.S)
    named = set(re.findall(r"`([a-z_]+)`", part))
    assert len(named) >= 11 and named <= there | {"queue_limit"}, named - there


def test_every_flag_of_every_command_is_read(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve_checks, "listen", lambda *_: socket.socket())  # others may have the port
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text_of(page(NAME)), re.S)
    calls = re.findall(r"^python inference.py (.*?)(?: +#.*| &.*)?$", "\n".join(blocks), re.M)
    assert len(calls) >= 4
    for call in calls:
        inference_checks.parse_args(shlex.split(call))


@pytest.mark.parametrize("path", MADE_BY)
def test_every_request_of_the_page_is_answered_with_the_fields_that_it_shows(path, request):
    asked = [(body, shown) for one, body, shown in requests() if one == path]
    assert asked
    with LiveServer(request.getfixturevalue(MADE_BY[path])) as server:
        for body, shown in asked:
            status, answer = server.request(path, body)
            assert status == 200, answer
            assert shown <= _fields(answer), (shown, answer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps", ["4", pytest.param("", marks=pytest.mark.nightly)], ids=["4 steps", "to the end"]
)
def test_the_commands_of_the_page_run_in_their_order(tmp_path, steps):
    for file in ("fine_tuning_llm.py", "inference.py", "finetune", "ds_config.json"):
        (tmp_path / file).symlink_to(ROOT / file)
    (tmp_path / "bin").mkdir()
    env = {key: value for key, value in quick_python(tmp_path / "bin").items() if key != WITH_PICTURES}
    env |= {STEPS: steps} if steps else {}
    how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "timeout": 300}
    *lines, stop = commands(page(NAME))[0]
    answers = {}
    port = free_port()

    def moved(line: str) -> str:
        return line.replace("--serve ", f"--serve --port {port} ").replace(":8000", f":{port}")

    for line in lines:
        done = subprocess.run(["bash", "-c", moved(line)], **how)
        assert done.returncode == 0, (line, done.stderr[-2000:])
        answers[line] = done.stdout
    for block in python_blocks(page(NAME)):
        done = subprocess.run([sys.executable, "-c", moved(block)], **how)
        assert done.returncode == 0, done.stderr[-2000:]
    until_it_ends = f"pid=$(cat serve.pid); {stop}; tail --pid=$pid -f /dev/null"
    assert subprocess.run(["bash", "-c", until_it_ends], **how).returncode == 0
    assert "已停止：收下的請求都答完了" in (tmp_path / "serve.log").read_text("utf-8")
    (asked,) = [line for line in lines if "/v1/answer" in line]
    assert json.loads(answers[asked])["answer"] == "B" or steps
    assert "finetune_requests_total" in (tmp_path / "metrics.txt").read_text("utf-8")
    assert (tmp_path / "requests.jsonl").read_text("utf-8").count("\n") >= 3
