"""Answers on their way into a file: one JSON object a line, in order, so that a killed run goes on after the
last whole round."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.runtime.errors import UserError
from finetune.runtime.files import own_file
from finetune.runtime.strict_json import dumps


@dataclass
class Journal:
    """The answers so far: a line that says what they answer, then one record a line, in order."""

    path: Path
    identity: dict

    def open(self, size: int) -> int:
        """Opens it, and cuts off what a killed run left of a round of `size` records. Returns how many
        records it holds.

        Raises:
            UserError: it cannot be gone on with.
            OSError: it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = own_file(self.path, "a+b")
        self.stream.seek(0)
        first, whole, count = self.stream.readline(), 0, 0
        mine = dumps(self.identity).encode() + b"\n"
        if not first.endswith(b"\n") and not mine.startswith(first):
            raise UserError(f"{self.path} 不是這支程式留下的；請移開它，或換一個 --output")
        if first.endswith(b"\n"):
            known = _object(first)
            if other := [name for name in self.identity if known.get(name) != self.identity[name]]:
                raise UserError(
                    f"{self.path} 是另一次作答留下的（{'、'.join(other)} 不同）；"
                    "要重新作答就刪掉它，或換一個 --output"
                )
            whole = at = self.stream.tell()
            for number, line in enumerate(self.stream, 1):
                at += len(line)
                if line.endswith(b"\n") and number % size == 0:
                    whole, count = at, number
        self.stream.truncate(whole)
        if not whole:
            self.stream.write(mine)
        return count

    def add(self, records: list[dict]) -> None:
        lines = [dumps(record) + "\n" for record in records]
        self.stream.write("".join(lines).encode())
        self.stream.flush()
        os.fsync(self.stream.fileno())

    def records(self) -> Iterator[dict]:
        self.stream.flush()
        self.stream.seek(0)
        self.stream.readline()
        for line in self.stream:
            yield json.loads(line)

    def remove(self) -> None:
        self.path.unlink()
        self.stream.close()


def _object(line: bytes) -> dict:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
