"""Model card: README.md and all_results.json of a model folder, beside its run card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.evaluation.classification import headlines
from finetune.evaluation.sets import ORDER, in_order
from finetune.models.run_card import FILE, TASK_TITLES, RunCard, as_line
from finetune.prompts.scoring_methods import CHOICE
from finetune.reports import perplexity
from finetune.reports.classification import escaped, table, title_of, verdict
from finetune.reports.report import TrainingRecord, write_json
from finetune.reports.sections import NOT_COMPARABLE, TITLES
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
}  # fmt: skip
CLASSIFY = (
    "```bash",
    'python inference.py --model_path 這個資料夾 --prompt "今天的服務真好"',
    "```",
    "",
    "```python",
    "from inference import classify, load_model",
    "",
    'model, tokenizer, device = load_model("這個資料夾")',
    'for ranked in classify(model, tokenizer, ["今天的服務真好"], device):',
    "    print(ranked)  # [(類別, 機率), …]，機率高的在前",
    "```",
)


def write(folder: Path, card: RunCard, progress: TrainingRecord) -> None:
    """Write the run card with its results, README.md and all_results.json into a model folder."""
    card.write(folder)
    atomic_write(folder / "README.md", model_card(card))
    write_json(folder / "all_results.json", all_results(card.results, progress, card))


def model_card(card: RunCard) -> str:
    """Return README.md of the model folder: base model, data, training, metrics and how to use it."""
    if card.task == "classify":
        return classifier_card(card)
    return masked_card(card) if card.task == "exam" else reader_card(card)


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


def code(text: str) -> str:
    """Return a code span of Markdown that ends where the text does."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def classifier_card(card: RunCard) -> str:
    """Return the card of a classifier."""
    lines = [
        "---",
        "language: zh",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "metrics: [accuracy, f1]",
        "tags: [traditional-chinese]",
        "---",
        "",
        f"# {escaped(Path(card.base_model).name)} 分類模型",
        "",
        f"- 底模：{code(card.base_model)}",
        f"- 資料：{escaped(card.dataset)}",
        f"- 來歷：{escaped(as_line(card.lineage))}",
        f"- 訓練 {card.step} 步：{code(training_flags(card))}",
    ]
    first: dict[str, Any] = next(iter(card.labels.values()), {})
    if names := list(first.get("per_class", ())):
        lines.append(f"- {len(names)} 類：{'、'.join(map(escaped, names))}")
    lines += ["", "## 成績", ""]
    lines += [f"- {escaped(line)}" for line in verdict(card.labels)]
    for name, metrics in in_order(card.labels).items():
        lines += ["", f"### {title_of(name)}", "", *table(metrics)]
    return "\n".join([*lines, "", "## 使用", "", *CLASSIFY, ""])


def reader_card(card: RunCard) -> str:
    """Return the card of a language model trained on texts or replies."""
    written_as = f"訊息寫法：`{card.chat}`；" if card.chat else ""
    lines = [
        "---",
        "language: zh",
        "library_name: transformers",
        f"pipeline_tag: {'text-generation' if card.chat else 'fill-mask'}",
        "tags: [traditional-chinese]",
        "---",
        "",
        f"# {escaped(Path(card.base_model).name)} {TASK_TITLES[card.task]}模型",
        "",
        f"- 底模：{code(card.base_model)}",
        f"- 資料：{escaped(card.dataset)}",
        f"- 來歷：{escaped(as_line(card.lineage))}",
        f"- {written_as}訓練 {card.step} 步：{code(training_flags(card))}",
        "",
    ]
    if card.growth.get("sets"):
        lines += ["## 困惑度", "", *perplexity.table(card.growth), ""]
    if any(card.results.values()):
        lines += ["## 成績", "", *exam_table(card), ""]
    prompt = {"": "今天天氣很[MASK]。", "none": "今天天氣"}.get(card.chat, "請介紹臺灣")
    command = f'python inference.py --model_path 這個資料夾 --prompt "{prompt}"'
    return "\n".join([*lines, "## 使用", "", "```bash", command, "```", ""])


def masked_card(card: RunCard) -> str:
    """Return the card of a masked or multiple-choice model trained on exam questions."""
    lines = [
        "---",
        "language: zh",
        "library_name: transformers",
        f"pipeline_tag: {'multiple-choice' if card.scoring == CHOICE else 'fill-mask'}",
        "tags: [tmmluplus, multiple-choice, traditional-chinese]",
        "---",
        "",
        f"# {escaped(Path(card.base_model).name)} 考題微調模型",
        "",
        f"- 底模：{code(card.base_model)}",
        f"- 資料：{escaped(card.dataset)}",
        f"- 目標：`{card.objective}`；作答方式：`{card.scoring}`",
        f"- 訓練 {card.step} 步：{code(training_flags(card))}",
        f"- 訓練題數：{len(card.fingerprints)}（指紋存於 `{FILE}`）",
        "",
        "## 成績",
        "",
        *exam_table(card),
        "",
        "## 使用",
        "",
        "```bash",
        'python inference.py --model_path 這個資料夾 --question "最大的行星是？" --options "A:地球 B:木星"',
        "```",
        "",
    ]
    return "\n".join(lines)


def exam_table(card: RunCard) -> list[str]:
    """Return the lines of the table of metrics of each set of questions, in Markdown."""
    lines = [f"> **{NOT_COMPARABLE}**", ""] if card.pool == "all" else []
    lines += [
        "| 題目 | 題數 | 微調後 | 95 % 區間 | 微調前 | McNemar p | 亂猜 | 全答一個字母 | 全選最長 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in FIRST.items():
        if metrics := card.results.get(name):
            tuned, (low, high) = metrics["model"], metrics["model"]["interval_95"]
            values = [tuned["accuracy"], f"{low:.3f}–{high:.3f}", metrics["other"]["accuracy"]]
            values += [f"{metrics['paired']['p_value']:.2g}", tuned["chance"]]
            values += [tuned["majority_letter"], tuned["longest_option"]]
            cells = [value if isinstance(value, str) else f"{value:.3f}" for value in values]
            lines.append("| " + " | ".join([title, str(tuned["n"]), *cells]) + " |")
    return lines


def all_results(results: dict[str, Any], progress: TrainingRecord, card: RunCard) -> dict[str, Any]:
    """Return the metrics by flat names: accuracies 0..1, losses in nats, train_runtime in seconds.

    Args:
        results: metrics of each set of questions.
        progress: of training.
        card: of the run.
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
        flat |= {f"{name}_{key}": value for key, value in headlines(metrics).items()}
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
