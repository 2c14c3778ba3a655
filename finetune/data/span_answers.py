"""Cells that hold answers: a text, several of them, or dicts with their places, in every usual layout."""

from __future__ import annotations

import re
from typing import Any

from finetune.data.cells import cell_text, is_blank, written_list
from finetune.data.span_offsets import parse_start
from finetune.runtime.errors import listed, shown

YES, NO = ("true", "1", "1.0", "yes", "是", "y"), ("false", "0", "0.0", "no", "否", "n", "")
BETWEEN = ("|||", "|", "｜", "\n", "；", ";")  # marks between several answers in one cell
ARRAY = re.compile(r"array\((\[.*?\])(?:,\s*dtype=[\w.]+)?\)", re.DOTALL)  # as pandas writes hub rows to csv


def read_answers(cell: Any, starts: Any, context: str) -> list[tuple[str, int | None]]:
    """Return (text, start) of each answer in a cell; blank texts are no answers, and None is no place.

    Args:
        cell: a text, a list of texts or of dicts, a dict of text(s) and start(s), or one of these written
            out; several texts in one are separated by one of BETWEEN.
        starts: start or starts of a column of its own.

    Raises:
        ValueError: no such layout, or not as many starts as texts.
    """
    if isinstance(cell, str) and cell not in context:
        written = written_list(ARRAY.sub(r"\1", cell))
        cell = _separate(cell, context) if written is None else written
    if isinstance(starts, str):
        written = written_list(ARRAY.sub(r"\1", starts))
        starts = _numbers(starts) if written is None else written
    return _answers(cell, starts)


def parse_truth(value: object, name: str) -> bool:
    """Return a cell that says yes or no. Raises ValueError: it says neither."""
    if isinstance(value, bool) or is_blank(value):
        return bool(value) and not is_blank(value)
    text = str(value).strip().lower()
    if text not in (*YES, *NO):
        raise ValueError(f"{name} 應是 true 或 false，得到 {shown(value)}")
    return text in YES


def check_answers(answers: list[tuple[str, int | None]], impossible: bool) -> list[tuple[str, int | None]]:
    """Return the answers. Raises ValueError where there are some and the row says that there are none."""
    if impossible and answers:
        raise ValueError(f"註明沒有答案（is_impossible），卻有答案 {shown(answers[0][0])}")
    return answers


def _answers(cell: Any, starts: Any) -> list[tuple[str, int | None]]:
    """Return (text, start) of each answer in a cell, whatever its layout; blank texts are no answers.

    Args:
        cell: a text, a list of texts or of dicts, or a dict of text(s) and start(s).
        starts: start or starts of a column of its own.

    Raises:
        ValueError: no such layout, or not as many starts as texts.
    """
    if isinstance(cell, dict):
        texts = next((cell[key] for key in ("text", "texts", "answer_text") if key in cell), None)
        if texts is None and cell:
            raise ValueError(f"答案沒有 text，有的是 {listed(cell)}")
        keys = ("answer_start", "answer_starts", "start", "starts")
        return _answers(texts, next((cell[key] for key in keys if key in cell), starts))
    if isinstance(cell, (list, tuple)):
        if any(isinstance(item, dict) for item in cell):
            return [pair for item in cell for pair in _answers(item, None)]
        texts = [_answer_text(item) for item in cell]
        if starts is None or is_blank(starts):
            starts = [None] * len(texts)
        places = list(starts) if isinstance(starts, (list, tuple)) else [starts]
        if len(places) != len(texts):
            raise ValueError(f"有 {len(texts)} 個答案，answer_start 卻有 {len(places)} 個")
        pairs = zip(texts, map(parse_start, places), strict=True)
        return [(text, place) for text, place in pairs if not is_blank(text)]
    if isinstance(starts, (list, tuple)):
        starts = starts[0] if len(starts) == 1 else starts or None
        if isinstance(starts, (list, tuple)):
            raise ValueError(f"有 1 個答案，answer_start 卻有 {len(starts)} 個")
    text = _answer_text(cell)
    return [] if is_blank(text) else [(text, parse_start(starts))]


def _answer_text(value: object) -> str:
    """Return an answer as text. Raises ValueError for what is none."""
    if isinstance(value, bool):
        raise ValueError(f"答案應是文章裡的一段文字，得到 {value}")
    try:
        return cell_text(value)
    except ValueError as error:
        raise ValueError(f"答案{error}") from None


def _separate(cell: str, context: str) -> str | list[str]:
    """Return the answers of a cell that is not in the passage as a whole, where all its parts are."""
    for mark in BETWEEN:
        parts = [part.strip() for part in cell.split(mark)]
        parts = [part for part in parts if part]
        if len(parts) > 1 and all(part in context for part in parts):
            return parts
    return cell


def _numbers(cell: str) -> str | list[str]:
    """Return the starts of a cell: several are separated as the answers are, or by commas."""
    parts = [part.strip() for part in re.split(r"[|｜；;,，、\s]+", cell.strip()) if part.strip()]
    return parts if len(parts) > 1 else cell
