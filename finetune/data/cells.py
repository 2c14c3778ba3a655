"""Cells of a table: nothing, a text, or a list that was written as text."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
import unicodedata

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # takes no room: a cell of these alone looks empty
NO_VALUE = {"nan", "none", "null", "<na>", "#n/a", "n/a"}  # how programs write a missing value
NO_GOLD = {"-", "-1", "-1.0", "?"}  # how datasets say on purpose that a row has no gold answer or label
LONGEST_LITERAL = 1 << 16  # characters of a list in a cell
NUMBERS = re.compile(r"\[\s*\d+\.?\d*(\s+\d+\.?\d*)+\s*\]")  # `[1 0 1]`, as numpy prints an array
WRAPPED = re.compile(r"(?:array|tensor)\((\[.*\])(?:,\s*dtype=[\w.]+)?\)", re.DOTALL)


def is_blank(value: object) -> bool:
    """Return whether a cell is None, NaN or a text that shows nothing; `NA`, `None` and `無` are texts."""
    if isinstance(value, str):
        return not value.strip().strip(INVISIBLE)
    return value is None or (isinstance(value, float) and value != value)


def cell_text(value: object) -> str:
    """Return the text of a cell, "" where it is missing.

    Raises:
        ValueError: it is a list, or an infinite number.
    """
    if isinstance(value, (list, dict)):
        raise ValueError(f"應該是文字，得到 {type(value).__name__}")
    if isinstance(value, float) and math.isinf(value):
        raise ValueError("應該是文字，得到無限大的數")
    return "" if value is None or value != value else str(value)  # NaN is not itself


def narrowed(text: str) -> str:
    """Return the text with letters of one width (NFKC), without white space around it."""
    return unicodedata.normalize("NFKC", text).strip().strip(INVISIBLE).strip()


def without_spaces(text: str) -> str:
    """Return the text with letters of one width (NFKC), without any white space."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def column_key(name: object) -> str:
    """Return a column's name for comparison: small letters and digits alone. `Option_A` -> optiona."""
    return "".join(c for c in unicodedata.normalize("NFKC", str(name)).casefold() if c.isalnum())


def written_list(text: str) -> list | dict | None:
    """Return the list or dict that a text writes out, as JSON, Python or numpy do; else None."""
    text = text.strip()
    if wrapped := WRAPPED.fullmatch(text[:LONGEST_LITERAL]):
        text = wrapped[1]
    if not (text[:1] + text[-1:] in ("[]", "{}") and len(text) <= LONGEST_LITERAL):
        return None
    if NUMBERS.fullmatch(text):
        return [int(n) if n.isdecimal() else float(n) for n in text.strip("[]").split()]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
            if isinstance(value, list):
                value = _separate_strings(text, value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
            return None
    return value if isinstance(value, (list, dict)) else None


def _separate_strings(text: str, value: list) -> list:
    """Return the strings of a list that numpy printed without commas.

    `['a' 'b']` is two of them; to Python it would be one, 'ab'.
    """
    if not all(isinstance(item, str) for item in value):
        return value
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    texts = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    return texts if "".join(texts) == "".join(value) else value
