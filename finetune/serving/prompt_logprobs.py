"""Log-probabilities of the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from finetune.models.forward import check_numbers
from finetune.models.logits import TokenLogprob, token_logprobs
from finetune.predict.predictor import LocalPredictor

NUMBERS = 1 << 25  # logits that a pass returns at most


def prompt_logprobs(predictor: LocalPredictor, ids: Sequence[int], top: int) -> list[TokenLogprob]:
    """Return the log-probabilities of each token of a prompt but the first, which nothing predicts.

    They are computed by the same pass as the scores of exam questions.

    Args:
        predictor: of a causal model.
        top: alternatives to each token.

    Raises:
        UserError: the logits are no numbers.
    """
    row = torch.tensor([list(ids)], device=predictor.device)
    mask, found = torch.ones_like(row), []
    columns = torch.arange(len(ids) - 1, device=predictor.device)
    for part in columns.split(max(1, NUMBERS // int(predictor.model.config.vocab_size))):
        logits = predictor.forward(row, mask, torch.zeros_like(part), part).float()
        check_numbers(logits)
        found += token_logprobs(logits, row[0, part + 1], top)
    return found
