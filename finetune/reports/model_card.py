"""Model card: README.md and all_results.json of a model folder, beside its run card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.evaluation.classification import summary_metrics
from finetune.evaluation.set_names import ORDER, in_order
from finetune.models.run_card import TASK_TITLES, RunCard, as_line
from finetune.prompts.scoring_methods import CHOICE
from finetune.reports import row_report
from finetune.reports.report import TrainingRecord, write_json
from finetune.reports.sections import NOT_COMPARABLE, TITLES
from finetune.reports.templates import template
from finetune.runtime.files import atomic_write

FIRST = {name: TITLES[name] for name in ORDER}  # the sets a training run evaluates on
TRAINING_FLAGS = (  # flags that decide what a model becomes
    "learning_rate", "train_batch_size", "num_epochs", "max_steps", "max_length", "warmup_ratio",
    "weight_decay", "split_ratio", "freeze", "train_only", "unfreeze_every", "layer_lr_decay", "lora_rank",
    "lora_alpha", "seed",
)  # fmt: skip
TASK_FLAGS = {  # and those of one task alone
    "classify": ("text_column", "label_column", "multi_label", "class_weights"),
    "cpt": ("text_column",),
    "exam": ("objective", "masking", "mask_rate", "all_masked"),
    "mlm": ("text_column", "masking", "mask_rate", "all_masked"),
    "tag": ("text_column", "label_column", "stride"),
    "span": ("text_column", "label_column", "stride", "max_answer_length"),
    "seq2seq": ("text_column", "label_column", "prefix", "max_target_length"),
}  # fmt: skip


PIPELINES = {
    "classify": "text-classification", "tag": "token-classification", "span": "question-answering",
    "seq2seq": "text2text-generation",
}  # fmt: skip


def write(folder: Path, card: RunCard, progress: TrainingRecord) -> None:
    """Write the run card with its results, README.md and all_results.json into a model folder."""
    card.write(folder)
    atomic_write(folder / "README.md", model_card(card))
    write_json(folder / "all_results.json", all_results(card.results, progress, card))


def model_card(card: RunCard) -> str:
    """Return README.md of the model folder: base model, data, training, metrics and how to use it."""
    first: dict[str, Any] = next(iter(card.labels.values()), {})
    return template("model_card.md.j2").render(
        card=card,
        title=TASK_TITLES[card.task],
        pipeline=pipeline(card),
        base_name=Path(card.base_model).name,
        lineage=as_line(card.lineage),
        flags=training_flags(card),
        class_names=list(first.get("per_class", ())),
        labels=in_order(card.labels),
        row_sections=row_report.sections(card.task, card.metrics),
        row_verdict=row_report.verdict(card.task, card.metrics),
        exams=[(title, card.results[name]) for name, title in FIRST.items() if card.results.get(name)],
        not_comparable=NOT_COMPARABLE,
    )


def pipeline(card: RunCard) -> str:
    """Return the name of the pipeline of transformers that the model is for."""
    if card.task in PIPELINES:
        return PIPELINES[card.task]
    if card.scoring == CHOICE:
        return "multiple-choice"
    return "text-generation" if card.chat else "fill-mask"


def training_flags(card: RunCard) -> str:
    """Return the flags that decided what the model became, as they stand on a command line."""
    words = [f"--task {card.task}"]
    for name in (*TRAINING_FLAGS, *TASK_FLAGS.get(card.task, ())):
        value = card.flags.get(name)
        if value is True:
            words.append(f"--{name}")
        elif value not in (None, "", 0, False) and not (name == "layer_lr_decay" and value == 1):
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            words.append(f"--{name} {text}")
    return " ".join(words)


def all_results(results: dict[str, Any], progress: TrainingRecord, card: RunCard) -> dict[str, Any]:
    """Return the metrics by flat names: accuracies 0..1, losses in nats, train_runtime in seconds.

    Args:
        results: metrics of each set of questions.
        progress: how training went.
        card: run card.
    """
    last = progress.history[-1] if progress.history else {}
    flat = {
        "train_runtime": round(progress.seconds, 2),
        "train_loss": last.get("train_loss"),
        "steps": progress.step,
        "epochs": progress.epoch,
        "best_step": progress.best_step,
        "parameters": card.parameters.get("all"),
        "trained_parameters": card.parameters.get("trained"),
        "scoring": card.scoring,
        "pool": card.pool,
    }
    if progress.best_accuracy >= 0:
        flat |= {"validation_accuracy": progress.best_accuracy, "validation_loss": progress.best_loss}
    for name, models in card.growth.get("sets", {}).items():
        for model, metrics in models.items():
            prefix = "" if model == "tuned" else "untuned_"
            flat |= {f"{prefix}{name}_{key}": value for key, value in metrics.items()}
    for name, metrics in card.labels.items():
        flat |= {f"{name}_{key}": value for key, value in summary_metrics(metrics).items()}
    for name, metrics in card.metrics.items():
        flat |= {f"{name}_{key}": value for key, value in row_report.summary(card.task, metrics).items()}
    for name, metrics in results.items():
        if metrics:
            flat |= {
                f"{name}_accuracy": metrics["model"]["accuracy"],
                f"{name}_interval_95": metrics["model"]["interval_95"],
                f"{name}_questions": metrics["model"]["n"],
                f"untuned_{name}_accuracy": metrics["other"]["accuracy"],
                f"{name}_p_value": metrics["paired"]["p_value"],
            }
            if metrics["macro_4"]:
                flat[f"{name}_macro_4"] = metrics["macro_4"]["macro_4"]
    return flat
