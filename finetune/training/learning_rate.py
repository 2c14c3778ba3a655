"""Which learning rate a run takes where no flag says so, and which one to try when it learnt nothing."""

from __future__ import annotations

import math
from pathlib import Path

from finetune.runtime.errors import UserError
from finetune.runtime.files import read_json

# Random weights learn nothing at the rates that pretrained ones are fine-tuned with. The best rate falls with
# the width (Yang et al. 2022, arXiv:2203.03466): 1e-3 at 128 and 1.7e-4 at 768, where BERT began with 1e-4.
# Measured at width 128 alone: the demo's 1e-3; two layers on 1,800 Chinese reviews, three epochs, have
# 0.755 of 200 validation rows at 1e-3 and 0.510 at 3e-5.
SCRATCH_TIMES_WIDTH = 0.128
HIGHEST = 1e-3
LEARNT = 0.02  # of ln K: a loss that fell by less than this share did not fall


def of_random_weights(config) -> float:
    """The default for a model that starts from random weights, to two digits."""
    width = getattr(config.get_text_config(), "hidden_size", None) or 128
    return float(f"{min(HIGHEST, SCRATCH_TIMES_WIDTH / width):.2g}")


def of_checkpoint(folder: Path) -> float | None:
    """What a run that goes on was begun with; None where that cannot be read."""
    try:
        rate = read_json(folder / "progress.json")["identity"]["learning_rate"]
    except (UserError, KeyError, TypeError):
        return None
    return rate if isinstance(rate, float) and rate > 0 else None


def unlearnt(lesson, history: list[dict]) -> str:
    """Says that the training loss never came below what is had by knowing the shares of the classes alone, by
    LEARNT of ln K; and what to try. "" where it did, or where that is not known.

    Args:
        lesson: its `teach` may have a `guess()`: (the loss of someone who knows but the shares, ln K).
        history: of training, with a `train_loss` each epoch.
    """
    objective = getattr(lesson, "train", None)
    if not history or not hasattr(objective, "guess"):
        return ""
    (known, whole), lowest = objective.guess(), min(entry["train_loss"] for entry in history)
    if not math.isfinite(lowest) or lowest <= known - LEARNT * whole:
        return ""
    rate = lesson.flags.learning_rate
    other = rate_to_try(rate, of_random_weights(lesson.config) if lesson.flags.from_scratch else None)
    return (
        f"⚠️ 訓練損失幾乎沒有下降：最低 {lowest:.3f}，不看內容、只知道各類的比例就有 {known:.3f}，"
        f"等於什麼也沒學到。學習率 {rate:g} 可能{'太小' if other > rate else '太大'}（或步數太少），"
        f"試試 --learning_rate {other:g}"
    )


def rate_to_try(rate: float, usual: float | None) -> float:
    """Ten times the rate, or a tenth of one that is high already; the usual one where it is far off.

    Args:
        usual: of random weights; None of others.
    """
    if usual and (rate < usual / 2 or rate > usual * 2):
        return usual
    return float(f"{rate / 10 if rate >= (usual or HIGHEST) else rate * 10:.2g}")
