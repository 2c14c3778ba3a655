"""A text, or a pair of them, becomes the probabilities of its labels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from finetune.evaluation.queries import Forward, Probe, Prober
from finetune.models.forward import check_numbers, is_multi


@dataclass(frozen=True)
class Encoded:
    """A row of a classifier. `segments`: of a pair, 0 or 1 for each token, where the model tells them apart.
    `cut`: its end was left out."""

    ids: Sequence[int]
    segments: Sequence[int] = ()
    cut: bool = False


def encode(tokenizer, text: str, pair: str, max_length: int) -> Encoded:
    """A text, or a pair of them, as the tokenizer writes it: special tokens that stand in a text are text.

    Args:
        pair: the second text; "" for none.
        max_length: in tokens; the longest of the two loses its end first.
    """
    found = tokenizer(
        text, pair or None, truncation="longest_first", max_length=max_length, split_special_tokens=True,
        return_overflowing_tokens=False, return_token_type_ids=bool(pair),
    )  # fmt: skip
    ids = array("l", found["input_ids"])  # a fourth of what a tuple takes
    full = len(ids) >= max_length and len(
        tokenizer(text, pair or None, split_special_tokens=True)["input_ids"]
    ) > len(ids)
    return Encoded(ids, array("b", found.get("token_type_ids", ())) if pair else (), full)


def names_of(config) -> list[str]:
    """The labels of a classifier, by class."""
    return [str(config.id2label[at]) for at in range(config.num_labels)]


@torch.no_grad()  # not inference_mode: what ZeRO-3 gathers inside must stay usable for training
def probabilities(
    forward: Forward | nn.Module, config, pad_id: int, rows: Sequence[Encoded], device="cpu", world=None
) -> list[list[float]]:
    """Of each row the probabilities of the classes, (n, C): a softmax or, of a multi-label model, each its
    own.

    Args:
        forward: see `logits.RowLogits`.
        world: shares the rows among the processes; every process gets all of them.

    Raises:
        UserError: logits that are no numbers.
    """
    multi = is_multi(config)
    classes = tuple(range(config.num_labels))
    places, wanted = (classes, ((0,),) * len(classes)) if multi else ((0,), (classes,))
    probes = [Probe(row.ids, places, wanted, as_they_are=True, segments=row.segments) for row in rows]
    Prober(forward, pad_id, device, world)(probes)
    if not probes:
        return []
    logits = torch.tensor([probe.results if multi else probe.results[0] for probe in probes])
    check_numbers(logits)
    return logits[..., 0].sigmoid().tolist() if multi else logits.softmax(-1).tolist()
