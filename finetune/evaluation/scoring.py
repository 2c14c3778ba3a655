"""Options become scores. One function serves the REPL, one-shot questions, files, validation and the exam.

Scores are log-probabilities in nats, one per option; the highest is the answer. By method
(prompts/scoring_methods.py):

`letter`        log P(letter of the option | stem, all options), softmax over the letters; mean over orders.
`joint`         log P(token | stem) of its tokens, all tokens of the option hidden at once.
`pll`           the same, each token hidden alone: pseudo-log-likelihood (arXiv:1910.14659, equation 1).
`pll_l2r`       a token hidden with every later token of the option: the chain rule within the option.
`pll_word_l2r`  a token hidden with the later tokens of its word, by jieba (arXiv:2305.10588, section 2).
`first`         log P(first token | stem), one token hidden: for reference; a shared first token is a tie.
`choice`        the number of a multiple-choice head for stem and option, softmax over the options.

A causal model is asked for the letter alone, as its next token (or writes an answer, see predict/causal.py).

The text methods take the mean over the option's tokens, with `_sum` the sum. `+pmi` subtracts the score of
the same text where nothing is known of the question but its subject (domain-conditional PMI,
arXiv:2104.08315, equation 2). `+prior` takes the model's preference for letters out of `letter` (PriDe,
arXiv:2309.03882, section 4): see `estimate_prior`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

import torch
from torch import nn

from finetune.data.question import Question, seeded_hash
from finetune.evaluation.queries import Forward, LogprobQuery, LogprobRunner, as_forward
from finetune.models.forward import NOT_NUMBERS
from finetune.models.tokenizer import prompt_length
from finetune.prompts.exam import ExamPrompts, Prompt, mask_positions
from finetune.prompts.option_order import PromptError, orders_to_ask, pinned_options
from finetune.prompts.scoring_methods import CHOICE, ORDERS, Method, parse

WINDOW_TOKENS = 1 << 19  # of rows made at a time: what bounds the memory of a long exam
TIE = 1e-9  # nats: what the same numbers, added up in another order, differ by
CLOSE = 0.02  # nats between the best two: bf16 moves scores by half of that, see benchmarks/NOTES.md
# A model that leaves more than this share of the questions so close is guessing, and no precision makes it
# know better: of its questions one in so many, or a few, are asked again.
GUESSING, GUESSED_ONE_IN, GUESSED_FEW = 0.34, 50, 4
PRIOR_SHARE = 0.05  # of the questions, for the prior (arXiv:2309.03882, section 4.2)

Order = tuple[int, ...]  # order[place] is the index of the option shown at that place


class Scores(list):
    """n rows of K log-probabilities, row i as long as question i has options.

    Attributes:
        refused: index of a question -> why it could not be asked. Its scores are equal: it is not answered.
        by_order: of `letter`, for each question the orders asked, each with its own scores by option; the
            order as written comes first. Empty for the other methods.
        prior: of `+prior`, by number of options: the log-probability the model gives each place unasked.
        rotated: of `+prior`, the questions that the prior comes from: they were asked in every rotation.
        shortened: questions whose stem was cut in its middle so that the rest fits.
        replies: of `generate`, by index: what the model wrote.
        unreadable: those whose reply names no option: they are not answered.
    """

    def __init__(self, rows=()):
        super().__init__(rows)
        self.skipped: dict[int, str] = {}
        self.by_order: list[list[tuple[Order, list[float]]]] = []
        self.prior: dict[int, list[float]] = {}
        self.rotated: set[int] = set()
        self.truncated: set[int] = set()
        self.replies: dict[int, str] = {}
        self.unparsable: set[int] = set()


@torch.no_grad()  # not inference_mode: what ZeRO-3 gathers inside must stay usable for training
def score_options(
    model: nn.Module | Forward,
    tokenizer,
    questions: Sequence[Question],
    method: str | Method = "pll",
    orders: str = "1",
    *,
    prompts: ExamPrompts | None = None,
    device: torch.device | str | None = None,
    prior: dict[int, list[float]] | None = None,
    world=None,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Scores the options of every question. A `light` forward pass (logits.BlankLogits) is asked first, and
    the exact one again where the best two options are CLOSE.

    Args:
        model: a masked language model of transformers, or a forward pass (input_ids, attention_mask, rows,
            cols) -> logits (M, V), such as an engine's.
        method: a name of methods.METHODS.
        orders: of `letter`: `1` as written, `cyclic` every rotation, `all` every permutation.
        prompts: how questions are written out; the default template at the model's length when None.
        device: of the model; found when None.
        prior: of `+prior`: as `estimate_prior` returns it; estimated from these questions when None.
        world: shares the rows among the processes; every process gets all scores. Each makes equally many
            forward passes, since under ZeRO-3 each pass is collective.
        progress: called with the number of questions finished.

    Returns:
        (n, K) log-probabilities.

    Raises:
        ValueError: no such method or orders.
    """
    method, forward = parse(method), as_forward(model)
    if orders not in ORDERS:
        raise ValueError(f"unknown orders {orders!r}; known: {', '.join(ORDERS)}")
    if prompts is None:
        prompts = ExamPrompts(tokenizer, prompt_length(model.config, tokenizer, 512))
    if device is None:
        device = next(model.parameters()).device if isinstance(model, nn.Module) else "cpu"

    def ask(forward: Forward, questions: Sequence[Question], prior, progress) -> Scores:
        examiner = Scorer(prompts, LogprobRunner(forward, prompts.tokenizer.pad_token_id, device, world))
        if method.correction == "prior":
            return _without_prior(examiner, questions, orders, prior, progress)
        return _score(examiner, questions, method, orders, progress)

    scores = ask(forward, questions, prior, progress)
    exact = getattr(forward, "fp32_forward", None)
    if exact is not None and (close := _close(scores)):
        again = ask(exact, [questions[i] for i in close], scores.prior or None, None)
        for number, index in enumerate(close):
            scores[index], scores.by_order[index] = again[number], again.by_order[number]
    for index, question in enumerate(questions):
        if twins := alike(prompts, question):
            scores[index] = _shared(scores[index], twins)
            scores.by_order[index] = [(order, _shared(row, twins)) for order, row in scores.by_order[index]]
    return scores


