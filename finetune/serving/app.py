"""The application: routes and errors, without the server that runs them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from finetune.runtime.errors import shown
from finetune.runtime.strict_json import dumps
from finetune.serving.classifier_routes import classifier_routes
from finetune.serving.errors import ApiError
from finetune.serving.native_routes import native_routes
from finetune.serving.openai_routes import openai_routes
from finetune.serving.service import Service
from finetune.serving.tickets import CancelledError
from finetune.serving.vector_routes import vector_routes

ROUTERS = (native_routes, classifier_routes, vector_routes, openai_routes)
GONE = 499  # as nginx calls it: the client closed the connection; nobody reads this


class Json(Response):
    """JSON as the command line prints it; half characters become �."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body."""
        return dumps(content).encode("utf-8", "replace")


def build_app(service: Service) -> FastAPI:
    """Build the application of a service."""
    app = FastAPI(title="fine-tuning-llm", docs_url=None, redoc_url=None, default_response_class=Json)
    for routes in ROUTERS:
        app.include_router(routes(service))

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    _add_error_handlers(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return Json(error.body(), error.status, error.headers)

    @app.exception_handler(CancelledError)
    async def client_gone(request: Request, error: CancelledError) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        message = f"{field or '請求'}：{first['msg']}，得到 {shown(first.get('input'))}"
        return Json(ApiError(422, message, field).body(), 422)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return Json(ApiError(error.status_code, str(error.detail)).body(), error.status_code)
