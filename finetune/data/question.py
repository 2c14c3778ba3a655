"""What an exam is made of: questions, statements, and what makes two questions the same one."""

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
    """One multiple-choice question. `answer` is an index into `options`, None when it is not known."""

    stem: str
    options: tuple[str, ...]
    answer: int | None
    subject: str = ""
    id: str = ""
    passage: str = ""  # hash of the text it is about, which other questions may be about too

    @property
    def fingerprint(self) -> str:
        """Hash of the normalised question: 16 hex digits, the same whatever the width of letters, the
        spaces and punctuation, or the order of the options.
        """
        text = "\x1f".join([normalised(self.stem), *sorted(map(normalised, self.options))])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Statement:
    """A fact told in a sentence: text[start:end] is what a question about it would ask for."""

    text: str
    start: int
    end: int
    subject: str = ""
    id: str = ""


def normalised(text: str) -> str:
    """NFKC, lower case, letters and digits only: what makes two questions the same one."""
    return "".join(
        c for c in unicodedata.normalize("NFKC", text).lower() if unicodedata.category(c)[0] in "LN"
    )


def seeded_hash(seed: int, key: str) -> bytes:
    """A pseudo-random key that depends on nothing but the seed and the question."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def as_dict(question: Question) -> dict:
    """The form of `test_qa_data.json`: question, options by letter, answer letter and answer text."""
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
    """The index that is right most often: what one would answer without reading."""
    return Counter(question.answer for question in questions).most_common(1)[0][0]
