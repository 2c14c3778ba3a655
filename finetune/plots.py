"""Pictures with labels in Chinese, in a font that has every character of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

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
        marker = "o" if len(history) < 3 else None

        def curve(axes, entries: Sequence[dict], key: str, name: str, color: str) -> list:
            at, values = [entry["step"] for entry in entries], [entry[key] for entry in entries]
            return axes.plot(at, values, color=color, label=label[name], marker=marker)

        taught = [entry for entry in history if "train_loss" in entry]
        lines = curve(left, taught, "train_loss", "train", "tab:gray")
        checked = [entry for entry in history if "validation_loss" in entry]
        left.set(xlabel=label["step"], ylabel=label["loss"], title=label["title"])
        examined = [entry for entry in checked if "validation_accuracy" in entry]
        if checked:
            best = f"{label['best']}（{best_step}）" if font else f"{label['best']} ({best_step})"
            lines += curve(left, checked, "validation_loss", "validation", "tab:blue")
            if examined:  # texts have a loss alone
                right = left.twinx()
                right.set(ylabel=label["accuracy"], ylim=(0, 1))
                lines += curve(right, examined, "validation_accuracy", "accuracy", "tab:orange")
            lines.append(left.axvline(best_step, color="tab:green", linestyle="--", label=best))
        left.set_ylim(bottom=0)  # once all curves are there: it fixes the top too
        left.grid(alpha=0.3)
        figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def plot_intervals(path: Path, rows: Sequence, chance: float) -> bool:
    """Accuracies with their intervals, one below the other, and a line at chance.

    Args:
        rows: each with a `label`, an `accuracy`, an `interval` (low, high) and `n`, in the order shown.

    Returns:
        False where no font has every label: nothing is drawn then.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [f"{row.label}（{row.n} 題）" for row in rows]
    font = chinese_font("".join(labels) + "正確率與區間亂猜")
    if font is None:
        return False
    with pyplot.rc_context({"font.family": [font], "font.size": 10}):
        figure, axes = pyplot.subplots(figsize=(7.5, 1.1 + 0.26 * len(rows)), layout="constrained")
        places = range(len(rows))
        values = [row.accuracy for row in rows]
        lows, highs = zip(*(row.interval for row in rows), strict=True)
        axes.hlines(places, lows, highs, color="#1f6f8b", alpha=0.5, linewidth=3)
        axes.plot(values, places, "o", color="#1f6f8b", clip_on=False)
        axes.axvline(chance, color="#b3452c", linestyle="--", linewidth=1, label="亂猜")
        axes.set(xlim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1], ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(places, labels, parse_math=False)  # a name may hold a $
        axes.set_xlabel("正確率與 95 % 區間")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
    return True


def chinese_font(text: str) -> str | None:
    """A font with every character of `text`: the system's, else the one a package bundles, else None.

    Labels are then in English: boxes are never drawn.
    """
    from matplotlib import font_manager, ft2font

    bundled = bundled_font()
    if bundled:
        font_manager.fontManager.addfont(str(bundled))
    installed = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    for name in CHINESE_FONTS:
        if name in installed and all(ord(c) in ft2font.FT2Font(installed[name]).get_charmap() for c in text):
            return name
    return None


def bundled_font() -> Path | None:
    """Noto Sans CJK as the package mplfonts brings it; None where that is not installed."""
    found = importlib.util.find_spec("mplfonts")  # not imported: it changes matplotlib's settings
    path = Path(found.origin).parent / "fonts/NotoSansCJKsc-Regular.otf" if found and found.origin else None
    return path if path and path.is_file() else None
