"""Who may ask, and what a request may be."""

from __future__ import annotations

import gzip
import http.client
import inspect
import json
import socket

import pytest
from live_server import LiveServer

import inference
from finetune.cli.serve_checks import read_keys
from finetune.runtime.errors import UserError
from finetune.serving import guard
from finetune.serving.json_body import BODY
from finetune.serving.settings import ServerSettings

KEYS = ("the-first-key-1", "the-second-key-2")
FILL = {"prompt": "天[MASK]玄黃", "top_k": 1}
SITE = "https://example.edu.tw"


@pytest.fixture(scope="module")
def server(model_dir):
    with LiveServer(model_dir) as server:
        yield server


@pytest.fixture(scope="module")
def locked(model_dir):
    with LiveServer(model_dir, api_keys=KEYS, cors_origins=(SITE,)) as server:
        yield server


def ask(server, method: str, path: str, body: object = None, headers: dict | None = None):
    """(status, headers, decoded body) of a request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, raw, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers.get("Content-Type") == "application/json" and content
    return answer.status, answer.headers, json.loads(content) if is_json else content.decode()


def message(answer) -> str:
    """The sentence of an error, whose shape is OpenAI's."""
    assert set(answer[2]) == {"error"} and set(answer[2]["error"]) == {"message", "type", "param", "code"}
    return answer[2]["error"]["message"]


# ---- keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_by_either_header(locked, key):
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"bearer {key}"},
        {"x-api-key": key},
    ):
        assert ask(locked, "POST", "/v1/fill", FILL, headers)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"x-api-key": KEYS[0][:-1]}, {"x-api-key": KEYS[0] + "x"}, {"Authorization": KEYS[0]},
        {"Authorization": f"Basic {KEYS[0]}"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer \xff"},
        {"x-api-key": "\xe9" * 5000},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/fill", "/metrics", "/openapi.json", "/v1/nothing"])
def test_without_a_right_key_nothing_is_told(locked, path, headers):
    answer = ask(locked, "GET", path, headers=headers)
    assert (
        answer[0] == 401 and answer[1]["WWW-Authenticate"].startswith("Bearer") and "金鑰" in message(answer)
    )
    assert not any(key in json.dumps(answer[2]) for key in KEYS)


def test_whether_it_is_alive_is_told_without_a_key(locked):
    assert [ask(locked, "GET", path)[0] for path in ("/healthz", "/readyz")] == [200, 200]
    assert ask(locked, "POST", "/healthz", {})[0] == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.edu.tw"])
def test_an_address_of_another_machine_needs_a_key(capsys, host):
    assert inference.main(["--model_path", "./missing", "--serve", "--host", host]) == 2
    assert f"--host {host}" in (said := capsys.readouterr().err) and "--api_key" in said
    with pytest.raises(UserError, match="api_keys"):
        ServerSettings("tiny", host)


def test_keys_come_from_a_file_or_the_environment_and_a_wrong_one_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("OUR_KEY", " key-in-the-environment ")
    (tmp_path / "keys").write_text("the-first-key\n\nthe-second-key\n")
    assert read_keys("env:OUR_KEY") == ("key-in-the-environment",)
    assert read_keys(str(tmp_path / "keys")) == ("the-first-key", "the-second-key")
    (tmp_path / "windows").write_bytes("\ufeffthe-first-key\r\nthe-second-key\r\n".encode())
    assert read_keys(str(tmp_path / "windows")) == ("the-first-key", "the-second-key")
    (tmp_path / "bad").write_text("a key with spaces")
    for place in ("my-secret-key", str(tmp_path / "bad"), "env:NOT_THERE"):
        with pytest.raises(UserError) as refused:
            read_keys(place)
        assert "my-secret-key" not in str(refused.value) and "a key with" not in str(refused.value)


def test_every_key_is_compared_whole_whichever_is_right(locked, monkeypatch):
    """The time tells neither which key was near nor how much of it: all are compared, as hashes of one
    length, by compare_digest."""
    compared = []

    def count(first: bytes, second: bytes) -> bool:
        compared.append((len(first), len(second)))
        return first == second

    monkeypatch.setattr(guard.hmac, "compare_digest", count)
    for given in (*KEYS, "x", "the-first-key-"):
        compared.clear()
        ask(locked, "GET", "/metrics", headers={"x-api-key": given})
        assert compared == [(32, 32)] * len(KEYS)
    assert "==" not in inspect.getsource(guard.RequestGuard._is_known)


# ---- pages of other sites ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[", "", "10.0.0.1"]
)
def test_by_a_strangers_name_nobody_reaches_a_server_without_a_key(server, host):
    answer = ask(server, "GET", "/healthz", headers={"Host": host})
    assert answer[0] == 403 and "--api_key" in message(answer)


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: localhost\r\n"])
def test_without_one_name_nobody_reaches_a_server_without_a_key(server, hosts):
    count = hosts.count(b"Host")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\n" + hosts + b"\r\n")
        answer = line.recv(65536)
    assert answer.startswith(b"HTTP/1.1 403 ") and f"得到 {count} 個" in answer.decode()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "127.8.9.1", "[::1]:8000"])
