"""A socket that listens, or the reason why there is none."""

from __future__ import annotations

import errno
import socket

from finetune.runtime.errors import UserError, reason

BACKLOG = 1024  # connections that the system holds until they are accepted
FREE_PORTS = range(1024, 65536)  # those that need no rights


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    A name that has several addresses is bound to one of them, IPv4 first: with port 0 each would get another.

    Args:
        port: 0 for a free one.

    Raises:
        UserError: the port is taken, or the address is none of this machine.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(_problem(host, port, error)) from None
    except UnicodeError as error:  # a name that is too long, or holds what no name may
        raise UserError(f"--host {host[:80]}：這不是主機的名稱（{reason(error)}）") from None
    # What it accepts inherits this; asyncio sets it only where a socket says it is TCP. Without it the body
    # of an answer waits 40 ms for the client to acknowledge its headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address_of(listener: socket.socket) -> tuple[str, int]:
    """Return the host and the port that a socket listens at."""
    return listener.getsockname()[:2]


def _problem(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port + 1 in FREE_PORTS else 8000
        return f"--port {port}：已經有程式在用；換一個，例如 --port {other}，或 --port 0"
    if error.errno == errno.EACCES:
        return f"--port {port}：沒有權限用這個埠；換 {FREE_PORTS.start} 以上的，例如 --port 8000"
    return f"--host {host}：這台機器沒有這個位址（{reason(error)}）；只給這台機器用就不加 --host"
