"""Lines of a plain text file as rows: each line that is not blank is a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finetune.data.bad_rows import Rows, Unreadable
from finetune.data.encodings import BROKEN_PACK, NOT_DECODED, UnknownEncodingError, open_text, undecoded
from finetune.runtime import git_lfs
from finetune.runtime.errors import UserError, reason
from finetune.runtime.strict_json import BoundedLines, LineTooLongError


def read_lines(file: Path) -> Rows:
    """Yield (line, {"id": the line's number as text, "text": …}) of each line that is not blank.

    A line that cannot be read is replaced by Unreadable, with line 0 where it is the file itself.

    Raises:
        UserError: a packed file breaks off.
    """
    if git_lfs.is_pointer(file):
        yield 0, Unreadable(git_lfs.pointer_problem(file))
        return
    number = 0
    try:
        for number, line in bounded_lines(file):
            if isinstance(line, Unreadable):
                yield number, line
            elif NOT_DECODED.search(line):
                yield number, Unreadable(undecoded(line))
            elif line.strip():
                yield number, {"id": str(number), "text": line}
    except UnknownEncodingError as error:
        yield 0, Unreadable(error)
    except BROKEN_PACK:
        raise UserError(f"{file}：壓縮檔在第 {number + 1} 行中斷，不完整") from None
    except OSError as error:
        yield 0, Unreadable(f"讀不到（{reason(error)}）")


def bounded_lines(file: Path) -> Iterator[tuple[int, str | Unreadable]]:
    """Yield (number, line) of a text file without its end; Unreadable for a line that is too long."""
    with open_text(file) as stream:
        lines = BoundedLines(stream)
        while True:
            try:
                line = next(lines)
            except StopIteration:
                return
            except LineTooLongError as error:
                yield lines.number, Unreadable(error)
                continue
            yield lines.number, line.rstrip("\r\n")
