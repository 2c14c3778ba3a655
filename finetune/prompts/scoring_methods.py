"""Scoring methods for options, by name; evaluation/scoring.py computes them.

A name is a base, then `_sum` (sum over the option's tokens instead of their mean), then a correction:

    letter  letter+prior  joint  pll  pll_l2r  pll_word_l2r  first    and pll_sum, joint+pmi, pll_sum+pmi …
"""

from __future__ import annotations

from dataclasses import dataclass

TEXT = ("joint", "pll", "pll_l2r", "pll_word_l2r", "first")  # bases that score the option's own text
ORDERS = ("1", "cyclic", "all")
SHORT = {"pmi": "pll_sum+pmi", "prior": "letter+prior"}  # aliases: a correction with its usual base
LETTER = "letter"  # the next token, among the letters
LOGLIKELIHOOD = "loglikelihood"  # the letter as a continuation, among all texts (lm-evaluation-harness)
GENERATE = "generate"  # what a causal model writes, read by evaluation/reply_reader.py
CHOICE = "choice"  # the number that a multiple-choice head gives
CAUSAL = (LETTER, "letter+prior", LOGLIKELIHOOD, GENERATE)  # methods for causal models
METHOD_OF_OBJECTIVE = {  # training objective -> default scoring method
    "answer+mlm": "letter", "answer": "letter", "mlm": "joint", "cloze": "joint", "choice": CHOICE,
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """Scoring method, parsed.

    Attributes:
        base: "letter" or one of TEXT.
        summed: sum over the option's tokens, else their mean.
        correction: "", "pmi" or "prior".
    """

    base: str
    summed: bool = False
    correction: str = ""

    def __str__(self) -> str:
        return self.base + "_sum" * self.summed + (f"+{self.correction}" if self.correction else "")

    @property
    def by_letter(self) -> bool:
        """Return True when the options are listed and the answer is a letter, so that their order matters."""
        return self.base in (LETTER, LOGLIKELIHOOD)


def parse(name: str | Method) -> Method:
    """Return the method of a name.

    Raises:
        ValueError: it names no method.
    """
    if isinstance(name, Method):
        return name
    try:
        return _BY_NAME[SHORT.get(name, name)]
    except (KeyError, TypeError):
        raise ValueError(f"unknown scoring method {name!r}; known: {', '.join(METHODS)}") from None


def _all_methods() -> list[Method]:
    letters = [Method(LETTER), Method(LETTER, correction="prior")]
    bases = [(base, summed) for base in TEXT for summed in (False, True) if (base, summed) != ("first", True)]
    return letters + [Method(*base, correction) for correction in ("", "pmi") for base in bases]


_BY_NAME = {str(method): method for method in _all_methods()}
METHODS = tuple(_BY_NAME)
_BY_NAME |= {name: Method(name) for name in (LOGLIKELIHOOD, GENERATE, CHOICE)}
