"""Defaults of the learning rate, and a warning with another one to try when the loss did not fall."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.runtime.errors import UserError
from finetune.runtime.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from finetune.objectives.objective import Objective

# Random weights learn nothing at the rates that pretrained ones are fine-tuned with. The best rate falls with
# the width (Yang et al. 2022, arXiv:2203.03466): 1e-3 at 128 and 1.7e-4 at 768, where BERT used 1e-4.
# Measured at width 128 only: the demo's 1e-3; two layers on 1,800 Chinese reviews, three epochs, have an
# accuracy of 0.755 on 200 validation rows at 1e-3 and of 0.510 at 3e-5.
SCRATCH_TIMES_WIDTH = 0.128
MAX_SCRATCH_RATE = 1e-3
MIN_LOSS_DROP = 0.02  # share of ln K by which a loss must fall


def default_from_scratch(config: PreTrainedConfig) -> float:
    """Return the default for a randomly initialised model, by its width, to two digits."""
    width = getattr(config.get_text_config(), "hidden_size", None) or 128
    return float(f"{min(MAX_SCRATCH_RATE, SCRATCH_TIMES_WIDTH / width):.2g}")


def read_from_checkpoint(folder: Path) -> float | None:
    """Return the learning rate of the run that wrote a checkpoint; None where that cannot be read."""
    try:
        rate = read_json(folder / "progress.json")["identity"]["learning_rate"]
    except (UserError, KeyError, TypeError):
        return None
    return rate if isinstance(rate, float) and rate > 0 else None


def plateau_warning(
    objective: Objective, history: list[dict], rate: float, scratch_rate: float | None
) -> str:
    """Return a warning that the training loss hardly fell, with a learning rate to try; "" where it did.

    It must fall below the loss of a guess by the shares of the classes, by MIN_LOSS_DROP of ln K.

    Args:
        objective: without a `baseline_loss` there is no warning.
        history: entries of the epochs, each with a `train_loss`.
        scratch_rate: rate for random weights; None for others.
    """
    if not history or (baseline := objective.baseline_loss) is None:
        return ""
    lowest, guessed = min(entry["train_loss"] for entry in history), baseline.by_shares
    if not math.isfinite(lowest) or lowest <= guessed - MIN_LOSS_DROP * baseline.uniform:
        return ""
    other = rate_to_try(rate, scratch_rate)
    return (
        f"⚠️ 訓練損失幾乎沒有下降：最低 {lowest:.3f}，不看內容、只知道各類的比例就有 {abs(guessed):.3f}，"
        f"等於什麼也沒學到。學習率 {rate:g} 可能{'太小' if other > rate else '太大'}（或步數太少），"
        f"試試 --learning_rate {other:g}"
    )


def rate_to_try(rate: float, scratch_rate: float | None) -> float:
    """Return ten times the rate, or a tenth of a high one; `scratch_rate` where this one is far off.

    Args:
        scratch_rate: rate for random weights; None for others.
    """
    if scratch_rate and (rate < scratch_rate / 2 or rate > scratch_rate * 2):
        return scratch_rate
    return float(f"{rate / 10 if rate >= (scratch_rate or MAX_SCRATCH_RATE) else rate * 10:.2g}")
