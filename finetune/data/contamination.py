"""Does an exam hold questions that the model was taught? Exactly the same ones by their fingerprint, nearly
the same ones by the 5-grams of characters they share.

A question's grams are those of its normalised stem and options (widths, spaces and punctuation gone), as
32-bit hashes. The stem's ends count as characters of their own, so that 鯉魚屬於哪一類動物 and
鱸魚屬於哪一類動物, which share most of a template, share less than half of their grams. A run card keeps of
each question the smallest SKETCH of them: enough to estimate the overlap of two questions (bottom-k sketch,
Broder 1997), too little to read the question from.
"""

from __future__ import annotations

import base64
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from heapq import nsmallest

from finetune.data.question import Question, normalised

GRAM = 5  # characters
SKETCH = 64  # hashes kept of a question; half of all real questions have no more
COMMON = 200  # questions that hold a gram, from which on it (下列何者…) finds nothing
LIKELY = 50  # questions with most grams in common that are looked at
NEAR = 0.7  # share of grams in common (Jaccard) from which two questions are nearly the same


def grams(question: Question) -> list[int]:
    """The SKETCH smallest hashes of a question's 5-grams, in order."""
    ends = "\0" * (GRAM - 1)
    return minhash_sketch([ends + normalised(question.stem) + ends, *map(normalised, question.options)])


def minhash_sketch(texts: Iterable[str]) -> list[int]:
    """The SKETCH smallest hashes of the 5-grams of normalised texts, in order."""
    found = set()
    for text in texts:
        found |= {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}
    return nsmallest(SKETCH, {zlib.crc32(gram.encode()) for gram in found})


def encode_sketch(hashes: Sequence[int]) -> str:
    """Hashes as text, for a run card."""
    return base64.b85encode(array("I", hashes).tobytes()).decode()


def decode_sketch(text: str) -> list[int]:
    """Raises ValueError for a text that holds no hashes."""
    return array("I", base64.b85decode(text)).tolist()


def overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """Jaccard similarity of two questions, estimated from their sketches; exact when both are whole."""
    union = sorted({*first, *second})[: max(len(first), len(second))]
    both = {*first} & {*second}
    if len(first) < SKETCH and len(second) < SKETCH:
        union = {*first, *second}
    return sum(value in both for value in union) / len(union)


class TrainedQuestions:
    """What a model was fitted on, to look questions up in.

    Args:
        sketches: fingerprint of a question -> its grams.
    """

    def __init__(self, sketches: dict[str, Sequence[int]]):
        self.sketches: dict[str, Sequence[int]] = dict(sketches)
        self._holders: dict[int, list[str]] = defaultdict(list)
        for fingerprint, hashes in sketches.items():
            self._hold(fingerprint, hashes)

    @classmethod
    def of(cls, questions: Iterable[Question]) -> TrainedQuestions:
        return cls({question.fingerprint: grams(question) for question in questions})

    def find(self, question: Question, exact: bool = True) -> tuple[str, float]:
        """("same", 1.0), ("near", overlap) or ("", largest overlap below NEAR).

        Args:
            exact: False leaves the question itself out: is another one near it?
        """
        if exact and question.fingerprint in self.sketches:
            return "same", 1.0
        closest = self.closest(grams(question), question.fingerprint)
        return ("near" if closest >= NEAR else ""), closest

    def add(self, fingerprint: str, hashes: Sequence[int]) -> None:
        self.sketches[fingerprint] = hashes
        self._hold(fingerprint, hashes)

    def _hold(self, fingerprint: str, hashes: Sequence[int]) -> None:
        for value in hashes:
            self._holders[value].append(fingerprint)

    def closest(self, mine: Sequence[int], leave_out: str = "") -> float:
        """The largest overlap of a sketch with one of those here."""
        held = (self._holders.get(value, ()) for value in mine)
        shared = Counter(holder for own in held if len(own) <= COMMON for holder in own)
        shared.pop(leave_out, None)
        likely = [self.sketches[other] for other, _ in shared.most_common(LIKELY)]
        return max((overlap(mine, other) for other in likely), default=0.0)
