"""Rows of reading comprehension (文章, 問題, 選項1–4, 正確答案, or the same in English) as exam questions:
the passage stands before the question, and the answer counts from 1."""

from __future__ import annotations

import hashlib
import unicodedata

PASSAGE = ("文章", "article", "passage", "context")
ASKED = ("問題", "question")
OPTION = ("選項", "option", "choice")
ANSWER = ("正確答案", "答案", "correct_answer", "answer")
NUMBERS = range(1, 12)  # one more than an exam takes, so that an eleventh option is refused and not lost


def is_reading(row: dict) -> bool:
    """True for a row with numbered options: 選項1, option1, Option 1 …"""
    return any(_plain(name) in _numbered(1) for name in row)


def as_question(row: dict) -> dict:
    """The row in the layout of exam questions: question, choices, answer (an index from 0), id."""
    named = {_plain(name): value for name, value in row.items()}
    passage, asked, answer = (_first(named, names) for names in (PASSAGE, ASKED, ANSWER))
    choices = [next((named[name] for name in _numbered(number) if name in named), "") for number in NUMBERS]
    while choices and (choices[-1] is None or not str(choices[-1]).strip()):
        choices.pop()
    stem = "\n\n".join(str(part) for part in (passage, asked) if part not in (None, ""))
    return {
        "question": stem if asked not in (None, "") else "",
        "choices": choices,
        "answer": _from_zero(answer, len(choices)),
        "subject": named.get("subject"),
        "id": named.get("id"),
    }


def passage_of(row: dict) -> str:
    """Hash of the row's passage, 16 hex digits; "" without one."""
    text = _first({_plain(name): value for name, value in row.items()}, PASSAGE)
    return hashlib.sha256(str(text).strip().encode("utf-8", "replace")).hexdigest()[:16] if text else ""


def _plain(name: object) -> str:
    return str(name).strip().lower().replace(" ", "").replace("_", "")


def _numbered(number: int) -> list[str]:
    return [f"{word}{number}" for word in OPTION]


def _first(named: dict, names: tuple[str, ...]) -> object:
    return next((named[_plain(name)] for name in names if _plain(name) in named), None)


def _from_zero(answer: object, count: int) -> object:
    """1 → 0; what is no number (a letter, nothing) is left as it is. The number of no option becomes text,
    which is refused as it was written."""
    text = unicodedata.normalize("NFKC", str(answer)).strip().removesuffix(".0")
    if isinstance(answer, bool) or not text.isdecimal():
        return answer
    return int(text) - 1 if text.lstrip("0") in map(str, range(1, count + 1)) else str(answer)
