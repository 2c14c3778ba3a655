"""Health of the Hugging Face hub as its answers show it: when to give up, and how large its files may be."""

from __future__ import annotations

import time
from typing import NoReturn
from urllib.parse import unquote, urljoin

from finetune.runtime.limits import MEGABYTE, most_bytes

PATIENCE = 20.0  # seconds of nothing but failures before giving up
LARGEST_LIST = 64 * MEGABYTE  # bytes of the hub's metadata of a model or a dataset


class HubGaveUpError(OSError):
    """The hub is too slow, or sends too much; huggingface_hub does not retry after this error."""


class HubHealth:
    """Record of the failures of a hub so far, and of the sizes that its files may have.

    Attributes:
        reason: why no more requests are sent; "" while they are.
    """

    def __init__(self):
        self.reason = ""
        self._failing: float | None = None  # time of the first failure since the last answer
        self._limits: dict[str, int] = {}  # URL that a download was redirected to -> largest size in bytes

    def check(self) -> None:
        """Check that requests may still be sent.

        Raises:
            HubGaveUpError: the hub has failed for too long, or was given up before.
        """
        if not self.reason and self._failing and time.monotonic() - self._failing > PATIENCE:
            self.give_up(f"連續 {PATIENCE:g} 秒沒有有效回應")
        if self.reason:
            raise HubGaveUpError(self.reason)

    def give_up(self, reason: str) -> NoReturn:
        """Refuse all further requests, and raise HubGaveUpError with the reason."""
        self.reason = reason
        raise HubGaveUpError(reason)

    def failed(self) -> None:
        """Record a failed request."""
        self._failing = self._failing or time.monotonic()

    def answered(self) -> None:
        """Record a good answer."""
        self._failing = None

    def size_limit(self, address: str) -> tuple[str, int]:
        """Return the name and the largest size in bytes of the file at a URL; 0 means no limit."""
        path = unquote(address.split("?")[0])
        name = path.rpartition("/")[2]
        if address in self._limits:
            return name, self._limits[address]
        if "/api/" in path:
            return "清單", LARGEST_LIST
        return name, 0 if "/datasets/" in path else most_bytes(name)

    def redirected(self, address: str, target: str) -> None:
        """Record a redirect: the target has the size limit of the URL that led to it."""
        self._limits[urljoin(address, target)] = self.size_limit(address)[1]

    def check_size(self, address: str, size: int) -> None:
        """Give up when the file at a URL has more bytes than its limit.

        Raises:
            HubGaveUpError: it has.
        """
        name, most = self.size_limit(address)
        if most and size > most:
            self.give_up(f"{name} 有 {size:,} 個位元組，上限是 {most:,}，不下載")


HEALTH = HubHealth()
