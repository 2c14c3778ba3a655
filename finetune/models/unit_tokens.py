"""Texts as token ids with the places of their units, in windows where a text is longer than the model.

A WordPiece tokenizer splits Chinese into characters anyway: it gets the units one by one, so that characters
it does not know never share one [UNK]. Other tokenizers (byte-level, SentencePiece) read the text as it is;
their offsets say which units a token belongs to, and units that share a token become one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.data.text_units import text_units
from finetune.models.windows import best_window, windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRIDE = 128  # tokens that two windows share, unless a run says otherwise
SPLITTING = ("WordPiece", "WordLevel")  # models of tokenizers that take words one by one
SPACE_MARKS = "▁ĠĊĉ \t\n"  # how vocabularies write white space
MOST_KNOWN = 1 << 20  # units whose tokens are remembered
PROBE = "a"  # a text that every tokenizer makes tokens of


@dataclass(frozen=True)
class Window:
    """A part of a text as the model reads it.

    Args:
        ids: token ids, special tokens included.
        positions: the first token of each unit that is predicted here.
        units: their numbers in the text.
    """

    ids: Sequence[int]
    positions: Sequence[int]
    units: Sequence[int]


@dataclass(frozen=True)
class EncodedText:
    """A text for a tagger.

    Args:
        units: (start, end) in characters of the text, in order. Each is predicted in one window, the one
            where it has the most context.
        windows: parts of the text; none where it has no unit.
    """

    units: Sequence[tuple[int, int]]
    windows: Sequence[Window]


class UnitTokenizer:
    """Tokenizes texts for a tagger; special tokens that stand in a text are text.

    Args:
        tokenizer: the model's tokenizer.
        max_length: longest window, in tokens.
        stride: tokens that two windows of a text share; at most half of a window.

    Attributes:
        by_unit: units are tokenized one by one.
        overlap: tokens that two windows share.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int = STRIDE):
        self._tokenizer = tokenizer
        fast = getattr(tokenizer, "backend_tokenizer", None)
        # without offsets nothing else tells which token belongs to which unit
        self.by_unit = fast is None or type(fast.model).__name__ in SPLITTING
        self._before, self._after = _special_tokens(tokenizer)
        self._room = max(1, max_length - len(self._before) - len(self._after))
        self.overlap = min(stride, self._room // 2)
        self._known: dict[str, tuple[int, ...]] = {}  # token ids of units
        self._blank: dict[int, bool] = {}  # by token id, see `_is_blank`

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Tokenize texts."""
        made = self._by_unit(texts) if self.by_unit else self._by_offset(texts)
        return [self._encoded(*parts) for parts in made]

    def _by_unit(self, texts: Sequence[str]) -> list[tuple[list[tuple[int, int]], array, list[int]]]:
        """Return of each text its units, its token ids, and the first token of each unit."""
        every = [text_units(text) for text in texts]
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        words = {text[start:end] for text, units in zip(texts, every, strict=True) for start, end in units}
        if new := sorted(words - self._known.keys()):
            encoded = self._tokenizer(
                new, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]  # fmt: skip
            unknown = self._tokenizer.unk_token_id
            nothing = self._tokenizer.pad_token_id if unknown is None else unknown
            # a joiner within an emoji has no token of its own, and is a unit that can be tagged all the same
            self._known |= {word: tuple(ids) or (nothing,) for word, ids in zip(new, encoded, strict=True)}
        made = []
        for text, units in zip(texts, every, strict=True):
            ids, firsts = array("l"), []
            for start, end in units:
                firsts.append(len(ids))
                ids.extend(self._known[text[start:end]])
            made.append((units, ids, firsts))
        return made

    def _by_offset(self, texts: Sequence[str]) -> list[tuple[list[tuple[int, int]], array, list[int]]]:
        """Return of each text its units, its token ids, and the first token of each unit."""
        if not texts:
            return []
        encoding = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True,
            return_attention_mask=False, return_token_type_ids=False,
        )  # fmt: skip
        blank = self._is_blank
        made = []
        for text, ids, offsets in zip(texts, encoding["input_ids"], encoding["offset_mapping"], strict=True):
            visible = [
                (token, start, end)
                for token, (start, end) in enumerate(offsets)
                if end > start and text[start:end].strip() and not blank(ids[token])
            ]
            units, firsts = _join_units(text_units(text), visible)
            made.append((units, array("l", ids), firsts))
        return made

    def _is_blank(self, token: int) -> bool:
        """Return whether a token shows white space alone, such as the `▁` before a Chinese character."""
        if (found := self._blank.get(token)) is None:
            piece = self._tokenizer.convert_ids_to_tokens(token)
            found = self._blank[token] = isinstance(piece, str) and not piece.strip(SPACE_MARKS)
        return found

    def _encoded(self, units: list[tuple[int, int]], ids: array, firsts: list[int]) -> EncodedText:
        """Divide a text into windows; each unit belongs to the one where it has the most context."""
        if not firsts:
            return EncodedText(units, ())
        ranges = windows(len(ids), self._room, self.overlap)
        members: list[list[int]] = [[] for _ in ranges]
        for unit, first in enumerate(firsts):
            members[best_window(ranges, first) if len(ranges) > 1 else 0].append(unit)
        before, made = len(self._before), []
        for span, inside in zip(ranges, members, strict=True):
            if inside:
                row = array("l", [*self._before, *ids[span.start : span.stop], *self._after])
                places = array("l", [firsts[unit] - span.start + before for unit in inside])
                made.append(Window(row, places, array("l", inside)))
        return EncodedText(units, made)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens before and after a text."""
    whole = list(tokenizer(PROBE, split_special_tokens=True)["input_ids"])
    bare = list(tokenizer(PROBE, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def _join_units(
    units: Sequence[tuple[int, int]], tokens: Sequence[tuple[int, int, int]]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Join units that share a token, and those without one to the unit before, or else after them.

    Args:
        units: (start, end) in characters.
        tokens: (number, start, end) of the visible tokens, in order.

    Returns:
        the joined units, and the first token of each.
    """
    joined: list[tuple[int, int]] = []
    firsts: list[int] = []
    unit = 0
    lead = None  # start of units before the first token
    for number, start, end in tokens:
        if joined and end <= joined[-1][1]:  # another token of the unit before
            continue
        while unit < len(units) and units[unit][1] <= start:  # passed over: no token shows them
            if joined and units[unit][0] >= joined[-1][1]:
                joined[-1] = (joined[-1][0], units[unit][1])
            elif not joined and lead is None:
                lead = units[unit][0]
            unit += 1
        covered = []
        while unit < len(units) and units[unit][0] < end:
            covered.append(units[unit])
            unit += 1
        if not covered:
            continue
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], covered[-1][1])
        else:
            joined.append((covered[0][0] if lead is None else lead, covered[-1][1]))
            firsts.append(number)
            lead = None
    if joined and unit < len(units):
        joined[-1] = (joined[-1][0], units[-1][1])
    return joined, firsts
