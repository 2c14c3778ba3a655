"""Rows of a --watch file: one JSON object a line for each request, with features and no texts."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.evaluation.request_features import ANSWER, NUMBERS, WAY, Features
from finetune.runtime.errors import UserError, reason
from finetune.runtime.strict_json import BoundedLines, JsonError, LineTooLongError, decode, dumps

MOST = 200_000  # rows of a file that are looked at: the newest
OK = 200


def line_of(
    when: float, path: str, status: int, seconds: float | None, model: Mapping[str, str], features: Features
) -> str:
    """Return a row as a line, line feed included.

    Args:
        when: the end of the request, in seconds since 1970.
        path: of the API; not whatever a client asked for.
        seconds: how long it took; None for a further input of the same request.
        model: `model`, what clients call it, and `weights`, the beginning of their hash, see `weights_of`.
    """
    time = datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    took = {} if seconds is None else {"seconds": round(seconds, 6)}
    return dumps({"time": time, "path": path, "status": status, **took, **model, **features}) + "\n"


@dataclass
class WatchedRows:
    """Rows of a file.

    Attributes:
        rows: those that are looked at, in the order of the file.
        unreadable: lines that are no such row, such as one that a killed server left torn.
        left_out: older rows, beyond the MOST newest.
    """

    path: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0
    left_out: int = 0

    @property
    def answered(self) -> list[dict[str, Any]]:
        """The rows of requests that were answered."""
        return [row for row in self.rows if row["status"] == OK]

    def count(self, name: str) -> Counter[str]:
        """Count the values of `path`, `model`, `weights` or `way` among the answered rows."""
        return Counter(row.get(name, "") for row in self.answered)


def read_rows(path: str | Path, flag: str) -> WatchedRows:
    """Read a --watch file.

    Raises:
        UserError: it cannot be read, or none of its lines is such a row.
    """
    found, newest = WatchedRows(str(path)), deque[dict[str, Any]](maxlen=MOST)
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as stream:
            lines = BoundedLines(stream)
            while True:
                try:
                    line = next(lines)
                except StopIteration:
                    break
                except LineTooLongError:
                    found.unreadable += 1
                    continue
                row = _row(line)
                if row is not None:
                    found.left_out += len(newest) == MOST
                    newest.append(row)
                else:
                    found.unreadable += bool(line.strip())
    except OSError as error:
        raise UserError(f"{flag} {path}：讀不到（{reason(error)}）") from error
    found.rows = list(newest)
    if not found.rows:
        why = f"{found.unreadable} 行都不是" if found.unreadable else "是空的"
        raise UserError(f"{flag} {path}：{why}；要 --serve --watch FILE.jsonl 寫的檔案，一個請求一行")
    return found


def _row(line: str) -> dict[str, Any] | None:
    """Return the row of a line; None where it is none."""
    try:
        row = decode(line)
    except JsonError:
        return None
    return row if isinstance(row, dict) and _makes_sense(row) else None


def _makes_sense(row: dict[str, Any]) -> bool:
    texts = all(isinstance(row.get(name, ""), str) for name in ("model", "weights", WAY))
    if not texts or not isinstance(row.get("path"), str) or type(row.get("status")) is not int:
        return False
    try:
        datetime.fromisoformat(row["time"])
    except (KeyError, TypeError, ValueError):
        return False
    numbers = (row[name] for name in (*NUMBERS, "seconds") if name in row)
    answer = row.get(ANSWER, "")
    counted = isinstance(answer, dict) and all(
        type(count) is int and _number(count) for count in answer.values()
    )
    return all(map(_number, numbers)) and (isinstance(answer, str) or counted)


def _number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e15  # type: ignore[operator]
