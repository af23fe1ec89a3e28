"""Server-sent events: what happens, as it happens, resumable by `Last-Event-ID`."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from darkroom.contracts.events import Event
from darkroom.errors import PermanentError
from gateway.events import Watch
from gateway.rest.dependencies import FromGateway
from gateway.rest.problems import answers_with

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["events"])

HEARTBEAT_S = 15.0
"""Proxies commonly close a connection on which nothing came for 30 to 60 s."""

RETRY_MS = 2000
"""How long a browser waits before it comes back."""

STALL_S = 30.0
"""A client that takes nothing for so long is cut; it can resume."""

MAX_NUMBER = 2**63 - 1

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events: `id` is the event's number, `event` its type, and `data` the event as JSON "
        "on one line, as docs/schemas/Event.json describes it. An `id` without `data` tells how far the stream is.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
}


def _last_seen(
    header: Annotated[
        int | None,
        Header(alias="Last-Event-ID", ge=0, le=MAX_NUMBER, description="The last number seen; 0: from the beginning."),
    ] = None,
    query: Annotated[
        int | None,
        Query(alias="last_event_id", ge=0, le=MAX_NUMBER, description="The same, where no header can be set."),
    ] = None,
) -> int | None:
    """The header goes first: a browser that comes back sends it along with the address that it began with."""
    return header if header is not None else query


LastSeen = Annotated[int | None, Depends(_last_seen)]


@router.get("/events", responses=_STREAM | answers_with(410), response_class=Response)
async def watch_events(gateway: FromGateway, last_seen: LastSeen) -> Response:
    """Everything that happens, after a number or from now on. Ends only when the gateway does."""
    return EventStream(await gateway.events.subscribe(last_seen))


@router.get(
    "/images/{image_id}/events",
    responses=_STREAM
    | {204: {"description": "The final event was seen: there is nothing to wait for"}}
    | answers_with(404, 410),
    response_class=Response,
)
async def watch_image(
    gateway: FromGateway,
    image_id: UUID,
    last_seen: LastSeen,
    follow: Annotated[bool, Query(description="Go on after the final event: it may be retried or deleted.")] = False,
) -> Response:
    """What happened to an image, and what happens until it is ready, failed or deleted."""
    watch = await gateway.events.subscribe(last_seen, image_id, follow=follow)
    # Browsers come back after every end of a stream, except when they are told that there is no content.
    return Response(status_code=204) if watch.is_over and last_seen is not None else EventStream(watch)


class EventStream(StreamingResponse):
    """A watch as a response; ends with it, with the client, or when the client takes nothing for `STALL_S`."""

    media_type = "text/event-stream"

    def __init__(self, watch: Watch) -> None:
        # nginx would collect the stream before it passes it on.
        self._chunks = _chunks(watch)
        super().__init__(self._chunks, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._watch = watch

    async def stream_response(self, send: Send) -> None:
        """Sends each chunk in its time."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    async with asyncio.timeout(STALL_S):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            log.warning("events.client_stalled", extra={"stall_s": STALL_S, "position": self._watch.position})
            return  # the server closes a connection whose response was left unfinished
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _chunks(watch: Watch) -> AsyncGenerator[bytes, None]:
    # The first number at once: a client that is cut before its first event must not miss what comes until it is back.
    yield f"retry: {RETRY_MS}\nid: {watch.position}\n\n".encode()
    while not watch.is_over:
        try:
            events = await watch.batch(HEARTBEAT_S)
        except PermanentError as error:
            log.warning("events.cut", extra={"problem": error.problem.slug, "position": watch.position})
            return  # the client comes back with its number, and gets the problem as its answer
        yield b"".join(map(encode, events)) or f": heartbeat\nid: {watch.position}\n\n".encode()


def encode(event: Event) -> bytes:
    """One event in the format of server-sent events."""
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json(exclude_none=True)}\n\n".encode()
