"""GET /v1/model: what the model in service is, for the page and for programs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from finetune.cli.inference_args import KINDS
from finetune.predict.predictor import UNKNOWN_LENGTH, LocalPredictor
from finetune.prompts.scoring_methods import CAUSAL, METHODS
from finetune.serving.card_summary import card_summary
from finetune.serving.paths import paths_of
from finetune.serving.schemas import ModelInfo
from finetune.serving.service import Service

SCORINGS = {"masked": METHODS, "causal": CAUSAL, "choice": ()}  # of /v1/answer, besides auto


def model_routes(service: Service) -> APIRouter:
    """Return the route of GET /v1/model."""
    router, about = APIRouter(), model_info(service)

    @router.get("/v1/model", response_model=ModelInfo)
    async def model() -> dict[str, Any]:
        """Tell what the model in service is."""
        return about

    return router


def model_info(service: Service) -> dict[str, Any]:
    """Return what `schemas.ModelInfo` holds."""
    predictor, settings = service.predictor, service.settings
    of: Any = predictor  # attributes that only some kinds have
    kind = service.kind
    columns = getattr(of, "trained_columns", ()) if kind == "classifier" else ()
    return {
        "name": settings.name,
        "kind": kind,
        "kind_title": KINDS[kind],
        "paths": paths_of(kind),
        "precision": _precision(predictor),
        "device": str(predictor.device),
        "parameters": sum(weight.numel() for weight in predictor.model.parameters()),
        "needs_key": bool(settings.api_keys),
        "has_chat_template": bool(getattr(of, "has_chat_template", False)),
        "labels": list(of.names)
        if kind == "classifier"
        else list(of.tags.labels)
        if kind == "tagger"
        else [],
        "multi_label": bool(getattr(of, "multi", False)),
        "trained_on_pairs": len(columns) == 2 if columns else None,
        "may_be_none": bool(getattr(of, "may_be_none", False)),
        "scorings": ["auto", *SCORINGS[kind]] if kind in SCORINGS else [],
        "limits": {
            "max_tokens": _longest(predictor),
            "max_queue": settings.max_queue,
            "request_timeout": settings.request_timeout,
        },
        "card": None if predictor.card is None else card_summary(predictor.card),
    }


def _precision(predictor: LocalPredictor) -> str:
    """Return what the model computes in: `auto` is no precision."""
    if predictor.bf16:
        return "bf16"
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(
        str(predictor.model.dtype).removeprefix("torch."), predictor.precision
    )


def _longest(predictor: LocalPredictor) -> int | None:
    """Return how many tokens are read at once; None where there is no known limit."""
    settings = getattr(predictor, "settings", None)
    longest = getattr(predictor, "max_length", None) or getattr(settings, "max_length", None)
    longest = longest or predictor.longest
    return None if longest >= UNKNOWN_LENGTH else longest
