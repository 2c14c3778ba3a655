"""Tells the ranks of a run when one of them has died, so that none waits for it for hours.

A collective call waits for its slowest rank, and NCCL cannot tell a slow one from a dead one. So each rank
keeps a TCP connection to rank 0 through which nothing goes but a last byte. The kernel closes it when the
process dies, however that happens, and its keep-alive notices a machine that is gone; a rank that is merely
busy is never taken for dead.
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

from finetune.runtime.console import log

IDLE, BETWEEN, PROBES = 10, 5, 3  # seconds of silence, seconds between probes of the kernel, how many
PATIENCE = 10.0  # seconds in which the main thread may say by itself what became of it
MEETING = 60.0  # seconds that ranks have to connect
BYE, FAILED, DIED = b"B", b"F", b"D"  # the last byte: done; it has said why not; (from rank 0) another one


class Watchdog:
    """The connections of one rank.

    Args:
        rank, size: of this process, among how many.
        agree: gives rank 0's value to every rank; `World.agree`.
    """

    def __init__(self, rank: int, size: int, agree: Callable):
        self.rank, self.size = rank, size
        self._peers: dict[int, socket.socket] = {}
        self._parted = False
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
        # Among several machines a name may mean one thing here and another there (127.0.1.1, say).
        server = _listen(host if here == size else "") if rank == 0 else None
        port, secret = agree((server.getsockname()[1], secrets.token_bytes(16)) if server else None)
        if server:
            self._start(self._receive, server, secret)
        else:
            try:
                peer = socket.create_connection((host, port), timeout=MEETING)
                peer.sendall(secret + rank.to_bytes(4, "big"))
            except OSError as error:
                print(
                    f"行程 {rank} 連不上行程 0（{error}）：有行程死去時不會馬上知道",
                    file=sys.stderr,
                    flush=True,
                )
                return
            self._watch(0, peer)
        atexit.register(self._end, FAILED)

    def detach(self) -> None:
        """This rank is done, and leaves the others in peace."""
        self._end(BYE)

    def _end(self, last: bytes) -> None:
        if self._parted:
            return
        self._parted = True
        self._tell(last)

    def _tell(self, last: bytes) -> None:
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):
                peer.sendall(last)

    def _receive(self, server: socket.socket, secret: bytes) -> None:
        """Rank 0 takes in the others; who does not know the secret is sent away."""
        ends = time.monotonic() + MEETING
        with server:
            while len(self._peers) < self.size - 1 and time.monotonic() < ends:
                server.settimeout(max(0.1, ends - time.monotonic()))
                try:
                    peer, _ = server.accept()
                except OSError:
                    continue
                hello = _hello(peer)
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
        self._start(self._listen_to, rank, peer)

    def _listen_to(self, rank: int, peer: socket.socket) -> None:
        try:
            last = peer.recv(1)
        except OSError:
            last = b""
        if last == BYE or self._parted:
            return
        if self.rank == 0:
            self._tell(DIED)
        if not last:
            said = f"✗ 行程 {rank} 突然結束了（被終止，或記憶體不足）；其他行程跟著結束"
            print(said, file=sys.stderr, flush=True)  # not `say`: this may not be the main process
        time.sleep(PATIENCE)
        if not self._parted:
            os._exit(1)

    @staticmethod
    def _start(work: Callable, *arguments) -> None:
        threading.Thread(target=work, args=arguments, daemon=True, name="lifeline").start()


def _hello(peer: socket.socket) -> bytes:
    """What one who connects says: 20 bytes, or fewer from one who is no rank."""
    said, ends = b"", time.monotonic() + 1
    with contextlib.suppress(OSError):
        while len(said) < 20 and (left := ends - time.monotonic()) > 0:
            peer.settimeout(left)
            part = peer.recv(20 - len(said))
            if not part:
                break
            said += part
    return said


def _listen(host: str) -> socket.socket:
    """On the address that the others know this machine by; on all of them where that is none of its own."""
    for address in (host, ""):
        try:
            return socket.create_server((address, 0))
        except OSError:
            continue
    log("  開不了監看的連線：有行程死去時不會馬上知道")
    return socket.create_server(("127.0.0.1", 0))
