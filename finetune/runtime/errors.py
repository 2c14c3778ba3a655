"""Exceptions that end a run, each with its exit code, and helpers to word their messages.

Messages are in Traditional Chinese, for the user; they name the flag, the value and the way out.
"""

from __future__ import annotations

import difflib
import errno
import shutil
from collections.abc import Iterable

REASONS = {  # errno name -> explanation in Chinese
    "ENOSPC": "磁碟滿了", "EDQUOT": "超過了配額", "EFBIG": "檔案超過了大小的上限", "EROFS": "檔案系統唯讀",
    "EACCES": "沒有權限", "EPERM": "不允許這項操作", "EIO": "磁碟或終端機讀寫失敗",
    "EBADF": "已經關閉，或不能寫入", "ENOENT": "不存在", "EISDIR": "是一個資料夾",
    "ENOTDIR": "路徑中有一段不是資料夾",
    "ELOOP": "是一個連結", "EMFILE": "開了太多檔案", "ENOTEMPTY": "資料夾裡還有東西", "EBUSY": "正在使用中",
}  # fmt: skip
LONGEST_SHOWN = 80  # characters of a value in a message
ALIKE = 0.75  # lowest similarity of a suggested word; below it guesses are wrong more often than right


def shown(value: object) -> str:
    """Return the `repr` of a value for a message, cut where it is long.

    A text is cut before `repr`, since it may have millions of characters.
    """
    try:
        text = repr(value[:LONGEST_SHOWN] if isinstance(value, (str, bytes)) else value)
    except (ValueError, RecursionError):  # thousands of digits, or an object that contains itself
        return f"（{type(value).__name__}，太長）"
    cut = len(value) > LONGEST_SHOWN if isinstance(value, (str, bytes)) else len(text) > LONGEST_SHOWN
    return text[:LONGEST_SHOWN] + "…" if cut else text


def listed(names: Iterable[object], most: int = 20) -> str:
    """Join names for a message: at most `most` of them, each cut where it is long."""
    texts = [text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…" for text in map(str, names)]
    total = f"…等 {len(texts)} 個" if len(texts) > most else ""
    return "、".join(texts[:most]) + total or "（無）"


def nearest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Return the words of `known` most similar to `word`; empty when none is similar."""
    return difflib.get_close_matches(word[:LONGEST_SHOWN], list(known), n=count, cutoff=ALIKE)


def reason(error: BaseException, where: bool = False) -> str:
    """Explain briefly why something could not be read or written: in Chinese, then the system's words.

    Args:
        where: append the name of the file.
    """
    if isinstance(error, shutil.Error):  # a list of files, each with its reason
        return str(error.args[0][0][2]) if error.args and error.args[0] else str(error)
    if isinstance(error, OSError):
        text = error.strerror or str(error)
        chinese = REASONS.get(errno.errorcode.get(error.errno or 0, ""))
        text = f"{chinese}，{text}" if chinese else text
        return f"{text}：{error.filename}" if where and error.filename else text
    return f"{type(error).__name__}：{(str(error).strip().splitlines() or [''])[0][:200]}"


class UserError(Exception):
    """Error that the user can fix: a flag, a file, a model that does not fit the task. Exit code 2.

    Args:
        problems: one sentence, or one for each problem found.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunError(Exception):
    """Failure of the run itself: the loss is NaN, a saved file does not read back. Exit code 1."""

    exit_code = 1


class NonFiniteError(RunError):
    """Non-finite loss or gradient; the weights were not updated with it."""


class Stopped(BaseException):
    """End of the run by a signal. Exit code 128 + the signal's number.

    Once training has begun it is raised after a resumable checkpoint was written. Like KeyboardInterrupt it
    is no `Exception`, so that handlers of errors let it pass.
    """

    def __init__(self, signum: int, message: str):
        self.exit_code = 128 + signum
        super().__init__(message)

    def __reduce__(self):
        return Stopped, (self.exit_code - 128, str(self))


class Problems:
    """Collects the problems that several checks find, to report them all at once.

    problems = Problems()
    with problems:
        check_model(...)     # a UserError here is kept, not raised
    with problems:
        check_data(...)
    problems.report()        # raises one UserError with all of them
    """

    def __init__(self):
        self.found: list[str] = []

    def __enter__(self) -> Problems:
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if isinstance(error, UserError):
            self.found += error.problems
            return True
        return False

    def report(self) -> None:
        """Raise one UserError with all problems, if there are any."""
        if self.found:
            raise UserError(dict.fromkeys(self.found))  # several checks may find the same problem