def test_by_a_name_of_this_machine_it_is_reached(server, host):
    assert ask(server, "GET", "/healthz", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_a_page_of_another_site_cannot_use_a_server_without_a_key(server, origin):
    for method, body in (("POST", FILL), ("GET", None)):
        answer = ask(server, method, "/v1/fill", body, {"Origin": origin})
        assert answer[0] == 403 and "--cors_origin" in message(answer)


def test_its_own_page_can(server):
    assert ask(server, "POST", "/v1/fill", FILL, {"Origin": server.url})[0] == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_what_a_page_may_send_anywhere_without_asking_is_refused(server, content_type):
    answer = ask(server, "POST", "/v1/fill", FILL, {"Content-Type": content_type})
    assert answer[0] == 415 and "application/json" in message(answer)


def test_only_a_named_site_may_call_and_it_is_told_why_it_was_refused(locked):
    wants = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = ask(locked, "OPTIONS", "/v1/fill", headers={"Origin": SITE, **wants})
    assert allowed[0] == 200 and allowed[1]["Access-Control-Allow-Origin"] == SITE
    refused = ask(locked, "OPTIONS", "/v1/fill", headers={"Origin": "https://evil.example", **wants})
    assert refused[0] == 403 and "Access-Control-Allow-Origin" not in refused[1] and message(refused)
    without_key = ask(locked, "POST", "/v1/fill", FILL, {"Origin": SITE})
    assert without_key[0] == 401 and without_key[1]["Access-Control-Allow-Origin"] == SITE
    other = ask(locked, "POST", "/v1/fill", FILL, {"Origin": "https://evil.example", "x-api-key": KEYS[0]})
    assert "Access-Control-Allow-Origin" not in other[1]


# ---- bodies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [b"a: b\r\n" * 200, b"a: " + b"b" * (1 << 17), b"x" * (1 << 17)])
def test_headers_without_end_are_refused(server, more):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + more)
        assert line.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(
            b"POST /v1/fill HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % (BODY + 1)
        )
        head = line.recv(65536)
    assert head.startswith(b"HTTP/1.1 413 ")


