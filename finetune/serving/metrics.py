"""Figures of a server for Prometheus; none of them holds a text."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

OTHER = "other"  # path of a request that none of our paths is meant by: a label has few values
REJECTED = {  # status -> reason, of answers that did no work for their request
    400: "invalid", 401: "key", 403: "origin", 404: "path", 405: "method", 408: "slow", 413: "size",
    415: "type", 422: "invalid", 429: "queue", 431: "headers", 503: "unavailable", 504: "time",
}  # fmt: skip
GONE = 499  # as nginx calls it: the client closed the connection; nobody reads this
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
SHORT = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # seconds
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)


@dataclass(frozen=True)
class Pass:
    """A forward pass that was run.

    Args:
        rows, tokens: size of its batch; tokens counts the padding.
        waits: seconds that each call which shared it has waited.
        seconds: how long it took.
    """

    rows: int
    tokens: int
    waits: tuple[float, ...]
    seconds: float


class Source(Protocol):
    """What the figures of this moment are looked up in.

    Attributes:
        accepted: requests that are accepted and not answered yet.
        draining: the server is ending.
    """

    accepted: int
    draining: bool


class Metrics:
    """Figures of a server.

    Args:
        source: figures of this moment.
        model: facts of the model: name, kind, precision, device.
        most: requests that are accepted at once.
    """

    def __init__(self, source: Source, model: dict[str, str], most: int):
        disable_created_metrics()  # a second series beside each one, which nobody asks for
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"finetune_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"finetune_{name}", text, labels, buckets=buckets, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"finetune_{name}", text, registry=registry)

        self._requests = counter("requests", "Requests that were answered", "path", "status")
        self._latency = histogram("request_seconds", "Time of a request", SECONDS, "path")
        self.in_flight = gauge("requests_in_flight", "Requests that are being read or answered")
        self._rejected = counter("rejected", "Requests that were refused", "reason")
        self._cancelled = counter("cancelled", "Requests whose client went away")
        self._rows = histogram("pass_rows", "Rows of a forward pass", ROWS)
        self._tokens = histogram("pass_tokens", "Tokens of a forward pass with its padding", TOKENS)
        self._calls = histogram("pass_calls", "Calls that shared a forward pass", ROWS)
        self._pass_seconds = histogram("pass_seconds", "Time of a forward pass", SHORT)
        self._waits = histogram("queue_seconds", "Time that a call waited for its forward pass", SHORT)
        self._prompt = counter("prompt_tokens", "Tokens of prompts that were read")
        self._generated = counter("generated_tokens", "Tokens that were generated")
        self._dropped = counter("log_lines_dropped", "Lines of the log that nobody read in time")
        gauge("queue_limit", "Most requests that are accepted at once, --max_queue").set(most)
        for name, text, value in (
            ("requests_accepted", "Requests that are accepted and not answered yet", lambda: source.accepted),
            ("draining", "1 while the server is ending", lambda: source.draining),
        ):
            gauge(name, text).set_function(value)
        info = Info("finetune_model", "The model that is served", registry=registry)
        info.info({**model, "version": _version()})

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            path: one of our paths, or OTHER.
            status: of its answer.
        """
        self._requests.labels(path, status).inc()
        self._latency.labels(path).observe(seconds)
        if status == GONE:
            self._cancelled.inc()
        elif status in REJECTED:
            self.rejected(REJECTED[status])

    def rejected(self, reason: str) -> None:
        """Count a request that was refused, or a connection that was closed before there was one."""
        self._rejected.labels(reason).inc()

    def passed(self, ran: Pass) -> None:
        """Count a forward pass."""
        self._rows.observe(ran.rows)
        self._tokens.observe(ran.tokens)
        self._calls.observe(len(ran.waits))
        self._pass_seconds.observe(ran.seconds)
        for seconds in ran.waits:
            self._waits.observe(seconds)

    def wrote(self, prompt_tokens: int, generated_tokens: int) -> None:
        """Count the tokens of a prompt and of what was generated after it."""
        self._prompt.inc(prompt_tokens)
        self._generated.inc(generated_tokens)

    def dropped(self, lines: int) -> None:
        """Count lines of the log that were dropped."""
        self._dropped.inc(lines)

    def page(self, accept: str) -> tuple[bytes, str]:
        """Return all figures in the text format that a reader accepts, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _version() -> str:
    try:
        return metadata.version("fine-tuning-llm")
    except metadata.PackageNotFoundError:  # run from its folder
        return ""
