"""Templates of what people read, of which report.html.j2, the page, is one; every text in it is escaped."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.data.subjects import subject_title
from finetune.reports import classification, perplexity
from finetune.reports.number_format import counted, percent, small, unbroken

if TYPE_CHECKING:
    from jinja2 import Environment, Template


def template(name: str) -> Template:
    """Return a template of this folder, compiled once a process."""
    return _environment().get_template(name)


@functools.cache
def _environment() -> Environment:
    """Return what all templates share: how they are read, filters and names."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": lambda share: unbroken(percent(share)),
        "unbroken": unbroken,
        "counted": counted,
        "subject": subject_title,
    }
    environment.globals |= {
        "classes": classification,
        "perplexity": perplexity,
        "share": percent,
        "small": small,
    }
    return environment
