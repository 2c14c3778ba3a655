"""Orders in which the options of a question may be shown.

Some options must keep their place: "A與C" refers to letters, 以上皆是 to the options above it.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations

MOVABLE = 5  # most options of which all orders are evaluated: 120 of them
# Options that refer to others, after normalizing widths and removing brackets, spaces and punctuation.
_VERDICT = r"(兩者|二者|三者|皆|均|都|全|部|才|為|是|不|非|對|錯|正確|錯誤|可|能|有|會|符合|成立)*"
BY_LETTER = re.compile(
    rf"((選項|以上|僅|只有)+[A-J]|[A-J](選項|與|和|及|跟|或)*[A-J])(選項|與|和|及|跟|或|[A-J])*{_VERDICT}"
)
ABOVE = re.compile(
    rf"(以上|上述|前述|上列|以下|所有|各|[兩二三四]?[者項]|選項|答案|敘述|說法)*(皆|均|都|全){_VERDICT}|無正確(答案|選項)"
)


class PromptError(ValueError):
    """Question that cannot be written as a prompt in this way; the message says why, in Chinese."""


def refers_to_other_options(option: str) -> str:
    """Classify how an option refers to other options.

    Returns:
        "letters" for an option like "A與C" or （A）（B）皆是, "above" for 以上皆非, "" for neither.
    """
    bare = re.sub(r"[^\w]|_", "", unicodedata.normalize("NFKC", option))
    return "letters" if BY_LETTER.fullmatch(bare) else "above" if ABOVE.fullmatch(bare) else ""


def pinned_options(options: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the options that must keep their place when the order changes.

    An option such as "A與C" refers to letters, and one such as 以上皆是 that is not the last refers to the
    options before it: then all options are pinned. A last 以上皆是 stays last, and the others may move.
    """
    all_indices = tuple(range(len(options)))
    references = [refers_to_other_options(option) for option in options]
    if "letters" in references:
        return all_indices
    above = tuple(i for i, reference in enumerate(references) if reference)
    return above if above in ((), all_indices[-1:]) else all_indices


def rearranged(options: Sequence[str], arrange: Callable[[list[int]], Iterable[int]]) -> tuple[int, ...]:
    """Reorder the options that may move.

    Args:
        options: texts of the options.
        arrange: takes the list of movable indices and returns the same indices in a new order.

    Returns:
        order, where order[place] is the index of the option shown at that place.
    """
    movable = _movable(options)
    return _placed(options, movable, arrange(list(movable)))


def _placed(options: Sequence[str], movable: Sequence[int], moved: Iterable[int]) -> tuple[int, ...]:
    """Return the order with `moved` at the places of `movable`, the other options at their own."""
    indices = iter(moved)
    return tuple(next(indices) if i in movable else i for i in range(len(options)))


def shuffled(options: Sequence[str], rng: random.Random) -> tuple[int, ...]:
    """Shuffle the options that may move."""

    def shuffle(indices: list[int]) -> list[int]:
        rng.shuffle(indices)
        return indices

    return rearranged(options, shuffle)


def _movable(options: Sequence[str]) -> list[int]:
    pinned = set(pinned_options(options))
    return [i for i in range(len(options)) if i not in pinned]


def cyclic_orders(options: Sequence[str]) -> list[tuple[int, ...]]:
    """List every rotation of the movable options; one order when none may move."""
    movable = _movable(options)
    turns = range(max(1, len(movable)))
    return [_placed(options, movable, movable[by:] + movable[:by]) for by in turns]


def all_orders(options: Sequence[str]) -> list[tuple[int, ...]]:
    """List every order of the movable options, the original one first.

    Raises:
        PromptError: more than MOVABLE options may move.
    """
    count = len(options) - len(pinned_options(options))
    if count > MOVABLE:
        raise PromptError(
            f"有 {count} 個選項可以換位置，全部順序有 {math.factorial(count)} 種；"
            f"--orders all 最多 {MOVABLE} 個，請改用 cyclic"
        )
    movable = _movable(options)
    return [_placed(options, movable, moved) for moved in permutations(movable)]


def orders_to_ask(options: Sequence[str], orders: str) -> list[tuple[int, ...]]:
    """List the orders to evaluate for `1`, `cyclic` or `all`, the original one first."""
    if orders == "1":
        return [tuple(range(len(options)))]
    return cyclic_orders(options) if orders == "cyclic" else all_orders(options)
