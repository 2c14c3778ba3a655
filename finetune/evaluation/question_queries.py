"""Queries of one question: the tokens a scoring method masks and wants, and how results become scores.

What each method computes: evaluation/scoring.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

from finetune.data.question import Question
from finetune.evaluation.queries import LogprobQuery
from finetune.evaluation.scores import Order
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.exam import ExamPrompts, Prompt, mask_positions
from finetune.prompts.option_order import orders_to_ask
from finetune.prompts.scoring_methods import CHOICE, LOGLIKELIHOOD, Method


@dataclass
class QuestionQueries:
    """A question as queries for the model, and how their results are read.

    Attributes:
        queries: the queries to run.
        read: returns a score for each option, once the queries have results.
        orders: where the options are listed, their orders.
        read_orders: returns a score for each option in each of these orders.
        truncated: the prompt was cut.
    """

    queries: list[LogprobQuery]
    read: Callable[[], list[float]]
    orders: list[Order] = field(default_factory=list)
    read_orders: Callable[[], list[list[float]]] = list
    truncated: bool = False


def queries_for(
    prompts: ExamPrompts | CausalExamPrompts, question: Question, method: Method, orders: str
) -> QuestionQueries:
    """Make the queries that score the options of a question by a method.

    Args:
        orders: option orders of `letter`: `1`, `cyclic` or `all`.

    Raises:
        PromptError: the question cannot be written out, e.g. because it is too long.
    """
    if method.base == LOGLIKELIHOOD:
        assert isinstance(prompts, CausalExamPrompts)  # `Predictor.method` refuses it for other models
        return _continuation_queries(prompts, question, orders)
    if method.by_letter:
        return _letter_queries(prompts, question, orders)
    assert isinstance(prompts, ExamPrompts)  # a causal model is scored by letters alone
    if method.base == CHOICE:
        return _head_queries(prompts, question)
    texts = [prompts.option_ids(question, option) for option in range(len(question.options))]
    conditional = _text_queries(
        prompts, lambda text: prompts.cloze_prompt_ids(question, text), question, texts, method
    )
    if method.correction != "pmi":
        return conditional
    prompt_of = partial(prompts.unconditional_prompt, question)
    unconditional = _text_queries(prompts, prompt_of, question, texts, method)
    return QuestionQueries(
        conditional.queries + unconditional.queries,
        lambda: [a - b for a, b in zip(conditional.read(), unconditional.read(), strict=True)],
        truncated=conditional.truncated,
    )


def log_softmax(row: Sequence[float]) -> list[float]:
    """Return the logarithm of the softmax of a row of scores."""
    top = max(row)
    total = top + math.log(sum(math.exp(value - top) for value in row))
    return [value - total for value in row]


def _letter_queries(
    prompts: ExamPrompts | CausalExamPrompts, question: Question, orders: str
) -> QuestionQueries:
    letters = tuple(prompts.verbalizer_ids(len(question.options)))
    shown = orders_to_ask(question.options, orders)
    written = [prompts.mcq_prompt(question, order) for order in shown]
    queries = [
        LogprobQuery(prompt.ids, prompt.blank, (letters,), softmax_over_candidates=True) for prompt in written
    ]

    def by_place() -> list[list[float]]:
        return [query.results[0] for query in queries]

    return _listed(queries, shown, by_place, any(prompt.cut for prompt in written))


def _continuation_queries(prompts: CausalExamPrompts, question: Question, orders: str) -> QuestionQueries:
    """Make the queries of log P(letter | prompt), the sum over the tokens of the letter's continuation.

    Continuations of one token share the query of their prompt.
    """
    shown = orders_to_ask(question.options, orders)
    queries: list[LogprobQuery] = []
    cells: list[list[list[tuple[LogprobQuery, int, int]]]] = []  # by order, place and token
    truncated = False
    for order in shown:
        shared: dict[tuple[int, ...], LogprobQuery] = {}
        places = []
        for row in prompts.continuations(question, order):
            query = shared.setdefault(row.ids, LogprobQuery(row.ids, (), ()))
            first = len(row.ids) - len(row.targets)
            places.append(
                [(query, *_add_wanted(query, first + at, token)) for at, token in enumerate(row.targets)]
            )
            truncated = truncated or row.cut > 0
        queries += shared.values()
        cells.append(places)

    def by_place() -> list[list[float]]:
        return [
            [sum(query.results[position][choice] for query, position, choice in tokens) for tokens in places]
            for places in cells
        ]

    return _listed(queries, shown, by_place, truncated)


def _listed(
    queries: list[LogprobQuery],
    orders: list[Order],
    by_place: Callable[[], list[list[float]]],
    truncated: bool,
) -> QuestionQueries:
    """Return the queries of options that are listed in several orders.

    Args:
        by_place: returns, for each order, a score for each place.
    """

    def read_orders() -> list[list[float]]:
        return [
            [row[order.index(option)] for option in range(len(order))]
            for row, order in zip(by_place(), orders, strict=True)
        ]

    def read() -> list[float]:
        return [fmean(column) for column in zip(*read_orders(), strict=True)]

    return QuestionQueries(queries, read, orders, read_orders, truncated)


def _head_queries(prompts: ExamPrompts, question: Question) -> QuestionQueries:
    written = [prompts.cloze_prompt(question, option) for option in range(len(question.options))]
    # Options that look alike share a row: in another place of a batch it would get another last digit.
    shared = {prompt.ids: LogprobQuery(prompt.ids, (0,), ((0,),), raw_logits=True) for prompt in written}

    def read() -> list[float]:
        return log_softmax([shared[prompt.ids].results[0][0] for prompt in written])

    return QuestionQueries(list(shared.values()), read, truncated=any(prompt.cut for prompt in written))


def _text_queries(
    prompts: ExamPrompts,
    write: Callable[[Sequence[int]], Prompt],
    question: Question,
    texts: Sequence[tuple[int, ...]],
    method: Method,
) -> QuestionQueries:
    """Make queries for each token of each option, once.

    Tokens whose masked rows look the same share a query: all of an option in `joint`, and those of options of
    one length.

    Args:
        write: prompt with the blank for these token ids.
        texts: token ids of each option.
    """
    shared: dict[tuple[int, ...], LogprobQuery] = {}
    cells: list[list[tuple[LogprobQuery, int, int]]] = []  # by option and token: query, position, choice
    truncated = False
    for option, text in enumerate(texts):
        scored = text[:1] if method.base == "first" else text
        prompt = write(scored)
        truncated = truncated or prompt.cut > 0
        masked = _masked_with(method.base, len(scored), prompts, question.options[option])
        row = []
        for token, together in enumerate(masked):
            places = [prompt.blank[i] for i in together]
            ids = mask_positions(prompt.ids, places, prompts.mask)
            query = shared.setdefault(ids, LogprobQuery(ids, (), ()))
            row.append((query, *_add_wanted(query, prompt.blank[token], scored[token])))
        cells.append(row)

    def read() -> list[float]:
        gather = sum if method.summed else fmean
        return [gather([query.results[position][choice] for query, position, choice in row]) for row in cells]

    return QuestionQueries(list(shared.values()), read, truncated=truncated)


def _masked_with(base: str, count: int, prompts: ExamPrompts, text: str) -> list[range]:
    """Return for each of an option's tokens the tokens that are masked while it is scored."""
    if base in ("joint", "first"):
        return [range(count)] * count
    if base == "pll":
        return [range(at, at + 1) for at in range(count)]
    ends = prompts.word_ends(text) if base == "pll_word_l2r" else []
    return [range(at, ends[at] if len(ends) == count else count) for at in range(count)]


def _add_wanted(query: LogprobQuery, position: int, token: int) -> tuple[int, int]:
    """Add a token to a query; return where its log-probability will stand in the results."""
    if position not in query.positions:
        query.positions += (position,)
        query.wanted += ((),)
    place = query.positions.index(position)
    wanted = query.wanted[place]
    if token not in wanted:
        wanted += (token,)
        query.wanted = (*query.wanted[:place], wanted, *query.wanted[place + 1 :])
    return place, wanted.index(token)
