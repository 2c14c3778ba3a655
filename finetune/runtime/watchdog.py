"""Watchdog that ends the ranks of a run when one of them has died, so that none waits for it for hours.

A collective call waits for its slowest rank, and NCCL cannot distinguish a slow rank from a dead one. So each
rank keeps a TCP connection to rank 0 that carries nothing but a final byte. The kernel closes it when the
process dies, however that happens, and TCP keep-alive detects a machine that is gone; a busy rank is never
taken for dead.

Measured without it, one rank killed and the others in a call that does not end: launchers on one machine kill
them after 30 s and no message names the dead rank; under two torchruns, as on two machines, and without a
launcher they are left running.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

IDLE, BETWEEN, PROBES = 10, 5, 3  # keep-alive: seconds idle, seconds between probes, probes
PATIENCE = 10.0  # seconds for the main thread to report its own error first
CONNECT_SECONDS = 60.0  # time limit for the ranks to connect
# Final byte of a rank: finished; failed, with its error reported; (from rank 0) another rank has died.
BYE, FAILED, DIED = b"B", b"F", b"D"


class Watchdog:
    """Watchdog of one rank: its connections to the other ranks.

    Args:
        rank: this process's rank.
        size: number of ranks.
        broadcast: returns rank 0's value on every rank; `Distributed.broadcast`.
    """

    def __init__(self, rank: int, size: int, broadcast: Callable[[Any], Any]):
        self.rank, self.size = rank, size
        self._peers: dict[int, socket.socket] = {}
        self._detached = False
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
        # On several machines one name may resolve to different addresses (127.0.1.1, say).
        server = _create_server(host if local_size == size else "") if rank == 0 else None
        port, secret = broadcast((server.getsockname()[1], secrets.token_bytes(16)) if server else None)
        if server:
            self._start(self._accept_ranks, server, secret)
        else:
            try:
                peer = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
                peer.sendall(secret + rank.to_bytes(4, "big"))
            except OSError as error:
                print(
                    f"rank {rank} 連不上 rank 0（{error}）：有 rank 死去時不會馬上知道",
                    file=sys.stderr,
                    flush=True,
                )
                return
            self._watch(0, peer)
        atexit.register(self._end, FAILED)

    def detach(self) -> None:
        """Tell the other ranks that this one has finished, so that its end is not taken for a failure."""
        self._end(BYE)

    def _end(self, last: bytes) -> None:
        if self._detached:
            return
        self._detached = True
        self._send(last)

    def _send(self, last: bytes) -> None:
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):
                peer.sendall(last)

    def _accept_ranks(self, server: socket.socket, secret: bytes) -> None:
        """Accept the connections of the other ranks on rank 0, closing those without the secret."""
        deadline = time.monotonic() + CONNECT_SECONDS
        with server:
            while len(self._peers) < self.size - 1 and time.monotonic() < deadline:
                server.settimeout(max(0.1, deadline - time.monotonic()))
                try:
                    peer, _ = server.accept()
                except OSError:
                    continue
                hello = _read_hello(peer)
                if secrets.compare_digest(hello[:16], secret):
                    self._watch(int.from_bytes(hello[16:], "big"), peer)
                else:
                    peer.close()

    def _watch(self, rank: int, peer: socket.socket) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", IDLE), ("TCP_KEEPINTVL", BETWEEN), ("TCP_KEEPCNT", PROBES)):
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._peers[rank] = peer
        self._start(self._wait_for_end, rank, peer)

    def _wait_for_end(self, rank: int, peer: socket.socket) -> None:
        try:
            last = peer.recv(1)
        except OSError:
            last = b""
        if last == BYE or self._detached:
            return
        if self.rank == 0:
            self._send(DIED)
        if not last:
            message = f"✗ rank {rank} 突然結束了（被終止，或記憶體不足）；其他 rank 跟著結束"
            print(message, file=sys.stderr, flush=True)  # not `log`: this may not be the main process
        time.sleep(PATIENCE)
        if not self._detached:
            os._exit(1)

    @staticmethod
    def _start(work: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=work, args=args, daemon=True, name="watchdog").start()


def _read_hello(peer: socket.socket) -> bytes:
    """Read the secret and the rank of a new connection: 20 bytes, or fewer if it is not a rank."""
    hello, deadline = b"", time.monotonic() + 1
    with contextlib.suppress(OSError):
        while len(hello) < 20 and (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            chunk = peer.recv(20 - len(hello))
            if not chunk:
                break
            hello += chunk
    return hello


def _create_server(host: str) -> socket.socket:
    """Listen on the address that the ranks know this machine by, else on all its addresses."""
    try:
        return socket.create_server((host, 0))
    except OSError:  # no address of this machine, as behind NAT
        return socket.create_server(("", 0))
