"""A tokenizer for many threads."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STATEFUL = ("_encode_plus", "_decode")  # every way to encode or decode ends in one of these


def lock_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let one thread at a time use a tokenizer.

    A fast tokenizer keeps between calls how it cuts and pads, and whether it splits special tokens: of two
    calls at once, one would be cut as the other asked for, or fail.
    """
    lock = threading.RLock()

    def locked(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with lock:
                return method(*args, **kwargs)

        return call

    for name in STATEFUL:
        if hasattr(tokenizer, name):
            setattr(tokenizer, name, locked(getattr(tokenizer, name)))
