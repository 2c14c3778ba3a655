"""Who may ask, and what a request may be, before anything is done for it."""

from __future__ import annotations

import asyncio
import hmac
import time
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.cli.serve_checks import is_loopback
from finetune.runtime.errors import shown
from finetune.serving.errors import ApiError
from finetune.serving.json_body import BODY, check_encoding, check_json, check_type, too_large
from finetune.serving.paths import check_path
from finetune.serving.service import Service
from finetune.serving.settings import ServerSettings

HEALTH = ("/healthz", "/readyz")
OPEN = ("/", "/docs", *HEALTH)  # without a key: pages that say nothing of the model; the first asks for one
LARGE = 1 << 16  # bytes of a body that takes a while to check
HELD = 256 << 20  # bytes of all bodies that are being read or answered
DEADLINE = "read_deadline"  # in the state of a scope: when a request must be there, by time.monotonic


class SiteGuard:
    """ASGI middleware: no page of another site uses a server that asks for no key.

    A browser on this machine reaches what listens on 127.0.0.1 for any page that is open in it. The Host of
    a request tells the name by which the page calls us (DNS rebinding gives a stranger's name our address),
    its Origin the site of the page.

    Args:
        app: what is guarded.
        settings: the keys, the own name, the sites that may.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings):
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may not be with 403."""
        try:
            self._check(scope["method"], Headers(scope=scope))
            await self._app(scope, receive, send)
        except ApiError as error:
            await error.answer(send)

    def _check(self, method: str, headers: Headers) -> None:
        named = self._settings.cors_origins
        origin = headers.get("origin")
        if method == "OPTIONS" and "access-control-request-method" in headers and origin not in named:
            raise self._foreign(origin)
        if self._settings.api_keys:
            return
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            names = "、".join(dict.fromkeys(("localhost", "127.0.0.1", self._settings.host)))
            if len(hosts) != 1:
                seen = f"標頭要有一個，得到 {len(hosts)} 個；請寫 {names} 其中之一"
            else:
                seen = f"應為 {names}，得到 {shown(hosts[0])}；要用別的名稱連線，就加 --api_key"
            raise ApiError(403, f"Host：{seen}", "Host")
        own = origin is not None and origin.partition("://")[2].lower() == hosts[0].lower()
        if origin is not None and not own and origin not in named:
            raise self._foreign(origin)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name == self._settings.host.strip("[]").lower()

    def _foreign(self, origin: str | None) -> ApiError:
        return ApiError(
            403, f"Origin：別的網站 {shown(origin)} 的網頁不能呼叫；要它可以，就加 --cors_origin", "Origin"
        )


class RequestGuard:
    """ASGI middleware: the key, and a body that is small, quick, and JSON.

    Args:
        app: what is guarded; it reads the body without waiting.
        service: whose settings count; no request is let through while it is ending.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service, self._held = app, service, 0
        self._keys = [sha256(key.encode()).digest() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may not be, or have its body ready."""
        body = bytearray()
        try:
            headers = Headers(scope=scope)
            self._check(scope, headers)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                check_type(headers.get("content-type", ""))
                check_encoding(headers.get("content-encoding", ""))
                deadline = scope.get("state", {}).get(DEADLINE)
                if not await self._read(body, headers, receive, deadline):
                    return  # nobody is there to be answered
                if len(body) > LARGE:  # other requests are answered meanwhile
                    await asyncio.to_thread(check_json, bytes(body))
                else:
                    check_json(bytes(body))
                receive = _once(bytes(body), receive)
            await self._app(scope, receive, send)
        except ApiError as error:
            await error.answer(send)
        finally:
            self._held -= len(body)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if self._service.draining and scope["path"] not in HEALTH:
            raise ending()
        if self._keys and not (scope["path"] in OPEN and scope["method"] in ("GET", "HEAD")):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            given = [token.strip()] if scheme.lower() == "bearer" else []
            if not self._is_known(*given, *headers.getlist("x-api-key")):
                raise ApiError(
                    401, "要有對的金鑰：標頭 Authorization: Bearer 金鑰，或 x-api-key: 金鑰", "Authorization",
                    {"WWW-Authenticate": 'Bearer realm="fine-tuning-llm"'},
                )  # fmt: skip
        if scope["method"] == "POST":
            check_path(scope["path"], self._service.kind)

    def _is_known(self, *given: str) -> bool:
        """Compare with every key, in a time that does not tell how much of which one is right."""
        known = False
        for key in given[:2]:
            digest = sha256(key.encode("latin-1", "replace")).digest()
            for one in self._keys:
                known |= hmac.compare_digest(digest, one)
        return known

    async def _read(
        self, body: bytearray, headers: Headers, receive: Receive, deadline: float | None
    ) -> bool:
        """Read a body.

        Args:
            body: extended by it.
            deadline: by time.monotonic.

        Returns:
            False where the client went away.

        Raises:
            ApiError: it is too large (413), too slow (408), or there are too many (429).
        """
        seconds = self._service.settings.read_timeout
        ends = time.monotonic() + seconds if deadline is None else deadline
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > BODY:
            raise too_large(int(length[:20]))
        more = True
        try:
            async with asyncio.timeout(ends - time.monotonic()):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    more = message.get("more_body", False)
                    chunk = message.get("body", b"")
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > BODY:
                        raise too_large()
                    if self._held > HELD:
                        raise ApiError(429, "同時收到的內容太多，請稍後再試", headers={"Retry-After": "1"})
        except TimeoutError:
            raise ApiError(
                408, f"{seconds:g} 秒內沒有收完請求，已經放棄", headers={"Connection": "close"}
            ) from None
        return True


def _once(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read, and then what comes after it."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


def ending() -> ApiError:
    """Return the error of a request that comes while the server is ending."""
    return ApiError(
        503, "伺服器正在結束，不再收新的請求；請稍後再試，或換一台",
        headers={"Connection": "close", "Retry-After": "1"},
    )  # fmt: skip
