"""The child process for work that may never end."""

from __future__ import annotations

import os
import select

from finetune.runtime.sandbox import Sandbox


def test_what_the_parent_closes_is_closed_although_the_child_lives():
    reading, writing = os.pipe()  # as a socket of a client whose conversation started the child
    box = Sandbox(lambda: 1, "test")
    assert box() == 1
    os.close(writing)
    assert select.select([reading], [], [], 5)[0] and os.read(reading, 1) == b""
    os.close(reading)
    assert box() == 1
    box.close()
