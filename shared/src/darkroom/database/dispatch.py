"""The outbox: originals that wait for dispatch, leased in short transactions and stamped by generation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from darkroom.contracts.base import Lane, ModelId, Sha256
from darkroom.database.tables import backfills, originals, tasks
from darkroom.workflow import task_ids, task_names, task_queues


@dataclass(frozen=True)
class Leased:
    """One original to dispatch, under its new generation."""

    sha256: Sha256
    generation: int
    lane: Lane
    traceparent: str | None
    tracestate: str | None
    due_at: datetime
    """Since when it has waited for this dispatch."""
    last_dispatch: str | None = None
    """W3C trace context of the dispatch before this one, if there was one and it was traced."""


@dataclass(frozen=True)
class LeasedBackfill:
    """One finished original that lacks a vector of a new model. `recipe` is the slug that its proxy was made with."""

    model_id: ModelId
    sha256: Sha256
    generation: int
    recipe: str


_LEASE = text(
    """
    WITH due AS (
        SELECT sha256 FROM originals
        WHERE dispatched_at IS NULL AND status IN ('accepted', 'processing') AND unreferenced_at IS NULL
          AND (lease_until IS NULL OR lease_until < now()) AND not_before <= now()
          AND (CAST(:lane AS text) IS NULL OR lane = :lane)
        ORDER BY lane DESC, created_at LIMIT :limit
        FOR UPDATE SKIP LOCKED
    )
    UPDATE originals SET generation = generation + 1, lease_until = now() + make_interval(secs => :lease_s)
    FROM due WHERE originals.sha256 = due.sha256
    RETURNING originals.sha256, generation, lane, traceparent, tracestate, not_before, dispatch_traceparent
    """
)

_LEASE_BACKFILLS = text(
    """
    WITH due AS (
        SELECT model_id, sha256 FROM backfills
        WHERE dispatched_at IS NULL AND (lease_until IS NULL OR lease_until < now())
        LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE backfills b SET generation = b.generation + 1, lease_until = now() + make_interval(secs => :lease_s)
    FROM due JOIN originals o USING (sha256)
    WHERE b.model_id = due.model_id AND b.sha256 = due.sha256 AND o.status = 'ready'
    RETURNING b.model_id, b.sha256, b.generation, o.recipe
    """
)


def lease(connection: Connection, limit: int, lease_s: float, lane: Lane | None = None) -> list[Leased]:
    """Up to `limit` originals that wait, interactive ones first, each under a generation of its own from now on.

    With a `lane`, of that lane alone. Commit before publishing: nobody else dispatches them for `lease_s` seconds.
    Their task ids are recorded here, before any broker sees them.
    """
    rows = connection.execute(_LEASE, {"limit": limit, "lease_s": lease_s, "lane": lane}).all()
    leased = [
        Leased(r.sha256, r.generation, Lane(r.lane), r.traceparent, r.tracestate, r.not_before, r.dispatch_traceparent)
        for r in rows
    ]
    names, queues = task_names(), {lane: task_queues(lane) for lane in Lane}
    issued = [
        {"id": task_id, "name": names[step], "queue": queues[one.lane][step], "sha256": one.sha256}
        for one in leased
        for step, task_id in task_ids(one.sha256, one.generation).items()
    ]
    if issued:
        # A photo that was deleted, swept and uploaded again begins at generation 1 again, with the ids that it had.
        insert = upsert(tasks)
        renewed = {"issued_at": func.now(), "queue": insert.excluded.queue}
        connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=renewed), issued)
    return sorted(leased, key=lambda one: one.lane is Lane.BULK)


def stamp(
    connection: Connection, published: Iterable[Leased], traceparents: Mapping[Sha256, str | None] | None = None
) -> None:
    """Marks originals as dispatched, unless a newer generation was leased or a dispatch asked for meanwhile.

    `traceparents` are the trace contexts of these dispatches, as far as they are traced.
    """
    traced = traceparents or {}
    for one in sorted(published, key=lambda each: each.sha256):
        connection.execute(
            update(originals)
            .where(_is_still_leased(one))
            .values(
                dispatched_at=func.clock_timestamp(),
                lease_until=None,
                dispatch_traceparent=traced.get(one.sha256),
                status=text("CASE status WHEN 'accepted' THEN 'processing' ELSE status END"),
            )
        )


def release(connection: Connection, unpublished: Iterable[Leased], delay_s: float) -> None:
    """Ends the leases of originals that could not be published; they are due again after `delay_s` seconds."""
    for one in sorted(unpublished, key=lambda each: each.sha256):
        connection.execute(
            update(originals)
            .where(_is_still_leased(one))
            .values(lease_until=None, not_before=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, delay_s))
        )


def _is_still_leased(one: Leased) -> ColumnElement[bool]:
    """Whoever clears a stamp ends the lease as well: what he asked for must not be stamped away."""
    return (
        (originals.c.sha256 == one.sha256)
        & (originals.c.generation == one.generation)
        & originals.c.lease_until.is_not(None)
    )


def lease_backfills(connection: Connection, limit: int, lease_s: float) -> list[LeasedBackfill]:
    """Up to `limit` originals that lack a vector of a new model; the same rules as `lease`."""
    rows = connection.execute(_LEASE_BACKFILLS, {"limit": limit, "lease_s": lease_s}).all()
    return [LeasedBackfill(r.model_id, r.sha256, r.generation, r.recipe) for r in rows]


def stamp_backfills(connection: Connection, published: Iterable[LeasedBackfill]) -> None:
    """Marks backfills as dispatched."""
    for one in sorted(published, key=lambda each: (each.model_id, each.sha256)):
        connection.execute(
            update(backfills)
            .where(
                backfills.c.model_id == one.model_id,
                backfills.c.sha256 == one.sha256,
                backfills.c.generation == one.generation,
            )
            .values(dispatched_at=func.clock_timestamp(), lease_until=None)
        )


@dataclass(frozen=True)
class Backlog:
    """What waits for dispatch: originals, the age of the oldest in seconds, and backfills."""

    originals: int
    oldest_s: float | None
    backfills: int


def backlog(connection: Connection) -> Backlog:
    """How much the dispatcher has before it."""
    waiting = connection.execute(
        select(
            func.count().label("originals"),
            func.extract("epoch", func.now() - func.min(originals.c.created_at)).label("oldest_s"),
        ).where(
            originals.c.dispatched_at.is_(None),
            originals.c.status.in_(["accepted", "processing"]),
            originals.c.unreferenced_at.is_(None),
        )
    ).one()
    missing = connection.scalar(select(func.count()).select_from(backfills).where(backfills.c.dispatched_at.is_(None)))
    return Backlog(
        int(waiting.originals), None if waiting.oldest_s is None else float(waiting.oldest_s), int(missing or 0)
    )
