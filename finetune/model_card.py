"""What a model folder tells people and programs beside its run card: README.md and all_results.json."""

from __future__ import annotations

from pathlib import Path

from .report import NOT_COMPARABLE, TITLES, write_json
from .run_card import FILE, RunCard

FIRST = {name: TITLES[name] for name in ("held_back", "test")}  # the sets a training run examines on


def write(folder: Path, card: RunCard, progress) -> None:
    """The run card with its results, README.md and all_results.json."""
    card.write(folder)
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")
    write_json(folder / "all_results.json", all_results(card.results, progress, card))


def model_card(card: RunCard) -> str:
    """README.md of the model folder: what it is, how it was taught, how good it became, how to ask it."""
    results = card.results
    lines = [
        "---",
        "language: zh",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "tags: [tmmluplus, multiple-choice, traditional-chinese]",
        "---",
        "",
        f"# {Path(card.base_model).name} 考題微調模型",
        "",
        f"- 底模：`{card.base_model}`",
        f"- 資料：{card.dataset}",
        f"- 目標：`{card.objective}`；作答方式：`{card.scoring}`",
        f"- 訓練題數：{len(card.fingerprints)}（指紋存於 `{FILE}`）",
        "",
        "## 成績",
        "",
    ]
    if card.pool == "all":
        lines += [f"> **{NOT_COMPARABLE}**", ""]
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
    lines += [
        "",
        "## 使用",
        "",
        "```bash",
        'python inference.py --model_path 這個資料夾 --question "最大的行星是？" --options "A:地球 B:木星"',
        "```",
        "",
    ]
    return "\n".join(lines)


def all_results(results: dict, progress, card: RunCard) -> dict:
    """The figures by flat names, for programs: accuracies 0..1, losses in nats, train_runtime in seconds."""
    last = progress.history[-1] if progress.history else {}
    flat = {
        "train_runtime": round(progress.seconds, 2),
        "train_loss": last.get("train_loss"),
        "steps": progress.step,
        "epochs": progress.epoch,
        "best_step": progress.best_step,
        "scoring": card.scoring,
        "pool": card.pool,
    }
    if progress.best_accuracy >= 0:
        flat |= {"validation_accuracy": progress.best_accuracy, "validation_loss": progress.best_loss}
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
