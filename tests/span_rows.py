"""Questions about passages for the tests: answers begin with 甲 and end with 乙, which is soon learnt."""

from __future__ import annotations

import json
import random
from pathlib import Path

from conftest import random_text


def make_spans(count: int = 60, seed: int = 3, unanswerable: int = 0) -> list[dict]:
    """Flat rows; three questions to an article, every `unanswerable`-th has no answer (0: none)."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        answer = f"甲{random_text(rng, 0, 2)}乙"
        before, after = random_text(rng, 4, 14), random_text(rng, 4, 14)
        none = unanswerable and number % unanswerable == 0
        context = f"{before}。{after}" if none else f"{before}，{answer}、{after}"
        rows.append(
            {
                "id": f"q{number}",
                "title": f"文章{number // 3}",
                "context": context,
                "question": random_text(rng, 3, 6) + "？",
                "answer": "" if none else answer,
                "answer_start": None if none else len(before) + 1,
            }  # fmt: skip
        )
    return rows


def nested(rows: list[dict], version: str = "v2.0") -> dict:
    """The rows as SQuAD nests them."""
    articles: dict[str, list[dict]] = {}
    for row in rows:
        answers = [{"text": row["answer"], "answer_start": row["answer_start"]}] if row["answer"] else []
        qa = {"id": row["id"], "question": row["question"], "answers": answers}
        if version == "v2.0":
            qa["is_impossible"] = not answers
        articles.setdefault(row["title"], []).append({"context": row["context"], "qas": [qa]})
    data = [{"title": title, "paragraphs": paragraphs} for title, paragraphs in articles.items()]
    return {"version": version, "data": data}


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path
