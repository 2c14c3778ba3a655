"""What is taught: questions and statements become examples, logits become a loss.

`answer`      the letter of the right option at the blank, options in a new order each epoch (answer-token
              prediction, arXiv:2502.03793); only the letters of the options compete.
`answer+mlm`  the same, and one example in five is plain masked-language-model work on the question with
              its answer.
`mlm`         the question with its right answer written out: the answer's characters hidden in most
              examples, characters at random in the others. Statements, if any, are read the same way.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .batching import Batch, Example
from .exams import Question, Statement
from .masking import hide_randomly
from .orders import shuffled
from .prompts import ExamPrompts, Prompt, TooLong, hide

MLM_SHARE = 0.2  # of the examples, in answer+mlm (15 to 20 % work alike, arXiv:2502.03793)
ANSWER_HIDDEN = 0.9  # of the examples, in mlm: the whole answer is the blank


class Objective:
    """Examples of one kind of teaching over one set of rows.

    Args:
        name: one of `methods.OF_OBJECTIVE`.
        prompts: writes the rows as token ids.
        rows: questions and, for `mlm`, statements.
        seed: of every draw. The same (seed, epoch, row) gives the same example, in any process, at any time.
    """

    def __init__(self, name: str, prompts: ExamPrompts, rows: Sequence[Question | Statement], seed: int):
        self.name, self.prompts, self.seed = name, prompts, seed
        self.too_long: list[str] = []
        self.shortened = 0
        self.rows: list[Question | Statement] = []
        self.lengths: list[int] = []
        special = set(prompts.tokenizer.all_special_ids)
        self._special = special
        self._vocab = [i for i in sorted(prompts.tokenizer.get_vocab().values()) if i not in special]
        for row in rows:
            try:
                prompt = self._prompt(row, answer=name != "mlm" and isinstance(row, Question))
            except TooLong:
                self.too_long.append(row.id)
                continue
            self.shortened += prompt.cut > 0
            self.rows.append(row)
            self.lengths.append(len(prompt.ids))

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """The examples of an epoch as (kind, row): every row, and in `answer+mlm` some again as `mlm`."""
        kind = "mlm" if self.name == "mlm" else "answer"
        examples = [(kind, row) for row in range(len(self.rows))]
        if self.name == "answer+mlm":
            extra = round(len(self.rows) * MLM_SHARE / (1 - MLM_SHARE))
            rng = random.Random(f"mix:{self.seed}:{epoch}")
            examples += [("mlm", row) for row in rng.sample(range(len(self.rows)), extra)]
        return examples

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """One example. A constant `epoch` gives the same masks and orders each time, as validation needs."""
        row = self.rows[index]
        rng = random.Random(f"{kind}:{self.seed}:{epoch}:{row.id}")
        return self._answer(row, rng) if kind == "answer" else self._masked(row, rng)

    def _prompt(self, row: Question | Statement, answer: bool) -> Prompt:
        if isinstance(row, Statement):
            return self.prompts.told(row)
        if answer:
            return self.prompts.listed(row, range(len(row.options)))
        return self.prompts.plain(row, row.answer)

    def _answer(self, question: Question, rng: random.Random) -> Example:
        order = shuffled(question.options, rng)
        prompt = self.prompts.listed(question, order)
        letters = self.prompts.verbalizer_ids(len(order))
        return Example(prompt.ids, prompt.blank, (order.index(question.answer),), tuple(letters), question.id)

    def _masked(self, row: Question | Statement, rng: random.Random) -> Example:
        prompt = self._prompt(row, answer=False)
        hide_answer = self.name == "mlm" and rng.random() < ANSWER_HIDDEN
        if hide_answer:
            seen, chosen = hide(prompt.ids, prompt.blank, self.prompts.mask), prompt.blank
        else:
            maskable = [i for i, token in enumerate(prompt.ids) if token not in self._special]
            seen, chosen = hide_randomly(
                prompt.ids, maskable or prompt.blank, self.prompts.mask, self._vocab, rng
            )
        return Example(seen, chosen, tuple(prompt.ids[i] for i in chosen), row=row.id)


def token_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Negative log-likelihood of each target, in nats, fp32. logits (M, V) -> (M,).

    Where candidates are given, only they compete: softmax over the letters of the options, not over the
    vocabulary.
    """
    logits = logits.float()
    choosing = batch.candidates[:, 0] >= 0  # (M,)
    if not choosing.any():  # no copy of what may be 150,000 logits wide
        return F.cross_entropy(logits, batch.targets, reduction="none")
    losses = logits.new_zeros(len(logits))
    if choosing.any():
        among = batch.candidates[choosing]  # (N, K)
        scores = logits[choosing].gather(1, among.clamp_min(0)).masked_fill(among < 0, float("-inf"))
        losses[choosing] = F.cross_entropy(scores, batch.targets[choosing], reduction="none")
    if not choosing.all():
        losses[~choosing] = F.cross_entropy(logits[~choosing], batch.targets[~choosing], reduction="none")
    return losses


def summed_loss(losses: Tensor, batch: Batch) -> Tensor:
    """The batch's share of the loss: each target's, times its weight. Divided once, by the mass of the whole
    global batch (or validation set), so no batch boundary changes it."""
    return (losses * batch.weights).sum()


def tally(losses: Tensor, batch: Batch) -> Tensor:
    """What the log needs, to be added up over batches and ranks: (mass, summed loss, tokens)."""
    return torch.stack(
        [
            torch.tensor(float(batch.mass)),
            summed_loss(losses.detach(), batch).cpu(),
            torch.tensor(float(batch.tokens)),
        ]
    ).double()
