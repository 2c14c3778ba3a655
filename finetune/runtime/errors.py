"""The ways a run can end other than well, each with its exit code.

Messages are in Traditional Chinese, because the person reads them; they name the flag, the value seen and
the way out.
"""

from __future__ import annotations

import difflib
import errno
import shutil
from collections.abc import Iterable

REASONS = {  # of the machine, in Chinese
    "ENOSPC": "磁碟滿了", "EDQUOT": "超過了配額", "EFBIG": "檔案超過了大小的上限", "EROFS": "檔案系統唯讀",
    "EACCES": "沒有權限", "EPERM": "不准這樣做", "EIO": "磁碟或終端機讀寫失敗", "EBADF": "關著，或不能寫",
    "ENOENT": "不在那裡", "EISDIR": "是一個資料夾", "ENOTDIR": "路徑中有一段不是資料夾",
    "ELOOP": "是一個連結", "EMFILE": "開了太多檔案", "ENOTEMPTY": "資料夾裡還有東西", "EBUSY": "正在使用中",
}  # fmt: skip
LONGEST_SHOWN = 80  # characters of a value in a message
ALIKE = 0.75  # of a word that is guessed; below it guesses are wrong more often than right


def shown(value: object) -> str:
    """A value as a message quotes it: `repr`, cut where it is long. A text is cut first: it may have millions
    of characters.
    """
    try:
        text = repr(value[:LONGEST_SHOWN] if isinstance(value, (str, bytes)) else value)
    except (ValueError, RecursionError):  # of a number with thousands of digits, or what holds itself
        return f"（{type(value).__name__}，太長）"
    cut = len(value) > LONGEST_SHOWN if isinstance(value, (str, bytes)) else len(text) > LONGEST_SHOWN
    return text[:LONGEST_SHOWN] + "…" if cut else text


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names that a message lists: the first ones, each cut where it is long."""
    names = [name if len(name) <= LONGEST_SHOWN else name[:LONGEST_SHOWN] + "…" for name in map(str, names)]
    more = f"…等 {len(names)} 個" if len(names) > most else ""
    return "、".join(names[:most]) + more or "（無）"


def nearest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The words of `known` that look most like `word`; empty when none looks like it."""
    return difflib.get_close_matches(word[:LONGEST_SHOWN], list(known), n=count, cutoff=ALIKE)


def reason(error: BaseException, where: bool = False) -> str:
    """Why something could not be read or written, in a few words; the machine's own beside them.

    Args:
        where: which file it was too.
    """
    if isinstance(error, shutil.Error):  # of many files, each with its reason
        return str(error.args[0][0][2]) if error.args and error.args[0] else str(error)
    if isinstance(error, OSError):
        said = error.strerror or str(error)
        chinese = REASONS.get(errno.errorcode.get(error.errno or 0, ""))
        said = f"{chinese}，{said}" if chinese else said
        return f"{said}：{error.filename}" if where and error.filename else said
    return f"{type(error).__name__}：{(str(error).strip().splitlines() or [''])[0][:200]}"


class UserError(Exception):
    """Something the person can mend: a flag, a file, a model that does not fit the task. Exit code 2.

    Args:
        problems: one sentence, or all that was found wrong at once.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunError(Exception):
    """The run itself failed: the loss is not a number, a saved file does not read back. Exit code 1."""

    exit_code = 1


class NonFiniteError(RunError):
    """The loss or the gradient is no finite number; nothing was changed by it."""


class Stopped(BaseException):
    """A signal ended the run; once training had begun, after a resumable checkpoint was written. Exit code
    128 + its number. Like KeyboardInterrupt it passes by whoever expects errors.
    """

    def __init__(self, signum: int, message: str):
        self.exit_code = 128 + signum
        super().__init__(message)

    def __reduce__(self):
        return Stopped, (self.exit_code - 128, str(self))


class Problems:
    """Collects what several checks find wrong, so that a person hears all of it at once.

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
        if self.found:
            raise UserError(dict.fromkeys(self.found))  # several checks may meet the same mistake
