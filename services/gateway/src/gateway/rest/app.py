"""The REST application."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkroom.telemetry import tracing
from darkroom.telemetry.metrics import HTTP_DURATION, HTTP_REQUESTS
from gateway.bootstrap import Gateway, running
from gateway.rest import events, images, metrics, pages, probes, problems, queues, searches, system, traces
from gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

UNTRACED = ("/healthz", "/readyz", "/metrics", "/otlp/")
"""Beginnings of paths, asked for every few seconds by machines; and a trace of every export would never end."""


def create_app(
    settings: GatewaySettings, beside: Callable[[Gateway], AbstractAsyncContextManager[Any]] | None = None
) -> FastAPI:
    """The application; its threads and connections live as long as its lifespan.

    `beside` serves the same gateway over something else, and drains when it is left.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings) as gateway, beside(gateway) if beside else nullcontext() as rpc:
            app.state.gateway, app.state.rpc = gateway, rpc
            yield

    app = FastAPI(
        title="Darkroom",
        summary="Photos go in; thumbnails, embeddings and search come out.",
        version=version("darkroom-gateway"),
        lifespan=lifespan,
        docs_url=None,  # these load their scripts from elsewhere; ours is in pages.py
        redoc_url=None,
        # FastAPI makes the SERVER span of a request; logs and metrics are ours.
        telemetry={
            "tracer_provider": tracing.CurrentProvider(),
            "operation_spans": False,
            "metrics": False,
            "logs": False,
            "exclude": _is_untraced,
        },
    )
    problems.install(app)
    for module in (images, events, searches, probes, system, metrics, queues, traces, pages):
        app.include_router(module.router)
    app.add_middleware(RequestLog)
    return app


def _is_untraced(scope: Scope) -> bool:
    """Requests that set nothing off are traced only for clients that trace: a page polls, and shows pictures."""
    if not tracing.is_on() or scope["path"].startswith(UNTRACED):
        return True
    is_reading = scope.get("method") in ("GET", "HEAD", "OPTIONS")
    return is_reading and not any(name == b"traceparent" for name, _ in scope["headers"])


class RequestLog:
    """One log line a request, an answer whatever happens, and headers that every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        answered: float | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], time.monotonic()
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            log.exception("http.error", extra={"method": scope["method"], "path": scope["path"]})
            if status:
                raise  # too late for another answer: the connection is cut
            await problems.internal_error()(scope, receive, send_with_headers)
        finally:
            _count(scope, status, (answered or time.monotonic()) - started)
            # Probes come every second; what they find is in their answers.
            level = logging.DEBUG if scope["path"] in ("/healthz", "/readyz", "/metrics") else logging.INFO
            duration_s = round(time.monotonic() - started, 4)
            fields = {"method": scope["method"], "path": scope["path"], "status": status, "duration_s": duration_s}
            log.log(level, "http.request", extra=fields)


def _count(scope: Scope, status: int, duration_s: float) -> None:
    # What clients make up is not a label: they could fill our memory with it.
    method = scope["method"] if scope["method"] in METHODS else "other"
    route = getattr(scope.get("route"), "path", "none")
    HTTP_REQUESTS.labels(method, route, str(status or "none")).inc()
    HTTP_DURATION.labels(method, route).observe(duration_s)
