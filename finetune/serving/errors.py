"""Errors as the API answers them: OpenAI's shape, with the sentences of the command line."""

from __future__ import annotations

from typing import Any

from starlette.types import Send

from finetune.runtime.console import as_json

STATUS_TYPES = {  # the type of an error, as OpenAI names them
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error",
    413: "invalid_request_error", 415: "invalid_request_error", 422: "invalid_request_error",
    429: "rate_limit_error", 431: "invalid_request_error", 500: "server_error", 503: "server_error",
    504: "timeout_error",
}  # fmt: skip


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: HTTP status.
        message: one sentence for a person: the field, the value seen, the way out.
        param: the field that is wrong; "" where it is none.
        headers: more of them, such as Retry-After.
    """

    def __init__(self, status: int, message: str, param: str = "", headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, headers or {}

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = STATUS_TYPES.get(self.status, "server_error")
        error = {"message": self.message, "type": kind, "param": self.param or None, "code": None}
        return {"error": error}

    def content(self) -> bytes:
        """Return the bytes of the body."""
        return as_json(self.body()).encode("utf-8", "replace")

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer, with those of its body."""
        headers = {"content-type": "application/json", "content-length": str(len(self.content()))}
        return [(k.lower().encode(), v.encode()) for k, v in {**headers, **self.headers}.items()]

    async def answer(self, send: Send) -> None:
        """Send the answer to an ASGI server."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.raw_headers()})
        await send({"type": "http.response.body", "body": self.content()})
