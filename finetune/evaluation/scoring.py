"""Scores of a question's options, for the REPL, one-shot questions, files, validation and the exam.

Scores are log-probabilities in nats, one per option; the highest is the answer. By method
(prompts/scoring_methods.py):

`letter`        log P(letter of the option | stem, all options), softmax over the letters; mean over orders.
`joint`         log P(token | stem) of its tokens, all tokens of the option masked at once.
`pll`           the same, each token masked alone: pseudo-log-likelihood (arXiv:1910.14659, equation 1).
`pll_l2r`       a token masked with every later token of the option: the chain rule within the option.
`pll_word_l2r`  a token masked with the later tokens of its word, by jieba (arXiv:2305.10588, section 2).
`first`         log P(first token | stem), one token masked: for reference; a shared first token is a tie.
`choice`        the number of a multiple-choice head for stem and option, softmax over the options.

A causal model is scored by the letter alone: by `letter` as its next token, by `loglikelihood` as the
continuation of the prompt among all texts, log P(continuation | prompt), as lm-evaluation-harness does; or it
generates an answer, see predict/causal.py.

The text methods take the mean over the option's tokens, with `_sum` the sum. `+pmi` subtracts the score of
the same text where nothing is known of the question but its subject (domain-conditional PMI,
arXiv:2104.08315, equation 2). `+prior` takes the model's preference for letters out of `letter` (PriDe,
arXiv:2309.03882, section 4): see `OptionScorer.estimate_prior`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from finetune.data.question import Question, seeded_hash
from finetune.evaluation.queries import Forward, LogprobRunner, as_forward
from finetune.evaluation.question_queries import (
    QuestionQueries,
    log_softmax,
    queries_for,
)
from finetune.evaluation.scores import Order, Prior, Progress, Scores
from finetune.models.forward import NOT_NUMBERS
from finetune.models.tokenizer import prompt_length
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.exam import ExamPrompts
from finetune.prompts.option_order import PromptError, pinned_options
from finetune.prompts.scoring_methods import ORDERS, Method, parse
from finetune.runtime.distributed import Distributed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW_TOKENS = 1 << 19  # tokens of the rows made at a time: bounds the memory of a long exam
CLOSE = 0.02  # nats between the best two: bf16 moves scores by half of that, see benchmarks/NOTES.md
# If more than this share of the questions are that close, the model is guessing: only the closest 1 in 50
# (at least 4) are scored again in fp32.
GUESSING, GUESSED_ONE_IN, GUESSED_FEW = 0.34, 50, 4
PRIOR_SHARE = 0.05  # share of the questions that the prior is estimated on (arXiv:2309.03882, section 4.2)


@dataclass(frozen=True)
class ScoringConfig:
    """Settings of option scoring.

    Args:
        method: a name of scoring_methods.METHODS.
        orders: option orders of `letter`: `1` as written, `cyclic` every rotation, `all` every permutation.
        prior: for `+prior`: as `Scorer.estimate_prior` returns it; estimated from the questions when None.

    Raises:
        ValueError: no such method or orders.
    """

    method: str | Method = "pll"
    orders: str = "1"
    prior: Prior | None = None

    def __post_init__(self):
        parse(self.method)
        if self.orders not in ORDERS:
            raise ValueError(f"unknown orders {self.orders!r}; known: {', '.join(ORDERS)}")


class OptionScorer(ABC):
    """Base of what scores the options of questions, wherever the model runs."""

    @abstractmethod
    def _score_plain(
        self, questions: Sequence[Question], method: Method, orders: str, progress: Progress | None
    ) -> Scores:
        """Score by a method without the correction by a prior."""

    @abstractmethod
    def _indistinguishable(self, question: Question) -> list[tuple[int, ...]]:
        """Return groups of options that are the same to the model."""

    def score(
        self, questions: Sequence[Question], config: ScoringConfig, progress: Progress | None = None
    ) -> Scores:
        """Score the options of every question.

        Args:
            questions: each with 2 to 10 options.
            config: method, orders and prior.
            progress: called with the number of questions finished.

        Returns:
            (n, K) log-probabilities.
        """
        scores = self._score_once(questions, config, progress)
        for index, question in enumerate(questions):
            if groups := self._indistinguishable(question):
                scores[index] = _share_score(scores[index], groups)
                scores.by_order[index] = [
                    (order, _share_score(row, groups)) for order, row in scores.by_order[index]
                ]
        return scores

    def estimate_prior(self, questions: Sequence[Question]) -> Prior:
        """Estimate the model's preference for places, apart from what stands there.

        Of one question scored in every rotation, softmax of the mean log-probability of each place: every
        option has stood at every place once, so what remains is the place's own (arXiv:2309.03882, equations
        5 and 7). The prior is the mean of that over PRIOR_SHARE of the questions (at least one), drawn by
        fingerprint, apart for each number of options. Questions whose options may not all move do not count.

        Returns:
            log prior of each place, by number of options.
        """
        return self._estimate_prior(questions)[0]

    def _score_once(
        self, questions: Sequence[Question], config: ScoringConfig, progress: Progress | None
    ) -> Scores:
        method = parse(config.method)
        if method.correction == "prior":
            return self._score_without_prior(questions, config, progress)
        return self._score_plain(questions, method, config.orders, progress)

    def _score_without_prior(
        self, questions: Sequence[Question], config: ScoringConfig, progress: Progress | None
    ) -> Scores:
        """Score by PriDe: log P(letter) minus the log of the prior of its place, once more a softmax.

        The questions the prior comes from were scored in every rotation; their scores are the mean of these,
        where the prior cancels.
        """
        prior = config.prior
        sample: dict[int, list[tuple[Order, list[float]]]] = {}
        if prior is None:
            prior, sample = self._estimate_prior(questions)
        scores = self._score_plain(questions, Method("letter"), config.orders, progress)
        scores.prior, scores.rotated = prior, set(sample)
        for index, question in enumerate(questions):
            if index in scores.skipped:
                continue
            of_places = prior.get(len(question.options), [0.0] * len(question.options))
            corrected = [
                (order, log_softmax([row[i] - of_places[order.index(i)] for i in range(len(row))]))
                for order, row in scores.by_order[index]
            ]
            averaged = (row for _, row in sample.get(index, corrected))
            scores[index] = [fmean(column) for column in zip(*averaged, strict=True)]
            scores.by_order[index] = corrected
        return scores

    def _estimate_prior(
        self, questions: Sequence[Question]
    ) -> tuple[Prior, dict[int, list[tuple[Order, list[float]]]]]:
        """Return the prior, and of each question scored for it, by index, the rotations with their scores."""
        groups: dict[int, list[int]] = {}
        for index, question in enumerate(questions):
            if not pinned_options(question.options):
                groups.setdefault(len(question.options), []).append(index)
        chosen: list[int] = []
        for group in groups.values():
            group.sort(key=lambda i: seeded_hash(0, questions[i].fingerprint))
            chosen += group[: max(1, round(PRIOR_SHARE * len(group)))]
        scores = self._score_plain([questions[i] for i in chosen], Method("letter"), "cyclic", None)
        of_places: dict[int, list[list[float]]] = {}
        for number, index in enumerate(chosen):
            if number not in scores.skipped:
                at_place = [[row[option] for option in order] for order, row in scores.by_order[number]]
                mean = [fmean(column) for column in zip(*at_place, strict=True)]
                of_places.setdefault(len(questions[index].options), []).append(log_softmax(mean))
        prior = {
            count: [math.log(fmean(map(math.exp, column))) for column in zip(*rows, strict=True)]
            for count, rows in of_places.items()
        }
        sample = {i: scores.by_order[n] for n, i in enumerate(chosen) if n not in scores.skipped}
        return prior, sample


@dataclass(frozen=True)
class Scorer(OptionScorer):
    """Scores the options of questions by a model in this process.

    Args:
        prompts: writes questions as token ids.
        runner: runs rows through the model.
    """

    prompts: ExamPrompts | CausalExamPrompts
    runner: LogprobRunner

    @classmethod
    def of(
        cls,
        model: nn.Module | Forward,
        prompts: ExamPrompts | CausalExamPrompts,
        device: torch.device | str | None = None,
        world: Distributed | None = None,
    ) -> Scorer:
        """Return the scorer of a model.

        Args:
            model: a language model of transformers, or a forward pass (input_ids, attention_mask, rows, cols)
                -> logits (M, V), such as an engine's.
            prompts: writes questions as token ids.
            device: where to run the model; its own when None.
            world: shares the rows among the ranks; every rank gets all scores. Each makes equally many
                forward passes, since under ZeRO-3 each pass is collective.
        """
        if device is None:
            device = next(model.parameters()).device if isinstance(model, nn.Module) else "cpu"
        runner = LogprobRunner(as_forward(model), prompts.tokenizer.pad_token_id, device, world)
        return cls(prompts, runner)

    def _score_once(
        self, questions: Sequence[Question], config: ScoringConfig, progress: Progress | None
    ) -> Scores:
        """Score the questions, and in fp32 again those whose best two options are CLOSE.

        A bf16 forward pass (models.forward.bf16_forward) runs first.
        """
        scores = super()._score_once(questions, config, progress)
        fp32_forward = getattr(self.runner.forward, "fp32_forward", None)
        if fp32_forward is not None and (close := _close(scores)):
            exact = replace(self, runner=replace(self.runner, forward=fp32_forward))
            with_prior = replace(config, prior=scores.prior or None)
            again = exact._score_once([questions[i] for i in close], with_prior, None)
            for number, index in enumerate(close):
                scores[index], scores.by_order[index] = again[number], again.by_order[number]
        return scores

    def _indistinguishable(self, question: Question) -> list[tuple[int, ...]]:
        return indistinguishable_options(self.prompts, question)

    @torch.no_grad()  # not inference_mode: what ZeRO-3 gathers inside must stay usable for training
    def _score_plain(
        self, questions: Sequence[Question], method: Method, orders: str, progress: Progress | None
    ) -> Scores:
        scores = Scores([0.0] * len(question.options) for question in questions)
        scores.by_order = [[] for _ in questions]
        for batch in _query_batches(self.prompts, questions, method, orders, scores.skipped):
            self.runner([query for of_question in batch.values() for query in of_question.queries])
            for index, of_question in batch.items():
                scores[index] = of_question.read()
                if not all(map(math.isfinite, scores[index])):
                    scores.skipped[index] = NOT_NUMBERS
                    scores[index] = [0.0] * len(scores[index])
                    continue
                if of_question.truncated:
                    scores.truncated.add(index)
                if method.by_letter:
                    scores.by_order[index] = list(
                        zip(of_question.orders, of_question.read_orders(), strict=True)
                    )
            if progress:
                progress(len(batch))
        return scores


def score_options(
    model: nn.Module | Forward,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    method: str | Method = "pll",
    orders: str = "1",
    prompts: ExamPrompts | None = None,
) -> Scores:
    """Score the options of every question; `Scorer.score` for one call, on the model's own device.

    Args:
        model: a masked language model of transformers, or a forward pass (input_ids, attention_mask, rows,
            cols) -> logits (M, V).
        tokenizer: the model's tokenizer.
        questions: each with 2 to 10 options.
        method: a name of scoring_methods.METHODS.
        orders: option orders of `letter`: `1` as written, `cyclic` every rotation, `all` every permutation.
        prompts: how questions are written out; the default template at the model's length when None. A bare
            forward pass needs it.

    Returns:
        (n, K) log-probabilities.

    Raises:
        ValueError: no such method or orders.
    """
    config = ScoringConfig(method, orders)
    if prompts is None:
        prompts = ExamPrompts(tokenizer, prompt_length(cast(Any, model).config, tokenizer, 512))
    return Scorer.of(model, prompts).score(questions, config)


def _close(scores: Scores) -> list[int]:
    """Return the questions whose best two options are nearly equal, the closest first.

    What rounding does to a mean over n orders is smaller by √n.
    """
    settled = scores.skipped.keys() | scores.rotated
    close = []
    for index in sorted(set(range(len(scores))) - settled):
        second, first = sorted(scores[index])[-2:]
        orders = len(scores.by_order[index]) if scores.by_order else 1
        if (margin := first - second) < CLOSE / math.sqrt(max(1, orders)):
            close.append((margin, index))
    few = max(GUESSED_FEW, len(scores) // GUESSED_ONE_IN)
    most = few if len(close) > GUESSING * len(scores) else len(close)
    return [index for _, index in sorted(close)[:most]]


def _query_batches(
    prompts: ExamPrompts | CausalExamPrompts,
    questions: Sequence[Question],
    method: Method,
    orders: str,
    skipped: dict[int, str],
) -> Iterator[dict[int, QuestionQueries]]:
    """Yield the queries of questions by index, at most WINDOW_TOKENS and one question at a time.

    Questions of similar length come together, so that they share batches. Why a question cannot be written
    out goes to `skipped`.
    """
    batch: dict[int, QuestionQueries] = {}
    tokens = 0
    for index in sorted(range(len(questions)), key=lambda i: -len(questions[i].stem)):
        try:
            batch[index] = queries_for(prompts, questions[index], method, orders)
        except PromptError as error:
            skipped[index] = str(error)
            continue
        tokens += sum(len(query.ids) for query in batch[index].queries)
        if tokens > WINDOW_TOKENS:
            yield batch
            batch, tokens = {}, 0
    if batch:
        yield batch


def indistinguishable_options(
    prompts: ExamPrompts | CausalExamPrompts, question: Question
) -> list[tuple[int, ...]]:
    """Return groups of options that are the same to the model: the tokenizer makes the same tokens of them.

    It makes [UNK] of every rare character, say. Only their places tell them apart.
    """
    places = range(len(question.options))
    if isinstance(prompts, ExamPrompts):
        texts = [prompts.option_ids(question, option) for option in places]
    else:
        texts = prompts.tokenizer(list(question.options), add_special_tokens=False)["input_ids"]
    return same_options([tuple(text) for text in texts])


def same_options(texts: Sequence[Hashable]) -> list[tuple[int, ...]]:
    """Return groups of options that are the same to the model, by what it reads of each."""
    groups: dict[Hashable, list[int]] = {}
    for option, text in enumerate(texts):
        groups.setdefault(text, []).append(option)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _share_score(row: list[float], groups: list[tuple[int, ...]]) -> list[float]:
    """Return log-probabilities in which options that are the same share theirs equally.

    A choice among them is the place's, and says nothing of the question.
    """
    for group in groups:
        top = max(row[option] for option in group)
        if math.isfinite(top):
            mean = top + math.log(fmean(math.exp(row[option] - top) for option in group))
            row = [mean if option in group else score for option, score in enumerate(row)]
    return row
