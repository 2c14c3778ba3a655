"""Contamination: questions of an exam that the model was trained on.

Exact copies are found by their fingerprint, near copies by the 5-grams of characters they share.

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
COMMON = 200  # a gram (下列何者…) in more questions than this is not looked up
LIKELY = 50  # questions compared: those with most grams in common
NEAR = 0.7  # share of grams in common (Jaccard) from which two questions are nearly the same


def grams(question: Question) -> list[int]:
    """Return the SKETCH smallest hashes of a question's 5-grams, ascending."""
    ends = "\0" * (GRAM - 1)
    return minhash_sketch([ends + normalised(question.stem) + ends, *map(normalised, question.options)])


def minhash_sketch(texts: Iterable[str]) -> list[int]:
    """Return the SKETCH smallest hashes of the 5-grams of normalised texts, ascending."""
    grams_of_texts: set[str] = set()
    for text in texts:
        grams_of_texts |= {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}
    return nsmallest(SKETCH, {zlib.crc32(gram.encode()) for gram in grams_of_texts})


def encode_sketch(hashes: Sequence[int]) -> str:
    """Return hashes as text, for a run card."""
    return base64.b85encode(array("I", hashes).tobytes()).decode()


def decode_sketch(text: str) -> list[int]:
    """Return the hashes of a text.

    Raises:
        ValueError: the text holds no hashes.
    """
    return array("I", base64.b85decode(text)).tolist()


def overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """Return the Jaccard similarity of two questions, estimated from their sketches.

    It is exact when both sketches are whole.
    """
    union = sorted({*first, *second})
    shared = {*first} & {*second}
    if len(first) >= SKETCH or len(second) >= SKETCH:  # a sketch that is full may be cut off
        union = union[: max(len(first), len(second))]
    return sum(value in shared for value in union) / len(union)


class TrainedQuestions:
    """Index of the questions a model was trained on.

    Args:
        sketches: fingerprint of a question -> its grams.
    """

    def __init__(self, sketches: dict[str, Sequence[int]]):
        self.sketches: dict[str, Sequence[int]] = dict(sketches)
        self._fingerprints_of_gram: dict[int, list[str]] = defaultdict(list)
        for fingerprint, hashes in sketches.items():
            self._index(fingerprint, hashes)

    @classmethod
    def of(cls, questions: Iterable[Question]) -> TrainedQuestions:
        """Return the index of these questions."""
        return cls({question.fingerprint: grams(question) for question in questions})

    def find(self, question: Question, exact: bool = True) -> tuple[str, float]:
        """Return ("same", 1.0), ("near", overlap) or ("", largest overlap below NEAR).

        Args:
            exact: False leaves out the question itself, and looks for another one near it.
        """
        if exact and question.fingerprint in self.sketches:
            return "same", 1.0
        closest = self.closest(grams(question), question.fingerprint)
        return ("near" if closest >= NEAR else ""), closest

    def add(self, fingerprint: str, hashes: Sequence[int]) -> None:
        """Add a question by its fingerprint and sketch."""
        self.sketches[fingerprint] = hashes
        self._index(fingerprint, hashes)

    def _index(self, fingerprint: str, hashes: Sequence[int]) -> None:
        """Index a question under each of its grams."""
        for value in hashes:
            self._fingerprints_of_gram[value].append(fingerprint)

    def closest(self, hashes: Sequence[int], leave_out: str = "") -> float:
        """Return the largest overlap of a sketch with one in the index.

        Args:
            leave_out: fingerprint of a question to ignore.
        """
        return max((share for share, _ in self.nearest(hashes, leave_out)), default=0.0)

    def nearest(self, hashes: Sequence[int], leave_out: str = "") -> list[tuple[float, str]]:
        """Return (overlap, fingerprint) of at most LIKELY questions, those with most grams in common.

        Args:
            leave_out: fingerprint of a question to ignore.
        """
        holders = (self._fingerprints_of_gram.get(value, ()) for value in hashes)
        shared = Counter(
            fingerprint
            for fingerprints in holders
            if len(fingerprints) <= COMMON
            for fingerprint in fingerprints
        )
        shared.pop(leave_out, None)
        return [(overlap(hashes, self.sketches[other]), other) for other, _ in shared.most_common(LIKELY)]
