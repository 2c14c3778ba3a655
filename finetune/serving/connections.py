"""Connections: bounded in number, in the size of their headers, and in the time that they may take."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from finetune.serving.errors import ApiError
from finetune.serving.guard import DEADLINE
from finetune.serving.service import Service

HEADER_BYTES = 1 << 16  # of one request
HEADERS = 100  # of one request
GRACE = 1.0  # seconds that the answer "too slow" of the application may take


class Connection(HttpToolsProtocol):
    """A connection of uvicorn with limits that uvicorn lacks; `sweep` enforces those of time.

    Attributes:
        service: whose limits count; set on the subclass that `connection_class` makes.
    """

    service: Service
    most: int

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._reading_since: float | None = None  # of a request that is not there yet, by time.monotonic
        self._stalled_since: float | None = None  # that what was sent waits for the client to read it
        self._header_bytes = 0  # of the request that is being read; 0 once its headers are there
        self._in_headers = True
        self._received = False  # anything of that request

    @property
    def is_busy(self) -> bool:
        """True while a request that was read is being answered, or its answer is not all sent."""
        answers = self._is_answering and not self.cycle.more_body
        return answers or bool(self.pipeline) or self.transport.get_write_buffer_size() > 0

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it where there are too many."""
        super().connection_made(transport)
        self._reading_since = time.monotonic()
        if len(self.connections) > self.most:
            self.service.metrics.rejected("connections")
            self._refuse(
                ApiError(503, f"已經有 {self.most} 條連線；請稍後再試", headers={"Retry-After": "1"})
            )

    def data_received(self, data: bytes) -> None:
        """Read what a client sends."""
        if self.transport.is_closing():
            return
        if self._reading_since is None and not self._is_answering:
            self._reading_since = time.monotonic()
        self._received = True
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > HEADER_BYTES and not self.transport.is_closing():
            self._refuse(_large_headers())

    def on_message_begin(self) -> None:
        """Begin to read a request."""
        super().on_message_begin()
        if self._reading_since is None:
            self._reading_since = time.monotonic()
        self._in_headers, self._received = True, True
        deadline = self._reading_since + self.service.settings.read_timeout
        self.scope["state"] = {**self.scope["state"], DEADLINE: deadline}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header, or one that follows a body."""
        if len(self.headers) >= HEADERS:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer a request."""
        self._in_headers, self._header_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that a request was read to its end."""
        super().on_message_complete()
        self._reading_since, self._in_headers, self._received = None, True, False

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        if self.headers is not None and len(self.headers) >= HEADERS:
            self._refuse(_large_headers())
        else:
            self._refuse(ApiError(400, "這不是 HTTP 的請求"))

    def shutdown(self) -> None:
        """Close the connection once nothing is being answered on it."""
        if self.is_busy:
            super().shutdown()
        else:
            self.transport.close()

    def sweep(self, now: float) -> None:
        """Close the connection where its client is too slow.

        Args:
            now: time.monotonic.
        """
        limits = self.service.settings
        if self.transport.get_write_buffer_size() == 0:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        elif now - self._stalled_since > limits.write_timeout:
            self.service.metrics.rejected("slow_reader")
            self.service.unread += 1
            self.transport.abort()
            return
        if self._reading_since is None or self.transport.is_closing():
            return
        reads = self._is_answering and self.cycle.more_body and not self.cycle.response_started
        late = now - self._reading_since - limits.read_timeout - (GRACE if reads else 0)
        waits = self._is_answering and not self.cycle.more_body  # a second request may wait for its turn
        if late > 0 and not waits:
            if self._received and not self._is_answering:
                self._refuse(ApiError(408, f"{limits.read_timeout:g} 秒內沒有收完請求，已經放棄"))
            else:
                self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, and close the connection."""
        if not self._is_answering:  # else the client is in the middle of another answer
            lines = [b": ".join(pair) for pair in [*error.raw_headers(), (b"connection", b"close")]]
            head = STATUS_LINE[error.status] + b"\r\n".join(lines) + b"\r\n\r\n"
            self.transport.write(head + error.content())
            if error.status < 500:
                self.service.metrics.rejected({408: "slow", 431: "headers"}.get(error.status, "invalid"))
            self.service.log.write("refused", status=error.status, client=self._client())
        self.transport.close()

    def _client(self) -> str:
        return f"{self.client[0]}:{self.client[1]}" if self.client else ""


def connection_class(served: Service, most_connections: int) -> type[Connection]:
    """Return the class of the connections of a service."""

    class Bound(Connection):
        service, most = served, most_connections

    return Bound


def _large_headers() -> ApiError:
    return ApiError(431, f"標頭太大，上限是 {HEADERS} 行、{HEADER_BYTES:,} 個位元組")
