"""HTTP client for huggingface_hub with limits on waiting, on slow transfers and on the size of answers.

A hub may answer and then hang, send a byte a second, ten gigabytes as config.json, or 503 for ever; the
caller gets an error within a minute. Weights and data may take hours as long as they keep coming. Importing
this module imports huggingface_hub.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # Xet has its own connection to the hub, without limits

import httpx2
from huggingface_hub.utils import _http

from finetune.runtime.hub_health import HEALTH

SECONDS = 10.0  # limit for a connection, and between two chunks of an answer
WINDOW, SLOWEST = 20.0, 1024  # seconds over which the speed is averaged, and the lowest bytes per second


def install() -> None:
    """Make huggingface_hub use a client with these limits from now on."""
    _http.set_client_factory(_client)


def _client() -> httpx2.Client:
    hooks = {"request": [_http.hf_request_event_hook]}
    routes = {"http://": LimitedTransport(), "https://": LimitedTransport()} if not _proxied() else None
    return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None, mounts=routes)


def _proxied() -> bool:
    """Return True when the user has set a proxy, which httpx handles without these limits."""
    return any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))


class LimitedTransport(httpx2.HTTPTransport):
    """Transport that enforces the limits on each request."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request with time limits, and check the size that the answer announces.

        Raises:
            HubGaveUpError: the hub was given up, or announces too much.
        """
        HEALTH.check()
        timeouts, address = request.extensions.get("timeout") or {}, str(request.url)
        keys = ("connect", "read", "write", "pool")
        limited = {key: min(timeouts.get(key) or SECONDS, SECONDS) for key in keys}
        request.extensions = {**request.extensions, "timeout": limited}
        try:
            response = super().handle_request(request)
        except httpx2.TransportError:
            HEALTH.failed()
            raise
        good = response.status_code < 500 and response.status_code not in (408, 429)
        if not good:
            HEALTH.failed()
            for name in ("retry-after", "ratelimit"):  # huggingface_hub would wait that long: maybe hours
                response.headers.pop(name, None)
        elif target := response.headers.get("location"):
            HEALTH.redirected(address, target)
        elif request.method == "HEAD":
            HEALTH.answered()
        for name in ("content-length", "x-linked-size"):
            size = response.headers.get(name, "")
            if size.isdecimal() and response.status_code < 400:
                HEALTH.check_size(address, int(size))
        response.stream = CountedStream(response.stream, address, good)
        return response


class CountedStream(httpx2.SyncByteStream):
    """Body of an answer, its bytes counted.

    Args:
        stream: the body.
        address: its URL.
        good: the status is no error.
    """

    def __init__(self, stream, address: str, good: bool):
        self._stream, self._address, self._good = stream, address, good

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._count()
        except httpx2.TransportError:
            HEALTH.failed()
            raise
        if self._good:
            HEALTH.answered()

    def _count(self) -> Iterator[bytes]:
        total, began, in_window = 0, time.monotonic(), 0
        for chunk in self._stream:
            total += len(chunk)
            in_window += len(chunk)
            HEALTH.check_size(self._address, total)
            if (seconds := time.monotonic() - began) > WINDOW:
                if in_window < SLOWEST * seconds:
                    speed = in_window / seconds
                    HEALTH.give_up(f"太慢（每秒 {speed:.0f} 個位元組，至少要 {SLOWEST:,}）")
                began, in_window = time.monotonic(), 0
            yield chunk

    def close(self) -> None:
        """Close the body."""
        self._stream.close()
