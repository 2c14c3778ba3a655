"""The pages at / and /docs: one file each, with the hashes of what may run in it."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Page:
    """A page and the headers that it is sent with."""

    html: str
    headers: dict[str, str]


def page(template: str, **values: Any) -> Page:
    """Return a page of this folder.

    Args:
        template: its file. Texts that go into it are escaped.
        values: what goes into it.
    """
    html = _environment().get_template(template).render(**values)
    return Page(html, {**HEADERS, "Content-Security-Policy": policy(html)})


def policy(html: str) -> str:
    """Return a Content-Security-Policy: what stands in the page runs, and nothing else; only we are asked."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in INLINE.findall(html):
        digest = hashlib.sha256(text.encode()).digest()
        hashes[kind].append(f"'sha256-{base64.b64encode(digest).decode()}'")
    return "; ".join(
        [
            "default-src 'none'",
            *(f"{kind}-src {' '.join(found)}" for kind, found in hashes.items() if found),
            "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )  # fmt: skip


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["code"] = with_code
    return environment


def with_code(text: str) -> Markup:
    """Return a text as HTML, what stands in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))
