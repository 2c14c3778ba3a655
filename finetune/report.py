"""What a run leaves for people to look at: the curve, the figures, the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from . import examining
from .checkpoints import Progress
from .run_card import TITLES, RunCard, model_card
from .subjects import SUBJECTS, chinese_name


def write(
    model: Path, beside: Path, card: RunCard, results: dict, progress: Progress, sittings: dict
) -> None:
    """Writes all_results.json, the cards and the curve.

    Args:
        model: the saved model's folder.
        beside: where curve and report/ go.
        results: per set of questions, as `examining.compare` returns them.
        sittings: {"tuned" | "untuned": {set: Sitting}}.
    """
    card.results = results
    card.write(model)
    (model / "README.md").write_text(model_card(card), encoding="utf-8")
    _json(model / "all_results.json", all_results(results, progress, card))
    plot_curve(beside / "validation_loss_curve.png", progress.history, progress.best_step)
    folder = beside / "report"
    folder.mkdir(parents=True, exist_ok=True)
    _json(folder / "results.json", {"pool": card.pool, **results})
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as stream:
        for name in results:
            for record in examining.records(sittings["tuned"][name], sittings["untuned"][name]):
                stream.write(json.dumps({"set": name, **record}, ensure_ascii=False) + "\n")
    (folder / "report.md").write_text(markdown(results, progress, card), encoding="utf-8")


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def all_results(results: dict, progress: Progress, card: RunCard) -> dict:
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
                f"{name}_accuracy": figures["tuned"]["accuracy"],
                f"{name}_interval_95": figures["tuned"]["interval_95"],
                f"{name}_questions": figures["tuned"]["n"],
                f"untuned_{name}_accuracy": figures["untuned"]["accuracy"],
                f"{name}_p_value": figures["paired"]["p_value"],
            }
            if figures["macro_4"]:
                flat[f"{name}_macro_4"] = figures["macro_4"]["macro_4"]
    return flat


def verdict(results: dict, card: RunCard) -> list[str]:
    """The outcome in a few lines, for the screen."""
    lines = []
    for name, figures in results.items():
        if not figures:
            continue
        tuned, untuned, (low, high) = figures["tuned"], figures["untuned"], figures["tuned"]["interval_95"]
        lines.append(
            f"{TITLES[name]} {tuned['n']} 題：微調後 {tuned['accuracy']:.3f}（95 % 區間 "
            f"{low:.3f}–{high:.3f}），"
            f"微調前 {untuned['accuracy']:.3f}，亂猜 {tuned['chance']:.3f}，"
            f"全答 {tuned['majority_letter_is']} {tuned['majority_letter']:.3f}，全選最長 "
            f"{tuned['longest_option']:.3f}"
            f"；McNemar p = {figures['paired']['p_value']:.2g}"
        )
        if macro := figures["macro_4"]:
            whole = "，與公布的算法相同" if macro["subjects"] == len(SUBJECTS) else "；公布的是 66 科"
            named = f"四大類平均（macro-4，{macro['subjects']} 科{whole}）"
            lines.append(
                f"  {named}{macro['macro_4']:.3f}，微調前 {figures['untuned_macro_4']['macro_4']:.3f}"
            )
        if figures["overlap"]:
            rest = figures["without_overlap"]
            without = f"，去掉後 {rest['accuracy']:.3f}（{rest['n']} 題）" if rest else "，全部都是"
            lines.append(f"  其中 {figures['overlap']} 題是模型訓練過的{without}")
        if figures["too_long"]:
            lines.append(f"  {figures['too_long']} 題太長問不了，算答錯")
    if card.pool == "all":
        lines.append("不可與公布的 TMMLU+ 成績比較（--pool all：訓練用到了正式測驗題）")
    return lines


def markdown(results: dict, progress: Progress, card: RunCard) -> str:
    """report.md: the verdict, then every subject of each set with its interval."""
    lines = [
        "# 測驗報告",
        "",
        f"模型 `{card.base_model}`，資料 {card.dataset}，目標 `{card.objective}`，作答 `{card.scoring}`",
        "",
    ]
    lines += [f"- {line.strip()}" for line in verdict(results, card)]
    lines += [
        f"- 訓練 {progress.step} 步、{progress.seconds:.0f} 秒；驗證最好的是第 {progress.best_step} 步",
        "",
    ]
    for name, figures in results.items():
        if figures:
            lines += [
                f"## {TITLES[name]}：各科",
                "",
                "| 科目 | 題數 | 正確率 | 95 % 區間 |",
                "|---|---|---|---|",
            ]
            for subject, row in sorted(figures["subjects"].items(), key=lambda item: -item[1]["accuracy"]):
                low, high = row["interval_95"]
                lines.append(
                    f"| {chinese_name(subject)} | {row['n']} | {row['accuracy']:.3f} | {low:.3f}–{high:.3f} |"
                )
            lines.append("")
    return "\n".join(lines)


# ---- the curve ---------------------------------------------------------------------------------------------

CHINESE_FONTS = (
    "Noto Sans CJK TC", "Noto Sans TC", "Source Han Sans TC", "PingFang TC", "Microsoft JhengHei", "Heiti TC",
    "WenQuanYi Micro Hei", "Noto Sans CJK JP", "Noto Sans CJK SC", "Microsoft YaHei", "SimHei",
)  # fmt: skip
LABELS = {
    "step": ("步數", "Step"), "loss": ("損失", "Loss"), "train": ("訓練損失", "Training loss"),
    "validation": ("驗證損失", "Validation loss"), "accuracy": ("驗證正確率", "Validation accuracy"),
    "best": ("最好的一步", "Best step"), "title": ("訓練過程", "Training"),
}  # fmt: skip


def plot_curve(path: Path, history: Sequence[dict], best_step: int) -> None:
    """Training and validation loss over steps, accuracy on a second axis, the best step marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    font = chinese_font("".join(chinese for chinese, _ in LABELS.values()))
    label = {name: pair[0 if font else 1] for name, pair in LABELS.items()}
    with pyplot.rc_context({"font.family": [font] if font else ["sans-serif"], "axes.unicode_minus": False}):
        figure, left = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        marker = "o" if len(history) < 2 else None

        def curve(axes, entries: Sequence[dict], key: str, name: str, color: str) -> list:
            at, values = [entry["step"] for entry in entries], [entry[key] for entry in entries]
            return axes.plot(at, values, color=color, label=label[name], marker=marker)

        lines = curve(left, history, "train_loss", "train", "tab:gray")
        checked = [entry for entry in history if "validation_loss" in entry]
        left.set(xlabel=label["step"], ylabel=label["loss"], title=label["title"])
        left.set_ylim(bottom=0)
        if checked:
            right = left.twinx()
            right.set(ylabel=label["accuracy"], ylim=(0, 1))
            best = f"{label['best']}（{best_step}）" if font else f"{label['best']} ({best_step})"
            lines += curve(left, checked, "validation_loss", "validation", "tab:blue")
            lines += curve(right, checked, "validation_accuracy", "accuracy", "tab:orange")
            lines.append(left.axvline(best_step, color="tab:green", linestyle="--", label=best))
        left.grid(alpha=0.3)
        figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def chinese_font(text: str) -> str | None:
    """A font with every character of `text`: the system's, else the one a package bundles, else None.

    Labels are then in English: boxes are never drawn.
    """
    from matplotlib import font_manager, ft2font

    try:
        import matplotlib_fontja

        bundled = Path(matplotlib_fontja.get_font_ttf_path())
        font_manager.fontManager.addfont(str(bundled))
        last = (font_manager.FontProperties(fname=str(bundled)).get_name(),)
    except (ImportError, AttributeError, OSError):
        last = ()
    installed = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    for name in (*CHINESE_FONTS, *last):
        if name in installed and all(ord(c) in ft2font.FT2Font(installed[name]).get_charmap() for c in text):
            return name
    return None
