"""Routes of the pages: / to try the model, /docs for programmers."""

from __future__ import annotations

import functools

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import HTMLResponse

from finetune.serving.api_docs import described_paths
from finetune.serving.page import Page, page


def page_routes() -> APIRouter:
    """Return the routes of / and /docs. Neither says anything of the model: they need no key."""
    router = APIRouter(include_in_schema=False)

    @functools.cache
    def front() -> Page:
        return page("page.html")

    @functools.cache
    def docs(app: FastAPI) -> Page:
        schema = app.openapi()
        return page("docs.html", info=schema["info"], paths=described_paths(schema))

    @router.get("/")
    async def front_page() -> HTMLResponse:
        return HTMLResponse(front().html, headers=front().headers)

    @router.get("/docs")
    async def docs_page(request: Request) -> HTMLResponse:
        shown = docs(request.app)
        return HTMLResponse(shown.html, headers=shown.headers)

    return router
