"""Plots with Chinese labels, in a font that has every character of them."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finetune.runtime.files import atomic_open

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

CHINESE_FONTS = (
    "Noto Sans CJK TC", "Noto Sans TC", "Source Han Sans TC", "PingFang TC", "Microsoft JhengHei", "Heiti TC",
    "WenQuanYi Micro Hei", "Noto Sans CJK JP", "Noto Sans CJK SC", "Microsoft YaHei", "SimHei",
)  # fmt: skip
LABELS = {
    "step": ("步數", "Step"), "loss": ("損失", "Loss"), "train": ("訓練損失", "Training loss"),
    "validation": ("驗證損失", "Validation loss"), "accuracy": ("驗證正確率", "Validation accuracy"),
    "macro_f1": ("驗證巨觀 F1", "Validation macro F1"),
    "best": ("最好的一步", "Best step"), "title": ("訓練過程", "Training"),
}  # fmt: skip
MOST_CELLS = 30  # classes of a confusion whose cells still hold text
SHORT = 20  # characters of a name in running text


class IntervalRow(Protocol):
    """Accuracy with its interval, as `plot_intervals` draws it; sections.ScoreRow is one."""

    @property
    def label(self) -> str:
        """Name of what was measured."""
        ...

    @property
    def accuracy(self) -> float:
        """Accuracy, 0 to 1."""
        ...

    @property
    def interval(self) -> Sequence[float]:
        """Low and high end of the 95 % interval."""
        ...

    @property
    def n(self) -> int:
        """Number of questions."""
        ...


def _save(figure: Figure, path: Path, dpi: int) -> None:
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=dpi)


def plot_curve(path: Path, history: Sequence[dict[str, Any]], best_step: int) -> None:
    """Plot training and validation loss over steps, macro F1 or accuracy on a second axis.

    Args:
        path: where the picture is written.
        history: entries with `step` and what was measured then.
        best_step: is marked.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    font = chinese_font("".join(chinese for chinese, _ in LABELS.values()))
    label = {name: pair[0 if font else 1] for name, pair in LABELS.items()}
    with pyplot.rc_context({"font.family": [font] if font else ["sans-serif"], "axes.unicode_minus": False}):
        figure, left = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        marker = "o" if len(history) < 3 else None

        def curve(axes: Axes, key: str, name: str, color: str) -> list[Line2D]:
            entries = [entry for entry in history if key in entry]
            steps, values = [entry["step"] for entry in entries], [entry[key] for entry in entries]
            return axes.plot(steps, values, color=color, label=label[name], marker=marker)

        lines = curve(left, "train_loss", "train", "tab:gray")
        validated = [entry for entry in history if "validation_loss" in entry]
        left.set(xlabel=label["step"], ylabel=label["loss"], title=label["title"])
        if validated:
            best = f"{label['best']}（{best_step}）" if font else f"{label['best']} ({best_step})"
            lines += curve(left, "validation_loss", "validation", "tab:blue")
            if metric := _metric_of(validated):  # texts have a loss alone
                right = left.twinx()
                right.set(ylabel=label[metric], ylim=(0, 1))
                lines += curve(right, f"validation_{metric}", metric, "tab:orange")
            lines.append(left.axvline(best_step, color="tab:green", linestyle="--", label=best))
        left.set_ylim(bottom=0)  # once all curves are there: it fixes the top too
        left.grid(alpha=0.3)
        figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False)
        _save(figure, path, 150)
        pyplot.close(figure)


def _metric_of(entries: Sequence[dict[str, Any]]) -> str:
    """Return the metric that validation measured: macro_f1, accuracy or ""."""
    for name in ("macro_f1", "accuracy"):
        if any(f"validation_{name}" in entry for entry in entries):
            return name
    return ""


