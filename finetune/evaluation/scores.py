"""Scores of options, and the answers that follow from them: the best, ties, rankings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Order = tuple[int, ...]  # order[place] is the index of the option shown at that place
Prior = dict[int, list[float]]  # number of options -> log-probability that the model gives each place
Progress = Callable[[int], object]  # called with a number of questions finished
TIE = 1e-9  # nats: what the same numbers, added up in another order, differ by


class Scores(list[list[float]]):
    """n rows of K log-probabilities, row i as long as question i has options.

    Attributes:
        skipped: index of a question -> why it could not be scored. Its scores are equal: it has no answer.
        by_order: for `letter`: for each question the orders scored, each with its own scores by option; the
            order as written comes first. Empty for the other methods.
        prior: for `+prior`, by number of options: the log-probability the model gives each place by itself.
        rotated: for `+prior`, the questions that the prior comes from: they were scored in every rotation.
        truncated: questions whose stem was cut in its middle so that the rest fits.
        replies: for `generate`, by index: what the model wrote.
        outcomes: those whose reply names no option, and so have no answer: `unreadable`, `truncated` or
            `refused`, see `reply_reader.ReadReply`.
    """

    def __init__(self, rows=()):
        super().__init__(rows)
        self.skipped: dict[int, str] = {}
        self.by_order: list[list[tuple[Order, list[float]]]] = []
        self.prior: Prior = {}
        self.rotated: set[int] = set()
        self.truncated: set[int] = set()
        self.replies: dict[int, str] = {}
        self.outcomes: dict[int, str] = {}


def tied(scores: Sequence[float]) -> tuple[int, ...]:
    """Return the indices of the options that share the highest score, to within TIE."""
    top = max(scores)
    equals = tuple(i for i, score in enumerate(scores) if score == top or top - score <= TIE)
    return equals or (max(range(len(scores)), key=scores.__getitem__),)  # NaN equals nothing


def best(scores: Sequence[float]) -> int:
    """Return the index of the highest score; the first of equals."""
    return tied(scores)[0]


def ranking(scores: Sequence[float]) -> list[int]:
    """Return the indices from the highest score to the lowest; equals keep their order."""
    first = tied(scores)
    return [*first, *sorted({*range(len(scores))} - {*first}, key=lambda option: -scores[option])]


class Ranking(list[tuple[str, str, float]]):
    """(label, text, score) of options, best first.

    Attributes:
        tied: labels of those that share the highest score, in the order they were given in; () where one
            alone has it.
    """

    tied: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: dict[str, str], scores: Sequence[float], top_k: int) -> Ranking:
        """Rank options (label -> text) by their scores and keep the best `top_k`."""
        labels = list(options)
        ranked = cls((labels[i], options[labels[i]], scores[i]) for i in ranking(scores)[:top_k])
        first = tied(scores)
        ranked.tied = tuple(labels[i] for i in first) if len(first) > 1 else ()
        return ranked
