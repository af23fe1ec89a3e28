"""Accepting uploads: one row for each original, one for each image, all in one transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, bindparam, case, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from darkroom.contracts.base import Lane, Sha256
from darkroom.contracts.events import EventType
from darkroom.database import callbacks, outcomes
from darkroom.database.tables import batches, events, idempotency_keys, images, originals


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
    sizes = {file.sha256: file.bytes for file in upload.files}
    statement = (
        upsert(originals)
        .values(
            [
                {
                    "sha256": sha256,
                    "bytes": size,
                    "lane": upload.lane.value,
                    "traceparent": upload.traceparent,
                    "tracestate": upload.tracestate,
                }
                for sha256, size in sorted(sizes.items())  # in one order, so that two uploads cannot deadlock
            ]
        )
        .on_conflict_do_update(index_elements=["sha256"], set_={"unreferenced_at": None})
        .returning(originals.c.sha256, text("(xmax <> 0) AS was_known"))
    )
    return {row.sha256 for row in connection.execute(statement) if row.was_known}


def accept(connection: Connection, upload: Upload, known: set[Sha256]) -> None:
    """Inserts the batch, its images, their events and due callbacks, and counts them as accepted.

    An image of a finished original is finished at once. One of an original that was being swept, or in flight on the
    bulk lane while this upload is interactive, has it dispatched afresh; so has one whose bytes were lost. Call it
    after `lock_originals` and after the blobs are in place.
    """
    shas = sorted({file.sha256 for file in upload.files})
    outcomes.bring_back(connection, shas)
    _restart_where_needed(connection, upload, shas)
    standing = {
        row.sha256: row
        for row in connection.execute(
            select(originals.c.sha256, originals.c.status, originals.c.error).where(originals.c.sha256.in_(shas))
        )
    }
    rows: list[dict[str, Any]] = []
    happened: list[dict[str, Any]] = []
    counts = {"ready": 0, "failed": 0, "in_flight": 0}
    seen: set[Sha256] = set()
    for file in upload.files:
        original = standing[file.sha256]
        state = {"ready": "ready", "failed": "failed"}.get(original.status, "in_flight")
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
        common = {
            "batch_id": upload.batch_id,
            "image_id": file.image_id,
            "sha256": file.sha256,
            "trace_id": upload.trace_id,
        }
        happened.append(common | {"type": EventType.IMAGE_ACCEPTED.value, "problem": None})
        if state == "ready":
            happened.append(common | {"type": EventType.IMAGE_READY.value, "problem": None})
        elif state == "failed":
            happened.append(common | {"type": EventType.IMAGE_FAILED.value, "problem": original.error})
    connection.execute(
        insert(batches).values(
            id=upload.batch_id,
            total=len(rows),
            ready=counts["ready"],
            failed=counts["failed"],
            pending=counts["in_flight"],
            completed_at=None if counts["in_flight"] else func.now(),
            callback_url=upload.callback_url,
        )
    )
    if not counts["in_flight"]:
        happened.append(
            {"batch_id": upload.batch_id, "image_id": None, "sha256": None, "trace_id": upload.trace_id}
            | {"type": EventType.BATCH_COMPLETED.value, "problem": None}
        )
    ready_at = case((bindparam("state_now") == "ready", func.now()))
    connection.execute(insert(images).values(ready_at=ready_at), [row | {"state_now": row["state"]} for row in rows])
    connection.execute(insert(events), happened)
    if upload.callback_url is not None:
        callbacks.record(connection, happened, {upload.batch_id: upload.callback_url})
    connection.execute(
        text("UPDATE ledger SET accepted = accepted + :n WHERE shard = pg_backend_pid() % 16"), {"n": len(rows)}
    )


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
