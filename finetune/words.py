"""Where the words of a Chinese text are: jieba, made right for Traditional characters.

jieba's dictionary is Simplified and takes 臺灣 or 經濟學 apart. OpenCC's table turns a text into Simplified
character by character, so its length stays; jieba finds the words there, and their places hold for the text
as it was written.
"""

from __future__ import annotations

import logging
from functools import lru_cache


def word_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word, in order; together they cover the text."""
    spans, at = [], 0
    for word in _jieba().cut(simplified(text), HMM=False):
        spans.append((at, at + len(word)))
        at += len(word)
    return spans


def simplified(text: str) -> str:
    """The text in Simplified characters, of the same length."""
    return "".join(map(_simplified_character, text))


@lru_cache(maxsize=1 << 15)
def _simplified_character(character: str) -> str:
    found = _opencc().convert(character)
    return found if len(found) == 1 else character


@lru_cache(maxsize=1)
def _opencc():
    from opencc import OpenCC

    return OpenCC("t2s")


@lru_cache(maxsize=1)
def _jieba():
    import jieba

    jieba.setLogLevel(logging.ERROR)  # it tells stderr about its cache
    return jieba.Tokenizer()
