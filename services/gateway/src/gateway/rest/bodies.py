"""Calls that take JSON: their bodies are held whole, and so are bounded. Uploads are streams with their own limits."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

from darkroom.errors import PermanentError

MAX_JSON_BYTES = 128 * 1024
"""The longest search, 2,000 characters and 32 tags of 64 with every character escaped, has 50 KB."""


class JsonRoute(APIRoute):
    """Refuses a longer body with `body-too-large` while it comes in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The call, behind its limit."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_bounded(request: Request) -> Response:
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_JSON_BYTES:
                    raise _too_large()

            async def receive() -> Message:
                return {"type": "http.request", "body": bytes(body), "more_body": False}

            return await handle(Request(request.scope, receive))

        return handle_bounded


def _too_large() -> PermanentError:
    return PermanentError.of(
        "body-too-large",
        "The request's body is too large",
        413,
        f"The JSON body has more than {MAX_JSON_BYTES} bytes.",
        limit=MAX_JSON_BYTES,
        remedy="GET /openapi.json says how long each value may be; pictures go to POST /v1/images.",
    )
