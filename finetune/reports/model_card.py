"""What a model folder tells people and programs beside its run card: README.md and all_results.json."""

from __future__ import annotations

from pathlib import Path

from finetune.evaluation.classification import headlines
from finetune.evaluation.sets import ORDER, in_order
from finetune.models.run_card import FILE, TASK_TITLES, RunCard, as_line
from finetune.prompts.scoring_methods import CHOICE
from finetune.reports import perplexity
from finetune.reports.classification import escaped, table, title_of, verdict
from finetune.reports.report import write_json
from finetune.reports.sections import NOT_COMPARABLE, TITLES
from finetune.runtime.files import atomic_write

FIRST = {name: TITLES[name] for name in ORDER}  # the sets a training run examines on
REPEATED = (  # flags that decide what a model becomes
    "learning_rate", "train_batch_size", "num_epochs", "max_steps", "max_length", "warmup_ratio",
    "weight_decay", "split_ratio", "freeze", "train_only", "unfreeze_every", "layer_lr_decay", "lora_rank",
    "lora_alpha", "seed",
)  # fmt: skip
OF_TASK = {  # and those of one task alone
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


def write(folder: Path, card: RunCard, progress) -> None:
    """The run card with its results, README.md and all_results.json."""
    card.write(folder)
    atomic_write(folder / "README.md", model_card(card))
    write_json(folder / "all_results.json", all_results(card.results, progress, card))


def model_card(card: RunCard) -> str:
    """README.md of the model folder: what it is, how it was taught, how good it became, how to ask it."""
    if card.task == "classify":
        return classifier_card(card)
    return masked_card(card) if card.task == "exam" else reader_card(card)


def repeated(card: RunCard) -> str:
    """The flags that decided what the model became, as one would give them again."""
    words = [f"--task {card.task}"]
    for name in (*REPEATED, *OF_TASK.get(card.task, ())):
        value = card.flags.get(name)
        if value is True:
            words.append(f"--{name}")
        elif value not in (None, "", 0, False) and not (name == "layer_lr_decay" and value == 1):
            written = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            words.append(f"--{name} {written}")
    return " ".join(words)


def code(text: str) -> str:
    """A code span of Markdown, which ends where the text does."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def classifier_card(card: RunCard) -> str:
    """Of a model that says which class a text is of."""
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
        f"- 訓練 {card.step} 步：{code(repeated(card))}",
    ]
    if names := list(next(iter(card.labels.values()), {}).get("per_class", ())):
        lines.append(f"- {len(names)} 類：{'、'.join(map(escaped, names))}")
    lines += ["", "## 成績", ""]
    lines += [f"- {escaped(line)}" for line in verdict(card.labels)]
    for name, found in in_order(card.labels).items():
        lines += ["", f"### {title_of(name)}", "", *table(found)]
    return "\n".join([*lines, "", "## 使用", "", *CLASSIFY, ""])


def reader_card(card: RunCard) -> str:
    """Of a model that was taught texts or replies."""
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
        f"- {f'訊息寫法：`{card.chat}`；' if card.chat else ''}訓練 {card.step} 步：{code(repeated(card))}",
        "",
    ]
    if card.growth.get("sets"):
        lines += ["## 困惑度", "", *perplexity.table(card.growth), ""]
    if any(card.results.values()):
        lines += ["## 成績", "", *exam_table(card), ""]
    ask = {"": "今天天氣很[MASK]。", "none": "今天天氣"}.get(card.chat, "請介紹臺灣")
    command = f'python inference.py --model_path 這個資料夾 --prompt "{ask}"'
    return "\n".join([*lines, "## 使用", "", "```bash", command, "```", ""])


def masked_card(card: RunCard) -> str:
    """Of a model that fills blanks."""
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
        f"- 訓練 {card.step} 步：{code(repeated(card))}",
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
    """The figures of each set of questions, in Markdown."""
    results = card.results
    lines = [f"> **{NOT_COMPARABLE}**", ""] if card.pool == "all" else []
    lines += [
        "| 題目 | 題數 | 微調後 | 95 % 區間 | 微調前 | McNemar p | 亂猜 | 全答一個字母 | 全選最長 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in FIRST.items():
        if figures := results.get(name):
            tuned, (low, high) = figures["model"], figures["model"]["interval_95"]
            shown = [tuned["accuracy"], f"{low:.3f}–{high:.3f}", figures["other"]["accuracy"]]
            shown += [f"{figures['paired']['p_value']:.2g}", tuned["chance"]]
            shown += [tuned["majority_letter"], tuned["longest_option"]]
            cells = [cell if isinstance(cell, str) else f"{cell:.3f}" for cell in shown]
            lines.append("| " + " | ".join([title, str(tuned["n"]), *cells]) + " |")
    return lines


def all_results(results: dict, progress, card: RunCard) -> dict:
    """The figures by flat names, for programs: accuracies 0..1, losses in nats, train_runtime in seconds."""
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
    for name, found in card.growth.get("sets", {}).items():
        for who, figures in found.items():
            prefix = "" if who == "tuned" else "untuned_"
            flat |= {f"{prefix}{name}_{key}": value for key, value in figures.items()}
    for name, found in card.labels.items():
        flat |= {f"{name}_{key}": value for key, value in headlines(found).items()}
    for name, figures in results.items():
        if figures:
            flat |= {
                f"{name}_accuracy": figures["model"]["accuracy"],
                f"{name}_interval_95": figures["model"]["interval_95"],
                f"{name}_questions": figures["model"]["n"],
                f"untuned_{name}_accuracy": figures["other"]["accuracy"],
                f"{name}_p_value": figures["paired"]["p_value"],
            }
            if figures["macro_4"]:
                flat[f"{name}_macro_4"] = figures["macro_4"]["macro_4"]
    return flat
