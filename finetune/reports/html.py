"""index.html of a report: one page that needs nothing but itself, and how a figure is written.

The words and figures are those of `report.chapters()`; the look is report.html.j2, where every text is
escaped. Charts are HTML and SVG with real text: they grow with the screen, print, and can be searched.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from finetune.data.subjects import subject_title
from finetune.evaluation import evaluator
from finetune.reports import classification as classification_report
from finetune.reports import perplexity, plots

WRITING = ["hani.ZHT ", "kana.ZHT ", "latn.ZHT "]  # forms of characters in the font: those of Taiwan


def render(report, heat_maps: Mapping[str, bytes] = MappingProxyType({})) -> str:
    """The page of a `report.Report` as HTML.

    Args:
        heat_maps: PNG of the confusion of each set of labels. It is shown where the classes are too many for
            a table.
    """
    template = _template()
    chapters = report.chapters()
    told = {
        "report": report,
        "chapters": chapters,
        "mistakes": {chapter.name: evaluator.mistakes(chapter.sitting) for chapter in chapters},
        "taught": {chapter.name: taught(chapter) for chapter in chapters},
        "reliability": {chapter.name: reliability(chapter.found["calibration"]) for chapter in chapters},
        "training": training(report.history),
        "perplexity": perplexity,
        "classes": classification_report,
        "small": small,
        "share": percent,
        "heat_maps": {name: data_address("image/png", picture) for name, picture in heat_maps.items()},
    }
    return template.render(told, font=embedded(template.render(told, font="")))


@functools.cache
def _template():
    """report.html.j2, compiled once a process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    house = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    house.filters |= {
        "percent": lambda share: unbroken(percent(share)),
        "unbroken": unbroken,
        "counted": counted,
        "subject": subject_title,
    }
    return house.get_template("report.html.j2")


# ---- figures as text ---------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """0.9484 as 94.8 %."""
    return f"{share:.1%}".replace("%", " %")


def small(share: float) -> str:
    """The same in running text: 0.25 as 25 %."""
    return percent(share).replace(".0 %", " %")


def points(difference: float) -> str:
    """A difference of shares in percentage points: 0.0746 as +7.5."""
    return f"{100 * difference:+.1f}"


def counted(right: float) -> str:
    """How many are right: a whole number, or with one decimal where ties counted in part."""
    return f"{right:.1f}".removesuffix(".0")


def unbroken(text: str) -> str:
    """The same text, whose figures a line end does not part from what they count."""
    return text.replace(" %", "\u00a0%").replace(" 題", "\u00a0題").replace(" 列", "\u00a0列")


# ---- charts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axes:
    """A chart's frame: values to places in an SVG of 340 × 240, whose text is legible on a telephone."""

    across: Sequence[float]  # ticks, from one end to the other
    up: Sequence[float]

    LEFT, RIGHT, TOP, BOTTOM = 36, 318, 30, 198

    def x(self, value: float) -> float:
        share = (value - self.across[0]) / (self.across[-1] - self.across[0])
        return round(self.LEFT + share * (self.RIGHT - self.LEFT), 1)

    def y(self, value: float) -> float:
        share = (value - self.up[0]) / (self.up[-1] - self.up[0])
        return round(self.BOTTOM - share * (self.BOTTOM - self.TOP), 1)


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y); `look` names its colour in the template."""

    label: str
    look: str
    points: Sequence[tuple[float, float]]


SHARES = (0, 0.25, 0.5, 0.75, 1)
WHOLE = Axes(SHARES, SHARES)


def reliability(found: dict) -> list[tuple[str, Axes, dict]]:
    """(title, axes, figures) of every reliability diagram: as scored, and at the fitted temperature."""
    titles = {"as_scored": "原本的分數", "fitted": "調整溫度後"}
    return [(title, WHOLE, found[key]) for key, title in titles.items() if found[key]]


def training(history: Sequence[dict]) -> list[tuple[str, Axes, list[Curve]]]:
    """(title, axes, curves) of every chart of a training run; none without a history."""
    from matplotlib.ticker import MaxNLocator

    def curve(label: str, look: str, key: str) -> list[Curve]:
        points = [(entry["step"], entry[key]) for entry in history if math.isfinite(entry.get(key, math.nan))]
        return [Curve(label, look, points)] if points else []

    if not history:
        return []
    losses = curve("訓練", "other", "train_loss") + curve("驗證", "model", "validation_loss")
    steps = MaxNLocator(4, integer=True).tick_values(0, max(entry["step"] for entry in history))
    highest = max((value for one in losses for _, value in one.points), default=1)
    charts = [("損失", Axes(steps.tolist(), MaxNLocator(4).tick_values(0, highest).tolist()), losses)]
    for title, key in (("驗證巨觀 F1", "validation_macro_f1"), ("驗證正確率", "validation_accuracy")):
        if checked := curve("驗證", "model", key):
            charts.append((f"{title}（%）", Axes(steps.tolist(), SHARES), checked))
            break
    return charts


def taught(chapter) -> list[dict]:
    """The questions of a `report.Chapter` that were taught too, each with its stem."""
    stems = {question.id: question.stem for question in chapter.sitting.questions}
    return [{**row, "stem": stems[row["id"]]} for row in chapter.found["contamination"].get("rows", ())]


# ---- the font ----------------------------------------------------------------------------------------------


def embedded(characters: Iterable[str]) -> str:
    """A font with these characters, as a data: address; empty where there is no font to cut it from."""
    source = plots.bundled_font()
    if source is None:
        return ""
    from fontTools import subset

    options = subset.Options(
        flavor="woff", layout_features=["locl"], layout_scripts=WRITING, hinting=False, desubroutinize=True,
        drop_tables=["BASE", "GPOS", "VORG", "vhea", "vmtx", "DSIG"], notdef_outline=True, name_IDs=[],
    )  # fmt: skip
    font = subset.load_font(str(source), options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes={ord(character) for character in set(characters)})
    cutter.subset(font)
    held = io.BytesIO()
    subset.save_font(font, held, options)
    return data_address("font/woff", held.getvalue())


def data_address(kind: str, held: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(held).decode()
