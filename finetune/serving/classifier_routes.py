"""Classifiers in the shape of text-embeddings-inference: POST /predict."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from finetune.predict.classifier import ClassifierPredictor, TextOrPair
from finetune.runtime.errors import UserError
from finetune.serving.schemas import Body
from finetune.serving.service import Service
from finetune.serving.watch import Observed, observe

MOST_INPUTS = 1024
OneOrTwo = Annotated[list[str], Field(min_length=1, max_length=2)]
Prediction = dict[str, Any]  # score, label


class PredictBody(Body):
    """A text, a pair, or a list of them."""

    inputs: str | OneOrTwo | Annotated[list[OneOrTwo], Field(min_length=1, max_length=MOST_INPUTS)] = Field(
        description='"text", ["first", "second"], or a list of ["text"] and ["first", "second"]'
    )
    raw_scores: bool = Field(False, description="logits instead of probabilities")
    truncate: bool = Field(False, description="let a text that is too long lose its end; else it is refused")


def classifier_routes(service: Service) -> APIRouter:
    """Return the route of classifiers."""
    router = APIRouter()
    predictor: Any = service.predictor

    @router.post("/predict")
    async def predict(request: Request, body: PredictBody) -> list[Prediction] | list[list[Prediction]]:
        """Classify texts, or pairs of texts."""
        single = isinstance(body.inputs, str) or isinstance(body.inputs[0], str)
        given: Any = [body.inputs] if single else body.inputs
        texts = [text if isinstance(text, str) else _as_pair(text) for text in given]
        ranked = await service.run(request, lambda: _predict(predictor, texts, body))
        answers = zip(texts, ranked, strict=True)
        observe(request, *(_observed(predictor, body, text, of_text) for text, of_text in answers))
        return ranked[0] if single else ranked

    return router


def _observed(
    predictor: ClassifierPredictor, body: PredictBody, text: TextOrPair, ranked: list[Prediction]
) -> Observed:
    """Return a text and its answer for --watch; logits are no probabilities, and left out."""
    pairs = [] if body.raw_scores else [(one["label"], one["score"]) for one in ranked]
    return Observed([text] if isinstance(text, str) else text, predictor.to_record(pairs) if pairs else {})


def _as_pair(texts: list[str]) -> TextOrPair:
    """Return one text as it is, two as a pair."""
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def _predict(
    predictor: ClassifierPredictor, texts: list[TextOrPair], body: PredictBody
) -> list[list[Prediction]]:
    """Return the labels of each text with their scores, best first. Raises UserError for one too long."""
    rows = predictor.encode(texts)
    if not body.truncate and any(row.cut for row in rows):
        raise UserError(
            f'inputs：有文字超過 {predictor.max_length} 個 token；請縮短，或加 "truncate": true 捨去後面'
        )
    scores = predictor.logits(rows).tolist() if body.raw_scores else predictor.of_rows(rows)
    return [[{"score": score, "label": label} for label, score in predictor.ranked(row)] for row in scores]
