"""Where a model behind an OpenAI-compatible server is, and its key. Imports nothing heavy."""

from __future__ import annotations

import os
import re
from urllib.parse import SplitResult, urlsplit

from finetune.runtime.errors import UserError, shown

KEY_VARIABLE = "OPENAI_API_KEY"
ENDPOINTS = ("/chat/completions", "/completions", "/models")
EXAMPLE = "http://127.0.0.1:8000/v1"


def is_server(path: str) -> bool:
    """Return True for the address of a server, False for a folder or a name on the hub."""
    return bool(re.match(r"https?:/", path, re.IGNORECASE))


def checked_address(url: str, flag: str) -> str:
    """Return the address of a server without a slash at its end.

    Args:
        flag: the flag that named it, for messages; what may be secret is not repeated.

    Raises:
        UserError: it is none, or holds a password or a key.
    """
    try:
        parts = urlsplit(url)
        secret = parts.username is not None or parts.password is not None
        whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, secret, whole = SplitResult("", "", "", "", ""), "@" in url, False
    if secret:
        raise UserError(
            f"{flag}：網址裡有帳號或密碼（使用者:密碼@），會留在指令紀錄與報告裡；"
            f"請改放在環境變數 {KEY_VARIABLE}，網址只寫主機與埠"
        )
    if parts.query or parts.fragment:
        raise UserError(
            f"{flag}：網址裡有 ? 或 #；請只寫到 /v1，例如 {EXAMPLE}，金鑰放在環境變數 {KEY_VARIABLE}"
        )
    if not whole:
        raise UserError(f"{flag} {shown(url)}：不是伺服器的網址，應為 http://主機:埠/v1，例如 {EXAMPLE}")
    address = url.rstrip("/")
    for endpoint in ENDPOINTS:
        if address.endswith(endpoint):
            raise UserError(f"{flag} {url}：請只寫到 {endpoint} 之前，{address.removesuffix(endpoint)}")
    return address


def is_loopback(url: str) -> bool:
    """Return True for a server on this machine, which no proxy stands before."""
    return (urlsplit(url).hostname or "") in ("localhost", "127.0.0.1", "::1")


def api_key() -> str:
    """Return the key from the environment, "" where there is none.

    Raises:
        UserError: no key can look like that; it is not repeated.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not re.fullmatch(r"[!-~]*", key):  # it becomes a header, whose errors would show it
        raise UserError(f"環境變數 {KEY_VARIABLE} 裡有空白、換行或中文，不像金鑰；請重新設定它")
    return key
