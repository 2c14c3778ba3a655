"""A browser for the tests of pages: the one this machine has. As a program: which, or how to get one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "msedge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)  # fmt: skip
INSTALL = "no Chromium, Chrome or Edge here; on Debian: apt-get install -y --no-install-recommends chromium"
QUIET = [  # a page from disk needs no sandbox, no graphics card and no network
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def program() -> str | None:
    """The browser's path; None without one."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def started() -> Iterator:
    """A playwright browser.

    Raises:
        AssertionError: there is none; how to install one.
    """
    from playwright.sync_api import sync_playwright

    found = program()
    assert found, INSTALL
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def opened(browser, path: Path, width: int = 1000, scheme: str = "light") -> Iterator:
    """The page of a file, its fonts loaded. Whatever goes wrong in it fails the test at the end.

    Args:
        width: of the window, in CSS pixels.
        scheme: light or dark.
    """
    troubles = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:100]}"))
    page.on(
        "request", lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url)
    )
    page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.goto(path.resolve().as_uri())
    page.evaluate("document.fonts.ready")
    yield page
    page.close()
    assert not troubles


def smallest_text(page) -> float:
    """CSS pixels, as scaled; of a page with much text."""
    sizes = page.evaluate(
        """() => [...document.body.querySelectorAll("*")]
            .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
            .map(e => parseFloat(getComputedStyle(e).fontSize) *
                (e instanceof SVGGraphicsElement ? e.getScreenCTM().a : 1))"""
    )
    assert len(sizes) > 100
    return min(sizes)


if __name__ == "__main__":
    sys.exit(print(program()) if program() else INSTALL)
