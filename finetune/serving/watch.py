"""--watch: a line for each request, with features and without texts, see evaluation/watched_rows.py.

A request is not slowed by it: what is to be written waits in a bounded queue, and a thread of its own takes
the features and writes them. Whatever fails there is logged once, and the server goes on.
"""

from __future__ import annotations

import copy
import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.evaluation.request_features import WAY, record_features, text_features, way_of
from finetune.evaluation.watched_rows import OK, line_of
from finetune.models.run_card import weights_of
from finetune.predict.predictor import LocalPredictor
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, reason
from finetune.serving.paths import PATHS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WAITING = 1024  # requests whose features are not written yet; more are counted and not written
AT_ONCE = 256  # lines of one write
PAUSE = 0.1  # seconds until the features of a request are taken, together with those that came meanwhile
CLOSING = 10.0  # seconds for what still waits when the server ends
BLANK = "[MASK]"  # stands for no text of the request
STATE = "watched"
NO_KEY = 401
Report = Callable[[str], object]


@dataclass(frozen=True)
class Observed:
    """An input and its answer, of which features are taken.

    Args:
        texts: of the input.
        record: the answer, as predict/records.py writes it; or what returns it once all of it is written.
        options: of a multiple-choice question the names of its options.
        method: how these were scored; "" where there are none.
        orders: and in which orders.
    """

    texts: Sequence[str]
    record: dict[str, Any] | Callable[[], dict[str, Any]]
    options: Sequence[str] = ()
    method: str = ""
    orders: str = "1"


@dataclass(frozen=True)
class Answered:
    """A request that was answered, as it waits for its line."""

    path: str
    status: int
    seconds: float
    when: float
    observed: Sequence[Observed] = ()


def observe(request: Request, *observed: Observed) -> None:
    """Note the inputs of a request and their answers for `WatchRequests`; costs nothing without it."""
    setattr(request.state, STATE, observed)


class WatchRequests:
    """Middleware that hands every request of a path of the API to a `Watch` once it is answered."""

    def __init__(self, app: ASGIApp, watch: Watch):
        self.app, self.watch = app, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            await self.app(scope, receive, send)
            return
        began, status, noted = time.perf_counter(), 500, False
        state = scope.setdefault("state", {})

        def note() -> None:
            nonlocal noted
            seconds = time.perf_counter() - began
            observed = state.get(STATE, ()) if status == OK else ()
            if not noted and status != NO_KEY:  # who has no key must not make the file grow
                self.watch.add(Answered(scope["path"], status, seconds, time.time(), observed))
            noted = True

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                note()  # before the client has all of its answer, and may look for the line
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            note()


