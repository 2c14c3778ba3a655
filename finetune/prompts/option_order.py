"""In which orders options may be shown. Some must keep their places: "A與C" speaks of letters, 以上皆是 of
what stands above it.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections.abc import Sequence
from itertools import permutations

MOVABLE = 5  # options whose orders are all asked: 120 of them
# Options that speak of others, once widths, brackets, spaces and punctuation are gone.
_VERDICT = r"(兩者|二者|三者|皆|均|都|全|部|才|為|是|不|非|對|錯|正確|錯誤|可|能|有|會|符合|成立)*"
BY_LETTER = re.compile(
    rf"((選項|以上|僅|只有)+[A-J]|[A-J](選項|與|和|及|跟|或)*[A-J])(選項|與|和|及|跟|或|[A-J])*{_VERDICT}"
)
ABOVE = re.compile(
    rf"(以上|上述|前述|上列|以下|所有|各|[兩二三四]?[者項]|選項|答案|敘述|說法)*(皆|均|都|全){_VERDICT}|無正確(答案|選項)"
)


class PromptError(ValueError):
    """This question cannot be asked in this way; the message says why, in Chinese."""


def refers_to_other_options(option: str) -> str:
    """ "letters" for an option like "A與C" or （A）（B）皆是, "above" for 以上皆非, "" for one that stands
    alone.
    """
    bare = re.sub(r"[^\w]|_", "", unicodedata.normalize("NFKC", option))
    return "letters" if BY_LETTER.fullmatch(bare) else "above" if ABOVE.fullmatch(bare) else ""


def pinned_options(options: Sequence[str]) -> tuple[int, ...]:
    """The indices that must keep their place when options change order.

    An option such as "A與C" speaks of letters, and one such as 以上皆是 that is not the last speaks of
    those before it: then every option stays. A last 以上皆是 stays last, and the others may move.
    """
    everything = tuple(range(len(options)))
    speaks = [refers_to_other_options(option) for option in options]
    if "letters" in speaks:
        return everything
    above = tuple(i for i, kind in enumerate(speaks) if kind)
    return above if above in ((), everything[-1:]) else everything


def rearranged(options: Sequence[str], arrange) -> tuple[int, ...]:
    """An order of the options: `arrange(list of movable indices) -> the same indices in a new order`.

    Returns:
        order, where order[place] is the index of the option shown at that place.
    """
    movable = _movable(options)
    moved = iter(arrange(list(movable)))
    return tuple(next(moved) if i in movable else i for i in range(len(options)))


def shuffled(options: Sequence[str], rng: random.Random) -> tuple[int, ...]:
    """A random order of the options that may move."""

    def mixed(places: list[int]) -> list[int]:
        rng.shuffle(places)
        return places

    return rearranged(options, mixed)


def _movable(options: Sequence[str]) -> list[int]:
    fixed = set(pinned_options(options))
    return [i for i in range(len(options)) if i not in fixed]


def cyclic_orders(options: Sequence[str]) -> list[tuple[int, ...]]:
    """Every rotation of the movable options; one order when none may move."""
    turns = max(1, len(options) - len(pinned_options(options)))
    return [rearranged(options, lambda places, by=by: places[by:] + places[:by]) for by in range(turns)]


def all_orders(options: Sequence[str]) -> list[tuple[int, ...]]:
    """Every order of the movable options, as written first. Raises Unaskable for more than MOVABLE."""
    count = len(options) - len(pinned_options(options))
    if count > MOVABLE:
        raise PromptError(
            f"有 {count} 個選項可以換位置，全部順序有 {math.factorial(count)} 種；"
            f"--orders all 最多 {MOVABLE} 個，請改用 cyclic"
        )
    return [rearranged(options, lambda _, order=order: order) for order in permutations(_movable(options))]


def orders_to_ask(options: Sequence[str], orders: str) -> list[tuple[int, ...]]:
    """The orders to ask in: `1`, `cyclic` or `all`; as written first."""
    if orders == "1":
        return [tuple(range(len(options)))]
    return cyclic_orders(options) if orders == "cyclic" else all_orders(options)
