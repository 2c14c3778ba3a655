"""The client of an OpenAI-compatible server: what it tries again, how long, and what it never tells."""

from __future__ import annotations

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from finetune.runtime import openai_client
from finetune.runtime.errors import UserError
from finetune.runtime.openai_client import GaveUpError, OpenAIClient, Patience, RefusedError
from finetune.runtime.workers import in_threads

GOOD = {"choices": [{"message": {"content": "好"}}], "usage": {"prompt_tokens": 3}}
QUICK = Patience(first=0.001, longest=0.002)


@pytest.fixture
def scripted():
    """(client, answers): the next answers are (status, value, headers), or a function of the handler."""
    answers: list = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = answers.pop(0) if answers else (200, GOOD)
            if callable(answer):
                answer(self)
                return
            status, value, *headers = answer
            content = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(content)), **dict(headers)}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    client = OpenAIClient(f"http://127.0.0.1:{server.server_port}/v1", "sk-k", 4, 5.0)
    yield client, answers
    client.close()
    server.shutdown()
    server.server_close()


def post(client: OpenAIClient, patience: Patience = QUICK) -> dict:
    return client.post("/chat/completions", {"messages": []}, patience)


def drip(handler) -> None:
    """A byte now and then, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(30):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return
        time.sleep(0.02)


def test_what_may_pass_is_tried_again_and_counted_once(scripted):
    client, answers = scripted
    answers += [(code, {}) for code in (408, 409, 425, 429, 500, 502, 503, 504)]
    answers += [(200, []), (200, {"choices": []}), (200, {"error": {"code": 503}})]
    assert post(client)["message"] == {"content": "好"} and client.retried == 1


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 413, 422, 501])
def test_what_will_not_pass_is_an_error_at_once(scripted, code):
    client, answers = scripted
    answers.append((code, {"detail": [{"msg": "no such thing"}]}))
    with pytest.raises(RefusedError, match="no such thing") as refused:
        post(client)
    assert refused.value.status == code and client.retried == 0 and not answers
    assert refused.value.is_for_all == (code in (401, 403, 404, 405))


def test_a_server_says_how_long_to_wait_in_seconds_or_by_a_date(scripted, monkeypatch):
    client, answers = scripted
    waits = []
    monkeypatch.setattr(client._closed, "wait", waits.append)
    for header in ("0.25", formatdate(time.time() + 30, usegmt=True), "-3", "soon", "inf"):
        answers.append((429, {}, ("Retry-After", header)))
    assert post(client)
    assert waits[0] == 0.25 and 25 < waits[1] <= 30 and waits[2] == 0
    assert all(wait <= QUICK.longest for wait in waits[3:])


def test_patience_ends_after_so_many_tries_or_before_a_wait_that_is_too_long(scripted):
    client, answers = scripted
    answers += [(503, {"error": {"message": "loading"}})] * 9
    with pytest.raises(GaveUpError, match="試了 3 次都沒有回答（503：loading）") as gave_up:
        post(client, Patience(tries=3, first=0.001))
    assert gave_up.value.status == 503 and len(answers) == 6
    answers[:] = [(429, {}, ("Retry-After", "3600"))]
    with pytest.raises(GaveUpError, match="伺服器要求再等 3600 秒"):
        post(client)
    answers[:] = [(500, {}), (503, {}), (500, {}), (200, GOOD)]
    with pytest.raises(GaveUpError, match="試了 3 次"):  # the second error of its own
        post(client, Patience(internal=2, first=0.001))


def test_pauses_double_up_to_the_longest_and_are_not_the_same_for_all():
    patience = Patience(first=1, longest=8)
    for failures, most in ((1, 1), (2, 2), (3, 4), (4, 8), (9, 8)):
        pauses = {patience.pause(failures) for _ in range(20)}
        assert all(most / 2 <= pause <= most for pause in pauses) and len(pauses) > 1


def test_an_answer_that_drips_is_over_after_the_time_limit(scripted):
    client, answers = scripted
    client.timeout = 0.1
    answers.append(drip)
    began = time.monotonic()
    assert post(client) and time.monotonic() - began < 2


def test_the_limits_of_an_account_are_not_waited_for(scripted):
    client, answers = scripted
    answers.append((429, {"error": {"message": "pay", "code": "insufficient_quota"}}))
    with pytest.raises(RefusedError, match="額度用完了"):
        post(client)


def test_an_endless_answer_is_refused(scripted, monkeypatch):
    client, answers = scripted
    monkeypatch.setattr(openai_client, "LARGEST", 100)
    answers.append((200, {**GOOD, "more": "x" * 200}))
    with pytest.raises(UserError, match="不像模型的回答"):
        post(client)


def test_a_server_s_words_are_short_and_hold_no_key(scripted):
    client, answers = scripted
    client._key = "secret-key-1"
    answers.append((400, {"error": {"message": f"secret-key-1 sk-proj-abcdefgh {'long ' * 200}"}}))
    with pytest.raises(RefusedError) as refused:
        post(client)
    assert "secret" not in str(refused.value) and "sk-proj" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_results_come_as_they_are_finished_and_an_error_ends_the_rest():
    first = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            first.wait(5)
        if item == 3:
            raise ValueError(item)
        return item * 10

    found = in_threads(lambda item: (item, first.set() if item == 2 else None)[0], [1, 2], 2)
    assert sorted(found) == [(0, 1), (1, 2)]
    first.clear()
    seen = []
    with pytest.raises(ValueError, match="3"):
        for number, result in in_threads(work, [0, 1, 2, 3, 4, 5], 2):
            seen.append((number, result))
    assert seen == [(1, 10), (2, 20)]  # 0 was still under way, 4 and 5 were not begun
    first.set()
    assert list(in_threads(work, [], 4)) == []
