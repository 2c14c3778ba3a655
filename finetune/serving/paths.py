"""Paths of the API, and which kinds of models answer them."""

from __future__ import annotations

from finetune.cli.inference_args import KINDS
from finetune.serving.errors import ApiError

ANY = tuple(KINDS)
PATHS = {  # path -> the kinds of models that answer it
    "/v1/fill": ("masked",),
    "/v1/answer": ("masked", "causal", "choice"),
    "/v1/classify": ("classifier",),
    "/predict": ("classifier",),
    "/v1/tag": ("tagger",),
    "/v1/span": ("extractor",),
    "/v1/chat/completions": ("causal",),
    "/v1/completions": ("causal", "seq2seq"),
    "/v1/embeddings": ANY,
}


def paths_of(kind: str) -> list[str]:
    """Return the paths that a kind of model answers."""
    return [path for path, kinds in PATHS.items() if kind in kinds]


def check_path(path: str, kind: str) -> None:
    """Raise ApiError where this kind of model cannot answer a path of PATHS, with those that it can."""
    if kind not in PATHS.get(path, ANY):
        raise ApiError(
            400, f"{path}：這個模型是{KINDS[kind]}，答不了；它能答的是 {'、'.join(paths_of(kind))}"
        )
