"""One line of the log, and the figures, of each request."""

from __future__ import annotations

import random
import re
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.serving.errors import ApiError
from finetune.serving.metrics import GONE, OTHER
from finetune.serving.service import Service

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
LONGEST_PATH = 200  # characters of a path in the log
LONGEST_TEXT = 1 << 16  # bytes of a body in the log


class Exchange:
    """A request and its answer, as they pass by.

    Attributes:
        status: of the answer; 0 before there is one.
        sent: bytes of the answer's body.
        complete: the answer was sent to its end.
        gone: the client went away before that.
    """

    def __init__(self, request_id: str, receive: Receive, send: Send, with_texts: bool):
        self.id, self._receive, self._send, self._with_texts = request_id, receive, send, with_texts
        self.status, self.sent, self.complete, self.gone = 0, 0, False, False
        self.request, self.answer = bytearray(), bytearray()

    async def receive(self) -> Message:
        """Return the next message of the client."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = not self.complete
        elif self._with_texts:
            self._keep(self.request, message)
        return message

    async def send(self, message: Message) -> None:
        """Send a message to the client, with the id of its request."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], (b"x-request-id", self.id.encode())]}
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self._with_texts:
                self._keep(self.answer, message)
        await self._send(message)

    def _keep(self, kept: bytearray, message: Message) -> None:
        kept += message.get("body", b"")[: LONGEST_TEXT - len(kept)]


class AccessLog:
    """ASGI middleware around everything else: it logs and counts each request, and answers what fails.

    Args:
        app: what answers.
        service: whose log and metrics are written.
        paths: those that may be named in metrics; all others are OTHER there.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]):
        self._app, self._service, self._paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered."""
        wanted = Headers(scope=scope).get("x-request-id", "")
        request_id = wanted if SANE_ID.fullmatch(wanted) else f"{random.getrandbits(64):016x}"
        seen = Exchange(request_id, receive, send, self._service.log.with_texts)
        started = time.perf_counter()
        metrics = self._service.metrics
        metrics.in_flight.inc()
        try:
            await self._app(scope, seen.receive, seen.send)
        except Exception as error:  # a bug of ours: nothing of it is the client's business
            if not seen.gone:
                self._service.log.error(error, request_id=seen.id)
            if seen.status:
                raise  # the server closes the connection: the answer is not whole
            await _failed(seen.id).answer(seen.send)
        finally:
            metrics.in_flight.dec()
            seconds = time.perf_counter() - started
            status = GONE if seen.gone or not seen.status else seen.status
            metrics.request(self._path(scope), status, seconds)
            self._write(scope, seen, status, seconds)

    def _path(self, scope: Scope) -> str:
        path = getattr(scope.get("route"), "path", None) or scope["path"]
        return path if path in self._paths else OTHER

    def _write(self, scope: Scope, seen: Exchange, status: int, seconds: float) -> None:
        texts: dict[str, Any] = {}
        if self._service.log.with_texts:
            for name, kept in (("request", seen.request), ("answer", seen.answer)):
                texts[name] = kept.decode("utf-8", "replace")
        client = scope.get("client") or ("", 0)
        self._service.log.write(
            "request", method=scope["method"], path=scope["path"][:LONGEST_PATH], status=status,
            seconds=round(seconds, 6), bytes=seen.sent, client=f"{client[0]}:{client[1]}",
            request_id=seen.id, **texts,
        )  # fmt: skip


def _failed(request_id: str) -> ApiError:
    return ApiError(500, f"伺服器出了錯，不是請求的問題；請把這個編號告訴架設的人：{request_id}")
