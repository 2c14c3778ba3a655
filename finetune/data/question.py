"""Exam questions and statements, and the normalisation by which two questions are the same."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

LETTERS = "ABCDEFGHIJ"
MIN_OPTIONS, MAX_OPTIONS = 2, len(LETTERS)


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Attributes:
        answer: an index into `options`, None when it is not known.
        passage: hash of the text it is about, which other questions may be about too.
    """

    stem: str
    options: tuple[str, ...]
    answer: int | None
    subject: str = ""
    id: str = ""
    passage: str = ""

    @property
    def fingerprint(self) -> str:
        """Hash of the normalised question, 16 hex digits.

        It does not depend on the width of letters, spaces, punctuation or the order of the options.
        """
        text = "\x1f".join([normalised(self.stem), *sorted(map(normalised, self.options))])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Statement:
    """A fact as a sentence: text[start:end] is the answer to a question about it."""

    text: str
    start: int
    end: int
    subject: str = ""
    id: str = ""


def normalised(text: str) -> str:
    """Return the text in NFKC and lower case, letters and digits only.

    Questions that are equal so are the same question.
    """
    return "".join(
        c for c in unicodedata.normalize("NFKC", text).lower() if unicodedata.category(c)[0] in "LN"
    )


def seeded_hash(seed: int, key: str) -> bytes:
    """Return a pseudo-random key that depends only on the seed and the question."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def as_dict(question: Question) -> dict:
    """Return a question as in `test_qa_data.json`: options by letter, answer letter and answer text."""
    answer = question.answer
    return {
        "id": question.id,
        "subject": question.subject,
        "question": question.stem,
        "options": dict(zip(LETTERS, question.options, strict=False)),
        "answer": None if answer is None else LETTERS[answer],
        "answer_text": None if answer is None else question.options[answer],
    }


def majority_answer(questions: Iterable[Question]) -> int:
    """Return the index that is right most often: the answer of a baseline that reads nothing.

    Args:
        questions: at least one of them has an answer.
    """
    answers = (question.answer for question in questions if question.answer is not None)
    return Counter(answers).most_common(1)[0][0]
