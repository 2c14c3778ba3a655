"""The application: routes, what stands before them, and errors; without the server that runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune.runtime.errors import nearest, shown
from finetune.runtime.strict_json import dumps
from finetune.serving.access_log import AccessLog
from finetune.serving.classifier_routes import classifier_routes
from finetune.serving.errors import ApiError
from finetune.serving.field_problems import problems
from finetune.serving.guard import RequestGuard, SiteGuard
from finetune.serving.health_routes import health_routes
from finetune.serving.metrics import GONE
from finetune.serving.model_routes import model_routes
from finetune.serving.native_routes import native_routes
from finetune.serving.openai_routes import openai_routes
from finetune.serving.openapi import describe
from finetune.serving.page_routes import page_routes
from finetune.serving.paths import paths_of
from finetune.serving.service import Service
from finetune.serving.tickets import CancelledError
from finetune.serving.vector_routes import vector_routes
from finetune.serving.watch import WatchRequests

ROUTERS: tuple[Callable[[Service], APIRouter], ...] = (
    native_routes,
    classifier_routes,
    vector_routes,
    model_routes,
    health_routes,
    openai_routes,
)


class Json(JSONResponse):  # of FastAPI's kind, so that openapi.json has the fields of answers
    """JSON as the command line prints it; half characters become �."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body."""
        return dumps(content).encode("utf-8", "replace")


class HeadAsGet:
    """ASGI middleware: HEAD finds the routes of GET; the server leaves the body out (RFC 9110, 9.1)."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["method"] == "HEAD":
            scope["method"] = "GET"
            try:
                await self._app(scope, receive, send)
            finally:
                scope["method"] = "HEAD"
        else:
            await self._app(scope, receive, send)


def build_app(service: Service) -> FastAPI:
    """Build the application of a service."""
    app = FastAPI(
        title="fine-tuning-llm", docs_url=None, redoc_url=None, default_response_class=Json,
        redirect_slashes=False,
    )  # fmt: skip
    routers = [*(router(service) for router in ROUTERS), page_routes()]
    for router in routers:
        app.include_router(router)
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    paths = frozenset(route.path for route in routes if hasattr(route, "path"))
    describe(app)
    app.add_middleware(HeadAsGet)
    _add_error_handlers(app, service, paths)
    app.add_middleware(RequestGuard, service=service)  # the one that is added last comes first
    if service.watch:
        app.add_middleware(WatchRequests, watch=service.watch)
    if origins := service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Api-Key", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"], max_age=600,
        )  # fmt: skip
    app.add_middleware(SiteGuard, settings=service.settings)
    app.add_middleware(AccessLog, service=service, paths=paths)
    return app


def _add_error_handlers(app: FastAPI, service: Service, paths: frozenset[str]) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return Response(error.content(), error.status, dict(error.headers), "application/json")

    @app.exception_handler(CancelledError)
    async def client_gone(request: Request, error: CancelledError) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> Response:
        body = getattr(request.scope.get("route"), "body_field", None)
        model = None if body is None else body.field_info.annotation
        found = problems(error.errors(), error.body, model)
        message = "；".join(sentence for _, sentence in found)
        return await api_error(request, ApiError(422, message, found[0][0]))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path, headers = request.url.path, dict(error.headers or {})
        message = str(error.detail)
        if error.status_code == 404:
            near = nearest(path, sorted(paths))
            hint = f"是不是 {near[0]}？" if near else ""
            message = (
                f"沒有 {shown(path)} 這個路徑；{hint}這個模型能答的是 {'、'.join(paths_of(service.kind))}"
            )
        elif error.status_code == 405:
            message = f"{path} 不能用 {request.method}，要用 {headers.get('Allow', 'GET')}"
        return await api_error(request, ApiError(error.status_code, message, headers=headers))
