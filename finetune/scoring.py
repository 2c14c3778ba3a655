"""Options become scores. One function serves the REPL, one-shot questions, validation and the exam.

Scores are log-probabilities in nats, 0 or less, one per option; the highest is the answer.

`letter`  log P(letter of the option | stem, all options), softmax over the letters; mean over the orders.
`joint`   mean over its characters of log P(character | stem), all characters of the option hidden at once.
`pll`     the same, each character hidden alone: pseudo-log-likelihood (arXiv:1910.14659), per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .exams import Question
from .padding import padded
from .prompts import ExamPrompts, TooLong, cyclic_orders, hide

BATCH_TOKENS = 4096  # padded tokens a forward pass
BATCH_BLANKS = 512  # positions a forward pass: their logits are (M, vocabulary)

Forward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass
class Probe:
    """One row for the model: at `positions[i]` the log-probabilities of `wanted[i]` are asked for."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    wanted: tuple[tuple[int, ...], ...]
    among_wanted: bool = False  # softmax over `wanted` instead of the vocabulary
    results: list[list[float]] = field(default_factory=list)  # log-probabilities, like `wanted`


@torch.no_grad()  # not inference_mode: what ZeRO-3 gathers inside must stay usable for training
def score_options(
    forward: Forward,
    prompts: ExamPrompts,
    questions: Sequence[Question],
    method: str,
    orders: str = "1",
    *,
    device: torch.device | str = "cpu",
    world=None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[list[float]], list[int]]:
    """Scores the options of every question.

    Args:
        forward: (input_ids, attention_mask, rows, cols) -> logits (M, V); `models.BlankLogits`, or an
            engine's.
        method: one of METHODS.
        orders: of `letter`: `1` as written, `cyclic` every rotation.
        world: shares the rows among the processes; every process gets all scores. Each makes equally many
            forward passes, since under ZeRO-3 each pass is collective.
        progress: called with the number of rows finished.

    Returns:
        scores, n lists of K log-probabilities; and the indices of the questions that do not fit the model's
        length. Such a question gets equal scores: it counts as not answered.
    """
    asked: list[Asked | None] = []
    for question in questions:
        try:
            asked.append(_ASK[method](prompts, question, orders))
        except TooLong:
            asked.append(None)
    probes = [probe for one in asked if one is not None for probe in one[0]]
    _run(forward, probes, prompts.tokenizer.pad_token_id, device, world, progress)
    scores = [
        [0.0] * len(question.options) if one is None else one[1]()
        for question, one in zip(questions, asked, strict=True)
    ]
    return scores, [index for index, one in enumerate(asked) if one is None]


def best(scores: Sequence[float]) -> int:
    """The index of the highest score; the first of equals."""
    return max(range(len(scores)), key=scores.__getitem__)


def ranking(scores: Sequence[float]) -> list[int]:
    """Indices from the highest score to the lowest; equals keep their order."""
    return sorted(range(len(scores)), key=lambda option: -scores[option])


# ---- each method: what to ask, and how to read the answers -------------------------------------------------

Asked = tuple[list[Probe], Callable[[], list[float]]]


def _ask_letter(prompts: ExamPrompts, question: Question, orders: str) -> Asked:
    count = len(question.options)
    arranged = cyclic_orders(question.options) if orders == "cyclic" else [tuple(range(count))]
    letters = tuple(prompts.verbalizer_ids(count))
    probes = []
    for order in arranged:
        prompt = prompts.listed(question, order)
        probes.append(Probe(prompt.ids, prompt.blank, (letters,), among_wanted=True))

    def read() -> list[float]:  # by option, not by place: an order only says at which place an option stood
        at = [
            [probe.results[0][order.index(option)] for option in range(count)]
            for probe, order in zip(probes, arranged, strict=True)
        ]
        return [sum(column) / len(arranged) for column in zip(*at, strict=True)]

    return probes, read


def _ask_joint(prompts: ExamPrompts, question: Question, orders: str) -> Asked:
    shared: dict[int, Probe] = {}  # options of one length look the same once hidden, and share a pass
    places: list[tuple[Probe, int]] = []  # of each option: its probe, and its column there
    for option in range(len(question.options)):
        prompt = prompts.plain(question, option)
        text = [prompt.ids[at] for at in prompt.blank]
        hidden = Probe(hide(prompt.ids, prompt.blank, prompts.mask), prompt.blank, ((),) * len(text))
        probe = shared.setdefault(len(text), hidden)
        places.append((probe, len(probe.wanted[0])))
        probe.wanted = tuple((*wanted, token) for wanted, token in zip(probe.wanted, text, strict=True))

    def read() -> list[float]:
        return [sum(row[column] for row in probe.results) / len(probe.results) for probe, column in places]

    return list(shared.values()), read


def _ask_pll(prompts: ExamPrompts, question: Question, orders: str) -> Asked:
    of_option: list[list[Probe]] = []
    for option in range(len(question.options)):
        prompt = prompts.plain(question, option)
        of_option.append(
            [Probe(hide(prompt.ids, [at], prompts.mask), (at,), ((prompt.ids[at],),)) for at in prompt.blank]
        )

    def read() -> list[float]:
        return [sum(probe.results[0][0] for probe in probes) / len(probes) for probes in of_option]

    return [probe for probes in of_option for probe in probes], read


_ASK = {"letter": _ask_letter, "joint": _ask_joint, "pll": _ask_pll}


# ---- forward passes ----------------------------------------------------------------------------------------


def _batches(probes: Sequence[Probe]) -> list[list[Probe]]:
    """Probes of alike length together, within the limits of tokens and blanks."""
    batches: list[list[Probe]] = []
    tokens = blanks = 0
    for probe in sorted(probes, key=lambda probe: -len(probe.ids)):
        width = len(batches[-1][0].ids) if batches else 0  # the first of a batch is its longest
        tokens, blanks = tokens + width, blanks + len(probe.positions)
        if not batches or tokens > BATCH_TOKENS or blanks > BATCH_BLANKS:
            batches.append([])
            tokens, blanks = len(probe.ids), len(probe.positions)
        batches[-1].append(probe)
    return batches


def _run(forward: Forward, probes: Sequence[Probe], pad_id: int, device, world, progress) -> None:
    """Fills in `results`. Of several processes each takes every size-th batch; then they exchange."""
    batches = _batches(probes)
    shares = world.shares(len(batches)) if world else ((number, True) for number in range(len(batches)))
    found: list[tuple[int, list]] = []
    for number, _ in shares:
        found.append((number, _pass(forward, batches[number], pad_id, device)))
        if progress:
            progress(len(batches[number]) * (world.size if world else 1))
    for number, results in world.gather(found) if world else found:
        for probe, result in zip(batches[number], results, strict=True):
            probe.results = result


def _pass(forward: Forward, probes: list[Probe], pad_id: int, device) -> list[list[list[float]]]:
    input_ids, mask = padded([probe.ids for probe in probes], pad_id)
    rows = torch.tensor([row for row, probe in enumerate(probes) for _ in probe.positions])
    cols = torch.tensor([at for probe in probes for at in probe.positions])
    logits = forward(
        input_ids.to(device), mask.to(device), rows.to(device), cols.to(device)
    ).float()  # (M, V)
    results, at = [], 0
    for probe in probes:
        own = logits[at : at + len(probe.positions)]
        at += len(probe.positions)
        wanted = torch.tensor(probe.wanted, device=own.device)  # (positions, choices)
        picked = own.gather(1, wanted)
        scale = picked if probe.among_wanted else own
        results.append((picked - scale.logsumexp(-1, keepdim=True)).tolist())
    return results
