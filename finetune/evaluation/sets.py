"""The sets of rows a model is examined on, in the order in which they are to be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Found = TypeVar("Found")
# The official test is what a model is judged by. Rows kept back were never looked at either, but are few; by
# validation rows the best step was chosen, so that they flatter it.
ORDER = ("test", "held_back", "validation")


def in_order(of_sets: Mapping[str, Found]) -> dict[str, Found]:
    """What is known of each set, by its name: those of ORDER first, others as they come."""
    first = {name: of_sets[name] for name in ORDER if name in of_sets}
    return first | dict(of_sets)
