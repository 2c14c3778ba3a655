"""Baselines of extractive question answering that need no model: a sentence of the passage as the answer."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from finetune.data.span_rows import SpanRow

SENTENCE = re.compile(r"[^。！？!?；;\n]*?(?:[。！？!?；;\n]+|\.(?=\s|$)|$)")


def sentences(text: str) -> list[str]:
    """Return the sentences of a passage, each with its end mark; at least one."""
    found = [match.group().strip() for match in SENTENCE.finditer(text)]
    return [sentence for sentence in found if sentence] or [text.strip()]


def random_sentence(row: SpanRow) -> str:
    """Return a sentence of the passage, the same one each time."""
    return random.Random(f"sentence:{row.fingerprint}").choice(sentences(row.context))


def most_shared_sentence(row: SpanRow) -> str:
    """Return the sentence that shares the most characters with the question, as bags; the first of equals."""
    asked = Counter(_letters(row.question))
    return max(sentences(row.context), key=lambda sentence: (Counter(_letters(sentence)) & asked).total())


def _letters(text: str) -> str:
    """Return the letters and digits of a text in lower case."""
    return "".join(filter(str.isalnum, text.lower()))


BASELINES: dict[str, Callable[[SpanRow], str]] = {  # key in the metrics -> its answer
    "random_sentence": random_sentence, "most_shared_sentence": most_shared_sentence,
}  # fmt: skip


def baseline_answers(rows: Sequence[SpanRow]) -> dict[str, list[str]]:
    """Return the answers of each baseline to the rows."""
    return {name: [answer(row) for row in rows] for name, answer in BASELINES.items()}
