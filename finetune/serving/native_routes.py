"""Our own paths: each answers with the record that --json prints for the same input."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from finetune.cli.inference_args import KINDS
from finetune.data.option_syntax import parse_options
from finetune.predict import records
from finetune.serving.errors import ApiError
from finetune.serving.schemas import AnswerBody, ClassifyBody, FillBody, SpanBody, TagBody
from finetune.serving.service import Service
from finetune.serving.watch import Observed, observe

Record = dict[str, Any]


def native_routes(service: Service) -> APIRouter:
    """Return the routes of our own paths."""
    router = APIRouter()
    predictor: Any = service.predictor

    @router.post("/v1/fill")
    async def fill(request: Request, body: FillBody) -> Record:
        """Fill the blanks of a sentence."""
        asked = body.prompt, body.top_k, body.word_length, body.candidates
        record = await service.run(request, lambda: records.fill_record(predictor, *asked))
        observe(request, Observed([body.prompt], record))
        return record

    @router.post("/v1/answer")
    async def answer(request: Request, body: AnswerBody) -> Record:
        """Answer a multiple-choice question."""
        if "orders" in body.model_fields_set and service.kind == "choice":
            raise ApiError(422, f"orders：{KINDS['choice']}不看選項的順序；請不加", "orders")
        options: dict[str, str] = {}

        def work() -> Record:
            options.update(body.options if isinstance(body.options, dict) else parse_options(body.options))
            asked = body.question, options, body.scoring, body.orders, body.answer_format
            return records.answer_record(predictor, *asked)

        record = await service.run(request, work)
        texts = [body.question, *options.values()]
        observe(request, Observed(texts, record, [*options], body.scoring, body.orders))
        return record

    @router.post("/v1/classify")
    async def classify(request: Request, body: ClassifyBody) -> Record:
        """Classify a text, or a pair of texts."""
        asked = body.text, body.pair, body.top_k
        record = await service.run(request, lambda: records.labels_record(predictor, *asked))
        observe(request, Observed([text for text in (body.text, body.pair) if text], record))
        return record

    @router.post("/v1/tag")
    async def tag(request: Request, body: TagBody) -> Record:
        """Mark the spans of a text."""
        record = await service.run(request, lambda: records.entities_record(predictor, body.text))
        observe(request, Observed([body.text], record))
        return record

    @router.post("/v1/span")
    async def span(request: Request, body: SpanBody) -> Record:
        """Answer a question with a part of a passage."""
        asked = body.question, body.context, body.top_k
        record = await service.run(request, lambda: records.span_record(predictor, *asked))
        observe(request, Observed([body.question, body.context], record))
        return record

    return router
