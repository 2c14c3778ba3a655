"""Exam questions as a causal model is asked them in a chat, to be answered with a letter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonprefix

from finetune.data.instructions import Message
from finetune.data.question import LETTERS, Question
from finetune.prompts.chat import Chat
from finetune.prompts.exam import ELLIPSIS, Prompt, PromptTooLongError, Template
from finetune.prompts.option_order import PromptError
from finetune.runtime.errors import UserError


@dataclass
class CausalExamPrompts:
    """Writes questions for a causal model that answers with a letter. Stands where `prompts.ExamPrompts` does
    for a masked one.

    Args:
        max_length: of a prompt, in tokens.
    """

    chat: Chat
    max_length: int
    template: Template = field(default_factory=Template)

    @property
    def tokenizer(self):
        return self.chat.tokenizer

    def _letters(self, count: int) -> tuple[list[int], list[int]]:
        """What the first `count` letters all begin with when they are said (a lone space, say), and the token
        of each.

        Raises:
            UserError: a letter is not one known token of its own.
        """
        if count not in self._known:
            for said in self._said:
                shared = commonprefix(said[:count])
                rest = [tokens[len(shared) :] for tokens in said[:count]]
                firsts = {tokens[0] for tokens in rest if len(tokens) == 1} - {self.tokenizer.unk_token_id}
                if len(firsts) == count:
                    self._known[count] = shared, [tokens[0] for tokens in rest]
                    break
            else:
                last = LETTERS[count - 1]
                raise UserError(f"這個 tokenizer 分不出 A 到 {last} 這幾個字母，不能用字母作答")
        return self._known[count]

    @cached_property
    def _said(self) -> tuple[list[list[int]], list[list[int]]]:
        """The tokens of each letter, said as the model would; and with the space before it apart, since a
        vocabulary may have ` A` and no ` D`.
        """
        before = self.chat.text([{"role": "user", "content": "題目"}], reply=True)
        apart = self.chat.ids(self.chat.reply_prefix)
        together = [self.chat.reply(before, letter) for letter in LETTERS]
        return together, [[*apart, *self.chat.ids(letter)] for letter in LETTERS]

    @cached_property
    def _known(self) -> dict[int, tuple[list[int], list[int]]]:
        return {}

    def verbalizer_ids(self, count: int) -> list[int]:
        """Token id that says the letter of each of the first `count` places."""
        return self._letters(count)[1]

    def messages(self, question: Question, order: Sequence[int], stem: str) -> list[Message]:
        """The question as it is put to the model, with this stem, options in `order`."""
        options = "\n".join(
            _filled(self.template.choice, letter=LETTERS[place], text=question.options[index])
            for place, index in enumerate(order)
        )
        return [{"role": "user", "content": _filled(self.template.asked, stem=stem, options=options)}]

    def shared(self, count: int) -> int:
        """How many tokens `count` letters all begin with: the last ones of a prompt that `listed` writes."""
        return len(self._letters(count)[0])

    def mcq_prompt(self, question: Question, order: Sequence[int], spare: int = 2) -> Prompt:
        """All up to the token that says the letter; `blank` is the last position, whose logits choose it.

        A stem that does not fit is cut in its middle, never an option.

        Args:
            spare: tokens to leave free for the answer.

        Raises:
            TooLong: the options alone do not fit.
        """
        shared = self._letters(len(order))[0]
        ids, size = self._prompt(question, order), len(question.stem)
        room = self.max_length - len(shared) - spare
        keep = self._kept.get((question, room), size)  # in another order it fitted, or nearly
        while len(ids) > room:
            if keep < size:
                ids = self._prompt(question, order, keep)
            if len(ids) > room:  # never too many at once: the stem is but a part of the tokens
                keep -= 1 + int((len(ids) - room) / len(ids) * keep)
            if keep < 0:
                raise PromptTooLongError(f"選項本身就超過 {self.max_length} 個 token 的上限")
        if keep < size:
            self._kept[question, room] = keep
        ids = [*ids, *shared]
        return Prompt(tuple(ids), (len(ids) - 1,), size - keep)

    @cached_property
    def _kept(self) -> dict[tuple[Question, int], int]:
        """Characters left of the stems that had to be cut."""
        return {}

    def _prompt(self, question: Question, order: Sequence[int], keep: int | None = None) -> list[int]:
        stem = question.stem
        if keep is not None:
            front = (keep + 1) // 2  # a stem opens with its matter and closes with what is asked
            stem = stem[:front] + ELLIPSIS + stem[len(stem) - (keep - front) :]
        try:
            return self.chat.prompt(self.messages(question, order, stem))
        except ValueError as error:
            raise PromptError(str(error)) from error


def _filled(pattern: str, **values: str) -> str:
    """A template with its places filled in one pass: a `{stem}` inside a value is text."""
    return re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), pattern)
