"""Write the outputs of a run: best model, published model, results."""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path
from typing import Any

from finetune.evaluation import evaluator
from finetune.models.kinds import NEW_HEAD
from finetune.models.lora import merged, save_adapter, with_adapter
from finetune.models.run_card import RunCard, as_line, weights_hash
from finetune.models.saving import save_config, save_model, save_tokenizer
from finetune.reports import model_card, perplexity, report, row_report
from finetune.reports.classification import verdict
from finetune.reports.plots import plot_curve
from finetune.runtime import manifest
from finetune.runtime.console import log
from finetune.runtime.errors import RunError, UserError, listed
from finetune.runtime.files import give_usual_modes, hidden, replace_folder, write_errors
from finetune.runtime.user_files import carry_over, user_files
from finetune.training import learning_rate
from finetune.training.checkpoints import staged_folder
from finetune.training.evaluate import FinalEvaluation
from finetune.training.run import Run
from finetune.training.snapshot import take_snapshot
from finetune.training.state import TrainingState

PARITY_PROMPTS = 4  # held-out rows on which the adapter and the merged model are compared


def write_model(folder: Path, run: Run, weights: dict, step: int) -> None:
    """Write a model, or its adapter alone, with its tokenizer and run card.

    Args:
        weights: full ones, or those of the adapter, by their names in the model.
        step: optimizer steps it was trained for.
    """
    data, info = run.data, run.loaded
    if info.adapter is None:
        save_model(folder, info.config, data.tokenizer, weights, info.end_ids, run.args.max_target_length)
    else:
        save_adapter(folder, info.adapter, weights)
        if data.kind in (*NEW_HEAD, "seq2seq"):  # which head, with which labels: the base does not know
            save_config(folder, info.config, data.tokenizer, run.args.max_target_length)
        save_tokenizer(folder, data.tokenizer)
    run.run_card(step, weights_hash(folder)).write(folder)


def publish(best: Path, target: Path, run: Run, merge_into=None) -> None:
    """Put the best model at `target` in the place of an earlier one.

    Args:
        merge_into: the base in full precision; the adapter of `best` is merged into it. None copies `best`.

    Raises:
        RunError: the best model is not as it was written; the merged model does not answer as the adapter
            did; there is no room. Nothing is published.
    """
    if wrong := manifest.verify(best):
        what = "；".join(wrong[:3])
        raise RunError(f"最好的模型 {best} 損壞了：{what}；檢查點還在，加 --resume 接續會重新挑選")
    target = Path(os.path.realpath(target))  # a link to a folder stays one
    place, hint = hidden(target, "half"), f"最好的模型在 {best}，清出空間後加 --resume"
    with staged_folder(place, f"模型寫不進 --output_dir {target}", lambda: hint) as staging:
        _publish(best, staging, target, run, merge_into)


def _publish(best: Path, staging: Path, target: Path, run: Run, merge_into) -> None:
    if merge_into is None:
        left_out = shutil.ignore_patterns(manifest.FILE, *map(glob.escape, user_files(best)))
        shutil.copytree(best, staging, ignore=left_out, dirs_exist_ok=True)
    else:
        view = with_adapter(merge_into, best, "--save_dir")
        model = merged(view, run.data.held_out_prompts(PARITY_PROMPTS))
        config: Any = model.config
        longest = run.args.max_target_length
        save_model(staging, config, run.data.tokenizer, model.state_dict(), run.loaded.end_ids, longest)
        card = RunCard.read(best)
        run.run_card(card.step if card else 0, weights_hash(staging)).write(staging)
    if former := _former_card(target):
        log(f"換掉 {target} 裡先前的模型（{as_line(former.lineage) or former.base_model}）")
    give_usual_modes(staging)
    if kept := carry_over(target, staging):
        log(f"  {target} 裡你自己的檔案都留著：{listed(kept)}")
    replace_folder(staging, target)
    log(f"模型存於 {target}" + ("（只有 LoRA 的權重）" if run.lora and merge_into is None else ""))


def _former_card(target: Path) -> RunCard | None:
    try:
        return RunCard.read(target)
    except UserError:  # unreadable, so of no use any more
        return None


def write_results(
    run: Run, evaluation: FinalEvaluation, state: TrainingState, note: str = ""
) -> tuple[RunCard, list[str]]:
    """Write model card, run card, curve and report.

    Args:
        note: what must stand beside every figure.

    Returns:
        the card, and the verdict for the screen.
    """
    output = Path(run.args.output_dir)
    folder = run.output_path()
    card = run.run_card(state.best_step, weights_hash(output))
    card.history, trained = state.history, card.trained_on
    results = evaluation.results
    card.results = {
        name: evaluator.compute_metrics(tuned, untuned, trained, held_out=evaluation.calibration_result)
        for name, (tuned, untuned) in results.items()
    }
    card.growth = evaluation.before_after.as_dict() if evaluation.before_after else {}
    measured = {name: metrics for name, metrics in evaluation.row_metrics.items() if metrics}
    if card.task == "classify":
        card.labels = measured
    else:
        card.metrics = measured
    card.snapshot = take_snapshot(evaluation)
    hint = f"模型已經在 {output}；清出空間後加 --resume，會再評測並寫報告"
    with write_errors("評測的結果寫不進去", hint):
        model_card.write(output, card, state)
        plot_curve(folder / "validation_loss_curve.png", state.history_from_start, state.best_step)
    written = report.of_training(card, results, state)
    written.notes += filter(None, [note, _loss_note(run, card.history)])
    if run.loaded.new_head:
        written.other += "（輸出層還是隨機初始化的）"
    report.write(folder / "report", written, hint)
    if evaluation.predictions:
        with write_errors("評測的結果寫不進去", hint):
            row_report.write_predictions(folder / "report" / "predictions.jsonl", evaluation.predictions)
    lines = perplexity.verdict(card.growth) if evaluation.before_after else []
    lines += verdict(card.labels) if card.task == "classify" else row_report.verdict(card.task, card.metrics)
    return card, [*lines, *report.verdict(written)]


def _loss_note(run: Run, history: list[dict[str, Any]]) -> str:
    """Return that the training loss hardly fell, with a learning rate to try; "" where it did."""
    scratch_rate = learning_rate.default_from_scratch(run.loaded.config) if run.args.from_scratch else None
    return learning_rate.plateau_warning(run.data.train, history, run.learning_rate, scratch_rate)
