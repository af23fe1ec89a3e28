"""`grpc.health.v1`: SERVING until the server drains."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING

Context = grpc.aio.ServicerContext[Any, Any]


class Health(HealthServicer):
    """The library's own keeps the streams of watchers open while the server drains, which would wait for them."""

    def __init__(self, *services: str) -> None:
        self._known = {"", *services}  # the empty name stands for the whole server
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Says NOT_SERVING from now on, and lets the watchers go with it."""
        self._draining.set()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """The state of a service; NOT_FOUND for one that is not here."""
        if request.service not in self._known:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:100]!r} is served here")
        return HealthCheckResponse(status=NOT_SERVING if self._draining.is_set() else SERVING)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> AsyncIterator[HealthCheckResponse]:
        """The state of a service now and whenever it changes."""
        if request.service not in self._known:
            yield HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
            await self._draining.wait()
            return
        if not self._draining.is_set():
            yield HealthCheckResponse(status=SERVING)
            await self._draining.wait()
        yield HealthCheckResponse(status=NOT_SERVING)
