"""Vectors in OpenAI's shape: POST /v1/embeddings, of every kind of model."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy
from fastapi import APIRouter, Request
from pydantic import Field

from finetune.evaluation.queries import BATCH_TOKENS
from finetune.predict.embedder import Embedder
from finetune.serving.errors import ApiError
from finetune.serving.schemas import Body
from finetune.serving.service import Service
from finetune.serving.shared_calls import SharedCalls
from finetune.serving.watch import Observed, observe

MOST_INPUTS = 2048  # as OpenAI's
Rows = list[dict[str, list[int]]]  # texts as token ids
Ids = Annotated[list[int], Field(min_length=1)]


class EmbeddingsBody(Body):
    """Texts, or texts as token ids."""

    input: str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1, max_length=MOST_INPUTS)] = Field(
        description="a text, token ids, or a list of either"
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="the model's own number alone")
    user: str | None = None


class SharedEmbedder:
    """An embedder for many threads: texts that wait at the same time share its batches, where they may.

    Args:
        service: the model, and the thread that runs it.
    """

    def __init__(self, service: Service):
        self._service = service
        self._calls: SharedCalls[Rows, numpy.ndarray] = SharedCalls(
            service.compute, self._run, self._fit, _measure
        )

    @property
    def embedder(self) -> Embedder:
        """The embedder. Raises UserError where the model's pooling is not known."""
        return self._service.embedder

    def __call__(self, rows: Rows) -> numpy.ndarray:
        """Return the vectors of texts, float32 (N, H)."""
        return self._calls(rows)

    def _run(self, calls: Sequence[Rows]) -> list[numpy.ndarray]:
        vectors = self.embedder.vectors([row for rows in calls for row in rows])
        return numpy.split(vectors, numpy.cumsum([len(rows) for rows in calls])[:-1])

    def _fit(self, calls: Sequence[Rows]) -> bool:
        """Return whether the texts of calls make about one batch."""
        return self._service.mergeable and _measure(calls)[1] <= BATCH_TOKENS


def _measure(calls: Sequence[Rows]) -> tuple[int, int]:
    """Return the number of texts, and their tokens."""
    return sum(map(len, calls)), sum(len(row["input_ids"]) for rows in calls for row in rows)


def vector_routes(service: Service) -> APIRouter:
    """Return the route of vectors."""
    router = APIRouter()
    shared = SharedEmbedder(service)

    @router.post("/v1/embeddings")
    async def embeddings(request: Request, body: EmbeddingsBody) -> dict[str, Any]:
        """Return a vector for each text."""

        def work() -> tuple[numpy.ndarray, int]:
            rows = _rows(service.compute.run(lambda: shared.embedder), body.input)
            return shared(rows), sum(len(row["input_ids"]) for row in rows)

        vectors, tokens = await service.run(request, work)
        if body.dimensions not in (None, vectors.shape[1]):
            message = (
                f"dimensions：這個模型的向量有 {vectors.shape[1]} 維，不能縮成 {body.dimensions} 維；請不加"
            )
            raise ApiError(422, message, "dimensions")
        texts = [body.input] if isinstance(body.input, str) else body.input
        observe(request, *(Observed([text], {}) for text in texts if isinstance(text, str)))
        write: Any = _as_base64 if body.encoding_format == "base64" else numpy.ndarray.tolist
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": write(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": service.settings.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    return router


def _rows(embedder: Embedder, given: str | Sequence[Any]) -> Rows:
    """Return texts, or lists of token ids, as the embedder takes them.

    Raises:
        UserError: a text that is empty, or has half characters.
        ApiError: token ids that the model does not have, or more than it reads.
    """
    inputs: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
    if isinstance(inputs[0], str):
        return embedder.encode(inputs)
    longest, last = max(map(len, inputs)), embedder.vocabulary - 1
    if longest > embedder.max_length:
        message = f"input：有 {longest} 個 token，這個模型最多讀 {embedder.max_length} 個"
        raise ApiError(422, message, "input")
    if wrong := next((i for ids in inputs for i in ids if not 0 <= i <= last), None):
        raise ApiError(422, f"input：沒有編號 {wrong} 的 token，這個模型的是 0 到 {last}", "input")
    return [{"input_ids": ids} for ids in inputs]


def _as_base64(vector: numpy.ndarray) -> str:
    """Return a vector as little-endian float32 in base64, which is what OpenAI's client asks for."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
