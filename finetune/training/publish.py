"""What a training run leaves: the best model so far, the finished one, and what is written about it."""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path

from finetune.evaluation import evaluator
from finetune.models.kinds import NEW_HEAD
from finetune.models.lora import merged, save_adapter, with_adapter
from finetune.models.run_card import RunCard, as_line, weights_hash
from finetune.models.saving import save_model, save_tokenizer
from finetune.reports import model_card, perplexity, report
from finetune.reports.classification import verdict
from finetune.reports.plots import plot_curve
from finetune.runtime import manifest
from finetune.runtime.console import log
from finetune.runtime.errors import RunError, UserError, listed
from finetune.runtime.files import give_usual_modes, hidden, replace_folder, write_errors
from finetune.runtime.own_files import carry_over, own_files
from finetune.training import learning_rate
from finetune.training.checkpoints import writing
from finetune.training.evaluate import BeforeAfter

PARITY_PROMPTS = 4  # held-out rows on which adapter and merged model are compared


def write_model(folder: Path, lesson, weights: dict, step: int) -> None:
    """Writes a model, or its adapter alone.

    Args:
        weights: full ones, or those of the adapter, by their names in the model.
        step: optimizer steps it was taught.
    """
    if lesson.adapter is None:
        save_model(folder, lesson.config, lesson.tokenizer, weights, lesson.ends)
    else:
        save_adapter(folder, lesson.adapter, weights)
        if lesson.kind in NEW_HEAD:  # which head, with which labels: the base does not know
            lesson.config.save_pretrained(folder)
        save_tokenizer(folder, lesson.tokenizer)
    lesson.run_card(step, weights_hash(folder)).write(folder)


def publish(best: Path, target: Path, lesson, merge_into=None) -> None:
    """Puts the best model at `target` in the place of an earlier one.

    Args:
        merge_into: the base in full precision; the adapter of `best` is merged into it. None copies `best`.

    Raises:
        RunError: the best model is not as it was written; the merged model does not say what the adapter
            said; there is no room. Nothing is published.
    """
    if wrong := manifest.verify(best):
        what = "；".join(wrong[:3])
        raise RunError(f"最好的模型 {best} 損壞了：{what}；檢查點還在，加 --resume 接續會重新挑選")
    target = Path(os.path.realpath(target))  # a link to a folder stays one
    place, way_out = hidden(target, "half"), f"最好的模型在 {best}，清出空間後加 --resume"
    with writing(place, f"模型寫不進 --output_dir {target}", lambda: way_out) as half:
        _publish(best, half, target, lesson, merge_into)


def _publish(best: Path, half: Path, target: Path, lesson, merge_into) -> None:
    if merge_into is None:
        left = shutil.ignore_patterns(manifest.FILE, *map(glob.escape, own_files(best)))
        shutil.copytree(best, half, ignore=left, dirs_exist_ok=True)
    else:
        view = with_adapter(merge_into, best, "--save_dir")
        model = merged(view, lesson.held_out_prompts(PARITY_PROMPTS))
        save_model(half, model.config, lesson.tokenizer, model.state_dict(), lesson.ends)
        taught = RunCard.read(best)
        lesson.run_card(taught.step if taught else 0, weights_hash(half)).write(half)
    if former := _former(target):
        log(f"換掉 {target} 裡先前的模型（{as_line(former.lineage) or former.base_model}）")
    give_usual_modes(half)
    if kept := carry_over(target, half):
        log(f"  {target} 裡你自己的檔案都留著：{listed(kept)}")
    replace_folder(half, target)
    log(f"模型存於 {target}" + ("（只有 LoRA 的權重）" if lesson.lora and merge_into is None else ""))


def _former(target: Path) -> RunCard | None:
    try:
        return RunCard.read(target)
    except UserError:  # of no use any more
        return None


def write_results(
    lesson,
    sittings: dict[str, list[evaluator.ExamResult | str]],
    grown: BeforeAfter | None,
    progress,
    note: str = "",
    labels: dict | None = None,
) -> tuple[RunCard, list[str]]:
    """Model card, run card, curve and report. Returns the card and the verdict, for the screen.

    Args:
        sittings: of each set of questions, the tuned model's, the untuned one's and, to fit a temperature on,
            the tuned one's of other questions, or why there are none.
        grown: of a causal model.
        note: what must stand beside every figure.
        labels: of a classifier: figures of each set, {} of one without rows (classes.figures).
    """
    output = Path(lesson.flags.output_dir)
    beside = output.resolve().parent
    card = lesson.run_card(progress.best_step, weights_hash(output))
    card.history, taught = progress.history, card.taught
    sittings = {name: pair for name, pair in sittings.items() if pair}
    card.results = {
        name: evaluator.compute_metrics(mine, other, taught, None, *apart)
        for name, (mine, other, *apart) in sittings.items()
    }
    card.growth = grown.as_dict() if grown else {}
    card.labels = {name: found for name, found in (labels or {}).items() if found}
    way_on = f"模型已經在 {output}；清出空間後加 --resume，會再測驗並寫報告"
    with write_errors("測驗的結果寫不進去", way_on):
        model_card.write(output, card, progress)
        plot_curve(beside / "validation_loss_curve.png", progress.course, progress.best_step)
    written = report.of_training(card, sittings, progress)
    written.notes += filter(None, [note, learning_rate.unlearnt(lesson, card.history)])
    if lesson.new_head:
        written.other += "（輸出層還是亂數）"
    report.write(beside / "report", written, way_on)
    first = perplexity.verdict(card.growth) if grown else []
    first += verdict(card.labels) if labels is not None else []
    return card, [*first, *report.verdict(written)]
