"""Bodies of requests: read within limits, and refused where a file of the same content would be."""

from __future__ import annotations

import json
from typing import NoReturn

from finetune.runtime.errors import shown
from finetune.runtime.strict_json import JsonError, decode
from finetune.serving.errors import ApiError

BODY = 8 << 20  # bytes of a body
CONSTANTS = (b"NaN", b"Infinity")  # JSON has no such numbers, though Python reads them
ENGLISH = {  # messages of Python's reader
    "Expecting value": "這裡應該是一個值",
    "Expecting property name enclosed in double quotes": "這裡應該是有雙引號的欄位名稱",
    "Expecting ':' delimiter": "這裡應該是冒號",
    "Expecting ',' delimiter": "這裡應該是逗號",
    "Illegal trailing comma before end of object": "最後一項後面多了一個逗號",
    "Illegal trailing comma before end of array": "最後一項後面多了一個逗號",
    "Extra data": "後面還有東西",
    "Unterminated string starting at": "這個字串沒有結束",
    "Invalid control character at": "字串裡有沒跳脫的控制字元",
    "Invalid \\escape": "不對的跳脫字元",
    "Invalid \\uXXXX escape": "不對的 \\u 跳脫字元",
}


def check_json(raw: bytes) -> None:
    """Check that a body is JSON which every reader reads alike.

    Raises:
        ApiError: 400, with where it is not; see `strict_json.decode`.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"內容不是 UTF-8：第 {error.start + 1:,} 個位元組") from None
    if not text.strip():
        raise ApiError(400, '內容是空的，要有一個 JSON 物件，例如 {"prompt": "天[MASK]玄黃"}')
    try:
        decode(text)
    except JsonError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError):
            words = ENGLISH.get(cause.msg.removesuffix(": "), cause.msg)
            raise ApiError(400, f"不是 JSON：第 {cause.lineno} 行第 {cause.colno} 個字，{words}") from None
        raise ApiError(400, f"內容{error}" if str(error).startswith("有") else str(error)) from None
    if any(name in raw for name in CONSTANTS):  # often within a text
        json.loads(text, parse_constant=_refuse)


def check_type(content_type: str) -> None:
    """Raise ApiError (415) where the content of a request is not said to be JSON.

    A page of another site can send a form or plain text without asking, but no JSON.
    """
    media, _, parameters = content_type.partition(";")
    charset = parameters.lower().replace(" ", "").replace('"', "")
    if media.strip().lower() != "application/json" or charset not in ("", "charset=utf-8", "charset=utf8"):
        raise ApiError(
            415, f"Content-Type：應為 application/json，得到 {shown(content_type)}；"
            "curl 要加 -H 'Content-Type: application/json'", "Content-Type",
        )  # fmt: skip


def check_encoding(encoding: str) -> None:
    """Raise ApiError (415) for a body that is compressed: how large it becomes is not known before."""
    if encoding.strip().lower() not in ("", "identity"):
        raise ApiError(
            415, f"Content-Encoding：內容不能壓縮，得到 {shown(encoding)}；請原樣送出", "Content-Encoding",
            {"Accept-Encoding": "identity"},
        )  # fmt: skip


def too_large(size: int | None = None) -> ApiError:
    """Return the error of a body that is too large."""
    seen = f"有 {size:,} 個位元組" if size is not None and size < 1 << 60 else "太長"
    return ApiError(413, f"內容{seen}，上限是 {BODY:,}；請分成幾個請求")


def _refuse(name: str) -> NoReturn:
    raise ApiError(400, f"不是 JSON：{name} 不是 JSON 的數字；沒有值就寫 null")
