"""The server as a process and a socket: how it begins, what it bears, how it ends."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from fastapi import APIRouter
from forked import Process, start
from live_server import LiveServer
from starlette.responses import StreamingResponse

import inference
from finetune.runtime import listening
from finetune.serving import app as application
from finetune.serving import server as serving
from finetune.serving import uvicorn_server
from finetune.serving.settings import WORKERS

PATIENCE = 30  # seconds in which what is waited for must come
SLOW = {"prompt": "天[MASK][MASK][MASK]黃", "word_length": 4, "top_k": 100}  # half a second of computing
LIMIT = 0.4  # seconds, instead of the 30 of a real server


def until(holds: Callable[[], object], what: str) -> None:
    """Waits until something holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def raw_request(path: str = "/v1/fill", body: object = None, *headers: str) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: localhost",
        "Content-Type: application/json", f"Content-Length: {len(content)}", *headers,
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def read_all(line: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := line.recv(65536):
            received += more
    return received


def next_status(line: socket.socket) -> int:
    """Status of the next answer, which is read to its end."""
    answer = http.client.HTTPResponse(line)
    answer.begin()
    answer.read()
    return answer.status


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


# ---- beginning ---------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named_before_a_model_is_loaded(capsys):
    with listening.listen("127.0.0.1", 0) as taken:
        port = listening.address_of(taken)[1]
        assert inference.main(["--model_path", "./missing", "--serve", "--port", str(port)]) == 2
    seen = capsys.readouterr().err
    assert f"--port {port}：已經有程式在用；換一個，例如 --port" in seen and "--port 0" in seen


def test_an_address_of_another_machine_is_named(capsys, monkeypatch):
    monkeypatch.setenv("OUR_KEY", "a-long-enough-key")
    argv = ["--model_path", "./missing", "--serve", "--host", "192.0.2.1", "--api_key", "env:OUR_KEY"]
    assert inference.main(argv) == 2
    assert "--host 192.0.2.1：這台機器沒有這個位址" in capsys.readouterr().err


class RealServer:
    """`python inference.py --serve` in a process of its own.

    Attributes:
        port: the one that it said it got.
    """

    def __init__(self, process: Process, log: Path):
        self.process, self._log = process, log
        until(lambda: "/metrics" in self.said or process.poll() is not None, self.said)
        assert process.poll() is None, self.said
        self.port = int(self.said.partition("http://127.0.0.1:")[2].partition("/")[0])

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8")

    def figure(self, name: str) -> float:
        with connect(self.port) as line:
            line.sendall(raw_request("/metrics", None, "Connection: close"))
            page = read_all(line).decode()
        return float(next(row for row in page.splitlines() if row.startswith(f"{name} ")).split()[1])


@pytest.fixture
def serve(model_dir, tmp_path):
    """Starts real servers; returns each."""
    running = []

    def serve(*argv: str) -> RealServer:
        log = tmp_path / f"said{len(running)}"
        with log.open("w") as out:
            words = [
                ROOT / "inference.py",
                "--model_path",
                model_dir,
                "--cpu",
                "--serve",
                "--port",
                "0",
                *argv,
            ]
            running.append(start(words, tmp_path, out, OMP_NUM_THREADS="1"))
        return RealServer(running[-1], log)

    yield serve
    for process in running:
        process.kill()


# ---- ending ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_under_load_lets_every_accepted_request_be_answered(serve, name, code):
    server = serve()
    lines = [connect(server.port) for _ in range(24)]
    for number, line in enumerate(lines):
        line.sendall(raw_request("/v1/fill", {**SLOW, "top_k": 50 + number}))
    answered = 0
    until(
        lambda: server.figure("finetune_requests_accepted") + answered_of(lines) >= len(lines),
        "the requests were not accepted",
    )
    assert answered_of(lines) < len(lines)  # else nothing was under way
    server.process.send_signal(getattr(signal, name))
    until(lambda: refused_with(server.port) in (0, 503), "new requests were still taken")
    for number, line in enumerate(lines):
        answer = read_all(line)
        answered += status_of(answer) == 200 and len(words_of(answer)) == 50 + number
    assert answered == len(lines)
    assert server.process.wait(PATIENCE) == code
    assert "收下的請求都答完了" in server.said and "Traceback" not in server.said


def answered_of(lines: list[socket.socket]) -> int:
    """How many connections have something to read."""
    return len(select.select(lines, [], [], 0)[0])


def words_of(answer: bytes) -> list:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"]


def refused_with(port: int) -> int:
    """Status of a new request; 0 where nobody listens any more."""
    try:
        with connect(port) as line:
            line.sendall(raw_request("/v1/fill", SLOW, "Connection: close"))
            return status_of(read_all(line))
    except OSError:
        return 0


@pytest.mark.slow
def test_a_second_signal_ends_the_server_at_once(serve):
    server = serve("--max_queue", "1000")
    lines = [connect(server.port) for _ in range(400)]
    for line in lines:
        line.sendall(raw_request("/v1/fill", SLOW))
    until(lambda: server.figure("finetune_requests_accepted") > 390, "the requests were not accepted")
    begun = time.monotonic()
    while server.process.poll() is None:  # within two seconds it counts as an echo of the first
        server.process.send_signal(signal.SIGTERM)
        assert time.monotonic() < begun + PATIENCE
        select.select([], [], [], 0.05)
    assert server.process.returncode == 143 and time.monotonic() - begun < 4
    assert answered_of(lines) == len(lines) and sum(status_of(read_all(line)) == 200 for line in lines) < 400


def parts(release: threading.Event) -> Iterator[bytes]:
    yield b"first "
    assert release.wait(PATIENCE)
    yield b"last"


@contextlib.contextmanager
def with_route(folder, content: Callable[[], object], **settings) -> Iterator[LiveServer]:
    """A server with a path /stream that streams some content."""

    def routes(service) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/stream", lambda: StreamingResponse(content()), response_model=None)
        return router

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(application, "ROUTERS", (*application.ROUTERS, routes))
        with LiveServer(folder, **settings) as server:
            yield server


def endless() -> Iterator[bytes]:
    """The parts of an answer without end."""
    while True:
        yield b"x" * 65536


def test_while_a_stream_is_finished_new_requests_are_turned_away(model_dir):
    release = threading.Event()
    with with_route(model_dir, lambda: parts(release)) as server, connect(server.port) as stream:
        idle = connect(server.port)
        idle.sendall(raw_request("/healthz"))
        assert next_status(idle) == 200
        stream.sendall(raw_request("/stream"))
        received = stream.recv(65536)
        server.server.should_exit = True
        until(lambda: server.service.draining, "it did not begin to end")
        with connect(server.port) as line:
            line.sendall(raw_request("/v1/fill", SLOW))
            refused = read_all(line)  # it closes the connection
            assert status_of(refused) == 503 and b"connection: close" in refused.lower()
        idle.sendall(raw_request("/readyz"))
        assert next_status(idle) == 503
        assert server.request("/healthz")[0] == 200
        release.set()
        assert (received + read_all(stream)).endswith(b"4\r\nlast\r\n0\r\n\r\n")
        idle.close()


def test_a_request_that_never_ends_holds_the_server_up_no_longer_than_its_time(model_dir, monkeypatch):
    monkeypatch.setattr(uvicorn_server, "CLOSE", 1)
    release = threading.Event()
    with with_route(model_dir, lambda: parts(release), request_timeout=LIMIT) as server:
        stream = connect(server.port)
        stream.sendall(raw_request("/stream"))
        assert stream.recv(65536)
        begun = time.monotonic()
        server.stop()
        assert LIMIT < time.monotonic() - begun < PATIENCE / 2 and not server.server.drained
        assert not read_all(stream).endswith(b"0\r\n\r\n")  # the client is told that it is not whole
        release.set()
        stream.close()


def test_an_answer_that_its_client_does_not_read_is_given_up_and_said(model_dir):
    with with_route(model_dir, endless, write_timeout=LIMIT) as server:
        with connect(server.port) as line:
            line.sendall(raw_request("/stream"))
            assert line.recv(1)
            server.stop()
        settings = server.service.settings
        assert server.server.drained and server.server.unread == 1
        (said,) = serving._given_up(server.server, settings)
        assert "1 個回答" in said


# ---- health ------------------------------------------------------------------------------------------------


def test_a_full_queue_answers_429_and_is_not_ready(model_dir):
    with LiveServer(model_dir, max_queue=1) as server:
        assert server.request("/readyz")[0] == 200
        server.service.admit()
        assert server.request("/readyz")[0] == 503 and server.request("/healthz")[0] == 200
        with connect(server.port) as line:
            line.sendall(raw_request("/v1/fill", SLOW, "Connection: close"))
            refused = read_all(line).lower()
        assert status_of(refused.upper()) == 429 and b"retry-after: 1\r\n" in refused
        server.service.release()
        assert server.request("/readyz")[0] == 200 and server.request("/v1/fill", SLOW)[0] == 200


def test_without_its_computing_thread_it_is_not_healthy(model_dir):
    with LiveServer(model_dir) as server:
        server.service.compute.stop()
        for path in ("/healthz", "/readyz"):
            status, answer = server.request(path)
            assert status == 503 and "重新啟動" in answer["error"]["message"]


# ---- clients that are slow, many, or gone ------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty(model_dir):
    """A server with little patience, and a path without end."""
    limits = {"read_timeout": LIMIT, "idle_timeout": LIMIT, "write_timeout": LIMIT}
    with with_route(model_dir, endless, **limits) as server:
        yield server


def slowly(line: socket.socket, raw: bytes) -> bytes:
    """Sends a byte at a time until an answer is there; returns it."""
    end = time.monotonic() + PATIENCE
    for byte in raw:
        with contextlib.suppress(OSError):
            line.sendall(bytes([byte]))
        if select.select([line], [], [], LIMIT / 20)[0]:
            return read_all(line)
        assert time.monotonic() < end, "it waits without end"
    raise AssertionError("it had the patience to read all")


@pytest.mark.parametrize("part", ["headers", "body", "chunks", "line ends"])
def test_who_sends_too_slowly_is_answered_408_and_left(hasty, part):
    whole = raw_request("/v1/fill", {"prompt": "天" * 300})
    head, _, body = whole.partition(b"\r\n\r\n")
    begun = time.monotonic()  # its time runs from the connection on
    with connect(hasty.port) as line:
        if part == "body":
            line.sendall(head + b"\r\n\r\n")
            answer = slowly(line, body)
        elif part == "chunks":
            line.sendall(raw_request("/v1/fill", {}, "Transfer-Encoding: chunked").replace(
                b"Content-Length: 2\r\n", b"")[:-2])  # fmt: skip
            answer = slowly(line, b"1\r\n{\r\n" * 100)
        else:
            answer = slowly(line, head if part == "headers" else b"\r\n" * 200)
        assert status_of(answer) == 408 and LIMIT <= time.monotonic() - begun < 6 * LIMIT + 2


def test_an_idle_connection_is_closed_without_a_word(hasty):
    with connect(hasty.port) as silent, connect(hasty.port) as served:
        served.sendall(raw_request("/healthz"))
        assert status_of(read_all(served)) == 200
        assert read_all(silent) == b""


def test_who_does_not_read_is_dropped_and_little_is_kept_for_them(hasty):
    process = psutil.Process()
    lines = [socket.socket() for _ in range(20)]
    before = process.memory_info().rss
    for line in lines:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", hasty.port))
        line.sendall(raw_request("/stream"))
    until(lambda: len(hasty.server.server_state.connections) >= len(lines), "they were not accepted")
    until(lambda: not hasty.server.server_state.connections, "they are served without end")
    assert process.memory_info().rss - before < 60 << 20
    assert hasty.request("/healthz")[0] == 200
    for line in lines:
        line.close()


def test_more_connections_than_there_may_be_are_answered_503(model_dir, monkeypatch):
    monkeypatch.setattr(uvicorn_server, "_most_connections", lambda: 8)
    with LiveServer(model_dir) as server, contextlib.ExitStack() as held:
        lines = [held.enter_context(connect(server.port)) for _ in range(8)]
        until(lambda: len(server.server.server_state.connections) == 8, "they were not accepted")
        with connect(server.port) as line:
            assert status_of(read_all(line)) == 503
        lines[0].sendall(raw_request("/healthz", None, "Connection: close"))
        assert status_of(read_all(lines[0])) == 200
        until(lambda: len(server.server.server_state.connections) < 8, "a place did not become free")
        assert server.request("/healthz")[0] == 200


def vanish(line: socket.socket) -> None:
    """Closes a connection as the kernel does for a process that is killed with unread data: by a reset."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


KILLED = """
import os, socket, sys, time
lines = []
for number in range(int(sys.argv[2])):
    line = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    line.sendall(open(sys.argv[3], "rb").read())
    lines.append(line)
print("sent", flush=True)
time.sleep(600)
"""


def is_idle() -> bool:
    """Whether no thread of the requests works: each waits for work."""
    frames = sys._current_frames()
    ours = [one.ident for one in threading.enumerate() if one.name.startswith("request")]
    return all(frames[ident].f_code.co_name == "_worker" for ident in ours if ident in frames)


@pytest.mark.slow
def test_a_thousand_clients_that_vanish_leave_nothing_behind(model_dir, tmp_path):
    """In the middle of the head, of the body, of the wait and of the answer; some by kill -9."""
    whole = raw_request("/v1/fill", {"prompt": "天[MASK][MASK]黃", "word_length": 2, "top_k": 300})
    cuts = (0, 10, whole.index(b"\r\n\r\n") + 9, len(whole), len(whole))
    process = psutil.Process()
    with LiveServer(model_dir, max_queue=5000) as server:

        def wave(count: int) -> tuple[int, int, int, int]:
            """Clients come and vanish; returns what the process then holds."""
            for number in range(0, count, 20):
                lines = [connect(server.port) for _ in range(20)]
                for at, line in enumerate(lines):
                    line.sendall(whole[: cuts[(number + at) % len(cuts)]])
                for line in lines:
                    vanish(line)
            assert server.request("/healthz")[0] == 200  # those that came before it are accepted by now
            until(lambda: len(server.server.server_state.connections) == 0, "connections stay")
            until(lambda: not server.service.accepted, "places stay taken")
            until(is_idle, "threads work on")
            gc.collect()
            objects = len(gc.get_objects())
            return process.num_fds(), threading.active_count(), process.memory_info().rss, objects

        files, threads, memory, objects = wave(
            600
        )  # the threads of the requests are started as they are needed
        (tmp_path / "request").write_bytes(whole)
        (tmp_path / "client.py").write_text(KILLED)
        with (tmp_path / "said").open("w") as out:
            client = start([tmp_path / "client.py", server.port, 100, tmp_path / "request"], tmp_path, out)
        until(lambda: "sent" in (tmp_path / "said").read_text(), "the client did not send")
        client.kill()
        assert client.wait(PATIENCE) == -9
        after = wave(1000)
        assert after[0] <= files + 2 and after[1] <= max(threads, WORKERS + 8)
        assert after[3] - objects < 1000  # less than one for each
        assert after[2] - memory < 100 << 20  # what the allocator keeps for 64 threads
        assert server.request("/v1/fill", {"prompt": "天[MASK]"})[0] == 200
        assert not server.service.predictor.forward.calls.has_work()
        metrics = server.request("/metrics")[1]
    assert "finetune_requests_accepted 0.0" in metrics
    gone = next(row for row in metrics.splitlines() if row.startswith("finetune_cancelled_total "))
    assert float(gone.split()[1]) > 50
