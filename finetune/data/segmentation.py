"""Segmentation of Chinese text into words: jieba, corrected for Traditional characters.

jieba's dictionary is Simplified and splits 臺灣 or 經濟學. OpenCC's table turns a text into Simplified
character by character, so its length stays; jieba finds the words there, and their places hold for the text
as it was written.

Without its HMM (which invents words) jieba also splits text that is not Chinese: `café`, `Tâi-gí` and
`ＤＮＡ` at every letter it does not know, `3.14%` at the point. Runs of letters and digits are joined again.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Latin, Greek and Cyrillic with their accents, those of Taigi among them, and the full-width forms.
_LETTERS = "0-9A-Za-zÀ-ÖØ-öø-ʯ\u0300-\u036fͰ-ͽͿ-ԯḀ-ỿⁿ０-９Ａ-Ｚａ-ｚ"
_UNBROKEN = re.compile(rf"[{_LETTERS}]+(?:(?<=\d)(?:[.．]\d+|,\d{{3}}(?!\d)))*(?:(?<=\d)[%％])?")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each word, in order; together they cover the text.

    A run of letters and digits is one word, and so is a number with its decimals, its thousands and its
    percent sign.
    """
    inside = {at for run in _UNBROKEN.finditer(text) for at in range(run.start() + 1, run.end())}
    spans, start, at = [], 0, 0
    for word in _jieba().cut(simplified(text), HMM=False):
        at += len(word)
        if at not in inside:
            spans.append((start, at))
            start = at
    return spans


def token_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[list[int]]:
    """Return the tokens of each word, in order; every token belongs to one word.

    Tokens are indices into the ids of `text` without special tokens, its own "[MASK]" and the like split
    (`split_special_tokens=True`). Words that share a token are one, and so are those that share a character
    through tokens that hold parts of it (byte-level). A token that shows nothing, or white space alone, goes
    with the word after it, where byte-level and SentencePiece vocabularies put the space as well (`Ġthe`,
    `▁the`): by itself it would be a target without information. At the end of a text it goes with the word
    before.
    """
    offsets = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )["offset_mapping"]
    ends = [end for _, end in word_spans(text)]
    words: list[list[int]] = []
    blank: list[int] = []
    shown_end = ended_words = 0  # end of the last visible token; number of words that end before it
    for token, (start, end) in enumerate(offsets):
        if not text[start:end].strip():
            blank.append(token)
            continue
        while ended_words < len(ends) and ends[ended_words] < shown_end:
            ended_words += 1
        word_ends_before = ended_words < len(ends) and ends[ended_words] <= start
        if not words or word_ends_before:
            words.append([])
        words[-1] += [*blank, token]
        blank, shown_end = [], end
    if blank:
        words = words or [[]]
        words[-1] += blank
    return words


def simplified(text: str) -> str:
    """Return the text in Simplified characters, of the same length."""
    return "".join(map(_simplified_character, text))


@lru_cache(maxsize=1 << 15)
def _simplified_character(character: str) -> str:
    """Return the Simplified form of a character, if it is one character."""
    converted = _opencc().convert(character)
    return converted if len(converted) == 1 else character


@lru_cache(maxsize=1)
def _opencc() -> Any:
    """Return the converter from Traditional to Simplified."""
    from opencc import OpenCC

    return OpenCC("t2s")


@lru_cache(maxsize=1)
def _jieba() -> Any:
    """Return the segmenter."""
    import jieba

    jieba.setLogLevel(logging.ERROR)  # else it logs about its cache on stderr
    return jieba.Tokenizer()
