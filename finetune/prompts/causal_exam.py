"""Chat prompts of exam questions for causal models, answered with a letter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING

from finetune.data.instructions import Message
from finetune.data.question import LETTERS, Question
from finetune.prompts.chat import Chat
from finetune.prompts.exam import ELLIPSIS, Prompt, PromptTooLongError, Template
from finetune.prompts.option_order import PromptError
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class CausalExamPrompts:
    """Writes questions for a causal model that answers with a letter.

    It takes the place of `prompts.exam.ExamPrompts`, which is for masked models.

    Args:
        chat: writes the messages for the model's tokenizer.
        max_length: longest prompt, in tokens.
        template: texts around the stem and the options.
    """

    chat: Chat
    max_length: int
    template: Template = field(default_factory=Template)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.chat.tokenizer

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
                raise UserError(f"這個 tokenizer 分不出 A 到 {last} 這幾個字母，不能用字母作答")
        return self._letters_by_count[count]

    @cached_property
    def _letter_replies(self) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of a reply that is one letter, for each letter, in two tokenizations.

        First as the model would write it; then with the reply's prefix tokenized separately, since a
        vocabulary may have ` A` and no ` D`.
        """
        before = self.chat.text([{"role": "user", "content": "題目"}], reply=True)
        prefix = self.chat.ids(self.chat.reply_prefix)
        together = [self.chat.reply(before, letter) for letter in LETTERS]
        return together, [[*prefix, *self.chat.ids(letter)] for letter in LETTERS]

    @cached_property
    def _letters_by_count(self) -> dict[int, tuple[list[int], list[int]]]:
        return {}

    def verbalizer_ids(self, count: int) -> list[int]:
        """Return the token ids of the letters of the first `count` options."""
        return self._letters(count)[1]

    def messages(self, question: Question, order: Sequence[int], stem: str) -> list[Message]:
        """Return the messages that ask the question with this stem, options in `order`."""
        options = "\n".join(
            _fill(self.template.choice, letter=LETTERS[place], text=question.options[index])
            for place, index in enumerate(order)
        )
        return [{"role": "user", "content": _fill(self.template.asked, stem=stem, options=options)}]

    def letter_prefix_length(self, count: int) -> int:
        """Return the number of tokens of the letters' common prefix, which end every `mcq_prompt`."""
        return len(self._letters(count)[0])

    def mcq_prompt(self, question: Question, order: Sequence[int], spare: int = 2) -> Prompt:
        """Return the prompt up to the token of the letter.

        `blank` is its last position, whose logits choose the letter. A stem that does not fit is truncated in
        its middle; options never are.

        Args:
            question: the question to write.
            order: order of the options, as indices.
            spare: tokens to leave free for the answer.

        Raises:
            PromptTooLongError: the options alone do not fit.
        """
        prefix = self._letters(len(order))[0]
        ids, size = self._prompt(question, order), len(question.stem)
        room = self.max_length - len(prefix) - spare
        keep = self._kept_characters.get((question, room), size)  # start from another order's
        while len(ids) > room:
            if keep < size:
                ids = self._prompt(question, order, keep)
            if len(ids) > room:  # in proportion: the stem is only a part of the tokens
                keep -= 1 + int((len(ids) - room) / len(ids) * keep)
            if keep < 0:
                raise PromptTooLongError(f"選項本身就超過 {self.max_length} 個 token 的上限")
        if keep < size:
            self._kept_characters[question, room] = keep
        ids = [*ids, *prefix]
        return Prompt(tuple(ids), (len(ids) - 1,), size - keep)

    @cached_property
    def _kept_characters(self) -> dict[tuple[Question, int], int]:
        """Number of characters kept of each truncated stem, by question and room."""
        return {}

    def _prompt(self, question: Question, order: Sequence[int], keep: int | None = None) -> list[int]:
        stem = question.stem
        if keep is not None:
            front = (keep + 1) // 2  # a stem begins with the topic and ends with the actual question
            stem = stem[:front] + ELLIPSIS + stem[len(stem) - (keep - front) :]
        try:
            return self.chat.prompt(self.messages(question, order, stem))
        except ValueError as error:
            raise PromptError(str(error)) from error


def _fill(pattern: str, **values: str) -> str:
    """Fill the placeholders of a template in one pass, so that a `{stem}` inside a value stays text."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), pattern)
