"""Objective of exam questions and statements that a masked language model is fine-tuned on.

`answer`      the letter of the right option at the blank, options in a new order each epoch (answer-token
              prediction, arXiv:2502.03793); only the letters of the options compete.
`answer+mlm`  the same, and one example in five is plain masked-language-model work on the question with
              its answer.
`mlm`         the question with its right answer written out, and some of it masked: with `--masking answer`
              the whole answer in most examples and characters at random in the others, else characters,
              words or spans at random. Statements, if any, are read the same way.

Questions whose options compete by their own text: objectives/multiple_choice.py.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace

from finetune.data.question import Question, Statement
from finetune.data.question_store import pick
from finetune.objectives.batching import Example, ExampleIndex
from finetune.objectives.masked_lm import MaskingConfig, apply_mask, maskable_units, ordinary_token_ids
from finetune.prompts.exam import ExamPrompts, Prompt, PromptTooLongError, mask_positions, warm_cache
from finetune.prompts.option_order import shuffled

MLM_SHARE = 0.2  # share of the examples that are MLM, in answer+mlm (15 to 20 % work alike, arXiv:2502.03793)
ANSWER_MASKED = 0.9  # share of the examples whose blank is the whole answer, in mlm
ANSWER = MaskingConfig("answer")
WORDS_KEPT = 1 << 15  # rows whose words are kept from epoch to epoch


class ExamObjective:
    """Examples of one objective over one set of rows.

    Args:
        name: `answer`, `answer+mlm` or `mlm`.
        prompts: writes the rows as token ids.
        rows: questions and, for `mlm`, statements.
        seed: fixes all draws: one (seed, epoch, row) gives one example, in any process, at any time.
        masking_config: how words are masked; masking `answer` masks the answer of `mlm`.
    """

    packed = False
    rejected_by_template: Sequence[str] = ()
    remarks: Mapping[str, int] = {}
    baseline_loss = None

    def __init__(
        self,
        name: str,
        prompts: ExamPrompts,
        rows: Sequence[Question | Statement],
        seed: int,
        masking_config: MaskingConfig = ANSWER,
    ):
        self.name, self.prompts, self.seed = name, prompts, seed
        self.masks_answer = name == "mlm" and masking_config.masking == ANSWER.masking
        if masking_config.masking == ANSWER.masking:
            # beside whole answers single characters, as pseudo-log-likelihoods need them
            masking_config = replace(masking_config, masking="token" if self.masks_answer else "word")
        self.masking_config = masking_config
        self._words: dict[int, list[Sequence[int]]] = {}  # row -> words, found when first masked
        self.too_long: list[str] = []
        self.truncated = 0
        self.lengths = array("I")
        self._special = set(prompts.tokenizer.all_special_ids)
        self._vocab = ordinary_token_ids(prompts.tokenizer)
        self._statements = array("I")  # their places among the rows: they have no letter to answer with
        kept = array("I")
        for index, row in enumerate(warm_cache(prompts, rows, answers=name == "mlm")):
            try:
                prompt = self._prompt(row, answer=name != "mlm" and isinstance(row, Question))
            except PromptTooLongError:
                self.too_long.append(row.id)
                continue
            self.truncated += prompt.cut > 0
            if isinstance(row, Statement):
                self._statements.append(len(kept))
            kept.append(index)
            self.lengths.append(len(prompt.ids))
        self.rows = pick(rows, kept)

    def epoch(self, epoch: int) -> ExampleIndex:
        """Return the examples of an epoch: every row, and in `answer+mlm` some questions again as `mlm`."""
        every: Sequence[int] = range(len(self.rows))
        if self.name == "mlm":
            return ExampleIndex(("mlm", every))
        if self._statements:
            told = {*self._statements}
            every = [place for place in every if place not in told]
        if self.name != "answer+mlm":
            return ExampleIndex(("answer", every))
        extra = round(len(every) * MLM_SHARE / (1 - MLM_SHARE))
        rng = random.Random(f"mix:{self.seed}:{epoch}")
        return ExampleIndex(("answer", every), ("mlm", [*self._statements, *rng.sample(every, extra)]))

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """Return one example. A constant `epoch` gives the same masks and orders each time."""
        row = self.rows[index]
        rng = random.Random(f"{kind}:{self.seed}:{epoch}:{row.id}")
        return self._answer(row, rng) if kind == "answer" else self._masked(index, rng)

    def _prompt(self, row: Question | Statement, answer: bool) -> Prompt:
        if isinstance(row, Statement):
            return self.prompts.statement_prompt(row)
        if answer:
            return self.prompts.mcq_prompt(row, range(len(row.options)))
        return self.prompts.cloze_prompt(row, _answer_of(row))

    def _answer(self, question: Question, rng: random.Random) -> Example:
        order = shuffled(question.options, rng)
        prompt = self.prompts.mcq_prompt(question, order)
        letters = self.prompts.verbalizer_ids(len(order))
        target = order.index(_answer_of(question))
        return Example(prompt.ids, prompt.blank, (target,), tuple(letters), question.id)

    def _masked(self, index: int, rng: random.Random) -> Example:
        row = self.rows[index]
        prompt = self._prompt(row, answer=False)
        if self.masks_answer and rng.random() < ANSWER_MASKED:
            seen, chosen = mask_positions(prompt.ids, prompt.blank, self.prompts.mask), prompt.blank
        else:
            if index not in self._words:
                if len(self._words) >= WORDS_KEPT:
                    self._words.clear()
                self._words[index] = self._words_of(row, prompt)
            words = self._words[index]
            seen, chosen = apply_mask(
                prompt.ids, words, self.prompts.mask, self._vocab, rng, self.masking_config
            )
        return Example(seen, chosen, tuple(prompt.ids[i] for i in chosen), row=row.id)

    def _words_of(self, row: Question | Statement, prompt: Prompt) -> list[Sequence[int]]:
        """Return the positions that are masked together; the blank where there is nothing but [UNK]."""
        if isinstance(row, Statement):
            words = self.prompts.statement_words(row)
        else:
            words = self.prompts.cloze_words(row, _answer_of(row), prompt)
        return maskable_units(words, prompt.ids, self._special) or [[at] for at in prompt.blank]


def _answer_of(question: Question) -> int:
    """Return the index of the right option; questions without a key never reach an objective."""
    assert question.answer is not None
    return question.answer
