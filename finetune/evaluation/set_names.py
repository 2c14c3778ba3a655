"""Names of the sets of rows a model is evaluated on, the most trustworthy first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
# The official test is what a model is judged by. Held-out rows were never looked at either, but are few; by
# validation rows the best step was chosen, so that they flatter it.
ORDER = ("test", "held_back", "validation")


def in_order(of_sets: Mapping[str, T]) -> dict[str, T]:
    """Return the entries by set name with those of ORDER first, others as they come."""
    first = {name: of_sets[name] for name in ORDER if name in of_sets}
    return first | dict(of_sets)
