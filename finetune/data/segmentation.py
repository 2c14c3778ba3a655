"""Where the words of a Chinese text are: jieba, made right for Traditional characters.

jieba's dictionary is Simplified and takes 臺灣 or 經濟學 apart. OpenCC's table turns a text into Simplified
character by character, so its length stays; jieba finds the words there, and their places hold for the text
as it was written.

Without its HMM (which makes up words) jieba also takes apart what is not Chinese: `café`, `Tâi-gí` and
`ＤＮＡ` at every letter it does not know, `3.14%` at the point. Runs of letters and digits are put together
again.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache

# Latin, Greek and Cyrillic with their accents, those of Taigi among them, and the full-width forms.
_LETTERS = "0-9A-Za-zÀ-ÖØ-öø-ʯ\u0300-\u036fͰ-ͽͿ-ԯḀ-ỿⁿ０-９Ａ-Ｚａ-ｚ"
_UNBROKEN = re.compile(rf"[{_LETTERS}]+(?:(?<=\d)(?:[.．]\d+|,\d{{3}}(?!\d)))*(?:(?<=\d)[%％])?")


def word_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word, in order; together they cover the text.

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


def token_words(tokenizer, text: str) -> list[list[int]]:
    """The tokens of each word, in order; every token belongs to one word.

    Tokens are indices into the ids of `text` without special tokens, its own "[MASK]" and the like split
    (`split_special_tokens=True`). Words that share a token are one, and so are those that share a character
    through tokens that hold parts of it (byte-level). A token that shows nothing, or white space alone, goes
    with the word after it, where byte-level and SentencePiece vocabularies put the space as well (`Ġthe`,
    `▁the`): by itself it would be a target that teaches nothing. At the end of a text it goes with the word
    before.
    """
    places = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )["offset_mapping"]
    ends = [end for _, end in word_spans(text)]
    words: list[list[int]] = []
    blank: list[int] = []
    reached = passed = 0  # where the last token shown ends; how many words end before that
    for token, (start, end) in enumerate(places):
        if not text[start:end].strip():
            blank.append(token)
            continue
        while passed < len(ends) and ends[passed] < reached:
            passed += 1
        if not words or (passed < len(ends) and ends[passed] <= start):  # a word ends between the two
            words.append([])
        words[-1] += [*blank, token]
        blank, reached = [], end
    if blank:
        words = words or [[]]
        words[-1] += blank
    return words


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
