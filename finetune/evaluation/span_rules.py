"""Published rules by which an answer is compared with the gold ones: exact match (EM) and F1.

Chinese: CMRC 2018 (Cui et al. 2019, cmrc2018_evaluate.py v5), by characters; DRCD (Shao et al. 2018) is
scored alike. EM compares the texts in lower case without punctuation; F1 is that of the longest run of pieces
that both have, where a piece is a Chinese character or a token of other scripts, as nltk cuts them.

English: SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018, evaluate-v2.0.py), by words: lower case, without
punctuation and articles; F1 is that of the bags of words.

Each counts the best of the gold answers. A question without an answer counts 1 where none is given, else 0,
as in SQuAD 2.0; CMRC's script knows no such questions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

CMRC_PUNCTUATION = {
    "-", ":", "_", "*", "^", "/", "\\", "~", "`", "+", "=", "，", "。", "：", "？", "！", "“", "”", "；", "’",
    "《", "》", "……", "·", "、", "「", "」", "（", "）", "－", "～", "『", "』",
}  # fmt: skip
HAN = re.compile("[\u4e00-\u9fa5]")  # as the script has it
ARTICLES = re.compile(r"\b(a|an|the)\b")
MOSTLY = 0.3  # share of Han characters among the letters from which texts are Chinese


@dataclass(frozen=True)
class Rule:
    """A way to compare an answer with one gold answer; both texts are as they stand in the passage.

    Attributes:
        name: for files.
        title: for people.
        bare: returns a text as it is compared.
        f1: how far two texts overlap, 0 to 1.
        drops_empty: a gold answer of which `bare` leaves nothing does not count (SQuAD 2.0).
    """

    name: str
    title: str
    bare: Callable[[str], str]
    f1: Callable[[str, str], float]
    drops_empty: bool

    def exact_match(self, prediction: str, golds: Sequence[str]) -> float:
        """Return 1 where the answer is one of the gold ones; without any, where it is empty."""
        said = self.bare(prediction)
        return float(any(said == self.bare(gold) for gold in self._counted(golds) or [""]))

    def overlap(self, prediction: str, golds: Sequence[str]) -> float:
        """Return the highest F1 with a gold answer; without any, 1 where the answer is empty, else 0."""
        counted = self._counted(golds)
        if not counted:
            return self.exact_match(prediction, ())
        return max(self.f1(prediction, gold) for gold in counted)

    def _counted(self, golds: Sequence[str]) -> list[str]:
        return [gold for gold in golds if not self.drops_empty or self.bare(gold)]


# ---- CMRC 2018 ---------------------------------------------------------------------------------------------


def without_punctuation(text: str) -> str:
    """Return the text in lower case without the punctuation of CMRC's script."""
    return "".join(char for char in text.lower().strip() if char not in CMRC_PUNCTUATION)


def mixed_segments(text: str) -> list[str]:
    """Return the pieces of a text without punctuation: Chinese characters, and tokens of other scripts."""
    pieces: list[str] = []
    other = ""
    for char in text.lower().strip():
        if char in CMRC_PUNCTUATION:
            continue
        if HAN.match(char):
            pieces += [*_words(other), char]
            other = ""
        else:
            other += char
    return pieces + _words(other)


def _words(text: str) -> list[str]:
    """Return the tokens of a text that is not Chinese, as `nltk.word_tokenize` cuts a sentence."""
    if not text:
        return []
    return (
        [text] if text.isascii() and text.isalnum() and len(text) < 3 else list(_tokenizer().tokenize(text))
    )


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def _longest_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest run of pieces that stands in both."""
    longest, row = 0, [0] * (len(second) + 1)
    for piece in first:
        above = row
        row = [0] * (len(second) + 1)
        for at, other in enumerate(second, 1):
            if piece == other:
                row[at] = above[at - 1] + 1
                longest = max(longest, row[at])
    return longest


def _cmrc_f1(prediction: str, gold: str) -> float:
    said, wanted = mixed_segments(prediction), mixed_segments(gold)
    return _f1(_longest_run(wanted, said), len(said), len(wanted))


# ---- SQuAD -------------------------------------------------------------------------------------------------


def normalized_answer(text: str) -> str:
    """Return the text in lower case without ASCII punctuation, articles and extra white space."""
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", bare).split())


def _squad_f1(prediction: str, gold: str) -> float:
    said, wanted = normalized_answer(prediction).split(), normalized_answer(gold).split()
    if not said or not wanted:
        return float(said == wanted)
    return _f1((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))


def _f1(common: int, said: int, wanted: int) -> float:
    """Return F1 of the pieces in common; 0 without any."""
    if not common:
        return 0.0
    precision, recall = common / said, common / wanted
    return 2 * precision * recall / (precision + recall)


RULES = {
    "cmrc2018": Rule("cmrc2018", "CMRC 2018／DRCD（逐字）", without_punctuation, _cmrc_f1, False),
    "squad": Rule("squad", "SQuAD（逐詞）", normalized_answer, _squad_f1, True),
}


def rule_for(texts: Iterable[str]) -> Rule:
    """Return the rule for the language of some texts: CMRC's where MOSTLY of the letters are Chinese."""
    letters = han = 0
    for text in texts:
        han += len(HAN.findall(text))
        letters += sum(map(str.isalpha, text))
    return RULES["cmrc2018" if han > MOSTLY * letters else "squad"]