def test_a_body_in_chunks_is_refused_once_it_is_too_large(server):
    def chunks():
        for _ in range(BODY // (1 << 20) + 2):
            yield b" " * (1 << 20)

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(
        "POST", "/v1/fill", chunks(), {"Content-Type": "application/json"}, encode_chunked=True
    )
    answer = connection.getresponse()
    assert answer.status == 413 and f"{BODY:,}" in json.loads(answer.read())["error"]["message"]
    connection.close()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "空"), (b"  ", "空"), (b'{"prompt": tru}', "第 1 行第 12 個字"), (b'{"a": 1,}', "JSON"),
        (b'{"prompt": "x"} 1', "後面還有"), (b'{"prompt": "\xff"}', "UTF-8：第 13 個"),
        (b'{"prompt": "x", "prompt": "y"}', "prompt 出現兩次"), (b'{"top_k": NaN}', "NaN"),
        (b'{"top_k": -Infinity}', "Infinity"), (b'{"prompt": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "64 層"), (b'{"top_k": ' + b"9" * 5000 + b"}", "幾千位"),
        ('{"prompt": "天"}'.encode("utf-16"), "UTF-8"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_with_where(server, raw, said):
    answer = ask(server, "POST", "/v1/fill", raw)
    assert answer[0] == 400 and said in message(answer)


def test_words_like_nan_within_a_text_are_text(server):
    assert ask(server, "POST", "/v1/fill", {**FILL, "prompt": "NaN[MASK] Infinity"})[0] == 200


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"prompt": "天", "top_k": 0}, "top_k：應為 1 到 1000 的整數，得到 0"),
        ({"prompt": "天", "top_k": True}, "top_k：應為 1 到 1000 的整數，得到 true"),
        ({"prompt": "天", "top_k": "5"}, "top_k：應為 1 到 1000 的整數，得到 '5'"),
        ({"prompt": "天", "topk": 5}, "topk：沒有這個欄位；是不是 top_k？"),
        ({"prompt": "天", "zzz": 5},
         "zzz：沒有這個欄位；可以給的是 candidates、model、prompt、top_k、word_length"),
        ({"top_k": 5}, "prompt：沒有給，一定要有"),
        ({"prompt": ""}, "prompt：應為不空的文字，得到 ''"),
        ({"prompt": "天", "candidates": {}},
         "candidates：應為 1 到 1,000 項的清單或 null，得到有 0 個欄位的物件"),
        ({"prompt": "天", "candidates": ["天", 1]}, "candidates[1]：應為不空的文字，得到 1"),
        ({"prompt": "天", "candidates": []},
         "candidates：應為 1 到 1,000 項的清單或 null，得到有 0 項的清單"),
        ([1], "請求的內容：應為物件，得到有 1 項的清單"),
        (7, "請求的內容：應為物件，得到 7"),
        ({"prompt": None, "top_k": 1.5},
         "prompt：應為不空的文字，得到 null；top_k：應為 1 到 1000 的整數，得到 1.5"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_what_it_may_be_and_what_it_was(server, body, sentence):
    answer = ask(server, "POST", "/v1/fill", body)
    assert (answer[0], message(answer)) == (422, sentence)


def test_a_value_of_several_kinds_is_described_by_all_of_them(server):
    answer = ask(server, "POST", "/v1/answer", {"question": "天", "options": 3, "orders": "x"})
    assert message(answer) == (
        "options：應為 2 到 10 個欄位的物件或文字，得到 3；orders：應為 1、cyclic 或 all，得到 'x'"
    )


def test_an_unknown_path_names_those_that_there_are(server):
    answer = ask(server, "GET", "/v1/fil")
    assert answer[0] == 404 and "是不是 /v1/fill？" in message(answer) and "/v1/embeddings" in message(answer)
    assert ask(server, "POST", "/v1/fill/", FILL)[0] == 404


def test_a_wrong_method_names_the_right_one(server):
    answer = ask(server, "GET", "/v1/fill")
    assert answer[0] == 405 and answer[1]["Allow"] == "POST" and "POST" in message(answer)


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/model"])
def test_head_is_answered_as_get_without_a_body(server, path):
    got, headed = ask(server, "GET", path), ask(server, "HEAD", path)
    assert got[0] == headed[0] == 200 and got[2] and not headed[2]
    assert headed[1]["Content-Type"] == got[1]["Content-Type"]


def test_a_compressed_body_is_refused_by_its_header(server):
    answer = ask(server, "POST", "/v1/fill", gzip.compress(b"{}"), {"Content-Encoding": "gzip"})
    assert answer[0] == 415 and message(answer).startswith("Content-Encoding：") and "gzip" in message(answer)


def test_a_scoring_method_that_there_is_not_is_named_with_the_nearest(server):
    body = {"question": "天？", "options": {"A": "地", "B": "玄"}, "scoring": "lettre"}
    answer = ask(server, "POST", "/v1/answer", body)
    assert (answer[0], message(answer)) == (422, "scoring：沒有 'lettre' 這種作答方式；是不是 letter？")
    answer = ask(server, "POST", "/v1/answer", {**body, "scoring": "天"})
    assert answer[0] == 422 and "可以給的是 auto、letter" in message(answer)


def test_a_bug_of_ours_is_answered_without_its_words_and_the_server_goes_on(server, monkeypatch):
    def broken(*_):
        raise RuntimeError("天機不可洩漏")

    with monkeypatch.context() as patch:
        patch.setattr("finetune.predict.records.fill_record", broken)
        answer = ask(server, "POST", "/v1/fill", FILL, {"X-Request-Id": "mine-1"})
    assert answer[0] == 500 and "mine-1" in message(answer) and "天機" not in message(answer)
    assert ask(server, "POST", "/v1/fill", FILL)[0] == 200
    lines = [json.loads(line) for line in server.lines]
    (failed,) = [line for line in lines if line["event"] == "error"]
    assert failed["error"] == "RuntimeError" and failed["request_id"] == "mine-1"
    assert "天機" not in "".join(server.lines)
