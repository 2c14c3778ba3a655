"""Questions as texts or messages under a protocol, with examples; servers have their own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.data.instructions import Message
from finetune.data.question import LETTERS, Question
from finetune.data.subjects import chinese_name
from finetune.prompts.protocol import CHAT, OURS, RAW, Form, Protocol, filled, load_protocol
from finetune.runtime.errors import UserError

Examples = Mapping[str, Sequence[Question]]  # answered questions of each subject


@dataclass(frozen=True)
class Asking:
    """How a model is asked: a protocol, and what the flags change of it.

    Args:
        protocol: texts, scoring, aggregate.
        format: the form that is used, raw or chat.
        system_prompt: in front of the protocol's own header, or in its place where it has none.
        multiturn: in chat, examples are turns of their own; else they stand in one message.
        template_kwargs: arguments of the chat template.
        num_fewshot: examples before each question.
    """

    protocol: Protocol
    format: str = CHAT
    system_prompt: str = ""
    multiturn: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_fewshot: int = 0

    @property
    def form(self) -> Form:
        """The form that is used."""
        return self.protocol.form(self.format)

    @property
    def is_ours(self) -> bool:
        """True for the prompt of this project."""
        return self.protocol.name == OURS


def our_asking() -> Asking:
    """Return how a causal model is asked unless flags say otherwise."""
    return Asking(load_protocol(OURS))


@dataclass(frozen=True)
class QuestionWriter:
    """Writes questions under a protocol.

    Args:
        asking: the protocol and its settings.
        examples: answered questions by subject, in the order they are shown.
        question: text of a question in place of the form's: the run card's, under our own protocol.
        option: text of an option in place of the protocol's.
    """

    asking: Asking = field(default_factory=our_asking)
    examples: Examples = field(default_factory=dict)
    question: str = ""
    option: str = ""

    @property
    def form(self) -> Form:
        """The texts in use."""
        return self.asking.form

    def question_text(self, question: Question, order: Sequence[int], stem: str | None = None) -> str:
        """Return the question with its options in `order`, and with another stem where one is given."""
        stem = question.stem if stem is None else stem
        pattern = self.option or self.asking.protocol.option
        options = "\n".join(
            filled(pattern, letter=LETTERS[place], text=question.options[index])
            for place, index in enumerate(order)
        )
        return filled(
            self.question or self.form.question,
            stem=stem.strip() if self.asking.protocol.strip_stem else stem,
            options=options,
            subject=self._subject(question),
        )

    def answer(self, place: int) -> str:
        """Return the text that answers with the letter of a place: what is scored."""
        return filled(self.form.answer, letter=LETTERS[place])

    def examples_for(self, question: Question) -> list[Question]:
        """Return the examples shown before a question: those of its subject, never the question itself."""
        rows = self.examples.get(question.subject, ())
        mark = question.fingerprint if rows else ""
        return [row for row in rows if row.fingerprint != mark]

    def text(self, question: Question, order: Sequence[int], stem: str | None = None) -> str:
        """Return the raw prompt, up to where the answer follows."""
        shown = self.examples_for(question)
        parts = [self._header(question, bool(shown)), *map(self._example, shown)]
        return "".join([*parts, self.question_text(question, order, stem)])

    def messages(self, question: Question, order: Sequence[int], stem: str | None = None) -> list[Message]:
        """Return the messages that ask a question; the last one is the user's."""
        shown = self.examples_for(question)
        header = self._header(question, bool(shown))
        messages: list[Message] = [{"role": "system", "content": header}] if header else []
        turns: list[str] = []
        if self.asking.multiturn:
            for example in shown:
                order_written = range(len(example.options))
                turns += [self.question_text(example, order_written), self.answer(_key(example))]
        asked = self.question_text(question, order, stem)
        if not self.asking.multiturn:
            asked = "".join([*map(self._example, shown), asked])
        turns.append(asked)
        turns[0] = filled(self.form.lead, subject=self._subject(question)) + turns[0]
        roles = ("user", "assistant")
        return messages + [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]

    def _example(self, example: Question) -> str:
        """Return an example in running text."""
        written = self.question_text(example, range(len(example.options)))
        return filled(self.form.example, question=written, letter=LETTERS[_key(example)])

    def _header(self, question: Question, with_examples: bool) -> str:
        header = filled(self.form.header, subject=self._subject(question))
        if self.form.header_needs_examples and not with_examples:
            header = ""
        system = self.asking.system_prompt
        if not system or not header:
            return system + ("\n\n" if system and self.asking.format == RAW else "") or header
        joined = "" if system[-1].isspace() or header[0].isspace() else "\n\n"  # as lm-eval joins them
        return system + joined + header

    def _subject(self, question: Question) -> str:
        return self.asking.protocol.subjects.get(question.subject) or chinese_name(question.subject)


def _key(question: Question) -> int:
    """Return the index of the right option: examples have one."""
    assert question.answer is not None
    return question.answer


def choose_examples(questions: Sequence[Question], count: int, flag: str = "--num_fewshot") -> Examples:
    """Return the first `count` questions of each subject, in file order; fewer where there are fewer.

    Args:
        questions: the dev (train) rows.
        count: examples of a subject.
        flag: for messages.

    Raises:
        UserError: there is not one.
    """
    if not count:
        return {}
    chosen: dict[str, list[Question]] = {}
    for question in questions:
        rows = chosen.setdefault(question.subject, [])
        if len(rows) < count:
            rows.append(question)
    if not chosen:
        raise UserError(
            f"{flag} {count}：示範取自各科的 dev（訓練）題，這份題庫沒有；"
            "請改用有 dev 檔的題庫資料夾，或不加這個旗標"
        )
    return chosen
