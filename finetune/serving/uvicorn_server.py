"""uvicorn's server as we run it: it watches its connections, and answers what it accepted before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Generator
from typing import Any, cast

import uvicorn

from finetune.runtime.signals import StopRequest
from finetune.serving.app import build_app
from finetune.serving.connections import Connection, connection_class
from finetune.serving.service import Service

CONNECTIONS = 2048  # at once
SPARE_FILES = 256  # descriptors that are left for everything but connections
POLL = 0.02  # seconds
SWEEP = 1.0  # seconds between two looks at the clocks of all connections
CLOSE = 5.0  # seconds for what is left when the time for draining is up


class Server(uvicorn.Server):
    """A server of a service.

    Args:
        service: what it serves.
        stop: asks it to end; None where only `should_exit` does.

    Attributes:
        drained: every accepted request was answered before it ended.
        unread: answers that were given up meanwhile, since their clients did not read them.
    """

    def __init__(self, service: Service, stop: StopRequest | None = None):
        _silence_uvicorn()
        limits = service.settings
        super().__init__(
            uvicorn.Config(
                build_app(service), http=connection_class(service, _most_connections()), loop="asyncio",
                ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False,
                proxy_headers=False, server_header=False, workers=1, timeout_graceful_shutdown=int(CLOSE),
                timeout_keep_alive=cast(int, limits.idle_timeout),  # it takes fractions too
            )
        )  # fmt: skip
        self._service, self._stop, self.drained, self.unread = service, stop, True, 0
        self._sweeper: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to `StopRequest`."""
        yield

    async def startup(self, sockets: Any = None) -> None:
        """Begin to listen."""
        asyncio.get_running_loop().set_exception_handler(self._log_failure)
        await super().startup(sockets)
        self._sweeper = asyncio.create_task(self._sweep())

    async def on_tick(self, counter: int) -> bool:
        """Do what is done ten times a second; return True where the server ends."""
        ends = await super().on_tick(counter) or (self._stop is not None and bool(self._stop.signum))
        if ends:
            await self._drain()
        return ends

    async def shutdown(self, sockets: Any = None) -> None:
        """End what is left."""
        await super().shutdown(sockets)
        if self._sweeper is not None:
            self._sweeper.cancel()

    @property
    def _connections(self) -> list[Connection]:
        return cast("list[Connection]", list(self.server_state.connections))

    async def _drain(self) -> None:
        """Wait until every accepted request is answered; those that come now are refused."""
        self._service.draining = True
        before = self._service.unread
        ends = time.monotonic() + self._service.settings.request_timeout
        while self._service.accepted or any(one.is_busy for one in self._connections):
            if time.monotonic() > ends:
                self.drained = False
                break
            await asyncio.sleep(POLL)
        self.unread = self._service.unread - before

    async def _sweep(self) -> None:
        limits = self._service.settings
        interval = min(SWEEP, limits.read_timeout / 4, limits.write_timeout / 4)
        while True:
            await asyncio.sleep(interval)
            now = time.monotonic()
            for connection in self._connections:
                connection.sweep(now)

    def _log_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what fails outside of any request, as where no descriptor is left for a connection."""
        error = context.get("exception") or RuntimeError(context["message"])
        self._service.log.error(error, during=context["message"])


def _silence_uvicorn() -> None:
    """Let uvicorn log nothing: what it says is in our log, and its tracebacks hold what clients sent."""
    for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False


def _most_connections() -> int:
    """Return how many connections there may be, after asking the system for as many files."""
    try:
        import resource
    except ImportError:  # Windows
        return CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    files = wanted if soft == resource.RLIM_INFINITY else soft
    return max(8, min(CONNECTIONS, files - SPARE_FILES))
