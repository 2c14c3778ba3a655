"""Listwise objectives of exam questions, whose options compete by their own text.

`choice`  a multiple-choice head gives one number to the stem with an option, softmax over the options
          (`AutoModelForMultipleChoice`): the usual way, and the control that the ways through the masked
          language model's own head are held against.
`cloze`   the score of an option is the mean log-probability of its tokens where they are all masked
          (scoring's `joint`), softmax over the options.

The options are never shown side by side, so their order does not matter; a question may have any number.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from finetune.data.question import Question
from finetune.data.question_store import pick
from finetune.objectives.batching import ExampleIndex, MultipleChoiceExample
from finetune.prompts.exam import ExamPrompts, PromptTooLongError, mask_positions, warm_cache


class MultipleChoiceObjective:
    """Softmax over the options of a question, by one of the two objectives.

    Args:
        name: `choice` or `cloze`.
        prompts: writes the rows as token ids.
        rows: questions; statements have no options and are left out.
    """

    packed = False
    rejected_by_template: Sequence[str] = ()
    remarks: Mapping[str, int] = {}
    baseline_loss = None

    def __init__(self, name: str, prompts: ExamPrompts, rows: Sequence):
        self.name, self.prompts = name, prompts
        self.lengths = array("I")  # length of each question's longest row
        self.too_long: list[str] = []
        self.truncated = 0
        kept = array("I")
        for index, row in enumerate(warm_cache(prompts, rows)):
            if not isinstance(row, Question):
                continue
            try:
                written = [prompts.cloze_prompt(row, option) for option in range(len(row.options))]
            except PromptTooLongError:
                self.too_long.append(row.id)
                continue
            self.truncated += any(prompt.cut for prompt in written)
            kept.append(index)
            self.lengths.append(max(len(prompt.ids) for prompt in written))
        self.rows = pick(rows, kept)

    def epoch(self, epoch: int) -> ExampleIndex:
        """Return every question once."""
        return ExampleIndex((self.name, range(len(self.rows))))

    def example(self, kind: str, index: int, epoch: int) -> MultipleChoiceExample:
        """Return one question. There is nothing to draw."""
        question = self.rows[index]
        options = range(len(question.options))
        if self.name == "choice":
            rows = tuple(self.prompts.cloze_prompt(question, option).ids for option in options)
            cells = [(option, option, 0, 0) for option in options]
        else:
            rows, cells = self._masked(question)
        return MultipleChoiceExample(rows, tuple(cells), len(options), question.answer, question.id)

    def _masked(
        self, question: Question
    ) -> tuple[tuple[tuple[int, ...], ...], list[tuple[int, int, int, int]]]:
        """Return rows and cells of the masked options; those of one length look alike and share a row."""
        rows: dict[tuple[int, ...], int] = {}
        cells = []
        for option in range(len(question.options)):
            text = self.prompts.option_ids(question, option)
            prompt = self.prompts.cloze_prompt_ids(question, text)
            row = rows.setdefault(mask_positions(prompt.ids, prompt.blank, self.prompts.mask), len(rows))
            cells += [(option, row, at, token) for at, token in zip(prompt.blank, text, strict=True)]
        return tuple(rows), cells
