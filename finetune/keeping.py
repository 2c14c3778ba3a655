"""What a training run leaves: the best model so far, the finished one, and what is written about it."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import adapters, classes, examining, model_card, perplexity, report
from .cli import say
from .folders import replace_folder, save_model, save_tokenizer
from .growth import Growth
from .lineage import as_line, weights_hash
from .models import NEW_HEAD
from .plots import plot_curve
from .run_card import RunCard

PARITY_PROMPTS = 4  # held-out rows on which adapter and merged model are compared


def save_best(save_dir: Path, lesson, weights: dict, step: int) -> None:
    """Writes a model, or its adapter alone, to `best/` in the place of a former one.

    Args:
        weights: full ones, or those of the adapter, by their names in the model.
        step: optimizer steps it was taught.
    """
    half = save_dir / ".best.half"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    if lesson.adapter is None:
        save_model(half, lesson.config, lesson.tokenizer, weights, lesson.ends)
    else:
        adapters.save_adapter(half, lesson.adapter, weights)
        if lesson.kind in NEW_HEAD:  # which head, with which labels: the base does not know
            lesson.config.save_pretrained(half)
        save_tokenizer(half, lesson.tokenizer)
    lesson.card(step, weights_hash(half)).write(half)
    replace_folder(half, save_dir / "best")


def publish(best: Path, target: Path, lesson, merge_into=None) -> None:
    """Puts the best model at `target` in the place of an earlier one.

    Args:
        merge_into: the base in full precision; the adapter of `best` is merged into it. None copies `best`.

    Raises:
        RunError: the merged model does not say what the adapter said; nothing is published.
    """
    half = target.with_name(f".{target.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    if merge_into is None:
        shutil.copytree(best, half)
    else:
        half.mkdir(parents=True)
        view = adapters.with_adapter(merge_into, best, "--save_dir")
        model = adapters.merged(view, lesson.held_out(PARITY_PROMPTS))
        save_model(half, model.config, lesson.tokenizer, model.state_dict(), lesson.ends)
    if former := RunCard.read(target):
        say(f"換掉 {target} 裡先前的模型（{as_line(former.lineage) or former.base_model}）")
    replace_folder(half, target)
    say(f"模型存於 {target}" + ("（只有 LoRA 的權重）" if lesson.lora and merge_into is None else ""))


def write_results(
    lesson,
    sittings: dict[str, list[examining.Sitting]],
    grown: Growth | None,
    progress,
    note: str = "",
    labels: dict | None = None,
) -> tuple[RunCard, list[str]]:
    """Model card, run card, curve and report. Returns the card and the verdict, for the screen.

    Args:
        sittings: of each set of questions, the tuned model's and the untuned one's.
        grown: of a causal model.
        note: what must stand beside every figure.
        labels: of a classifier: figures of each set, {} of one without rows (classes.figures).
    """
    output = Path(lesson.flags.output_dir)
    beside = output.resolve().parent
    card = lesson.card(progress.best_step, weights_hash(output))
    card.history, taught = progress.history, card.taught
    sittings = {name: pair for name, pair in sittings.items() if pair}
    card.results = {name: examining.figures(*pair, taught) for name, pair in sittings.items()}
    card.growth = grown.as_dict() if grown else {}
    card.labels = {name: found for name, found in (labels or {}).items() if found}
    model_card.write(output, card, progress)
    plot_curve(beside / "validation_loss_curve.png", progress.course, progress.best_step)
    written = report.of_training(card, sittings, progress)
    written.notes += [note] if note else []
    if lesson.new_head:
        written.other += "（輸出層還是亂數）"
    report.write(beside / "report", written)
    first = perplexity.verdict(card.growth) if grown else []
    first += classes.verdict(card.labels) if labels is not None else []
    return card, [*first, *report.verdict(written)]
