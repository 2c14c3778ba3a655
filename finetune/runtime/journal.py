"""Journals: what an unfinished run has got so far, one JSON object a line, so that a killed run can go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.runtime.errors import UserError, reason
from finetune.runtime.files import open_no_follow, write_errors
from finetune.runtime.strict_json import dumps


@dataclass
class Journal:
    """The records so far: one line with the identity of the run, then one record a line, in order.

    Args:
        path: the file.
        identity: what must be the same for a run to go on with it.
        flag: the flag that decides where the file is, for messages.
    """

    path: Path
    identity: dict[str, Any]
    flag: str

    def open(self, size: int) -> int:
        """Open the file, and drop what a killed run left of a round of `size` records.

        Returns:
            how many records it holds.

        Raises:
            UserError: it belongs to another run, or is no journal.
            OSError: it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = open_no_follow(self.path, "a+b")
        self.stream.seek(0)
        first, whole, count = self.stream.readline(), 0, 0
        header = dumps(self.identity).encode() + b"\n"
        if not first.endswith(b"\n") and not header.startswith(first):
            raise UserError(f"{self.path} 不是這支程式留下的；請移開它，或換一個 {self.flag}")
        if first.endswith(b"\n"):
            saved = _object(first)
            if differing := [name for name in self.identity if saved.get(name) != self.identity[name]]:
                raise UserError(
                    f"{self.path} 是另一次作答留下的（{'、'.join(differing)} 不同）；"
                    f"要重新作答就刪掉它，或換一個 {self.flag}"
                )
            whole = at = self.stream.tell()
            for number, line in enumerate(self.stream, 1):
                at += len(line)
                if line.endswith(b"\n") and number % size == 0:
                    whole, count = at, number
        self.stream.truncate(whole)
        if not whole:
            self.stream.write(header)
        return count

    def add(self, records: list[dict[str, Any]]) -> None:
        """Append records, and wait until they are on the disk."""
        lines = [dumps(record) + "\n" for record in records]
        self.stream.write("".join(lines).encode())
        self.stream.flush()
        os.fsync(self.stream.fileno())

    def records(self) -> Iterator[dict[str, Any]]:
        """Read all records back."""
        self.stream.flush()
        self.stream.seek(0)
        self.stream.readline()
        for line in self.stream:
            yield json.loads(line)

    def remove(self) -> None:
        """Delete the file: its records are in the output."""
        self.path.unlink()
        self.stream.close()


class AnswerJournal:
    """A model's answers by what was asked: a run that was killed asks only for those it lacks.

    A question whose answer is drawn may be asked several times, as by a second run: each time counts by
    itself, in the order asked.

    Args: as `Journal`.
    """

    def __init__(self, path: Path, identity: dict[str, Any], flag: str):
        self._journal = Journal(path, identity, flag)
        self._times: Counter[str] = Counter()
        try:
            count = self._journal.open(1)
        except OSError as error:
            raise UserError(f"{flag}：{path} 打不開（{reason(error)}）；請換一個 {flag}") from error
        try:
            self._answers = {record["key"]: record["answer"] for record in self._journal.records()}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} 壞了；請刪掉它重新作答，或換一個 {flag}") from None
        self.known = count

    @property
    def hint(self) -> str:
        """Hint for messages: how to continue."""
        return f"答好的存於 {self._journal.path}，同一個指令會接著做"

    def key(self, asked: object, sampled: bool) -> str:
        """Return the key of something that is asked now; JSON decides whether two are the same.

        Args:
            sampled: the answer is drawn, so that the next one will be another.
        """
        digest = hashlib.sha256(dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
        self._times[digest] += sampled
        return f"{digest}:{self._times[digest]}"

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def get(self, key: str) -> Any:
        """Return the answer of a key; None where there is none."""
        return self._answers.get(key)

    def add(self, answers: dict[str, Any]) -> None:
        """Keep answers by their keys, and wait until they are on the disk.

        Raises:
            RunError: they cannot be written.
        """
        records = [{"key": key, "answer": answer} for key, answer in answers.items()]
        with write_errors(f"{self._journal.path} 寫不進去", f"清出空間後，{self.hint}"):
            self._journal.add(records)
        self._answers |= answers

    def close(self) -> None:
        """Close the file; the report that is complete replaces it."""
        self._journal.stream.close()


def _object(line: bytes) -> dict[str, Any]:
    """Parse a line of JSON; {} for what is no object."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
