"""What tools that watch a server ask it: is it alive, may more come, what are its figures."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from finetune.serving.errors import ApiError
from finetune.serving.service import Service


def health_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the server works; 503 where it must be started again."""
        if not service.compute.is_alive:
            raise ApiError(503, "計算的執行緒已經結束；要重新啟動")
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Say that more requests may come; 503 where none should."""
        await healthz()
        if service.draining:
            raise ApiError(503, "伺服器正在結束")
        if service.accepted >= service.settings.max_queue:
            raise ApiError(503, f"已經有 {service.accepted} 個請求在等（--max_queue）")
        return {"status": "ready"}

    @router.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        content, content_type = service.metrics.page(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    return router
