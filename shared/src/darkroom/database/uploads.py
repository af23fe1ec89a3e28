"""Accepting uploads: one row for each original, one for each image, all in one transaction."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, case, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from darkroom.contracts.base import Lane, Sha256
from darkroom.contracts.events import EventType
from darkroom.database import callbacks, images, outcomes
from darkroom.database.tables import idempotency_keys, originals
from darkroom.telemetry import tracing


@dataclass(frozen=True)
class ReceivedFile:
    """One uploaded file whose bytes are synced but not yet under their key."""

    image_id: UUID
    sha256: Sha256
    bytes: int
    filename: str | None


@dataclass(frozen=True)
class Upload:
    """One request: its files and what was said about all of them."""

    batch_id: UUID
    files: tuple[ReceivedFile, ...]
    lane: Lane
    tags: tuple[str, ...] = ()
    external_id: str | None = None
    callback_url: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    trace_id: str | None = None


def lock_originals(connection: Connection, *together: Upload) -> set[Sha256]:
    """Inserts or locks the originals of uploads until the transaction ends; returns those that were known before.

    Whoever holds these locks may place or remove the blobs; the sweeper takes the same locks. No two of the uploads may
    have an original in common.
    """
    rows = {
        file.sha256: {
            "sha256": file.sha256,
            "bytes": file.bytes,
            "lane": upload.lane.value,
            "traceparent": upload.traceparent,
            "tracestate": upload.tracestate,
        }
        for upload in together
        for file in upload.files
    }
    # In one order, so that two transactions cannot deadlock.
    found = connection.exec_driver_sql(_LOCK, {"rows": json.dumps([rows[sha256] for sha256 in sorted(rows)])})
    return {row.sha256 for row in found if row.was_known}


# As the driver takes them: SQLAlchemy's own statements cost 0.3 ms more of CPU, at each upload. And rows as JSON: it is
# one text to send, where each of a dozen arrays would take the driver as long.
_LOCK = """
    INSERT INTO originals (sha256, bytes, lane, traceparent, tracestate)
    SELECT * FROM json_to_recordset(%(rows)s::json)
        AS each (sha256 text, bytes bigint, lane text, traceparent text, tracestate text)
    ON CONFLICT (sha256) DO UPDATE SET unreferenced_at = NULL
    RETURNING sha256, xmax <> 0 AS was_known
    """


NewRows = tuple[Row[Any], Sequence[Row[Any]]]
"""A batch and its images, as `images` reads them."""


def accept(connection: Connection, upload: Upload, known: Collection[Sha256]) -> NewRows | None:
    """Inserts the batch, its images, their events and due callbacks, and counts them as accepted.

    Returns the rows of the batch and its images where all originals are new; else they must be read. An image of a
    finished original is finished at once. One of an original that was being swept, or in flight on the bulk lane while
    this upload is interactive, has it dispatched afresh; so has one whose bytes were lost. Call it after
    `lock_originals` and after the blobs are in place.
    """
    return accept_together(connection, [(upload, tracing.traceparent())], known)[0]


def accept_together(
    connection: Connection, together: Sequence[tuple[Upload, str | None]], known: Collection[Sha256]
) -> list[NewRows | None]:
    """`accept` for several uploads without an original in common, each with the trace context of its events."""
    prepared = [_prepared(connection, upload, known, traceparent) for upload, traceparent in together]
    happened = [event for each in prepared for event in each.events]
    rows = {
        "batches": [each.batch for each in prepared],
        "images": [row for each in prepared for row in each.images],
        "events": happened,
    }
    parameters: dict[str, Any] = {name: json.dumps(each, default=str) for name, each in rows.items()}
    accepted_at = connection.exec_driver_sql(_INSERT, parameters | {"accepted": len(rows["images"])}).scalar()
    urls = {upload.batch_id: upload.callback_url for upload, _ in together if upload.callback_url is not None}
    if urls:
        callbacks.record(connection, happened, urls)
    return [
        None if any(file.sha256 in known for file in upload.files) else _rows_of_new(upload, each, accepted_at)
        for (upload, _), each in zip(together, prepared, strict=True)
    ]


@dataclass(frozen=True)
class _Prepared:
    """The rows of one upload."""

    batch: dict[str, Any]
    images: list[dict[str, Any]]
    events: list[dict[str, Any]]


def _prepared(connection: Connection, upload: Upload, known: Collection[Sha256], traceparent: str | None) -> _Prepared:
    standing = _standing(connection, upload, [file.sha256 for file in upload.files if file.sha256 in known])
    rows: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    counts = {"ready": 0, "failed": 0, "in_flight": 0}
    seen: set[Sha256] = set()

    def happened(kind: EventType, file: ReceivedFile | None = None, problem: dict[str, Any] | None = None) -> None:
        events.append(
            {
                "type": kind.value,
                "batch_id": upload.batch_id,
                "image_id": file.image_id if file else None,
                "sha256": file.sha256 if file else None,
                "problem": problem,
                "trace_id": upload.trace_id,
                "traceparent": traceparent,
            }
        )

    for file in upload.files:
        status, error = standing.get(file.sha256, ("accepted", None))
        state = {"ready": "ready", "failed": "failed"}.get(status, "in_flight")
        counts[state] += 1
        rows.append(
            {
                "id": file.image_id,
                "sha256": file.sha256,
                "batch_id": upload.batch_id,
                "state": state,
                "lane": upload.lane.value,
                "filename": file.filename,
                "tags": list(upload.tags),
                "external_id": upload.external_id,
                "duplicate": file.sha256 in known or file.sha256 in seen,
                "trace_id": upload.trace_id,
            }
        )
        seen.add(file.sha256)
        happened(EventType.IMAGE_ACCEPTED, file)
        if state == "ready":
            happened(EventType.IMAGE_READY, file)
        elif state == "failed":
            happened(EventType.IMAGE_FAILED, file, error)
    if not counts["in_flight"]:
        happened(EventType.BATCH_COMPLETED)
    batch = {
        "id": upload.batch_id,
        "total": len(rows),
        "ready": counts["ready"],
        "failed": counts["failed"],
        "pending": counts["in_flight"],
        "callback_url": upload.callback_url,
    }
    return _Prepared(batch, rows, events)


def _rows_of_new(upload: Upload, prepared: _Prepared, accepted_at: datetime | None) -> NewRows:
    sizes = {file.sha256: file.bytes for file in upload.files}
    about_all = {"created_at": accepted_at, "original_status": "accepted", "generation": 0, "attempts": 0}
    return images.rows_of_new(
        prepared.batch | {"deleted": 0, "created_at": accepted_at},
        [row | about_all | {"bytes": sizes[row["sha256"]]} for row in prepared.images],
    )


_INSERT = """
    WITH batch AS (
        INSERT INTO batches (id, total, ready, failed, pending, completed_at, callback_url)
        SELECT id, total, ready, failed, pending, CASE pending WHEN 0 THEN now() END, callback_url
        FROM json_to_recordset(%(batches)s::json)
            AS each (id uuid, total int, ready int, failed int, pending int, callback_url text)
    ), image AS (
        INSERT INTO images (id, sha256, batch_id, state, ready_at, lane, filename, tags, external_id, duplicate,
            trace_id)
        SELECT id, sha256, batch_id, state, CASE state WHEN 'ready' THEN now() END, lane, filename, tags, external_id,
            duplicate, trace_id
        FROM json_to_recordset(%(images)s::json)
            AS each (id uuid, sha256 text, batch_id uuid, state text, lane text, filename text, tags text[],
                external_id text, duplicate boolean, trace_id text)
    ), event AS (
        INSERT INTO events (type, batch_id, image_id, sha256, problem, trace_id, traceparent)
        SELECT * FROM json_to_recordset(%(events)s::json)
            AS each (type text, batch_id uuid, image_id uuid, sha256 text, problem jsonb, trace_id text,
                traceparent text)
    )
    UPDATE ledger SET accepted = accepted + %(accepted)s WHERE shard = pg_backend_pid() %% 16
    RETURNING now()
    """
"""All rows of an upload in one round trip."""


def _standing(
    connection: Connection, upload: Upload, known: Collection[Sha256]
) -> dict[Sha256, tuple[str, dict[str, Any] | None]]:
    """Status and error of the originals that were known before, once those whose work must begin anew have begun."""
    if not known:
        return {}
    shas = sorted(known)
    outcomes.bring_back(connection, shas)
    _restart_where_needed(connection, upload, shas)
    found = select(originals.c.sha256, originals.c.status, originals.c.error).where(originals.c.sha256.in_(shas))
    return {row.sha256: (row.status, row.error) for row in connection.execute(found)}


def _restart_where_needed(connection: Connection, upload: Upload, shas: Sequence[Sha256]) -> None:
    """Clears the dispatch stamp of originals whose work is gone or would come too late for this upload."""
    lane = upload.lane
    is_swept = originals.c.status == "sweeping"
    is_too_slow = (
        originals.c.status.in_(["accepted", "processing"]) & (originals.c.lane == "bulk") & (lane is Lane.INTERACTIVE)
    )
    connection.execute(
        update(originals)
        .where(originals.c.sha256.in_(shas), is_swept | is_too_slow)
        .values(
            status="accepted",
            lane=lane.value,
            dispatched_at=None,
            lease_until=None,
            not_before=func.now(),
            error=None,
            # What begins anew for nobody else is part of this upload's trace.
            traceparent=case((is_swept, upload.traceparent), else_=originals.c.traceparent),
            tracestate=case((is_swept, upload.tracestate), else_=originals.c.tracestate),
        )
    )


def traces_of(connection: Connection, shas: Iterable[Sha256]) -> list[str]:
    """The W3C trace contexts of the uploads that first brought these originals."""
    found = select(originals.c.traceparent).where(originals.c.sha256.in_(list(shas)))
    return [row.traceparent for row in connection.execute(found) if row.traceparent]


def find_idempotent(connection: Connection, key: str) -> tuple[str, UUID] | None:
    """The request fingerprint and batch that this idempotency key stands for, if it was used before."""
    found = connection.execute(
        select(idempotency_keys.c.fingerprint, idempotency_keys.c.batch_id).where(idempotency_keys.c.key == key)
    ).one_or_none()
    return (found.fingerprint, found.batch_id) if found else None


def record_idempotent(connection: Connection, key: str, fingerprint: str, batch_id: UUID) -> bool:
    """Ties a key to a batch of this transaction; false when another request has tied it already.

    Waits for a concurrent transaction that used the same key.
    """
    statement = (
        upsert(idempotency_keys)
        .values(key=key, fingerprint=fingerprint, batch_id=batch_id)
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.key)
    )
    return connection.execute(statement).one_or_none() is not None


def forget_idempotent(connection: Connection, before: datetime) -> int:
    """Removes keys older than `before`; returns how many."""
    return connection.execute(idempotency_keys.delete().where(idempotency_keys.c.created_at < before)).rowcount
