"""Search for the best answer over all windows of a question.

The score of an answer is log p(start) + log p(end). Both are softmaxes over the whole window, the place of
"no answer here" (CLS) among them, which is what training normalises them over: a window that does not hold
the answer is taught to point there, so that its other answers have low probabilities, and scores of different
windows can be compared. Within one window the order is that of start logit + end logit, as in run_qa of
transformers; across windows run_qa compares raw logits, which a softmax leaves free to shift from window to
window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finetune.evaluation.queries import Forward, batched
from finetune.models.forward import check_numbers
from finetune.models.heads import END, START
from finetune.models.padding import padded
from finetune.models.span_windows import SpanWindow

if TYPE_CHECKING:
    from finetune.runtime.distributed import Distributed

KEPT = 20  # best answers kept of each window


@dataclass(frozen=True)
class Candidate:
    """An answer: characters of the passage, the end excluded, with its score in nats."""

    start: int
    end: int
    score: float


@dataclass
class WindowAnswers:
    """What was found in one window.

    Attributes:
        best: the best answers, best first.
        null: score of "no answer here".
        mass: log of the sum of exp(score) over all allowed answers, in nats.
        loss: cross entropy of the targets, in nats, the mean of start and end; NaN without targets.
    """

    best: list[Candidate]
    null: float
    mass: float
    loss: float = math.nan


@dataclass
class SpanAnswers:
    """What was found for a question, over all its windows.

    Attributes:
        best: distinct answers, best first.
        null: score of "the passage has no answer": the lowest of all windows, as in run_qa.
        mass: log of the sum of exp(score) over all allowed answers of all windows.
        losses: of each window, where targets were given.
    """

    best: list[Candidate]
    null: float = 0.0
    mass: float = -math.inf
    losses: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, found: Sequence[WindowAnswers]) -> SpanAnswers:
        """Join the answers of the windows of a question; the same characters count once, at their best."""
        best: dict[tuple[int, int], Candidate] = {}
        for candidate in (candidate for window in found for candidate in window.best):
            place = candidate.start, candidate.end
            if place not in best or candidate.score > best[place].score:
                best[place] = candidate
        ranked = sorted(best.values(), key=lambda one: (-one.score, one.start, one.end))
        return cls(
            ranked[:KEPT], min(window.null for window in found), _logsumexp([w.mass for w in found]),
            [window.loss for window in found if not math.isnan(window.loss)],
        )  # fmt: skip

    def choose(self, may_be_none: bool, threshold: float = 0.0) -> Candidate | None:
        """Return the best answer; None where the passage has none.

        Args:
            may_be_none: the model was trained on questions without an answer.
            threshold: how far the score of no answer must exceed the best answer's, in nats.
        """
        if not self.best or (may_be_none and self.null - self.best[0].score > threshold):
            return None
        return self.best[0]

    def probability(self, candidate: Candidate | None, may_be_none: bool) -> float:
        """Return the probability of an answer among all allowed answers.

        Args:
            candidate: None is no answer.
            may_be_none: no answer is one of them.
        """
        score = self.null if candidate is None else candidate.score
        total = _logsumexp([self.mass, self.null] if may_be_none else [self.mass])
        return math.exp(min(0.0, score - total)) if math.isfinite(total) else 0.0


@dataclass
class SpanSearch:
    """Finds the best answers to questions with a model.

    Args:
        forward: see `models.heads.SpanLogits`.
        pad_id: id of the padding token.
        max_answer_length: longest answer, in tokens.
        device: the model's device.
        world: shares the windows among the ranks; every rank gets all answers.
    """

    forward: Forward | nn.Module
    pad_id: int
    max_answer_length: int
    device: torch.device | str = "cpu"
    world: Distributed | None = None

    @torch.no_grad()  # not inference_mode: what ZeRO-3 gathers inside must stay usable for training
    def __call__(
        self,
        questions: Sequence[Sequence[SpanWindow]],
        targets: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> list[SpanAnswers]:
        """Return the answers to questions. Collective.

        Args:
            questions: of each its windows.
            targets: of each window the right places of start and end, for the loss.

        Raises:
            UserError: logits that are no numbers.
        """
        rows = [
            (number, window, targets[number][at] if targets else None)
            for number, of_question in enumerate(questions)
            for at, window in enumerate(of_question)
        ]
        batches = batched(range(len(rows)), lambda at: len(rows[at][1]), lambda at: 2)
        shares = ((at, True) for at in range(len(batches)))
        found: list[tuple[int, WindowAnswers]] = []
        for number, counts in self.world.rank_indices(len(batches)) if self.world else shares:
            logits = self._logits([rows[at][1] for at in batches[number]])
            for at, of_row in zip(batches[number], logits, strict=True):
                if counts:
                    _, window, target = rows[at]
                    of_window = of_row[:, : len(window)]
                    found.append((at, search_window(of_window, window, self.max_answer_length, target)))
        by_question: list[list[WindowAnswers]] = [[] for _ in questions]
        everywhere = self.world.all_gather(found) if self.world else found
        for at, answers in sorted(everywhere, key=lambda pair: pair[0]):
            by_question[rows[at][0]].append(answers)
        return [SpanAnswers.of(of_question) for of_question in by_question]

    def _logits(self, windows: Sequence[SpanWindow]) -> Tensor:
        """Return the logits (B, 2, T) of start and end, on the CPU.

        Raises:
            UserError: logits that are no numbers.
        """
        ids, mask = padded([window.ids for window in windows], self.pad_id)
        rows = torch.arange(len(windows)).repeat_interleave(2)
        cols = torch.tensor([START, END]).repeat(len(windows))
        segments = padded([window.segments for window in windows], 0)[0]
        inputs = (ids, mask, rows, cols, segments)
        logits = self.forward(*(tensor.to(self.device) for tensor in inputs)).float().cpu()  # (2B, T)
        check_numbers(logits)
        return logits.view(len(windows), 2, -1)


def search_window(
    logits: Tensor, window: SpanWindow, max_answer_length: int, target: tuple[int, int] | None = None
) -> WindowAnswers:
    """Find the best answers in one window.

    An answer begins and ends within the passage, does not end before it begins, and is at most so long.

    Args:
        logits: (2, T) of start and end, for each token of the window.
        max_answer_length: in tokens.
        target: the right places of start and end, for the loss; None without.
    """
    logp = logits.log_softmax(-1)
    start, end = logp[START].tolist(), logp[END].tolist()
    null = start[window.null] + end[window.null]
    loss = math.nan if target is None else -(start[target[0]] + end[target[1]]) / 2
    part, first, tokens = window.part, window.first, window.tokens
    allowed = torch.tensor([tokens.ends[at] > tokens.starts[at] for at in part], dtype=torch.bool)
    count, width = len(part), min(max_answer_length, max(1, len(part)))
    if not bool(allowed.any()):
        return WindowAnswers([], null, -math.inf, loss)
    barred = torch.full((count,), -math.inf)
    starts = torch.where(allowed, logp[START, first : first + count], barred)
    ends = torch.where(allowed, logp[END, first : first + count], barred)
    ends = torch.cat([ends, torch.full((width - 1,), -math.inf)]).unfold(0, width, 1)  # (count, width)
    scores = (starts[:, None] + ends).flatten()  # [begin, length - 1]
    best = scores.topk(min(KEPT, len(scores)))
    candidates = []
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        begin, more = divmod(place, width)
        if score > -math.inf:
            characters = tokens.starts[part[begin]], tokens.ends[part[begin + more]]
            candidates.append(Candidate(*characters, score))
    return WindowAnswers(candidates, null, float(scores.logsumexp(0)), loss)


def _logsumexp(values: Sequence[float]) -> float:
    """Return log Σ exp(value)."""
    highest = max(values, default=-math.inf)
    if not math.isfinite(highest):
        return highest
    return highest + math.log(sum(math.exp(value - highest) for value in values))
