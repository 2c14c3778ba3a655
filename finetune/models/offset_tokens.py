"""Tokens of a text with the characters each one stands for, for tasks whose answers are parts of the text.

A token stands for characters of the text as it was given, whatever the tokenizer changes: lower case, width,
accents. WordPiece reads a word that it does not know as one [UNK], such as a run of emoji or 「Ａ級🙂」: an
answer that ends within it would have no token of its own. Where a tokenizer reads Chinese characters one by
one anyway, the text is therefore given to it in units (data/text_units.py), and an unknown unit character
by character.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.data.text_units import text_units

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHED = 512  # texts: the questions about one passage follow one another


@dataclass(frozen=True)
class OffsetTokens:
    """Tokens of a text: token `i` stands for the characters `starts[i]` to `ends[i]`, the end excluded.

    A token that stands for white space alone, as SentencePiece has it, has no characters.
    """

    ids: Sequence[int]
    starts: Sequence[int]
    ends: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)

    def cover(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the first and the last token that stand for any of the characters; None where none does."""
        first, last = bisect_right(self.ends, start), bisect_left(self.starts, end) - 1
        while first <= last and self.starts[first] >= self.ends[first]:
            first += 1
        while last >= first and self.starts[last] >= self.ends[last]:
            last -= 1
        return (first, last) if first <= last else None


class OffsetTokenizer:
    """Tokenizes texts with offsets, without special tokens.

    Args:
        tokenizer: a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._splits = splits_characters(tokenizer)
        self._cache: dict[str, OffsetTokens] = {}

    def __call__(self, text: str) -> OffsetTokens:
        """Return the tokens of a text; special tokens that stand in it are text."""
        found = self._cache.get(text)
        if found is None:
            found = self._by_units(text) if self._splits else self._whole(text)
            if len(self._cache) >= CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[text] = found
        return found

    def _whole(self, text: str) -> OffsetTokens:
        encoding: Any = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
        )
        starts, ends = array("l"), array("l")
        for start, end in encoding["offset_mapping"]:
            part = text[start:end]
            start += len(part) - len(part.lstrip())
            starts.append(start)
            ends.append(max(start, start + len(part.strip())))
        return OffsetTokens(array("l", encoding["input_ids"]), starts, ends)

    def _by_units(self, text: str) -> OffsetTokens:
        units = text_units(text)
        ids, starts, ends = array("l"), array("l"), array("l")
        for (start, end), tokens in zip(units, self._encode([text[a:b] for a, b in units]), strict=True):
            if _is_merged(tokens, end - start, self._tokenizer.unk_token_id):
                units_inside = [(at, at + 1) for at in range(start, end)]
                parts = self._encode([text[at] for at in range(start, end)])
            else:
                units_inside, parts = [(start, end)], [tokens]
            for (first, last), inside in zip(units_inside, parts, strict=True):
                # what leaves no token, such as a zero-width joiner, is unknown to the model, and yet there
                inside = inside or [(self._tokenizer.unk_token_id, 0, last - first)]
                borders = [first, *(first + begin for _, begin, _ in inside[1:]), last]
                for (token, _, _), begin, stop in zip(inside, borders, borders[1:], strict=False):
                    ids.append(token)
                    starts.append(begin)
                    ends.append(stop)
        return OffsetTokens(ids, starts, ends)

    def _encode(self, units: list[str]) -> list[list[tuple[int, int, int]]]:
        """Return (id, start, end) of the tokens of each unit, counted from its beginning."""
        if not units:
            return []
        encoding: Any = self._tokenizer(
            units, is_split_into_words=True, add_special_tokens=False, return_offsets_mapping=True,
            split_special_tokens=True,
        )  # fmt: skip
        found: list[list[tuple[int, int, int]]] = [[] for _ in units]
        for token, unit, (start, end) in zip(
            encoding["input_ids"], encoding.word_ids(), encoding["offset_mapping"], strict=True
        ):
            found[unit].append((token, start, end))
        return found


def splits_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer is a WordPiece that reads Chinese characters one by one, as BERT's."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if type(model).__name__ != "WordPiece" or tokenizer.unk_token_id is None:
        return False
    return len(tokenizer("天地", add_special_tokens=False)["input_ids"]) == 2


def _is_merged(tokens: Sequence[tuple[int, int, int]], length: int, unknown: int | None) -> bool:
    """Return whether an unknown token stands for several characters."""
    return length > 1 and (not tokens or any(token == unknown for token, _, _ in tokens))
