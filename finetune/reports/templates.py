"""Templates of what people read: report.html.j2, the page; report.md.j2 and model_card.md.j2, in Markdown.

The text stands in the templates; what goes in is computed in Python. In the page every text is escaped; in
Markdown those from outside are, by the filters `escaped`, `code` and `code_block` or in a `table`.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.data.subjects import subject_title
from finetune.reports import classification, doubtful_keys, evidence, perplexity, repeats, revisions
from finetune.reports.number_format import counted, percent, small, unbroken

if TYPE_CHECKING:
    from jinja2 import Environment, Template


def template(name: str) -> Template:
    """Return a template of this folder, compiled once a process."""
    return _environment().get_template(name)


@functools.cache
def _environment() -> Environment:
    """Return what all templates share: how they are read, filters and names."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        autoescape=select_autoescape(disabled_extensions=("md.j2",), default=True),
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": lambda share: unbroken(percent(share)),
        "share": percent,
        "plain": classification.plain,
        "unbroken": unbroken,
        "counted": counted,
        "subject": subject_title,
        "escaped": escaped,
        "code": code,
        "code_block": code_block,
    }
    environment.globals |= {
        "classes": classification,
        "evidence": evidence,
        "perplexity": perplexity,
        "revisions": revisions,
        "repeats": repeats,
        "doubtful": doubtful_keys,
        "share": percent,
        "small": small,
        "table": table,
    }
    return environment


# ---- texts from outside, in Markdown -----------------------------------------------------------------------


def escaped(text: str) -> str:
    """Return one line of Markdown that shows the text and is nothing else: no tag, no cell, no link."""
    line = html.escape(" ".join(text.split()), quote=False)
    marks = r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])"  # a _ inside a word is none
    return re.sub(marks, lambda match: f"&#{ord(match[0])};", line)


def code(text: str) -> str:
    """Return a code span of Markdown that ends where the text does."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def code_block(text: str) -> str:
    """Return a code block of Markdown, so that nothing in the text is taken for Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown, its cells escaped; all columns but the first are aligned to the right."""
    lines = [f"| {' | '.join(map(escaped, cells))} |" for cells in (head, *rows)]
    lines.insert(1, "|---|" + "--:|" * (len(head) - 1))
    return "\n".join(lines)
