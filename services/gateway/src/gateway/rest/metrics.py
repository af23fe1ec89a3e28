"""The gateway's metrics, for Prometheus."""

from typing import Any

from fastapi import APIRouter, Response

from darkroom.telemetry import exposition, metrics
from gateway.rest.dependencies import FromGateway
from gateway.rest.problems import answers_with

router = APIRouter(tags=["system"])

_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get("/metrics", response_class=Response, responses={**_TEXT, **answers_with()}, name="metrics")
async def read_metrics(gateway: FromGateway) -> Response:
    """What this gateway has done, and how the whole system stands: docs/metrics.md."""
    await gateway.figures.measure()
    return Response(exposition.render(metrics.GATEWAY), media_type=exposition.MEDIA_TYPE)
