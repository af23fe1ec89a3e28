"""The kept traces of one photo, or why there is none."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from anyio.to_thread import run_sync
from sqlalchemy import Connection, Row
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom.database import traces, upkeep
from darkroom.errors import PermanentError
from gateway import library
from gateway.models import Image
from gateway.otlp import Span, spans_of
from gateway.settings import GatewaySettings
from gateway.trace_models import ImageTrace
from gateway.trace_view import Role, links_of, view

MAX_BYTES = 4 * 2**20
"""Of compressed spans that one answer is made from: a client may put a whole import into one trace."""

MAX_LINKED = 50
"""Batches that are fetched besides; each try of a photo shares one."""

GROWING_S = 15
"""For so long after the last span more may come: services send what has ended every second, a busy one later."""


@dataclass(frozen=True)
class _Found:
    """What the database knows of a photo's traces. `own` and `original` are trace ids, the same but for duplicates."""

    own: str | None
    original: str | None
    is_sampled: bool
    now: datetime
    payloads: Sequence[bytes]
    is_whole: bool

    @property
    def roles(self) -> dict[str, Role]:
        """The trace ids, each with what it is to the image."""
        roles: dict[str, Role] = {self.own: "upload"} if self.own else {}
        if self.original:
            roles.setdefault(self.original, "original")
        return roles


async def trace_of(engine: AsyncEngine, settings: GatewaySettings, image_id: UUID) -> ImageTrace:
    """What is kept of one image's traces.

    Raises `image-not-found` and, where nothing is kept, the problem that says why: `traces-not-kept`,
    `trace-not-sampled`, `trace-expired` or `trace-not-recorded`.
    """
    row = await library.find_image(engine, image_id)
    if not settings.trace_store_enabled:
        raise _traces_not_kept(image_id)
    async with engine.connect() as connection:
        found = await connection.run_sync(_read, row)
    # In threads, as are the parts of an upload that compute: a large trace must not hold up anybody's request.
    spans, is_shown_whole = await run_sync(_spans_by_trace, found.payloads)
    linked_ids = {link for own in spans.values() for link in links_of(own, row.sha256)} - spans.keys()
    linked, is_linked_whole, is_linked_shown = list[Span](), True, True
    if linked_ids:
        wanted = [UUID(each) for each in sorted(linked_ids)[:MAX_LINKED]]
        async with engine.connect() as connection:
            payloads, is_linked_whole = await connection.run_sync(traces.read_rows, wanted, MAX_BYTES)
        linked, is_linked_shown = await run_sync(spans_of, payloads)
    answer = await run_sync(_view, row, found, spans, linked, time.time_ns())
    if not answer.traces:
        raise _nothing(row, found, timedelta(hours=settings.trace_retention_h))
    is_whole = all((found.is_whole, is_shown_whole, is_linked_whole, is_linked_shown))
    is_cut = not is_whole or len(linked_ids) > MAX_LINKED
    return answer.model_copy(update={"is_cut": is_cut})


def _read(connection: Connection, row: Row[Any]) -> _Found:
    traceparent = traces.traceparent_of(connection, row.sha256)
    _, original, _, flags = traceparent.split("-")[:4] if traceparent else (None, None, None, "00")
    ids = [UUID(each) for each in dict.fromkeys((row.trace_id, original)) if each]
    payloads, is_whole = traces.read_rows(connection, ids, MAX_BYTES)
    is_sampled = bool(int(flags, 16) & 1)
    return _Found(row.trace_id, original, is_sampled, upkeep.database_now(connection), payloads, is_whole)


def _spans_by_trace(payloads: Sequence[bytes]) -> tuple[dict[str, list[Span]], bool]:
    by_trace: dict[str, list[Span]] = {}
    spans, is_whole = spans_of(payloads)
    for span in spans:
        by_trace.setdefault(span.trace_id, []).append(span)
    return by_trace, is_whole


def _view(
    row: Row[Any], found: _Found, spans: dict[str, list[Span]], linked: Sequence[Span], now_ns: int
) -> ImageTrace:
    is_in_flight = row.state == "in_flight"
    views = [
        view(
            trace_id,
            role,
            spans.get(trace_id, []),
            linked,
            row.sha256,
            # A duplicate's own call is over; what goes on is in the trace that the work is in.
            now_ns if is_in_flight and trace_id == found.original else None,
        )
        for trace_id, role in found.roles.items()
    ]
    last_ns = max((span.end_ns for own in spans.values() for span in own), default=0)
    return ImageTrace(
        image_id=row.id,
        filename=row.filename,
        sha256=row.sha256,
        status=Image.of(row).status,
        is_growing=is_in_flight or now_ns - last_ns < GROWING_S * 1e9,
        is_cut=False,
        traces=[each for each in views if each is not None],
    )


def _traces_not_kept(image_id: UUID) -> PermanentError:
    return PermanentError.of(
        "traces-not-kept",
        "This gateway keeps no traces",
        404,
        f"The trace of the image {image_id} was not kept here: DARKROOM_TRACE_STORE_ENABLED is off.",
        value=str(image_id),
        remedy="Look in the backend that OTEL_EXPORTER_OTLP_ENDPOINT names, under the image's trace_id; or switch "
        "the store on and let the services send to this gateway's /otlp.",
    )


def _nothing(row: Row[Any], found: _Found, retention: timedelta) -> PermanentError:
    """Why there is no span of a photo."""
    hours = int(retention.total_seconds() // 3600)
    if found.now - row.created_at > retention:
        return PermanentError.of(
            "trace-expired",
            "The trace is no longer kept",
            410,
            f"The image {row.id} is older than the {hours} hours for which spans are kept.",
            value=row.created_at.isoformat(),
            limit=hours,
            remedy="Raise DARKROOM_TRACE_RETENTION_H to keep them for longer.",
        )
    if not found.is_sampled:
        return PermanentError.of(
            "trace-not-sampled",
            "The trace was not sampled",
            404,
            f"The trace {row.trace_id} of the image {row.id} was not sampled, and nothing went wrong in it.",
            value=row.trace_id,
            remedy="Raise OTEL_TRACES_SAMPLER_ARG, or send a traceparent that ends in 01 with the upload.",
        )
    is_in_flight = row.state == "in_flight"
    return PermanentError.of(
        "trace-not-recorded",
        "No span has arrived",
        404,
        f"Nothing is kept of the trace {row.trace_id} of the image {row.id}"
        + (", which is in flight: its first spans are still on their way." if is_in_flight else "."),
        value=row.trace_id,
        remedy="Ask again in some seconds."
        if is_in_flight
        else "Check that the services run with OTEL_EXPORTER_OTLP_ENDPOINT set to this gateway's /otlp, and whether "
        "GET /v1/status counts dropped spans.",
    )