def plot_intervals(path: Path, rows: Sequence[IntervalRow], chance: float) -> bool:
    """Plot accuracies with their intervals, one below the other, and a line at chance.

    Args:
        path: where the picture is written.
        rows: in the order shown.
        chance: accuracy of guessing.

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
        _save(figure, path, 120)
        pyplot.close(figure)
    return True


def plot_confusion(path: Path, confusion: Sequence[Sequence[int]], names: Sequence[str]) -> bool:
    """Plot a confusion matrix as a heat map: of each class, which share was predicted as which.

    Of up to MOST_CELLS classes the cells hold counts and shares; of more, colours alone.

    Args:
        path: where the picture is written.
        names: names of the classes.
        confusion: (K, K) counts, a row for each true class.

    Returns:
        False where no font has every label: nothing is drawn then.
    """
    import matplotlib
    import numpy

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(names)
    many, few = count > MOST_CELLS, count <= 8
    labels = [short(name, 10 if few else 8) for name in names]
    font = chinese_font("".join(labels) + "正解模型的答案佔這一類的比率%")
    if font is None:
        return False
    counts = numpy.asarray(confusion)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    cell, size = (0.9, 10) if few else (0.16, 6) if many else (0.5, 8)  # inches, points
    side = min(max(cell * count, 2.4), 17)
    every = range(0, count, 1 + count * 8 // 900)  # names that would stand on one another are left out
    with pyplot.rc_context({"font.family": [font], "font.size": size}):
        figure, axes = pyplot.subplots(figsize=(side + 2.4, side + 1.5), layout="constrained")
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        turn: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        if many:
            turn = {"rotation": 90}
        axes.set_xticks(every, [labels[i] for i in every], parse_math=False, **turn)
        axes.set_yticks(every, [labels[i] for i in every], parse_math=False)
        axes.set_xlabel("模型的答案", fontsize=max(size, 9))
        axes.set_ylabel("正解", fontsize=max(size, 9))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if not many:
            edges = numpy.arange(count + 1) - 0.5
            axes.set_xticks(edges, minor=True)
            axes.set_yticks(edges, minor=True)
            axes.tick_params(which="minor", length=0)
            axes.grid(which="minor", color="#dddddd", linewidth=0.6)
            for i, j in zip(*counts.nonzero(), strict=True):
                ink = "white" if shares[i, j] > 0.55 else "#222222"
                axes.text(j, i, f"{counts[i, j]}\n{shares[i, j]:.0%}", ha="center", va="center", color=ink)
        bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=15 if few else 45)
        bar.ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        bar.set_label("佔這一類的比率", fontsize=max(size, 9))
        bar.outline.set_visible(False)
        _save(figure, path, 120)
        pyplot.close(figure)
    return True


def short(name: str, limit: int = SHORT) -> str:
    """Return a name as part of one line, of at most `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def chinese_font(text: str) -> str | None:
    """Return a font with every character of `text`: the system's, else a package's, else None.

    Labels are then in English: boxes are never drawn.
    """
    wanted = set(map(ord, text))
    return next((name for name, file in _installed() if wanted <= _characters_of(file)), None)


@functools.cache
def _installed() -> tuple[tuple[str, str], ...]:
    """Return name and file of each of CHINESE_FONTS here; the bundled one is added to matplotlib's."""
    from matplotlib import font_manager

    bundled = bundled_font()
    if bundled:
        font_manager.fontManager.addfont(str(bundled))
    installed = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    return tuple((name, installed[name]) for name in CHINESE_FONTS if name in installed)


@functools.cache
def _characters_of(file: str) -> frozenset[int]:
    """Return the code points that a font file has a glyph for: some 20 ms for a Chinese font's 44,000."""
    from matplotlib import ft2font

    return frozenset(ft2font.FT2Font(file).get_charmap())


def bundled_font() -> Path | None:
    """Return Noto Sans CJK as the package mplfonts brings it; None where that is not installed."""
    spec = importlib.util.find_spec("mplfonts")  # not imported: it changes matplotlib's settings
    path = Path(spec.origin).parent / "fonts/NotoSansCJKsc-Regular.otf" if spec and spec.origin else None
    return path if path and path.is_file() else None
