"""Figures as text: percentages, percentage points and counts, as reports write them."""

from __future__ import annotations


def percent(share: float) -> str:
    """Write a share as a percentage: 0.9484 as 94.8 %."""
    return f"{share:.1%}".replace("%", " %")


def small(share: float) -> str:
    """Write a share as a percentage in running text: 0.25 as 25 %."""
    return percent(share).replace(".0 %", " %")


def points(difference: float) -> str:
    """Write a difference of shares in percentage points: 0.0746 as +7.5."""
    return f"{100 * difference:+.1f}"


def counted(right: float) -> str:
    """Write a number of right answers, with one decimal where ties counted in part."""
    return f"{right:.1f}".removesuffix(".0")


def unbroken(text: str) -> str:
    """Return the text with no line break between a figure and its unit."""
    return text.replace(" %", "\u00a0%").replace(" 題", "\u00a0題").replace(" 列", "\u00a0列")