class Watch:
    """Writer of a --watch file.

    Args:
        path: lines are appended; where the file is moved away, a new one is begun.
        predictor: whose model answers. Its tokenizer is copied: a tokenizer keeps how it last cut texts, so
            that two threads must not share it.
        name: what clients call the model.
        report: is told what fails, once.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, predictor: LocalPredictor, name: str, report: Report = log):
        self.path, self.dropped, self._report = path, 0, report
        self._features = FeatureReader(predictor, report)
        self._model = {"model": name, "weights": weights_of(predictor.card)}
        self._queue: queue.Queue[Answered | None] = queue.Queue(WAITING)
        self._hurry = threading.Event()
        self._file = AppendedFile(path)
        try:
            self._file.append(b"")
        except OSError as error:
            raise UserError(f"--watch {path}：寫不進去（{reason(error)}）") from error
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def add(self, answered: Answered) -> None:
        """Have a line written soon; never waits."""
        try:
            self._queue.put_nowait(answered)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                self._report(f"⚠ --watch {self.path}：寫得不夠快，有請求沒有記下（服務不受影響）")

    def flush(self) -> None:
        """Wait until what was added before is written."""
        self._hurry.set()
        self._queue.join()
        self._hurry.clear()

    def close(self) -> None:
        """Write what still waits, and end."""
        self._hurry.set()
        try:
            self._queue.put(None, timeout=CLOSING)
        except queue.Full:
            return
        self._thread.join(CLOSING)
        if self.dropped:
            self._report(f"⚠ --watch {self.path}：共有 {self.dropped} 個請求沒有記下")

    def _run(self) -> None:
        ended = False
        while not ended:
            waiting = [self._queue.get()]
            if waiting[0] is not None:
                self._hurry.wait(PAUSE)  # until its answer is out: the interpreter runs one thread at a time
            while len(waiting) < AT_ONCE and not self._queue.empty():
                waiting.append(self._queue.get())
            ended = None in waiting
            lines = "".join(self._lines(one) for one in waiting if one is not None)
            self._append(lines.encode("utf-8", "replace"))
            for _ in waiting:
                self._queue.task_done()
        self._file.close()

    def _lines(self, answered: Answered) -> str:
        """Return the lines of a request: one for each of its inputs, or one where it was not answered."""
        features: Sequence[dict[str, Any]] = [{}]
        if answered.observed:
            features = [self._features(one) for one in answered.observed]
        return "".join(
            line_of(
                answered.when, answered.path, answered.status, None if number else answered.seconds,
                self._model, of_input,
            )
            for number, of_input in enumerate(features)
        )  # fmt: skip

    def _append(self, lines: bytes) -> None:
        try:
            self._file.append(lines)
        except OSError as error:
            if not self._failing:
                self._report(f"⚠ --watch {self.path}：寫不進去（{reason(error)}）；服務照常，能寫了就再記")
            self._failing = True
        else:
            self._failing = self._failing and not lines


class FeatureReader:
    """Takes the features of inputs and answers, in one thread."""

    def __init__(self, predictor: LocalPredictor, report: Report):
        self._report = report
        self._tokenizer: PreTrainedTokenizerBase = copy.deepcopy(predictor.tokenizer)
        self._method: Callable[[str], str] = predictor.method
        self._blanks = tuple(filter(None, {BLANK, str(self._tokenizer.mask_token or "")}))
        self._failed = False

    def __call__(self, observed: Observed) -> dict[str, Any]:
        """Return the features; {} where they cannot be taken, which is logged once."""
        try:
            texts = [self._without_blanks(text) for text in observed.texts]
            features = text_features(self._tokenizer, texts)
            record = observed.record() if callable(observed.record) else observed.record
            features |= record_features(record, observed.options)
            if observed.method:
                features[WAY] = way_of(self._method(observed.method), observed.orders)
        except Exception as error:  # of whatever kind: the server goes on, and the line says that it answered
            if not self._failed:
                self._report(f"⚠ --watch：有請求的特徵算不出來（{type(error).__name__}）")
            self._failed = True
            return {}
        return features

    def _without_blanks(self, text: str) -> str:
        for blank in self._blanks:
            text = text.replace(blank, "")
        return text


class AppendedFile:
    """A file that lines are appended to, one write for several, also by other processes at the same time.

    Where the path leads to another file or to none any more (logrotate), it is opened anew.
    """

    def __init__(self, path: Path):
        self._path, self._descriptor = path, -1
        self._torn = False

    def append(self, lines: bytes) -> None:
        """Append whole lines. Raises OSError where they cannot be written, or only in part."""
        if not self._is_current():
            self.close()
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._torn = self._ends_torn()
        if not lines:
            return
        whole = b"\n" * self._torn + lines
        written = os.write(self._descriptor, whole)
        if written:
            self._torn = whole[written - 1 : written] != b"\n"
        if written < len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_current(self) -> bool:
        if self._descriptor < 0:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except OSError:
            return False

    def _ends_torn(self) -> bool:
        """Return whether the last line lacks its end: a server was killed while it wrote."""
        size = os.fstat(self._descriptor).st_size
        return size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
