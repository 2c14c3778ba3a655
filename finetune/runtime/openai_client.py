"""Client of an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, OpenAI and their like.

What may pass is tried again: too many requests, errors of the server, broken connections, time-outs, answers
that are cut or no JSON; with growing pauses, or after as long as the server asks for (Retry-After). What will
not pass is an error at once. The key goes into one header and nowhere else: redirects are not followed, and
messages never hold it.
"""

from __future__ import annotations

import json
import math
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from finetune.runtime.errors import RunError, UserError, listed, nearest
from finetune.runtime.server_address import KEY_VARIABLE, is_loopback

LARGEST = 1 << 26  # bytes of an answer
CONNECT_SECONDS = 10.0
LONGEST_REASON = 300  # characters of a server's own message in ours
PASSING = (408, 409, 425, 429)  # and 500 to 599 but for 501, not implemented
UNPAID = ("insufficient_quota", "billing_hard_limit_reached")  # 429 that no waiting mends
LOOKS_LIKE_KEY = re.compile(r"\b(sk|hf|nvapi|gsk)[-_][\w*.-]{6,}")


@dataclass(frozen=True)
class Patience:
    """How long a request that fails is tried again.

    Args:
        tries: at most.
        internal: at most where the server reports an error of its own (500).
        connections: at most where there is no connection.
        first: pause after the first failure, in seconds; it doubles with each.
        longest: longest pause of our own, in seconds.
        total: seconds after the first failure.
    """

    tries: int = 12
    internal: int = 12
    connections: int = 12
    first: float = 1.0
    longest: float = 60.0
    total: float = 1200.0

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after so many failures: half of it fixed, half drawn."""
        return min(self.longest, self.first * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)


PATIENCE = Patience()
FIRST = Patience(connections=3)  # a server that is not there will not come
PROBING = Patience(internal=2)  # some servers answer 500 to what they do not know
ASIDE = Patience(tries=1)  # for a message alone
TYPED = Patience(tries=3)  # a person is waiting


class _PassingError(Exception):
    """Failure that may pass; `wait`: seconds the server asks for; `status`: of HTTP, 0 without one."""

    def __init__(self, reason: str, status: int = 0, wait: float | None = None):
        super().__init__(reason)
        self.status, self.wait = status, wait


class _Attempts:
    """Failures of one request so far."""

    def __init__(self, patience: Patience):
        self.patience, self.count, self._internal, self._unconnected = patience, 0, 0, 0
        self._first_at = 0.0

    def add(self, error: Exception) -> tuple[float, bool]:
        """Count a failure; return the seconds to wait, and whether the patience is at its end."""
        patience, wait = self.patience, None
        self.count += 1
        self._first_at = self._first_at or time.monotonic()
        if isinstance(error, _PassingError):
            self._internal += error.status == 500
            wait = error.wait
        self._unconnected += isinstance(error, httpx2.ConnectError)
        pause = patience.pause(self.count) if wait is None else wait
        over = (
            self.count >= patience.tries
            or self._internal >= patience.internal
            or self._unconnected >= patience.connections
            or time.monotonic() - self._first_at + pause > patience.total
        )
        return pause, over


class GaveUpError(RunError):
    """Request that was not answered within the patience.

    Attributes:
        status: the last HTTP status; 0 without one.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class RefusedError(UserError):
    """Request that the server does not accept.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status

    @property
    def is_for_all(self) -> bool:
        """True where every other request will be refused too: the key, the model, the address."""
        return self.status in (401, 403, 404, 405, 429) or self.status < 400


class OpenAIClient:
    """Client of one model on a server; threads may share it.

    Args:
        url: address up to /v1.
        key: sent to the server alone; "" for none.
        concurrency: connections at once.
        timeout: seconds that a request may take.

    Attributes:
        model: name of the model on the server; "" until it is known.
        retried: requests that were tried again.
    """

    def __init__(self, url: str, key: str, concurrency: int, timeout: float):
        self.url, self.model, self.concurrency, self.timeout = url, "", concurrency, timeout
        self._key, self._lock, self._closed = key, threading.Lock(), threading.Event()
        self.retried = 0
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            follow_redirects=False,
            trust_env=not is_loopback(url),
        )

    # ---- requests ------------------------------------------------------------------------------------------

    def models(self, patience: Patience = FIRST) -> list[dict[str, Any]]:
        """Return the models that the server lists.

        Raises:
            RefusedError: it lists none.
            GaveUpError: it does not answer.
        """
        answer = self._persist("/models", None, patience)
        rows = answer.get("data")
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def post(self, endpoint: str, body: dict[str, Any], patience: Patience | None = None) -> dict[str, Any]:
        """Return the first choice of an answer, with the answer's `usage` in it.

        Args:
            endpoint: `/completions` or `/chat/completions`.
            body: without the model.
            patience: None is PATIENCE.

        Raises:
            RefusedError: the server does not accept the request.
            GaveUpError: it did not answer within the patience.
        """
        return self._persist(endpoint, {"model": self.model, **body}, patience or PATIENCE)

    def stream(self, endpoint: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the choices of an answer as it is written; it is asked again only before the first one.

        Raises:
            RefusedError, RunError: as `post`; the answer broke off.
        """
        sent = {"model": self.model, **body, "stream": True}
        attempts = _Attempts(TYPED)
        while True:
            begun = False
            try:
                for choice in self._stream_once(endpoint, sent):
                    begun = True
                    yield choice
                return
            except (_PassingError, httpx2.RequestError) as error:
                if begun:
                    raise RunError(f"{self.url}：回答到一半斷了（{self._reason(error)}）") from None
                self._wait(endpoint, error, attempts)

    # ---- one request ---------------------------------------------------------------------------------------

    def _persist(self, endpoint: str, body: dict[str, Any] | None, patience: Patience) -> dict[str, Any]:
        """Send a request until it is answered or refused."""
        attempts = _Attempts(patience)
        while True:
            try:
                return self._once(endpoint, body)
            except (_PassingError, httpx2.RequestError) as error:
                self._wait(endpoint, error, attempts)

    def _wait(self, endpoint: str, error: Exception, attempts: _Attempts) -> None:
        """Wait before a request is sent again.

        Raises:
            GaveUpError: the patience is at its end.
        """
        pause, over = attempts.add(error)
        asked = error.wait if isinstance(error, _PassingError) else None
        if over:
            more = f"，伺服器要求再等 {asked:.0f} 秒" if asked else ""
            raise GaveUpError(
                f"{self.url}{endpoint}：試了 {attempts.count} 次都沒有回答（{self._reason(error)}{more}）；"
                "請確認伺服器開著、網址與埠沒錯，或調低 --concurrency、調高 --request_timeout",
                error.status if isinstance(error, _PassingError) else 0,
            ) from None
        if attempts.count == 1:
            with self._lock:
                self.retried += 1
        if self._closed.wait(pause):
            raise RunError("已中斷") from None

    def _once(self, endpoint: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Send a request once; body None is a GET."""
        began, parts, size = time.monotonic(), [], 0
        method = "GET" if body is None else "POST"
        with self._http.stream(method, self.url + endpoint, json=body) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > LARGEST:
                    raise UserError(f"{self.url}{endpoint}：回答超過 {LARGEST >> 20} MB，不像模型的回答")
                if time.monotonic() - began > self.timeout:
                    raise _PassingError(f"超過 {self.timeout:g} 秒（--request_timeout）")
        answer = self._read(endpoint, response, b"".join(parts))
        return answer if body is None else _first_choice(answer)

    def _stream_once(self, endpoint: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._http.stream("POST", self.url + endpoint, json=body) as response:
            kind = response.headers.get("content-type", "")
            if response.status_code != 200 or not kind.startswith("text/event-stream"):
                yield _first_choice(self._read(endpoint, response, response.read()))
                return
            for event in httpx2.EventSource(response, LARGEST):
                if event.data.strip() == "[DONE]":
                    return
                part = self._json(event.data.encode())
                if part.get("choices"):
                    yield _first_choice(part)

    def _read(self, endpoint: str, response: httpx2.Response, content: bytes) -> dict[str, Any]:
        """Return the object that an answer holds.

        Raises:
            RefusedError: the server does not accept the request.
            _PassingError: it may later.
        """
        status = response.status_code
        if status == 200:
            answer = self._json(content)
            if not answer.get("error"):
                return answer
            code = _error_of(answer).get("code")  # some proxies wrap an error into a success
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
        if 300 <= status < 400:
            raise RefusedError(
                f"{self.url}{endpoint}：伺服器轉到別的網址（{status}），金鑰不會跟過去；"
                f"請把 --model_path 直接寫成 {self._clean(response.headers.get('location', '新的網址'))}",
                status,
            )
        error = _error_of(self._lenient(content))
        reason = self._clean(str(error.get("message") or content[:2000].decode("utf-8", "replace")))
        unpaid = status == 429 and str(error.get("code") or error.get("type")) in UNPAID
        if (status in PASSING or (status >= 500 and status != 501)) and not unpaid:
            wait = _retry_after(response.headers.get("retry-after", ""))
            raise _PassingError(f"{status}：{reason}", status, wait)
        raise RefusedError(self._refusal(endpoint, status, reason), status)

    # ---- messages ------------------------------------------------------------------------------------------

    def _refusal(self, endpoint: str, status: int, reason: str) -> str:
        where = f"{self.url}{endpoint}（模型 {self.model or '未定'}）"
        if status in (401, 403):
            ways = "請檢查它" if self._key else "請把金鑰放在這裡"
            return f"{where}：伺服器不認這個金鑰（{status}：{reason}）；環境變數 {KEY_VARIABLE}：{ways}"
        if status == 404 and endpoint != "/models":
            return f"{where}：找不到（404：{reason}）；{self._known_models()}"
        if status == 404:
            return f"{where}：找不到（404：{reason}）；網址多半以 /v1 結尾，例如 {self.url}/v1"
        if status == 429:
            return f"{where}：額度用完了（429：{reason}）"
        return f"{where}：伺服器不接受這個請求（{status}：{reason}）"

    def _known_models(self) -> str:
        """Return which models the server has, in words, and what else a 404 may mean."""
        try:
            names = [str(row.get("id")) for row in self.models(ASIDE)]
        except (UserError, RunError):
            return "網址多半以 /v1 結尾"
        if self.model in names:
            return (
                "模型有這一個，伺服器卻沒有這個端點；只有 /chat/completions 的，評測請用 --prompt_format chat"
            )
        guess = nearest(self.model, names)
        hint = f"，是不是 {guess[0]}？" if guess else ""
        return f"伺服器上的模型是 {listed(names)}（--served_model）{hint}"

    def _clean(self, text: str) -> str:
        """Return a server's text as a short line without anything like a key."""
        line = " ".join(text.split())
        if self._key:
            line = line.replace(self._key, "…")
        line = LOOKS_LIKE_KEY.sub("…", line)
        return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "…"

    def _reason(self, error: Exception) -> str:
        if isinstance(error, httpx2.TimeoutException):
            return f"等了太久，連線 {min(CONNECT_SECONDS, self.timeout):g} 秒或回答 {self.timeout:g} 秒"
        if isinstance(error, httpx2.ConnectError):
            return f"連不上：{self._clean(str(error))}"
        return self._clean(str(error)) or type(error).__name__

    # ---- JSON ----------------------------------------------------------------------------------------------

    def _json(self, content: bytes) -> dict[str, Any]:
        """Return the object that a text holds. Raises _PassingError where it holds none: it may be cut."""
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            raise _PassingError(
                f"回答不是 JSON：{self._clean(content[:200].decode('utf-8', 'replace'))}"
            ) from None
        if not isinstance(value, dict):
            raise _PassingError("回答不是 JSON 的物件")
        return value

    def _lenient(self, content: bytes) -> dict[str, Any]:
        try:
            return self._json(content)
        except _PassingError:
            return {}

    def close(self) -> None:
        """End the pauses of requests under way, and close the connections."""
        self._closed.set()
        self._http.close()


def _first_choice(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the first choice. Raises _PassingError where there is none."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _PassingError("回答裡沒有 choices")
    usage = answer.get("usage")
    return {**choices[0], "usage": usage if isinstance(usage, dict) else {}}


def _error_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the description of an error: OpenAI's form, a bare text, or FastAPI's `detail`."""
    error = answer.get("error", answer)
    if not isinstance(error, dict):
        return {"message": error}
    if "message" not in error and "detail" in error:
        return {**error, "message": json.dumps(error["detail"], ensure_ascii=False)}
    return error


def _retry_after(value: str) -> float | None:
    """Return the seconds of a Retry-After header, which holds a number or a date; None without one."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
