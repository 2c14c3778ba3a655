"""Whatever a client sends, it gets an answer that says in our shape what is wrong, never 500, and never has
the server wait or grow without end.

Most of it is sent to the application itself, the rest over sockets. The inputs are drawn the same way each
time; MANY=10 in the environment draws ten times as many, and other ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import socket
import time
from collections.abc import Iterable

import psutil
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from live_server import LiveServer
from test_classifier import make_head
from test_properties import values, words
from test_tagger import make_tagger

from finetune.predict.loading import load_for_use, predictor_for
from finetune.serving.app import build_app
from finetune.serving.json_body import BODY
from finetune.serving.paths import PATHS
from finetune.serving.service import Service
from finetune.serving.settings import ServerSettings

MANY = int(os.environ.get("MANY", "1"))
AT_ONCE = 50  # connections of one input of "sockets"
BODIES, HEADS = 5, 5  # requests of one input of "bodies" and of "headers"
DRAWN = {"bodies": 1300, "headers": 500, "sockets": 20, "slow": 2}
LIMIT = 0.3  # seconds that a sender has, instead of 30
PATIENCE = 20  # seconds in which an answer must be there
GROWTH = 256 << 20  # bytes that the process may grow by in each test: the threads of four servers too
STATUSES = {200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 431, 501}
pytestmark = pytest.mark.slow


def drawn(name: str):
    return settings(
        max_examples=DRAWN[name] * MANY, derandomize=MANY == 1, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),  # over sockets it would take long to find the smallest
    )  # fmt: skip


class Direct:
    """An application without a server: requests are given to it as uvicorn would.

    Attributes:
        kind: of its model.
    """

    def __init__(self, folder, **more):
        loaded = load_for_use(str(folder), "cpu", "--model_path")
        predictor = predictor_for(*loaded, precision="fp32", name=str(folder))
        self.service = Service(predictor, ServerSettings("tiny", **more))
        self.service.log.show = lambda text: None
        self.kind, self._app = self.service.kind, build_app(self.service)
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        self.service.close()
        self._loop.close()

    def ask(self, method: str, path: str, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
        """Status of an answer, whose form is checked."""
        return self._loop.run_until_complete(
            asyncio.wait_for(self._ask(method, path, body, headers), PATIENCE)
        )

    async def _ask(self, method: str, path: str, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": method, "path": path, "raw_path": path.encode("utf-8", "replace"), "root_path": "",
            "scheme": "http", "query_string": b"", "headers": list(headers), "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000), "state": {},
        }  # fmt: skip
        sent, waiting = [], [body[:7], body[7:]]

        async def receive():
            if waiting:
                part = waiting.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(waiting)}
            return await asyncio.Event().wait()  # the client stays

        async def send(message):
            sent.append(message)

        await self._app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent[1:])
        check(sent[0]["status"], content)
        return sent[0]["status"]


def check(status: int, content: bytes) -> None:
    """An answer is one that is foreseen, and an error has our shape and a sentence of bounded length."""
    assert status in STATUSES, (status, content[:500])
    if status >= 400:
        error = json.loads(content)["error"]
        assert error["message"] and len(error["message"]) < 3000 and error["type"]
        assert not re.search(r"Traceback|Input should|\bErrors?\b", error["message"])


@pytest.fixture(scope="module")
def apps(tmp_path_factory, model_dir, qwen_dir):
    home = tmp_path_factory.mktemp("fuzzed")
    folders = [
        model_dir,
        make_head(home / "single", model_dir, "AutoModelForSequenceClassification"),
        make_head(home / "reader", model_dir, "AutoModelForQuestionAnswering"),
        make_tagger(home / "tagger", model_dir),
        qwen_dir,
    ]
    apps = [Direct(folder) for folder in folders]
    yield apps
    for app in apps:
        app.close()


@pytest.fixture
def bounded():
    """The process does not grow by more than GROWTH while a test runs."""
    process = psutil.Process()
    before = process.memory_info().rss
    yield
    assert process.memory_info().rss - before < GROWTH


# ---- bodies ------------------------------------------------------------------------------------------------

SENSIBLE = {  # field -> values near those that are allowed
    "prompt": ["天[MASK]玄黃", "[MASK]", "天", "[MASK][MASK]", ["天"]], "top_k": [1, 5, 0, 1001, 1.0, "5"],
    "word_length": [1, 2, 5], "candidates": [["天", "地"], [], ["天" * 50], "天"],
    "question": ["天地？", " "], "options": ["A:天 B:地", {"A": "天", "B": "地"}, {"A": "天"}, ["天", "地"]],
    "scoring": ["letter", "pll", "auto", "loglikelihood"], "orders": ["1", "all", 1],
    "answer_format": ["index", "letter"], "text": ["天地", "", "天" * 300], "pair": ["玄黃", None],
    "context": ["天地玄黃宇宙", ""], "input": ["天", ["天", "地"], [5, 6], [[5], [6]], [[10**9]], [None]],
    "inputs": ["天", ["天", "地"], [["天"], ["天", "地"]], [[]]], "encoding_format": ["float", "base64", 1],
    "dimensions": [32, 1], "truncate": [True, "yes"], "raw_scores": [True], "model": ["tiny", "", None],
    "messages": [[{"role": "user", "content": "天"}], [{}], "天"], "stream": [True, 1],
    "max_tokens": [1, 3, -1],
    "temperature": [0, 3, -1], "stop": ["天", ["天"] * 9], "n": [1, 0], "logprobs": [True, 5], "echo": [True],
}  # fmt: skip
NEEDED = {  # path -> the fields without which nothing is asked
    "/v1/fill": ["prompt"], "/v1/answer": ["question", "options"], "/v1/classify": ["text"],
    "/predict": ["inputs"], "/v1/tag": ["text"], "/v1/span": ["question", "context"],
    "/v1/embeddings": ["input"], "/v1/completions": ["prompt", "max_tokens"],
    "/v1/chat/completions": ["messages", "max_tokens"],
}  # fmt: skip
SPLICES = [
    b"", b"{", b"}", b"[" * 200, b'"', b"\\", b"\\ud800", b",", b"NaN", b"-", b"1e999", b"9" * 4500, b"\x00",
    b"\xff", b"\xef\xbb\xbf", b'{"prompt": "x", "prompt": "y"}', b"/*", b"\r\n", b"\\u0000",
]  # fmt: skip
fields = st.sampled_from(sorted(SENSIBLE)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(SENSIBLE[name]) | values)
)
more_fields = st.lists(fields | st.tuples(words, values), max_size=2).map(dict)


@st.composite
def asked(draw) -> tuple[str, list[bytes]]:
    """A path and BODIES bodies: one that may be meant well, and others made of it by cuts and additions."""
    path = draw(st.sampled_from([*PATHS]))
    needed = {name: draw(st.sampled_from(SENSIBLE[name])) for name in NEEDED[path]}
    value = draw(more_fields.map(lambda more: {**needed, **more}) | values)
    raw = json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    bodies = [raw]
    for _ in range(BODIES - 1):
        start = draw(st.integers(0, len(raw)))
        end = start + draw(st.sampled_from([0, 1, 3, len(raw)]))
        bodies.append(raw[:start] + draw(st.sampled_from(SPLICES)) + raw[end:])
    return path, bodies


PROPER = ((b"host", b"localhost"), (b"content-type", b"application/json"))


@given(asked())
@drawn("bodies")
@example(("/v1/fill", [b"[" * 100_000, b'{"top_k": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}"]))
@example(("/v1/answer", [b'{"question": "\\ud800", "options": {"A": "1", "B": "2"}}']))
@example(("/v1/answer", [b'{"question": "x", "options": {"A": "", "B": ""}}']))
@example(("/v1/fill", [b'{"prompt": "[MASK]", "candidates": ["\\u0000"]}']))
def test_any_body_is_answered_or_refused_with_a_reason(apps, bounded, drawing):
    path, bodies = drawing
    fitting = [app for app in apps if app.kind in PATHS[path]] or apps
    for body in bodies:
        fitting[len(body) % len(fitting)].ask("POST", path, body, PROPER)


# ---- headers -----------------------------------------------------------------------------------------------

NAMES = [
    b"host", b"origin", b"content-type", b"content-length", b"authorization", b"x-api-key", b"x-request-id",
    b"accept", b"access-control-request-method", b"access-control-request-headers", b"transfer-encoding",
    b"expect", b"connection", b"cookie", b"range", b"content-encoding", b"accept-encoding",
]  # fmt: skip
CONTENTS = [
    b"", b"localhost", b"[::1", b"[::1]:99999999", b"null", b"https://evil.example", b"application/json",
    b"application/json; charset=utf-16", b"application/json;" * 99, b"Bearer", b"Bearer \xff\xfe", b"-1",
    b"9" * 5000, b"\xb2", b"0x10", b"1e3", b"gzip", b"text/plain;version=;;q=x", b"*/*;q=nan",
    b"application/openmetrics-text;version=9", b"chunked, gzip", b"POST", b"x" * 9000, b"\x00", b"a, b",
]  # fmt: skip
headers = st.lists(
    st.tuples(
        st.sampled_from(NAMES) | st.binary(max_size=8), st.sampled_from(CONTENTS) | st.binary(max_size=12)
    ),
    max_size=6,
)
targets = st.sampled_from(
    [*PATHS, "/", "/metrics", "/healthz", "/openapi.json", "/v1", "", "//", "*", "/v1/fill/"]
)
methods = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "QUERY"])


@pytest.fixture(scope="module")
def locked(model_dir):
    app = Direct(model_dir, api_keys=("a-long-key",), cors_origins=("https://example.edu.tw",))
    yield app
    app.close()


heads = st.tuples(methods, targets | words.map("/{}".format), st.booleans())


@given(st.lists(heads, min_size=HEADS, max_size=HEADS), headers)
@drawn("headers")
@example([("POST", "/v1/fill", True)], [(b"content-length", b"\xb2")])
@example([("GET", "/metrics", True)], [(b"accept", b"application/openmetrics-text;version=" + b"9" * 99)])
def test_any_headers_are_answered_or_refused_with_a_reason(apps, locked, bounded, requests, sent):
    for number, (method, path, proper) in enumerate(requests):
        app = (locked, apps[0])[number % 2]
        status = app.ask(method, path, b'{"prompt": "x"}', [*PROPER, *sent] if proper else sent)
        is_open = path in ("/", "/docs", "/healthz", "/readyz") and method in ("GET", "HEAD")
        assert app is not locked or is_open or status in (401, 403) or method == "OPTIONS"


# ---- sockets -----------------------------------------------------------------------------------------------

LINES = [
    b"Host: localhost", b"Host: a\r\nHost: b", b"Host:", b"Content-Length: 2", b"Content-Length: -1",
    b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 99999999999999999999", b"Content-Length: 9",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 3", b" folded: yes",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding : chunked", b"Expect: x",
    b"Expect: 100-continue",
    b"Connection: upgrade\r\nUpgrade: websocket", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
    b"Connection: close", b"Connection: keep-alive", b"X: " + b"a" * 70_000, b"\x00: \xff", b": empty",
    b"X\r: y", b"a: b\r\n" * 150 + b"a: b", b"Content-Type: application/json", b"no colon", b"X: \x01\x7f",
]  # fmt: skip
FIRST = [
    b"GET", b"POST", b"PUT", b"OPTIONS", b"CONNECT", b"HEAD", b"PRI", b"get", b"", b"G\x00T",
    b"\x16\x03\x01", b"POST" * 99,
]  # fmt: skip
PLACES = [
    b"/", b"/v1/fill", b"*", b"http://x/v1/fill", b"/%ff%00", b"//", b"/" + b"a" * 70_000, b"evil:80",
    b"/\xe5\xa4\xa9", b"", b"/?" + b"q" * 300, b"/#", b"\\", b"/healthz", b"http://[", b"/%", b"/ /",
]  # fmt: skip
VERSIONS = [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"", b"HTTP/1.1 ", b"ICY/1.0"]
REST = [
    b"", b"{}", b"{", b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"2\r\n{}\r\n0\r\n\r\n",
    b"2;" + b"x" * 9999,
    b"0\r\nX: " + b"y" * 70_000, b"0\r\n" + b"a: b\r\n" * 150 + b"\r\n", b"\x00" * 99, b"2\n{}\n0\n\n",
]  # fmt: skip


@st.composite
def wire(draw) -> bytes:
    """What looks like requests, more or less."""
    sent = b""
    for _ in range(draw(st.integers(1, 2))):
        first = b" ".join(draw(st.sampled_from(kind)) for kind in (FIRST, PLACES, VERSIONS))
        end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]))
        sent += end.join([first, *draw(st.lists(st.sampled_from(LINES), max_size=4)), b"", b""])
        sent += draw(st.sampled_from(REST))
    return sent[: draw(st.integers(0, len(sent)))] if draw(st.booleans()) else sent


@pytest.fixture(scope="module")
def hasty(model_dir):
    limits = {"read_timeout": LIMIT, "idle_timeout": LIMIT, "write_timeout": LIMIT}
    with LiveServer(model_dir, **limits) as server:
        yield server


def exchange(port: int, sent: list[bytes], at_a_time: int) -> list[bytes]:
    """What comes back on connections of their own until each is closed by the server.

    Args:
        at_a_time: bytes that each sends in a hundredth of a second.
    """
    lines = [socket.create_connection(("127.0.0.1", port)) for _ in sent]
    received, end = dict.fromkeys(lines, b""), time.monotonic() + PATIENCE
    rest = dict(zip(lines, sent, strict=True))
    for line in lines:
        line.setblocking(False)
    unread = set(lines)
    while unread:
        assert time.monotonic() < end, [rest[line][:200] for line in unread]
        for line in [line for line in unread if rest[line]]:
            try:
                rest[line] = rest[line][line.send(rest[line][:at_a_time]) :]
            except BlockingIOError:
                pass
            except OSError:  # the server has closed it
                rest[line] = b""
        for line in select.select(unread, [], [], 0.01)[0]:
            try:
                more = line.recv(1 << 20)
            except OSError:
                more = b""
            received[line] += more
            if not more:
                unread.discard(line)
                line.close()
    return [received[line] for line in lines]


def check_wire(answer: bytes) -> None:
    """All that came back are answers as `check` has them."""
    heads = [*re.finditer(rb"HTTP/1\.1 (\d{3}) ", answer)]
    assert bool(heads) == bool(answer), answer[:300]
    for head in heads:
        assert head[1] != b"500" and int(head[1]) in STATUSES | {100}, answer[:500]
    last = answer[heads[-1].start() :] if heads else b""
    if b"\r\ncontent-type: application/json\r\n" in last.lower() and b"\r\n\r\n{" in last:
        check(int(heads[-1][1]), last.partition(b"\r\n\r\n")[2])


@given(st.lists(wire() | st.binary(min_size=1, max_size=60), min_size=AT_ONCE, max_size=AT_ONCE))
@drawn("sockets")
def test_any_bytes_on_a_connection_are_answered_or_the_connection_is_closed(hasty, bounded, sent):
    for answer in exchange(hasty.port, sent, 1 << 20):
        check_wire(answer)
    assert hasty.request("/healthz")[0] == 200


@given(st.lists(wire(), min_size=AT_ONCE, max_size=AT_ONCE))
@drawn("slow")
def test_slow_senders_of_anything_are_left_when_their_time_is_up(hasty, bounded, sent):
    slow = [raw.ljust(4000, b" ") for raw in sent]  # at this pace more than a minute
    begun = time.monotonic()
    for answer in exchange(hasty.port, slow, 1):
        check_wire(answer)
    assert time.monotonic() - begun < 20 * LIMIT
    assert not hasty.service.accepted and hasty.request("/healthz")[0] == 200


# ---- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unit", [b"[" , b"[],", b'{"a":', b'"a",', b"1,", b"9", b'"\\ud83d\\ude00",', b" "],
    ids=["deep", "lists", "objects", "texts", "numbers", "digits", "escapes", "spaces"],
)  # fmt: skip
def test_the_largest_body_of_anything_takes_bounded_memory_and_time(apps, unit):
    body = (b"[" + unit * (BODY // len(unit)))[: BODY - 2].rstrip(b",") + b"]"
    apps[0].ask("POST", "/v1/fill", b"{}", PROPER)
    forget_peak()
    before, begun = peak(), time.process_time()
    assert apps[0].ask("POST", "/v1/fill", body, PROPER) in (400, 422)
    assert time.process_time() - begun < PATIENCE / 2
    assert peak() - before < 64 * BODY


def forget_peak() -> None:
    """Has Linux measure the most memory of this process anew."""
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")


def peak() -> int:
    """The most memory that this process had at once since then, in bytes."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith("VmHWM"))


def test_at_least_ten_thousand_inputs_are_drawn():
    assert DRAWN["bodies"] * BODIES + DRAWN["headers"] * HEADS + DRAWN["sockets"] * AT_ONCE >= 10_000
