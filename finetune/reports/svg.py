"""A small kit for drawings as SVG: texts, boxes and arrows, legible on a telephone and in the dark.

A drawing is one file without scripts or anything from outside. Its texts are texts, so that they can be
searched, copied and read aloud; the width of each is computed, and what has no room is shortened.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.runtime.console import plain
from finetune.runtime.text_width import display_width

NOT_XML = re.compile("[\x00-\x1f\ud800-\udfff\ufffe\uffff]")
WIDTH = 680  # of every drawing, in its own units: on a telephone a unit is about half a pixel
MARGIN = 28
FONTS = (
    '-apple-system,"Segoe UI","PingFang TC","Microsoft JhengHei","Noto Sans TC","Noto Sans CJK TC",'
    '"Source Han Sans TC","Heiti TC",sans-serif'
)
CODE_FONTS = f'ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",{FONTS.partition(",")[2]}'
SIZES = {"title": 27, "head": 21, "text": 18, "bold": 18, "small": 16, "note": 16, "code": 15, "tiny": 14}
NARROW = {"title": 0.66, "head": 0.66, "bold": 0.66}  # width of a Latin character, in its size; others 0.62
# Colours: fill, line and text on paper, then in the dark. The line is also that of arrows.
PAPER, INK, SOFT, RULE = (
    ("#fbfaf7", "#15181b"),
    ("#23272c", "#e6e4df"),
    ("#5f646b", "#a6abb1"),
    ("#d8d3c7", "#3a4046"),
)
LOOKS = {
    "plain": (("#f2efe8", "#1d2125"), RULE), "paper": (PAPER, RULE),
    "blue": (("#d9eaf1", "#173a49"), ("#1d6a86", "#6cb7d4")),
    "amber": (("#f6e9d0", "#43341a"), ("#a06f1f", "#d8ab63")),
    "green": (("#d9eee2", "#173b28"), ("#2b7549", "#77c598")),
    "violet": (("#e8e0f3", "#34284a"), ("#6a4c93", "#b79ddf")),
    "red": (("#f8e1da", "#4a231a"), ("#b3452c", "#ea8468")),
    "none": (("#eceae5", "#22262a"), ("#b4afa4", "#565c63")),
}  # fmt: skip


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height

    @property
    def middle(self) -> float:
        """The horizontal place of its centre."""
        return self.x + self.width / 2

    @property
    def center(self) -> float:
        """The vertical place of its centre."""
        return self.y + self.height / 2


def text_length(text: str, look: str = "text") -> float:
    """Return how wide a text is at most, in units: a Chinese character is as wide as it is high."""
    wide = display_width(text) - len(text)
    return SIZES[look] * (wide + NARROW.get(look, 0.62) * (len(text) - wide))


def fitted(text: str, room: float, look: str = "text") -> str:
    """Return a text shortened to some room, with … at the end where something was left out."""
    text = plain(text, lines=False)
    if text_length(text, look) <= room:
        return text
    while text and text_length(text + "…", look) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def lines_of(text: str, room: float, look: str = "text") -> list[str]:
    """Break a text into lines: between Chinese characters or at spaces, never before a closing mark.

    A line feed always breaks it.
    """
    if "\n" in text:
        return [line for part in text.split("\n") for line in lines_of(part, room, look)]
    lines, line = [], ""
    for piece in _pieces(text):
        if line and text_length((line + piece).rstrip(), look) > room:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    return [*lines, line.rstrip()] if line.strip() else lines


def _pieces(text: str) -> list[str]:
    """Return what a line may be broken between: Chinese characters, and words with the space after them."""
    pieces: list[str] = []
    for character in text:
        joined = pieces and (
            "\u00a0" in (character, pieces[-1][-1])
            or character in "，。、；：）！？」 " or pieces[-1][-1] in "（「"
            or (len(character.encode()) == 1 and len(pieces[-1][-1].encode()) == 1 and pieces[-1][-1] != " ")
        )  # fmt: skip
        if joined:
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


class Drawing:
    """A drawing that grows downwards.

    Args:
        title: what it shows, for screen readers and the window.
        description: the same in some sentences, for who cannot see it.
    """

    def __init__(self, title: str, description: str):
        self._title, self._description = title, description
        self._parts: list[str] = []

    def text(self, x: float, y: float, text: str, look: str = "text", **how: object) -> None:
        """Write one line.

        Args:
            x, y: its beginning, or the place that `anchor` names, on the baseline.
            text: one line.
            look: one of SIZES.
            how: anchor="middle" or "end"; room=units, to which it is shortened; colour=one of LOOKS.
        """
        room = how.get("room")
        shown = fitted(text, float(str(room)), look) if room is not None else plain(text, lines=False)
        anchor = f' text-anchor="{how["anchor"]}"' if "anchor" in how else ""
        colour = f" c-{how['colour']}" if "colour" in how else ""
        words = _escaped(shown)
        self._parts.append(f'<text class="{look}{colour}" x="{_n(x)}" y="{_n(y)}"{anchor}>{words}</text>')

    def number(self, x: float, y: float, number: int, room: float, **how: object) -> None:
        """Write a number with its thousands apart, smaller where it has no room: it is never shortened."""
        text = f"{number:,}"
        look = next((size for size in ("bold", "note") if text_length(text, size) <= room), "tiny")
        self.text(x, y, text, look, **how)

    def paragraph(self, x: float, y: float, text: str, room: float, look: str = "text") -> float:
        """Write a text in lines of some room; return the baseline below it."""
        for line in lines_of(text, room, look):
            self.text(x, y, line, look)
            y += 1.4 * SIZES[look]
        return y

    def box(self, place: Box, look: str, lines: Sequence[tuple[str, str]] = (), radius: float = 8) -> None:
        """Draw a box with centred lines.

        Args:
            place: where.
            look: one of LOOKS.
            lines: (text, look), top to bottom; each is shortened to the box.
            radius: of its corners.
        """
        self._parts.append(
            f'<g><rect class="{look}" x="{_n(place.x)}" y="{_n(place.y)}" width="{_n(place.width)}" '
            f'height="{_n(place.height)}" rx="{_n(radius)}"/>'
        )
        height = sum(1.32 * SIZES[size] for _, size in lines)
        y = place.center - height / 2
        for text, size in lines:
            self.text(place.middle, y + SIZES[size], text, size, anchor="middle", room=place.width - 12)
            y += 1.32 * SIZES[size]
        self._parts.append("</g>")

    def bare(self, place: Box, look: str) -> None:
        """Draw a box of sharp corners and without a border: a cell, a part of a bar."""
        self._parts.append(
            f'<rect class="{look} bare" x="{_n(place.x)}" y="{_n(place.y)}" width="{_n(place.width)}" '
            f'height="{_n(place.height)}"/>'
        )

    def line(self, points: Sequence[tuple[float, float]], look: str = "plain", ends: str = "") -> None:
        """Draw a line through points.

        Args:
            points: two or more.
            look: one of LOOKS, whose line colour it has; "faint" for one in the background.
            ends: "end" with an arrow head at the end, "both" at both ends.
        """
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        heads = ' marker-end="url(#tip)"' if ends else ""
        heads += ' marker-start="url(#tip)"' if ends == "both" else ""
        self._parts.append(f'<path class="l-{look}" d="{path}"{heads}/>')

    def dot(self, x: float, y: float, look: str, radius: float = 5) -> None:
        """Draw a dot."""
        self._parts.append(f'<circle class="{look}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"/>')

    def render(self, height: float) -> str:
        """Return the drawing as an SVG file.

        Args:
            height: in units; the width is WIDTH.
        """
        title, description = _escaped(self._title), _escaped(self._description)
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_n(height)}" width="{WIDTH}" '
            f'height="{_n(height)}" role="img" aria-labelledby="t d" lang="zh-Hant-TW">\n'
            f'<title id="t">{title}</title>\n<desc id="d">{description}</desc>\n'
            f"<!-- {MADE_HERE} -->\n<style>{_style()}</style>\n"
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="6" markerHeight="6" '
            'orient="auto-start-reverse"><path class="tip" d="M0 0L10 5L0 10z"/></marker></defs>\n'
            f'<rect class="sheet" width="{WIDTH}" height="{_n(height)}"/>\n{body}\n</svg>\n'
        )


MADE_HERE = "drawn by inference.py of fine-tuning-llm"  # a comment by which a figure of this program is known


def _escaped(text: str) -> str:
    """Return a text for XML, which has no place for some characters at all."""
    return html.escape(NOT_XML.sub("\ufffd", plain(text, lines=False)), quote=False)


def _n(value: float) -> str:
    """Write a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def _style() -> str:
    """Return the rules of all looks; colours stand in them as they are, for viewers without variables."""
    fixed = (
        f"text{{font-family:{FONTS};font-variant-numeric:tabular-nums}}"
        f".code{{font-family:{CODE_FONTS}}}"
        ".title,.head,.bold{font-weight:600}"
        + "".join(f".{look}{{font-size:{size}px}}" for look, size in SIZES.items())
        + "rect,circle{stroke-width:1.5}.bare,.sheet{stroke:none}path{fill:none;stroke-width:1.8}"
        ".l-faint{stroke-width:1;opacity:.35}"
    )  # fmt: skip
    return fixed + _colours(0) + f"@media (prefers-color-scheme:dark){{{_colours(1)}}}"


def _colours(dark: int) -> str:
    rules = [
        f"text{{fill:{INK[dark]}}}.small,.tiny{{fill:{SOFT[dark]}}}.sheet{{fill:{PAPER[dark]}}}",
        f".tip{{fill:{SOFT[dark]};stroke:none}}.l-faint{{stroke:{LOOKS['blue'][1][dark]}}}.l-ink{{stroke:{SOFT[dark]}}}",
    ]
    for look, (fill, line) in LOOKS.items():
        rules.append(
            f"rect.{look},circle.{look}{{fill:{fill[dark]};stroke:{line[dark]}}}"
            f".l-{look}{{stroke:{line[dark]}}}text.c-{look}{{fill:{line[dark]}}}"
            f"rect.solid-{look},circle.solid-{look}{{fill:{line[dark]};stroke:{line[dark]}}}"
        )
    return "".join(rules)
