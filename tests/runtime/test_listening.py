"""A socket that listens."""

from __future__ import annotations

import contextlib
import socket

import pytest

from finetune.runtime.listening import address_of, listen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_answer_in_two_parts_does_not_wait_for_the_first_to_be_acknowledged(host):
    with contextlib.closing(listen(host, 0)) as listener, socket.create_connection(address_of(listener)):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
