"""Windows of a question and its passage: all of the question, and as much of the passage as fits."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.models.offset_tokens import OffsetTokenizer, OffsetTokens
from finetune.models.windows import windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_ROOM = 16  # tokens of the passage that a window has at least, unless the passage is shorter


class QuestionTooLongError(ValueError):
    """A question leaves no room for the passage; the reason, in Chinese."""


@dataclass(frozen=True)
class PairTemplate:
    """Special tokens around a pair of texts, and the segment of each part, as a tokenizer writes them.

    Attributes:
        before, between, after: token ids.
        segments: of `before`, the question, `between`, the passage, `after`.
        null: where the answer points when there is none: the CLS token, an index from the start, or from the
            end where it is negative.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    segments: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    null: int = 0

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> PairTemplate:
        """Return the template of a tokenizer, read off a pair that it writes."""
        encoding: Any = tokenizer("a", "b", return_token_type_ids=True)
        ids, parts = encoding["input_ids"], encoding.sequence_ids()
        types = encoding.get("token_type_ids") or [0] * len(ids)
        first, second = ([at for at, part in enumerate(parts) if part == number] for number in (0, 1))
        before, between, after = (
            range(first[0]), range(first[-1] + 1, second[0]), range(second[-1] + 1, len(ids))
        )  # fmt: skip
        glue = tuple(ids[at] for at in between)
        if not glue:  # a decoder's tokenizer writes one text after the other
            mark = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
            glue = () if mark is None else (mark,)
        of_parts = [types[part[0]] if part else 0 for part in (before, first, between, second, after)]
        null, cls_id = 0, tokenizer.cls_token_id
        if cls_id is not None and cls_id not in ids[: len(before)]:
            null = next((at - len(ids) for at in after if ids[at] == cls_id), 0)
        return cls(
            tuple(ids[at] for at in before), glue, tuple(ids[at] for at in after),
            (of_parts[0], of_parts[1], of_parts[2], of_parts[3], of_parts[4]), null,
        )  # fmt: skip

    @property
    def specials(self) -> int:
        """Number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class SpanWindow:
    """One row of an extractor: special tokens, the question, and a part of the passage.

    Attributes:
        question: token ids.
        tokens: those of the whole passage.
        part: which of them stand in this window.
    """

    template: PairTemplate
    question: Sequence[int]
    tokens: OffsetTokens
    part: range

    @property
    def first(self) -> int:
        """Place of the first token of the passage in the row."""
        template = self.template
        return len(template.before) + len(self.question) + len(template.between)

    @property
    def null(self) -> int:
        """Place in the row that the answer points at when there is none here."""
        return self.template.null % len(self)

    @property
    def ids(self) -> array:
        """Token ids of the row."""
        template, part = self.template, self.part
        context = self.tokens.ids[part.start : part.stop]
        return array("l", [*template.before, *self.question, *template.between, *context, *template.after])

    @property
    def segments(self) -> array:
        """Segment of each token of the row."""
        template = self.template
        lengths = (
            len(template.before), len(self.question), len(template.between), len(self.part),
            len(template.after),
        )  # fmt: skip
        pairs = zip(template.segments, lengths, strict=True)
        return array("b", [segment for segment, length in pairs for _ in range(length)])

    def __len__(self) -> int:
        return self.template.specials + len(self.question) + len(self.part)

    def places(self, start: int, end: int) -> tuple[int, int]:
        """Return the row's places of the first and last token of an answer.

        It is `null` twice where the window does not hold the whole answer.

        Args:
            start, end: characters of the passage, the end excluded.
        """
        found = self.tokens.cover(start, end)
        if found is None or found[0] < self.part.start or found[1] >= self.part.stop:
            return self.null, self.null
        shift = self.first - self.part.start
        return found[0] + shift, found[1] + shift


class SpanWindows:
    """Makes the windows of questions.

    Args:
        tokenizer: a fast one; it decides the special tokens around a pair.
        max_length: longest row, in tokens.
        stride: tokens of the passage that two windows share; at most half of what a window holds of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int):
        self._tokenize = OffsetTokenizer(tokenizer)
        self.template = PairTemplate.of(tokenizer)
        self.max_length, self.stride = max_length, stride

    def __call__(self, question: str, context: str) -> list[SpanWindow]:
        """Return the windows of a question, which together hold all of the passage.

        Raises:
            QuestionTooLongError: the question leaves less than LEAST_ROOM tokens for a longer passage.
        """
        asked, tokens = self._tokenize(question).ids, self._tokenize(context)
        room = self.max_length - self.template.specials - len(asked)
        if room < max(1, min(len(tokens), LEAST_ROOM)):
            raise QuestionTooLongError(
                f"問題有 {len(asked)} 個 token，一段最多 {self.max_length} 個（--max_length），放不下文章"
            )
        parts = windows(len(tokens), room, min(self.stride, room // 2))
        return [SpanWindow(self.template, asked, tokens, part) for part in parts]
