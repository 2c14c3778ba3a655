"""How huggingface_hub speaks with a hub: with bounds on waiting, on slowness and on the size of what comes.

A hub may answer and then hang, send a byte a second, ten gigabytes as config.json, or 503 for ever. Whoever
asked hears of it within a minute. Weights and data may take hours as long as they keep coming.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from urllib.parse import unquote, urljoin

from finetune.runtime.limits import MEGABYTE, most_bytes

SECONDS = 10.0  # for a connection, and between two pieces of an answer
PATIENCE = 20.0  # seconds that nothing but failures may come
WINDOW, SLOWEST = 20.0, 1024  # seconds, and bytes a second that must come on average
LARGEST_LIST = 64 * MEGABYTE  # of what the hub says of a model or a data set


class HubGaveUpError(OSError):
    """The hub is too slow, or sends too much. No error that huggingface_hub would try again after."""


class Manners:
    """What was seen of a hub so far.

    Attributes:
        reason: why it is not asked any more; "" while it is.
    """

    def __init__(self):
        self.reason = ""
        self._failing: float | None = None  # since when
        self._bounds: dict[str, int] = {}  # address that a file was sent on to -> its largest size

    def begin(self) -> None:
        if not self.reason and self._failing and time.monotonic() - self._failing > PATIENCE:
            self.give_up(f"{PATIENCE:g} 秒以來都沒有好好回答")
        if self.reason:
            raise HubGaveUpError(self.reason)

    def give_up(self, reason: str) -> None:
        self.reason = reason
        raise HubGaveUpError(reason)

    def failed(self) -> None:
        self._failing = self._failing or time.monotonic()

    def answered(self) -> None:
        self._failing = None

    def bound(self, address: str) -> tuple[str, int]:
        """Name and largest size of what lies there; 0 is any."""
        path = unquote(address.split("?")[0])
        name = path.rpartition("/")[2]
        if address in self._bounds:
            return name, self._bounds[address]
        if "/api/" in path:
            return "清單", LARGEST_LIST
        return name, 0 if "/datasets/" in path else most_bytes(name)

    def sent_on(self, address: str, where: str) -> None:
        self._bounds[urljoin(address, where)] = self.bound(address)[1]

    def check_size(self, address: str, size: int) -> None:
        name, most = self.bound(address)
        if most and size > most:
            self.give_up(f"{name} 有 {size:,} 個位元組，上限是 {most:,}，不下載")


MANNERS = Manners()


def use() -> None:
    """Has huggingface_hub keep these bounds from now on. Imports it."""
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # which has a way of its own to the hub, without bounds
    import httpx2
    from huggingface_hub.utils import _http

    class Stream(httpx2.SyncByteStream):
        """What comes, counted."""

        def __init__(self, stream, address: str, good: bool):
            self._stream, self._address, self._good = stream, address, good

        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self._counted()
            except httpx2.TransportError:
                MANNERS.failed()
                raise
            if self._good:
                MANNERS.answered()

        def _counted(self) -> Iterator[bytes]:
            whole, began, since = 0, time.monotonic(), 0
            for piece in self._stream:
                whole += len(piece)
                since += len(piece)
                MANNERS.check_size(self._address, whole)
                if (seconds := time.monotonic() - began) > WINDOW:
                    if since < SLOWEST * seconds:
                        MANNERS.give_up(f"太慢（每秒 {since / seconds:.0f} 個位元組，至少要 {SLOWEST:,}）")
                    began, since = time.monotonic(), 0
                yield piece

        def close(self) -> None:
            self._stream.close()

    class Bounded(httpx2.HTTPTransport):
        def handle_request(self, request):
            MANNERS.begin()
            given, address = request.extensions.get("timeout") or {}, str(request.url)
            seconds = {
                key: min(given.get(key) or SECONDS, SECONDS) for key in ("connect", "read", "write", "pool")
            }
            request.extensions = {**request.extensions, "timeout": seconds}
            try:
                response = super().handle_request(request)
            except httpx2.TransportError:
                MANNERS.failed()
                raise
            good = response.status_code < 500 and response.status_code not in (408, 429)
            if not good:
                MANNERS.failed()
                for name in ("retry-after", "ratelimit"):  # hours, maybe
                    response.headers.pop(name, None)
            elif where := response.headers.get("location"):
                MANNERS.sent_on(address, where)
            elif request.method == "HEAD":
                MANNERS.answered()
            for name in ("content-length", "x-linked-size"):
                size = response.headers.get(name, "")
                if size.isdecimal() and response.status_code < 400:
                    MANNERS.check_size(address, int(size))
            response.stream = Stream(response.stream, address, good)
            return response

    def client():
        hooks = {"request": [_http.hf_request_event_hook]}
        routes = {"http://": Bounded(), "https://": Bounded()} if not _proxied() else None
        return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None, mounts=routes)

    _http.set_client_factory(client)


def _proxied() -> bool:
    """A proxy of the person's own is asked in httpx's way, by the bounds of huggingface_hub alone."""
    return any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
