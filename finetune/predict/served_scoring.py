"""Scores of options by a model on a server: by the letters among the next tokens, or by an echoed prompt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from finetune.data.question import LETTERS, Question
from finetune.evaluation.question_queries import log_softmax
from finetune.evaluation.scores import Order, Progress, Scores, best
from finetune.evaluation.scoring import OptionScorer, same_options
from finetune.predict.served_model import ServedModel, read_listed
from finetune.predict.served_requests import (
    Asked,
    continuation_scores,
    echoed,
    echoed_tail,
    letter_scores,
    letter_texts,
    prompt_body,
    unlisted_bound,
    with_next_token,
)
from finetune.prompts.option_order import PromptError, orders_to_ask
from finetune.prompts.protocol import RAW
from finetune.prompts.question_writer import QuestionWriter
from finetune.prompts.scoring_methods import LOGLIKELIHOOD, Method
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.journal import AnswerJournal

SAMPLE = Question("1 加 1 等於多少？", ("1", "2", "3", "4"), 1)  # to see what a server can do


@dataclass
class _Row:
    """A question in one order.

    Attributes:
        index: of the question.
        order: the options in the order shown.
        scores: log-probability of each place; None where it is not known.
        bound: of those that are not known, none is higher.
        problem: why there are no scores.
    """

    index: int
    order: Order
    scores: Sequence[float | None] = ()
    bound: float = -math.inf
    problem: str = ""


Done = Callable[[_Row], object]  # called with each row that is answered


class ServedScorer(OptionScorer):
    """Scores the options of questions by a model on a server.

    Args:
        model: the model.
        writer: how questions are written.
        answers: keeps answers for a run that is killed.
    """

    def __init__(self, model: ServedModel, writer: QuestionWriter, answers: AnswerJournal | None):
        self.model, self.writer, self.answers = model, writer, answers

    @property
    def is_raw(self) -> bool:
        """True where prompts are texts that go on."""
        return self.writer.asking.format == RAW

    def prompt(self, question: Question, order: Sequence[int]) -> Asked:
        """Return the request that goes on from a question."""
        written = (self.writer.text if self.is_raw else self.writer.messages)(question, order)
        return prompt_body(written, self.writer.asking.template_kwargs)

    def can_score(self, method: Method) -> bool:
        """Return whether the server gives the log-probabilities that a method needs.

        Raises:
            RefusedError, RunError: as `ServedModel.top`.
        """
        lead, _ = self._letters(2)
        if self.is_raw and method.base == LOGLIKELIHOOD:
            return self.model.echo is not None or bool(self.model.top(self._sample))
        if lead and not self.is_raw:
            return False  # the letter is not the first token of a reply
        return bool(self.model.top(self._sample)) or (self.is_raw and self.model.echo is not None)

    @property
    def _sample(self) -> Asked:
        return self.prompt(SAMPLE, range(4))

    def _letters(self, count: int) -> tuple[str, list[str]]:
        return letter_texts([self.writer.answer(place) for place in range(count)])

    # ---- scores --------------------------------------------------------------------------------------------

    def _score_plain(
        self, questions: Sequence[Question], method: Method, orders: str, progress: Progress | None
    ) -> Scores:
        scores = Scores([0.0] * len(question.options) for question in questions)
        scores.by_order = [[] for _ in questions]
        rows: list[_Row] = []
        for index, question in enumerate(questions):
            try:
                rows += [_Row(index, order) for order in orders_to_ask(question.options, orders)]
            except PromptError as error:
                scores.skipped[index] = str(error)
        left = Counter(row.index for row in rows)

        def done(row: _Row) -> None:
            left[row.index] -= 1
            if progress and not left[row.index]:
                progress(1)

        if self.is_raw and method.base == LOGLIKELIHOOD and self.model.echo is not None:
            self._echo(questions, rows, done)
        else:
            self._list(questions, rows, done)
        self._collect(rows, method, scores)
        return scores

    def _list(self, questions: Sequence[Question], rows: Sequence[_Row], done: Done) -> None:
        """Score rows by the likeliest next tokens; by an echo where letters are not among them."""
        asked = []
        top = self.model.top(self._sample)
        for row in rows if top else ():
            question = questions[row.index]
            prompt = self.prompt(question, row.order)
            if self.is_raw and (lead := self._letters(len(row.order))[0]):
                prompt = Asked(prompt.endpoint, {"prompt": prompt.body["prompt"] + lead})
            asked.append(with_next_token(prompt, top))
        found = self.model.ask_all(asked, read_listed, self.answers, lambda number: done(rows[number]))
        for row, listed in zip(rows, found, strict=False):
            if isinstance(listed, UserError):
                row.problem = str(listed)
            elif listed:
                row.scores = letter_scores(listed, self._letters(len(row.order))[1])
                row.bound = unlisted_bound(listed)
        again = [row for row in rows if not row.problem and (not row.scores or None in row.scores)]
        if again and self.is_raw and self.model.echo is not None:
            if top:
                log(f"{len(again)} 次問答有字母不在前 {top} 個 token 裡：改以 echo 逐一計分")
            self._echo(questions, again, (lambda row: None) if top else done)

    def _echo(self, questions: Sequence[Question], rows: Sequence[_Row], done: Done) -> None:
        """Score rows by each answer as the continuation of the prompt, as the local model does."""
        limit = self.model.echo
        assert limit is not None
        asked: list[Asked] = []
        owners: list[_Row] = []
        continuations: list[str] = []
        for row in rows:
            text = self.writer.text(questions[row.index], row.order)
            before = text.rstrip()  # white space at the end belongs to the continuation, see `continuations`
            for place in range(len(row.order)):
                continuations.append(text[len(before) :] + self.writer.answer(place))
                asked.append(echoed(before + continuations[-1], limit))
                owners.append(row)
        left = Counter(map(id, owners))

        def finished(number: int) -> None:
            row = owners[number]
            left[id(row)] -= 1
            if not left[id(row)]:
                done(row)

        def read(number: int, answer: dict[str, Any]) -> Any:
            return echoed_tail(answer, continuations[number], limit)

        found = self.model.ask_all(asked, read, self.answers, finished)
        at = 0
        for row in rows:
            tails, texts = found[at : at + len(row.order)], continuations[at : at + len(row.order)]
            at += len(row.order)
            if error := next((tail for tail in tails if isinstance(tail, UserError)), None):
                row.problem = str(error)
            elif (sums := continuation_scores([tail or [] for tail in tails], texts)) is None:
                row.problem = "伺服器回傳的 token 與送出的文字對不上，算不出選項的分數"
            else:
                row.scores = sums

    def _collect(self, rows: Sequence[_Row], method: Method, scores: Scores) -> None:
        """Turn the rows into scores of options, the mean over the orders."""
        by_question: dict[int, list[_Row]] = {}
        for row in rows:
            by_question.setdefault(row.index, []).append(row)
        bounded = 0
        for index, of_question in by_question.items():
            problem = next((row.problem for row in of_question if row.problem), "")
            if not problem and any(not row.scores for row in of_question):
                problem = "伺服器沒有給這一題的 logprobs"
            if problem:
                scores.skipped[index] = problem
                continue
            whole = [[row.bound if one is None else one for one in row.scores] for row in of_question]
            if method.base != LOGLIKELIHOOD:
                whole = [log_softmax(places) for places in whole]
            by_option = [
                [places[row.order.index(option)] for option in range(len(row.order))]
                for row, places in zip(of_question, whole, strict=True)
            ]
            mean = [fmean(column) for column in zip(*by_option, strict=True)]
            chosen = best(mean)
            unlisted = [row for row in of_question if row.scores[row.order.index(chosen)] is None]
            if unlisted:  # its score is only a bound: another option may be above it
                letter = LETTERS[unlisted[0].order.index(chosen)]
                scores.skipped[index] = (
                    f"字母 {letter} 不在伺服器列出的最可能的 token 裡，分不出哪個選項較高；"
                    "可改用 --scoring generate"
                )
                continue
            bounded += any(None in row.scores for row in of_question)
            scores[index] = mean
            scores.by_order[index] = [
                (row.order, values) for row, values in zip(of_question, by_option, strict=True)
            ]
        if bounded:
            log(f"{bounded} 題有沒被選的字母不在伺服器列出的 token 裡：答案不受影響，那些選項的分數是上限")

    def _indistinguishable(self, question: Question) -> list[tuple[int, ...]]:
        return same_options(question.options)