def _close(scores: Scores) -> list[int]:
    """Questions whose best two options are nearly equal, the closest first. What rounding does to a mean over
    n orders is smaller by √n.
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


def tied(scores: Sequence[float]) -> tuple[int, ...]:
    """The indices of the options that share the highest score, to within TIE."""
    top = max(scores)
    equals = tuple(i for i, score in enumerate(scores) if score == top or top - score <= TIE)
    return equals or (max(range(len(scores)), key=scores.__getitem__),)  # of scores that are no numbers


def best(scores: Sequence[float]) -> int:
    """The index of the highest score; the first of equals."""
    return tied(scores)[0]


def ranking(scores: Sequence[float]) -> list[int]:
    """Indices from the highest score to the lowest; equals keep their order."""
    first = tied(scores)
    return [*first, *sorted({*range(len(scores))} - {*first}, key=lambda option: -scores[option])]


class Ranking(list):
    """(label, text, score) of options, best first. `tied`: the labels of those that share the highest score,
    which stand in the order they were given in; () where one alone has it.
    """

    tied: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: dict[str, str], scores: Sequence[float], top_k: int) -> Ranking:
        labels = list(options)
        ranked = cls((labels[i], options[labels[i]], scores[i]) for i in ranking(scores)[:top_k])
        first = tied(scores)
        ranked.tied = tuple(labels[i] for i in first) if len(first) > 1 else ()
        return ranked


def alike(prompts, question: Question) -> list[tuple[int, ...]]:
    """Options that are the same to the model, because the tokenizer makes the same tokens of them: [UNK] of
    every rare character, say. Only their places tell them apart.
    """
    places = range(len(question.options))
    if isinstance(prompts, ExamPrompts):
        texts = [prompts.text_of(question, option) for option in places]
    else:
        texts = prompts.tokenizer(list(question.options), add_special_tokens=False)["input_ids"]
    groups: dict[tuple[int, ...], list[int]] = {}
    for option in places:
        groups.setdefault(tuple(texts[option]), []).append(option)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _shared(row: list[float], twins: list[tuple[int, ...]]) -> list[float]:
    """Log-probabilities in which options that are the same share theirs equally: a choice among them is the
    place's, and says nothing of the question.
    """
    for group in twins:
        top = max(row[option] for option in group)
        if math.isfinite(top):
            mean = top + math.log(fmean(math.exp(row[option] - top) for option in group))
            row = [mean if option in group else score for option, score in enumerate(row)]
    return row


# ---- questions, a window of them at a time -----------------------------------------------------------------


@dataclass
class Scorer:
    """What is needed to ask: how questions are written, and how rows reach the model."""

    prompts: ExamPrompts
    prober: LogprobRunner


@dataclass
class QuestionQueries:
    """A question as rows for the model, and how their results are read."""

    probes: list[LogprobQuery]
    read: Callable[[], list[float]]
    orders: list[Order] = field(default_factory=list)  # of `letter`: of each probe
    cut: bool = False  # the stem was shortened


def _score(examiner: Scorer, questions: Sequence[Question], method: Method, orders: str, progress) -> Scores:
    scores = Scores([0.0] * len(question.options) for question in questions)
    scores.by_order = [[] for _ in questions]
    for asked in _query_batches(examiner.prompts, questions, method, orders, scores.skipped):
        examiner.prober([probe for one in asked.values() for probe in one.probes])
        for index, one in asked.items():
            scores[index] = one.read()
            if not all(map(math.isfinite, scores[index])):
                scores.skipped[index] = NOT_NUMBERS
                scores[index] = [0.0] * len(scores[index])
                continue
            if one.cut:
                scores.truncated.add(index)
            if method.by_letter:
                scores.by_order[index] = [
                    (order, _by_option(probe, order))
                    for probe, order in zip(one.probes, one.orders, strict=True)
                ]
        if progress:
            progress(len(asked))
    return scores


def _query_batches(
    prompts: ExamPrompts, questions: Sequence[Question], method: Method, orders: str, refused: dict[int, str]
) -> Iterator[dict[int, QuestionQueries]]:
    """Questions as rows, by index, at most WINDOW_TOKENS and one question at a time; those of like length
    together, so that they share batches. Why one cannot be asked goes to `refused`.
    """
    asked: dict[int, QuestionQueries] = {}
    tokens = 0
    for index in sorted(range(len(questions)), key=lambda i: -len(questions[i].stem)):
        try:
            asked[index] = one = _ask(prompts, questions[index], method, orders)
        except PromptError as error:
            refused[index] = str(error)
            continue
        tokens += sum(len(probe.ids) for probe in one.probes)
        if tokens > WINDOW_TOKENS:
            yield asked
            asked, tokens = {}, 0
    if asked:
        yield asked


def _without_prior(examiner: Scorer, questions, orders: str, prior, progress) -> Scores:
    """PriDe: log P(letter) minus the log of the prior of its place, once more a softmax. The questions the
    prior comes from were asked in every rotation, and are answered by their mean, where it cancels.
    """
    sample: dict[int, list[tuple[Order, list[float]]]] = {}
    if prior is None:
        prior, sample = estimate_prior(examiner, questions)
    scores = _score(examiner, questions, Method("letter"), orders, progress)
    scores.prior, scores.rotated = prior, set(sample)
    for index, question in enumerate(questions):
        if index in scores.skipped:
            continue
        flat = [0.0] * len(question.options)
        at = prior.get(len(question.options), flat)
        corrected = [
            (order, _log_softmax([row[i] - at[order.index(i)] for i in range(len(row))]))
            for order, row in scores.by_order[index]
        ]
        averaged = (row for _, row in sample.get(index, corrected))
        scores[index] = [fmean(column) for column in zip(*averaged, strict=True)]
        scores.by_order[index] = corrected
    return scores


def estimate_prior(
    examiner: Scorer, questions: Sequence[Question]
) -> tuple[dict[int, list[float]], dict[int, list[tuple[Order, list[float]]]]]:
    """The model's preference for places, apart from what stands there (arXiv:2309.03882, equations 5 and 7).

    Of one question asked in every rotation, softmax of the mean log-probability of each place: every option
    has stood at every place once, so what remains is the place's own. The prior is the mean of that over
    PRIOR_SHARE of the questions (at least one), drawn by fingerprint, apart for each number of options.

    Returns:
        log prior of each place, by number of options; and of each question asked, by its index, the rotations
        with their scores. Questions whose options may not all move say nothing of it.
    """
    groups: dict[int, list[int]] = {}
    for index, question in enumerate(questions):
        if not pinned_options(question.options):
            groups.setdefault(len(question.options), []).append(index)
    chosen: list[int] = []
    for group in groups.values():
        group.sort(key=lambda i: seeded_hash(0, questions[i].fingerprint))
        chosen += group[: max(1, round(PRIOR_SHARE * len(group)))]
    found = _score(examiner, [questions[i] for i in chosen], Method("letter"), "cyclic", None)
    of_places: dict[int, list[list[float]]] = {}
    for number, index in enumerate(chosen):
        if number not in found.skipped:
            at_place = [[row[option] for option in order] for order, row in found.by_order[number]]
            mean = [fmean(column) for column in zip(*at_place, strict=True)]
            of_places.setdefault(len(questions[index].options), []).append(_log_softmax(mean))
    prior = {
        count: [math.log(fmean(map(math.exp, column))) for column in zip(*rows, strict=True)]
        for count, rows in of_places.items()
    }
    kept = {i: found.by_order[n] for n, i in enumerate(chosen) if n not in found.skipped}
    return prior, kept


def _log_softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    total = top + math.log(sum(math.exp(value - top) for value in row))
    return [value - total for value in row]


# ---- each method: what to ask, and how to read the answers -------------------------------------------------


def _ask(prompts: ExamPrompts, question: Question, method: Method, orders: str) -> QuestionQueries:
    if method.by_letter:
        return _ask_letter(prompts, question, orders)
    if method.base == CHOICE:
        return _ask_head(prompts, question)
    texts = [prompts.text_of(question, option) for option in range(len(question.options))]
    asked = _ask_text(prompts, lambda text: prompts.cloze_prompt_ids(question, text), question, texts, method)
    if method.correction != "pmi":
        return asked
    prompt_of = partial(prompts.unconditional_prompt, question)
    unasked = _ask_text(prompts, prompt_of, question, texts, method)
    return QuestionQueries(
        asked.probes + unasked.probes,
        lambda: [told - alone for told, alone in zip(asked.read(), unasked.read(), strict=True)],
        cut=asked.cut,
    )


def _ask_letter(prompts: ExamPrompts, question: Question, orders: str) -> QuestionQueries:
    letters = tuple(prompts.verbalizer_ids(len(question.options)))
    shown = orders_to_ask(question.options, orders)
    written = [prompts.mcq_prompt(question, order) for order in shown]
    probes = [LogprobQuery(prompt.ids, prompt.blank, (letters,), among_wanted=True) for prompt in written]

    def read() -> list[float]:
        rows = [_by_option(probe, order) for probe, order in zip(probes, shown, strict=True)]
        return [fmean(column) for column in zip(*rows, strict=True)]

    return QuestionQueries(probes, read, shown, any(prompt.cut for prompt in written))


def _ask_head(prompts: ExamPrompts, question: Question) -> QuestionQueries:
    written = [prompts.cloze_prompt(question, option) for option in range(len(question.options))]
    # Options that look alike share a row: in another place of a batch it would get another last digit.
    shared = {prompt.ids: LogprobQuery(prompt.ids, (0,), ((0,),), as_they_are=True) for prompt in written}

    def read() -> list[float]:
        return _log_softmax([shared[prompt.ids].results[0][0] for prompt in written])

    return QuestionQueries(list(shared.values()), read, cut=any(prompt.cut for prompt in written))


def _by_option(probe: LogprobQuery, order: Order) -> list[float]:
    """A probe of letters gives a score to each place; an order says which option stood there."""
    return [probe.results[0][order.index(option)] for option in range(len(order))]


def _ask_text(
    prompts: ExamPrompts,
    write: Callable[[Sequence[int]], Prompt],
    question: Question,
    texts: Sequence[tuple[int, ...]],
    method: Method,
) -> QuestionQueries:
    """Each token of each option is asked for once. Tokens whose rows look the same share a pass: all of an
    option in `joint`, and those of options of one length.
    """
    shared: dict[tuple[int, ...], LogprobQuery] = {}
    cells: list[list[tuple[LogprobQuery, int, int]]] = []  # of each option and token: probe, position, choice
    cut = False
    for option, text in enumerate(texts):
        asked = text[:1] if method.base == "first" else text
        prompt = write(asked)
        cut = cut or prompt.cut > 0
        hidden = _hidden_with(method.base, len(asked), prompts, question.options[option])
        row = []
        for at, together in enumerate(hidden):
            places = [prompt.blank[i] for i in together]
            ids = mask_positions(prompt.ids, places, prompts.mask)
            probe = shared.setdefault(ids, LogprobQuery(ids, (), ()))
            row.append((probe, *_want(probe, prompt.blank[at], asked[at])))
        cells.append(row)

    def read() -> list[float]:
        gather = sum if method.summed else fmean
        return [gather([probe.results[position][choice] for probe, position, choice in row]) for row in cells]

    return QuestionQueries(list(shared.values()), read, cut=cut)


def _hidden_with(base: str, count: int, prompts: ExamPrompts, text: str) -> list[range]:
    """For each of an option's tokens, the tokens that are hidden while it is asked for."""
    if base in ("joint", "first"):
        return [range(count)] * count
    if base == "pll":
        return [range(at, at + 1) for at in range(count)]
    ends = prompts.word_ends(text) if base == "pll_word_l2r" else []
    return [range(at, ends[at] if len(ends) == count else count) for at in range(count)]


def _want(probe: LogprobQuery, position: int, token: int) -> tuple[int, int]:
    """Asks `probe` for one more token; returns where the answer will stand in its results."""
    if position not in probe.positions:
        probe.positions += (position,)
        probe.wanted += ((),)
    place = probe.positions.index(position)
    wanted = probe.wanted[place]
    if token not in wanted:
        wanted += (token,)
        probe.wanted = (*probe.wanted[:place], wanted, *probe.wanted[place + 1 :])
    return place, wanted.index(token)
