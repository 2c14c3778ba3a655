"""Texts and bytes of single tokens, as log-probabilities name them."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # of SentencePiece, for characters outside its vocabulary
NO_CHARACTER = "\ufffd"  # in the text of a token that is a part of a character


class TokenTexts:
    """Texts of tokens, each as it stands in the middle of a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer: Any = tokenizer
        # Before a first token a tokenizer may drop a space.
        self._before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._length = len(self._decoded(self._before))
        self._texts: dict[int, str] = {}

    def text(self, token: int) -> str:
        """Return the text of a token; `�` for bytes that are no character by themselves."""
        if token not in self._texts:
            self._texts[token] = self._decoded([*self._before, token])[self._length :]
        return self._texts[token]

    def bytes(self, token: int) -> list[int] | None:
        """Return the UTF-8 bytes of a token; None where they are not known."""
        text = self.text(token)
        if NO_CHARACTER not in text:
            return list(text.encode())
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if single := BYTE_TOKEN.fullmatch(piece):
            return [int(single[1], 16)]
        known = [self._byte_of.get(character) for character in piece]
        return None if None in known else known  # type: ignore[return-value]

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """The byte that each character of a byte-level vocabulary stands for."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {character: byte for byte, character in bytes_to_unicode().items()}

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))
