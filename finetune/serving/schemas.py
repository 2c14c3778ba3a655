"""Bodies of the requests of our own paths."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from finetune.cli.inference_args import LONGEST_WORD, MOST_WORDS
from finetune.prompts.scoring_methods import ORDERS

MOST_OPTIONS = 10
Text = Annotated[str, Field(min_length=1)]
TopK = Annotated[int, Field(ge=1, le=MOST_WORDS)]


class Body(BaseModel):
    """Base: a field that is not known is refused, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model: str | None = Field(None, description="name of the model; may be left out")


class FillBody(Body):
    """A sentence with blanks."""

    prompt: Text = Field(description="[MASK] is a blank; one is added at the end where there is none")
    top_k: TopK = 5
    word_length: int = Field(1, ge=1, le=LONGEST_WORD, description="characters one [MASK] may become")
    candidates: list[Text] | None = Field(None, min_length=1, max_length=MOST_WORDS)


class AnswerBody(Body):
    """A multiple-choice question."""

    question: Text
    options: Annotated[dict[str, str], Field(min_length=2, max_length=MOST_OPTIONS)] | str = Field(
        description='{"A": "地球", "B": "木星"}, or "A:地球 B:木星"'
    )
    scoring: str = "auto"
    orders: Literal[*ORDERS] = "cyclic"  # type: ignore[valid-type]
    answer_format: Literal["letter", "index"] = "letter"


class ClassifyBody(Body):
    """A text, or a pair of them."""

    text: Text
    pair: Text | None = None
    top_k: TopK | None = Field(None, description="labels that are listed; all of them where it is left out")


class TagBody(Body):
    """A text whose spans are wanted."""

    text: str


class SpanBody(Body):
    """A question about a passage."""

    question: Text
    context: Text
    top_k: TopK | None = Field(None, description="also list so many answers")
