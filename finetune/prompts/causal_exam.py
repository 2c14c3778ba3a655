"""Prompts of exam questions for causal models as token ids, answered with a letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING

from finetune.data.question import LETTERS, Question
from finetune.prompts.chat import Chat
from finetune.prompts.exam import ELLIPSIS, Prompt, PromptTooLongError
from finetune.prompts.option_order import PromptError
from finetune.prompts.protocol import CUT_LEFT, CUT_STEM, RAW
from finetune.prompts.question_writer import QuestionWriter
from finetune.prompts.scoring_methods import GENERATE, LETTER, LOGLIKELIHOOD
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Continuation:
    """A scored continuation.

    Attributes:
        ids: token ids of the prompt and of the continuation but for its last token.
        targets: its tokens: the first is predicted at position `len(ids) - len(targets)`.
        cut: tokens removed from the prompt's beginning.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    cut: int = 0


@dataclass
class CausalExamPrompts:
    """Writes questions for a causal model that answers with a letter.

    It takes the place of `prompts.exam.ExamPrompts`, which is for masked models.

    Args:
        chat: writes messages for the model's tokenizer.
        max_length: longest prompt, in tokens.
        writer: questions as messages or texts, under a protocol.
    """

    chat: Chat
    max_length: int
    writer: QuestionWriter = field(default_factory=QuestionWriter)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.chat.tokenizer

    @property
    def is_raw(self) -> bool:
        """True where prompts are texts that go on, without a chat template."""
        return self.writer.asking.format == RAW

    # ---- prompts as text -----------------------------------------------------------------------------------

    def text(self, question: Question, order: Sequence[int], stem: str | None = None) -> str:
        """Return the whole prompt as the model reads it, special tokens included.

        Raises:
            PromptError: the chat template refuses it.
        """
        if self.is_raw:
            return self.chat.escape_special_tokens(self.writer.text(question, order, stem))
        try:
            return self.chat.text(self.writer.messages(question, order, stem), reply=True)
        except ValueError as error:
            raise PromptError(str(error)) from error

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a prompt as `text` writes it, begun as the tokenizer begins a text."""
        return [*self._start(text), *self.chat.ids(text)]

    def _start(self, text: str) -> list[int]:
        """Return [BOS] where the tokenizer adds one and the template did not write it."""
        if not self.is_raw and self.writer.asking.is_ours:
            return self.chat.start
        bos = self.tokenizer.bos_token
        return self._bos if bos and not text.startswith(bos) else []

    @cached_property
    def _bos(self) -> list[int]:
        bos_id = self.tokenizer.bos_token_id
        return [bos_id] if self.tokenizer("x")["input_ids"][0] == bos_id else []

    # ---- the next token is the letter ----------------------------------------------------------------------

    def _letters(self, count: int) -> tuple[list[int], list[int]]:
        """Return the token prefix shared by replies of the first `count` letters, and each letter's token.

        The prefix is a lone space, say.

        Raises:
            UserError: a letter is not one known token of its own.
        """
        if count not in self._letters_by_count:
            for replies in self._letter_replies:
                prefix = list(commonprefix(replies[:count]))
                rest = [tokens[len(prefix) :] for tokens in replies[:count]]
                firsts = {tokens[0] for tokens in rest if len(tokens) == 1} - {self.tokenizer.unk_token_id}
                if len(firsts) == count:
                    self._letters_by_count[count] = prefix, [tokens[0] for tokens in rest]
                    break
            else:
                last = LETTERS[count - 1]
                asking, answer = self.writer.asking, self.writer.form.answer
                if answer.strip() != "{letter}":  # \box{B} goes on after its letter
                    raise UserError(
                        f"--protocol {asking.protocol.name} 的答案寫成 {answer}，不是單獨一個字母，不能用 "
                        f"--scoring {LETTER}；請改用 --scoring {LOGLIKELIHOOD} 或 {GENERATE}"
                    )
                raise UserError(f"這個 tokenizer 分不出 A 到 {last} 這幾個字母，不能用字母作答")
        return self._letters_by_count[count]

    @cached_property
    def _letter_replies(self) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of a reply that is one letter, for each letter, in two tokenizations.

        First as the model would write it; then with the reply's prefix tokenized separately, since a
        vocabulary may have ` A` and no ` D`.
        """
        answers = [self.writer.answer(place) for place in range(len(LETTERS))]
        if self.is_raw:
            before = self.text(Question("題目", ("甲", "乙"), None), (0, 1))
            ids = self.chat.ids(before)
            joined = [self.chat.ids(before + answer) for answer in answers]
            together = [
                whole[len(ids) :] if whole[: len(ids)] == ids else self.chat.ids(answer)
                for whole, answer in zip(joined, answers, strict=True)
            ]
            return together, [self.chat.ids(answer) for answer in answers]
        before = self.chat.text([{"role": "user", "content": "題目"}], reply=True)
        prefix = self.chat.ids(self.chat.reply_prefix)
        together = [self.chat.reply(before, answer) for answer in answers]
        return together, [[*prefix, *self.chat.ids(answer)] for answer in answers]

    @cached_property
    def _letters_by_count(self) -> dict[int, tuple[list[int], list[int]]]:
        return {}

    def verbalizer_ids(self, count: int) -> list[int]:
        """Return the token ids of the letters of the first `count` options."""
        return self._letters(count)[1]

    def mcq_prompt(self, question: Question, order: Sequence[int], spare: int = 2) -> Prompt:
        """Return the prompt up to the token of the letter.

        `blank` is its last position, whose logits choose the letter. A prompt that does not fit is treated as
        the protocol says.

        Args:
            question: the question to write.
            order: order of the options, as indices.
            spare: tokens to leave free for the answer.

        Raises:
            PromptTooLongError: it cannot be made to fit.
        """
        prefix = self._letters(len(order))[0]
        ids, cut = self._fitting(question, order, self.max_length - len(prefix) - spare)
        ids = [*ids, *prefix]
        return Prompt(tuple(ids), (len(ids) - 1,), cut)

    # ---- a reply -------------------------------------------------------------------------------------------

    def reply_prompt(self, question: Question, order: Sequence[int], spare: int) -> tuple[list[int], int]:
        """Return the prompt of a reply of `spare` tokens, and how much of it was cut.

        Raises:
            PromptTooLongError: it cannot be made to fit.
        """
        return self._fitting(question, order, self.max_length - spare)

    # ---- a continuation ------------------------------------------------------------------------------------

    def continuations(self, question: Question, order: Sequence[int]) -> list[Continuation]:
        """Return the continuations that answer with each letter, tokenized as lm-evaluation-harness does.

        White space that ends the prompt belongs to the continuation; prompt and continuation are tokenized
        together, and what follows the prompt's own tokens is scored (`_encode_pair` in lm_eval/api/model.py).

        Raises:
            PromptTooLongError: it does not fit, and the protocol does not cut.
        """
        text = self.text(question, order)
        before = text.rstrip()
        context = self.ids(before)
        rows = []
        for place in range(len(order)):
            whole = self.ids(text + self.writer.answer(place))
            targets = whole[len(context) :]
            if not targets:
                raise UserError("這個 tokenizer 把選項的字母併進了題目，不能以 loglikelihood 評測")
            ids = [*context, *targets][:-1]
            cut = max(0, len(ids) - self.max_length)
            if cut and self.writer.asking.protocol.too_long != CUT_LEFT:
                raise self._too_long(len(ids))
            rows.append(Continuation(tuple(ids[cut:]), tuple(targets), cut))
        return rows

    # ---- length --------------------------------------------------------------------------------------------

    def fits(self, question: Question, spare: int = 2) -> bool:
        """Return whether the whole prompt fits with `spare` more tokens, nothing cut."""
        order = range(len(question.options))
        return len(self.ids(self.text(question, order))) + spare <= self.max_length

    def _fitting(self, question: Question, order: Sequence[int], room: int) -> tuple[list[int], int]:
        """Return the token ids of a prompt in at most `room` tokens, and how much was cut."""
        ids = self.ids(self.text(question, order))
        if len(ids) <= room:
            return ids, 0
        too_long = self.writer.asking.protocol.too_long
        if too_long == CUT_LEFT and room > 0:
            return ids[len(ids) - room :], len(ids) - room
        if too_long != CUT_STEM:
            raise self._too_long(len(ids))
        return self._with_shorter_stem(question, order, room, ids)

    def _with_shorter_stem(
        self, question: Question, order: Sequence[int], room: int, ids: list[int]
    ) -> tuple[list[int], int]:
        """Cut the middle of the stem until the prompt fits; options never are cut. Returns characters cut."""
        size = len(question.stem)
        keep = self._kept_characters.get((question, room), size)  # start from another order's
        while len(ids) > room:
            if keep < size:
                ids = self.ids(self.text(question, order, _shortened(question.stem, keep)))
            if len(ids) > room:  # in proportion: the stem is only a part of the tokens
                keep -= 1 + int((len(ids) - room) / len(ids) * keep)
            if keep < 0:
                raise PromptTooLongError(f"選項本身就超過 {self.max_length} 個 token 的上限")
        self._kept_characters[question, room] = keep
        return ids, size - keep

    def _too_long(self, count: int) -> PromptTooLongError:
        return PromptTooLongError(f"提示有 {count} 個 token，超過 {self.max_length} 個的上限")

    @cached_property
    def _kept_characters(self) -> dict[tuple[Question, int], int]:
        """Number of characters kept of each truncated stem, by question and room."""
        return {}


def _shortened(stem: str, keep: int) -> str:
    """Return a stem with an ellipsis in its middle: it begins with the topic and ends with the question."""
    front = (keep + 1) // 2
    return stem[:front] + ELLIPSIS + stem[len(stem) - (keep - front) :]
