"""HTTP client for huggingface_hub with limits on waiting, on slow transfers and on the size of answers.

A hub may answer and then hang, send a byte a second, ten gigabytes as config.json, or 503 for ever; the
caller gets an error within a minute. Weights and data may take hours as long as they keep coming.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NoReturn
from urllib.parse import unquote, urljoin

from finetune.runtime.limits import MEGABYTE, most_bytes

SECONDS = 10.0  # limit for a connection, and between two chunks of an answer
PATIENCE = 20.0  # seconds of nothing but failures before giving up
WINDOW, SLOWEST = 20.0, 1024  # seconds over which the speed is averaged, and the lowest bytes per second
LARGEST_LIST = 64 * MEGABYTE  # bytes of the hub's metadata of a model or a dataset


class HubGaveUpError(OSError):
    """The hub is too slow, or sends too much; huggingface_hub does not retry after this error."""


class HubHealth:
    """Record of the failures of a hub so far, and of the sizes that its files may have.

    Attributes:
        reason: why no more requests are sent; "" while they are.
    """

    def __init__(self):
        self.reason = ""
        self._failing: float | None = None  # time of the first failure since the last answer
        self._limits: dict[str, int] = {}  # URL that a download was redirected to -> largest size in bytes

    def check(self) -> None:
        """Check that requests may still be sent.

        Raises:
            HubGaveUpError: the hub has failed for too long, or was given up before.
        """
        if not self.reason and self._failing and time.monotonic() - self._failing > PATIENCE:
            self.give_up(f"連續 {PATIENCE:g} 秒沒有有效回應")
        if self.reason:
            raise HubGaveUpError(self.reason)

    def give_up(self, reason: str) -> NoReturn:
        """Refuse all further requests, and raise HubGaveUpError with the reason."""
        self.reason = reason
        raise HubGaveUpError(reason)

    def failed(self) -> None:
        """Record a failed request."""
        self._failing = self._failing or time.monotonic()

    def answered(self) -> None:
        """Record a good answer."""
        self._failing = None

    def size_limit(self, address: str) -> tuple[str, int]:
        """Return the name and the largest size in bytes of the file at a URL; 0 means no limit."""
        path = unquote(address.split("?")[0])
        name = path.rpartition("/")[2]
        if address in self._limits:
            return name, self._limits[address]
        if "/api/" in path:
            return "清單", LARGEST_LIST
        return name, 0 if "/datasets/" in path else most_bytes(name)

    def redirected(self, address: str, target: str) -> None:
        """Record a redirect: the target has the size limit of the URL that led to it."""
        self._limits[urljoin(address, target)] = self.size_limit(address)[1]

    def check_size(self, address: str, size: int) -> None:
        """Give up when the file at a URL has more bytes than its limit.

        Raises:
            HubGaveUpError: it has.
        """
        name, most = self.size_limit(address)
        if most and size > most:
            self.give_up(f"{name} 有 {size:,} 個位元組，上限是 {most:,}，不下載")


HEALTH = HubHealth()


def install_limits() -> None:
    """Make huggingface_hub use a client with these limits from now on. Imports it."""
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # Xet has its own connection to the hub, without limits
    import httpx2
    from huggingface_hub.utils import _http

    class Stream(httpx2.SyncByteStream):
        """Body of an answer, its bytes counted."""

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
            self._stream.close()

    class LimitedTransport(httpx2.HTTPTransport):
        """Transport that enforces the limits on each request."""

        def handle_request(self, request):
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
            response.stream = Stream(response.stream, address, good)
            return response

    def client():
        hooks = {"request": [_http.hf_request_event_hook]}
        routes = {"http://": LimitedTransport(), "https://": LimitedTransport()} if not _proxied() else None
        return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None, mounts=routes)

    _http.set_client_factory(client)


def _proxied() -> bool:
    """Return True when the user has set a proxy, which httpx handles without these limits."""
    return any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
