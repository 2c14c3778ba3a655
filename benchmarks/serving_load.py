"""A load generator for JSON over HTTP/1.1: clients that each ask again when they are answered.

python benchmarks/serving_load.py http://127.0.0.1:8000/v1/fill bodies.json --clients 64 --seconds 20

`bodies.json` is a list of bodies, which the clients take in turns. It prints one line of JSON: answers a
second that came within the seconds, quantiles of their latencies in milliseconds, and the share of a core
that it took itself, by which one sees whether it was in the way. An answer other than 200 ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

LINE_END = b"\r\n"


@dataclass
class Load:
    """What a load generator saw.

    Attributes:
        rate: answers a second.
        p50, p95, p99: latencies in milliseconds.
        answers: how many there were.
        cpu: share of a core that the generator took.
    """

    rate: float
    p50: float
    p95: float
    p99: float
    answers: int
    cpu: float


class Client:
    """A connection that is kept open, and what was measured on it.

    Attributes:
        ended: (moment of the answer, latency), in seconds of the clock.
    """

    def __init__(self, url: str, bodies: Iterator[bytes]):
        parts = urlsplit(url)
        self._host, self._port, self._bodies = parts.hostname, parts.port, bodies
        self._head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        ).encode()
        self.ended: list[tuple[float, float]] = []

    async def run(self, until: float) -> None:
        """Ask until a moment of the clock; what is under way then is left."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            while time.perf_counter() < until:
                body = next(self._bodies)
                began = time.perf_counter()
                writer.write(self._head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - began):
                    await _answer(reader)
                ended = time.perf_counter()
                self.ended.append((ended, ended - began))
        except TimeoutError:
            pass
        finally:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> None:
    """Read an answer. Raises SystemExit where it is not 200."""
    head = await reader.readuntil(LINE_END * 2)
    length = next(
        int(line.partition(b":")[2])
        for line in head.split(LINE_END)
        if line.lower().startswith(b"content-length")
    )
    body = await reader.readexactly(length)
    status = head.split(b" ", 2)[1]
    if status != b"200":
        raise SystemExit(f"{status.decode()}: {body[:500].decode(errors='replace')}")


async def _drive(flags: argparse.Namespace, bodies: list[bytes]) -> Load:
    in_turns = itertools.cycle(bodies)
    clients = [Client(flags.url, in_turns) for _ in range(flags.clients)]
    since = time.perf_counter() + flags.warmup
    until = since + flags.seconds
    busy = time.process_time()
    await asyncio.gather(*(client.run(until) for client in clients))
    busy = time.process_time() - busy
    found = sorted(took for client in clients for ended, took in client.ended if ended >= since)
    if not found:
        raise SystemExit(f"no answer within {flags.seconds} s")

    def quantile(share: float) -> float:
        return 1000 * found[min(len(found) - 1, int(share * len(found)))]

    return Load(
        len(found) / flags.seconds, quantile(0.5), quantile(0.95), quantile(0.99), len(found),
        busy / (flags.warmup + flags.seconds),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path, help="a JSON list of bodies")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds before, which are not counted")
    flags = parser.parse_args()
    bodies = [json.dumps(body).encode() for body in json.loads(flags.bodies.read_text("utf-8"))]
    print(json.dumps(asdict(asyncio.run(_drive(flags, bodies)))))


if __name__ == "__main__":
    sys.exit(main())
