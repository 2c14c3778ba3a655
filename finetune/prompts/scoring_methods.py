"""The ways of scoring an option, by name. What each computes: evaluation/scoring.py.

A name is a base, then `_sum` (sum over the option's tokens instead of their mean), then a correction:

    letter  letter+prior  joint  pll  pll_l2r  pll_word_l2r  first    and pll_sum, joint+pmi, pll_sum+pmi …
"""

from __future__ import annotations

from dataclasses import dataclass

TEXT = ("joint", "pll", "pll_l2r", "pll_word_l2r", "first")  # bases that score the option's own text
ORDERS = ("1", "cyclic", "all")
SHORT = {"pmi": "pll_sum+pmi", "prior": "letter+prior"}  # a correction alone names its usual base
GENERATE = "generate"  # what a causal model writes, read by predict/replies.py
CHOICE = "choice"  # the number that a multiple-choice head gives
CAUSAL = ("letter", "letter+prior", GENERATE)  # those a causal model can be asked by
METHOD_OF_OBJECTIVE = {  # how each is asked
    "answer+mlm": "letter", "answer": "letter", "mlm": "joint", "cloze": "joint", "choice": CHOICE,
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """`base`: letter or one of TEXT. `summed`: sum over tokens, else mean. `correction`: "", pmi or prior."""

    base: str
    summed: bool = False
    correction: str = ""

    def __str__(self) -> str:
        return self.base + "_sum" * self.summed + (f"+{self.correction}" if self.correction else "")

    @property
    def by_letter(self) -> bool:
        """True when the options are listed and the answer is a letter, so that their order matters."""
        return self.base == "letter"


def parse(name: str | Method) -> Method:
    """Raises ValueError for a name that is none."""
    if isinstance(name, Method):
        return name
    try:
        return _BY_NAME[SHORT.get(name, name)]
    except (KeyError, TypeError):
        raise ValueError(f"unknown scoring method {name!r}; known: {', '.join(METHODS)}") from None


def _every() -> list[Method]:
    letters = [Method("letter"), Method("letter", correction="prior")]
    summed = [(base, total) for base in TEXT for total in (False, True) if (base, total) != ("first", True)]
    return letters + [Method(base, total, fix) for fix in ("", "pmi") for base, total in summed]


_BY_NAME = {str(method): method for method in _every()}
METHODS = tuple(_BY_NAME)
_BY_NAME |= {GENERATE: Method(GENERATE), CHOICE: Method(CHOICE)}
