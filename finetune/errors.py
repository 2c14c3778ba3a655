"""The ways a run can end other than well, each with its exit code.

Messages are in Traditional Chinese, because the person reads them; they name the flag, the value seen and
the way out.
"""

from __future__ import annotations

from collections.abc import Iterable


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


class Stopped(Exception):
    """A signal ended the run, after a resumable checkpoint was written. Exit code 128 + its number."""

    def __init__(self, signum: int, message: str):
        self.exit_code = 128 + signum
        super().__init__(message)


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
