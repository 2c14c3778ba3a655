"""The server: a model and its flags become a process that listens."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from finetune.cli.inference_args import InferenceArgs
from finetune.predict.predictor import LocalPredictor, Predictor
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from finetune.serving.settings import ServerSettings

INSTALL = "pip install -r requirements-serve.txt"


def serve_with_flags(predictor: Predictor, flags: InferenceArgs) -> None:
    """Serve a model as the flags say, see `run_server`."""
    from finetune.serving.settings import ServerSettings

    run_server(cast(LocalPredictor, predictor), ServerSettings.from_flags(flags))  # see `check_serve`


def run_server(predictor: LocalPredictor, settings: ServerSettings) -> None:
    """Serve a model until a signal ends the process.

    Raises:
        UserError: the libraries of requirements-serve.txt are not installed.
    """
    try:
        import uvicorn

        from finetune.serving.app import build_app
        from finetune.serving.service import Service
    except ImportError as error:
        raise UserError(f"--serve：沒有安裝 {error.name}；{INSTALL}") from None

    service = Service(predictor, settings)
    log(f"http://{settings.host}:{settings.port}/")
    try:
        uvicorn.run(build_app(service), host=settings.host, port=settings.port, log_level="warning")
    finally:
        service.close()
