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


def lock_originals(connection: Connection, upload: Upload) -> set[Sha256]:
    """Inserts or locks the originals of an upload until the transaction ends; returns those that were known before.

    Whoever holds these locks may place or remove the blobs; the sweeper takes the same locks.
    """
    sizes = sorted({file.sha256: file.bytes for file in upload.files}.items())
    found = connection.exec_driver_sql(
        _LOCK,
        {
            "sha256": [sha256 for sha256, _ in sizes],  # in one order, so that two uploads cannot deadlock
            "bytes": [size for _, size in sizes],
            "lane": upload.lane.value,
            "traceparent": upload.traceparent,
            "tracestate": upload.tracestate,
        },
    )
    return {row.sha256 for row in found if row.was_known}


# As the driver takes them: SQLAlchemy's own statements cost 0.3 ms more of CPU, at each upload.
_LOCK = """
    INSERT INTO originals (sha256, bytes, lane, traceparent, tracestate)
    SELECT sha256, bytes, %(lane)s, %(traceparent)s, %(tracestate)s
    FROM unnest(%(sha256)s::text[], %(bytes)s::bigint[]) AS each (sha256, bytes)
    ON CONFLICT (sha256) DO UPDATE SET unreferenced_at = NULL
    RETURNING sha256, xmax <> 0 AS was_known
    """


def accept(
    connection: Connection, upload: Upload, known: Collection[Sha256]
) -> tuple[Row[Any], Sequence[Row[Any]]] | None:
    """Inserts the batch, its images, their events and due callbacks, and counts them as accepted.

    Returns the rows of the batch and its images, as `images` reads them, where all originals are new; else they must be
    read. An image of a finished original is finished at once. One of an original that was being swept, or in flight on
    the bulk lane while this upload is interactive, has it dispatched afresh; so has one whose bytes were lost. Call it
    after `lock_originals` and after the blobs are in place.
    """
    standing = _standing(connection, upload, known)
    rows: list[dict[str, Any]] = []
    happened: list[dict[str, Any]] = []
    counts = {"ready": 0, "failed": 0, "in_flight": 0}
    seen: set[Sha256] = set()
    for file in upload.files:
        status, error = standing.get(file.sha256, ("accepted", None))
        state = {"ready": "ready", "failed": "failed"}.get(status, "in_flight")
        counts[state] += 1
        rows.append(
            {
                "id": file.image_id,
                "sha256": file.sha256,
                "state": state,
                "filename": file.filename,
                "duplicate": file.sha256 in known or file.sha256 in seen,
            }
        )
        seen.add(file.sha256)
        happened.append(_event(EventType.IMAGE_ACCEPTED, upload, file))
        if state == "ready":
            happened.append(_event(EventType.IMAGE_READY, upload, file))
        elif state == "failed":
            happened.append(_event(EventType.IMAGE_FAILED, upload, file, error))
    if not counts["in_flight"]:
        happened.append(_event(EventType.BATCH_COMPLETED, upload))
    accepted_at = connection.exec_driver_sql(
        _INSERT,
        {
            "batch_id": upload.batch_id,
            **counts,
            "callback_url": upload.callback_url,
            **{f"image_{name}": [row[name] for row in rows] for name in rows[0]},
            "lane": upload.lane.value,
            "tags": list(upload.tags),
            "external_id": upload.external_id,
            "trace_id": upload.trace_id,
            **{f"event_{name}": [event[name] for event in happened] for name in ("type", "image_id", "sha256")},
            "event_problem": [event["problem"] and json.dumps(event["problem"]) for event in happened],
            "traceparent": tracing.traceparent(),
        },
    ).scalar()
    if upload.callback_url is not None:
        callbacks.record(connection, happened, {upload.batch_id: upload.callback_url})
    return None if known else _rows_of_new(upload, rows, accepted_at)


def _rows_of_new(
    upload: Upload, rows: Sequence[dict[str, Any]], accepted_at: datetime | None
) -> tuple[Row[Any], Sequence[Row[Any]]]:
    sizes = {file.sha256: file.bytes for file in upload.files}
    about_all = {
        "batch_id": upload.batch_id,
        "lane": upload.lane.value,
        "tags": list(upload.tags),
        "external_id": upload.external_id,
        "trace_id": upload.trace_id,
        "created_at": accepted_at,
        "original_status": "accepted",
        "generation": 0,
        "attempts": 0,
    }
    batch = {
        "id": upload.batch_id,
        "total": len(rows),
        "ready": 0,
        "failed": 0,
        "deleted": 0,
        "pending": len(rows),
        "created_at": accepted_at,
        "callback_url": upload.callback_url,
    }
    return images.rows_of_new(batch, [about_all | row | {"bytes": sizes[row["sha256"]]} for row in rows])


_INSERT = """
    WITH batch AS (
        INSERT INTO batches (id, total, ready, failed, pending, completed_at, callback_url)
        VALUES (%(batch_id)s, cardinality(%(image_id)s), %(ready)s, %(failed)s, %(in_flight)s,
            CASE %(in_flight)s WHEN 0 THEN now() END, %(callback_url)s)
    ), image AS (
        INSERT INTO images (id, sha256, batch_id, state, ready_at, lane, filename, tags, external_id, duplicate,
            trace_id)
        SELECT id, sha256, %(batch_id)s, state, CASE state WHEN 'ready' THEN now() END, %(lane)s, filename,
            %(tags)s::text[], %(external_id)s, duplicate, %(trace_id)s
        FROM unnest(%(image_id)s::uuid[], %(image_sha256)s::text[], %(image_state)s::text[],
            %(image_filename)s::text[], %(image_duplicate)s::boolean[])
            AS each (id, sha256, state, filename, duplicate)
    ), event AS (
        INSERT INTO events (type, batch_id, image_id, sha256, problem, trace_id, traceparent)
        SELECT type, %(batch_id)s, image_id, sha256, problem::jsonb, %(trace_id)s, %(traceparent)s
        FROM unnest(%(event_type)s::text[], %(event_image_id)s::uuid[], %(event_sha256)s::text[],
            %(event_problem)s::text[])
            AS each (type, image_id, sha256, problem)
    )
    UPDATE ledger SET accepted = accepted + cardinality(%(image_id)s) WHERE shard = pg_backend_pid() %% 16
    RETURNING now()
    """
"""All rows of an upload in one round trip."""


def _event(
    kind: EventType, upload: Upload, file: ReceivedFile | None = None, problem: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "type": kind.value,
        "batch_id": upload.batch_id,
        "image_id": file.image_id if file else None,
        "sha256": file.sha256 if file else None,
        "trace_id": upload.trace_id,
        "problem": problem,
    }


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
