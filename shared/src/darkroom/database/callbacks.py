"""Callbacks: written with the transition that they tell of, taken one at a time, kept with how each attempt ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from darkroom.contracts.base import ThumbnailSize
from darkroom.contracts.callbacks import Callback, CallbackBatch, CallbackData, CallbackImage
from darkroom.contracts.events import EventType
from darkroom.database.tables import batches, callback_hosts, callbacks, images, originals
from darkroom.outbound import Host, parse_url

TOLD_TYPES = (EventType.IMAGE_READY, EventType.IMAGE_FAILED, EventType.BATCH_COMPLETED)
"""What is called back. Who deletes an image knows it; its batch's callback counts it."""


def record(connection: Connection, happened: Sequence[Mapping[str, Any]], urls: Mapping[UUID, str]) -> None:
    """Writes what the batches with a callback URL are told of these events, as images and counters are by now.

    Part of the transition's transaction, after everything else of it. `happened`: rows of `events`.
    """
    told = [event for event in happened if event["batch_id"] in urls and event["type"] in TOLD_TYPES]
    if not told:
        return
    now = connection.scalar(select(func.now()))  # also the events' `occurred_at`
    about = _described(connection, told)
    rows = []
    for event in told:
        fields = {name: event[name] for name in ("batch_id", "image_id", "sha256", "problem", "trace_id")}
        data = CallbackData(**fields, **about[event["image_id"] or event["batch_id"]])
        body = Callback(type=event["type"], timestamp=now, data=data)
        url = urls[event["batch_id"]]
        rows.append(
            {"batch_id": event["batch_id"], "image_id": event["image_id"], "type": event["type"], "url": url}
            | {"host": parse_url(url).host, "body": body.model_dump_json(exclude_none=True)}
        )
    connection.execute(insert(callbacks), rows)


def _described(connection: Connection, told: Sequence[Mapping[str, Any]]) -> dict[UUID, dict[str, Any]]:
    of_images = connection.execute(
        select(
            *(images.c[name] for name in ("id", "filename", "external_id", "tags", "lane", "duplicate")),
            *(originals.c[name] for name in ("bytes", "format", "width", "height", "thumbhash", "thumbnails")),
        )
        .join_from(images, originals, originals.c.sha256 == images.c.sha256)
        .where(images.c.id.in_([event["image_id"] for event in told if event["image_id"]]))
    )
    of_batches = connection.execute(
        select(*(batches.c[name] for name in ("id", "total", "ready", "failed", "deleted"))).where(
            batches.c.id.in_([event["batch_id"] for event in told if not event["image_id"]])
        )
    )
    described = {row.id: {"image": _image(row)} for row in of_images}
    return described | {row.id: {"batch": CallbackBatch(**row._mapping)} for row in of_batches}


def _image(row: Row[Any]) -> CallbackImage:
    sizes = [size for size in ThumbnailSize if size in (row.thumbnails or {})]
    paths = {size: f"/v1/images/{row.id}/thumbnails/{size}" for size in sizes}
    return CallbackImage(**{**row._mapping, "thumbnails": paths})


@dataclass(frozen=True)
class Claimed:
    """A callback that is this worker's until its lease ends."""

    id: UUID
    url: str
    body: str
    attempt: int
    """1 for the first; a result of an earlier one is ignored."""
    host: Host
    host_failures: int
    """How often in a row its host has not answered at all."""
    has_more: bool
    """Whether others to this host are due and wait."""


def claim(connection: Connection, host: Host, limit: int, lease_s: float) -> Claimed | None:
    """Takes the host's longest due callback; None when none is due, the host has a pause, or enough are under way.

    At most `limit` are under way to one host in all workers, and one while it does not answer.
    """
    connection.execute(upsert(callback_hosts).values(host=host).on_conflict_do_nothing())
    # The lock makes what follows, a statement with a view of its own, see every claim before this one.
    failures = connection.scalar(
        select(callback_hosts.c.failures)
        .where(callback_hosts.c.host == host, callback_hosts.c.not_before <= func.now())
        .with_for_update()
    )
    if failures is None:
        return None
    statement = text(
        """
        UPDATE callbacks SET attempts = attempts + 1, last_attempt_at = now(),
                             lease_until = now() + make_interval(secs => :lease_s)
        WHERE id = (
            SELECT id FROM callbacks
            WHERE host = :host AND state = 'pending' AND next_attempt_at <= now()
                AND (lease_until IS NULL OR lease_until <= now())
                AND (SELECT count(*) FROM callbacks
                     WHERE host = :host AND state = 'pending' AND lease_until > now()) < :limit
            ORDER BY next_attempt_at LIMIT 1
        )
        RETURNING id, url, body, attempts, EXISTS (
            SELECT FROM callbacks other
            WHERE other.host = :host AND other.state = 'pending' AND other.next_attempt_at <= now()
                AND (other.lease_until IS NULL OR other.lease_until <= now()) AND other.id <> callbacks.id
        ) AS has_more
        """
    )
    parameters = {"host": host, "limit": 1 if failures else limit, "lease_s": lease_s}
    row = connection.execute(statement, parameters).one_or_none()
    return None if row is None else Claimed(row.id, row.url, row.body, row.attempts, host, failures, row.has_more)


@dataclass(frozen=True)
class Settlement:
    """How an attempt ended, and what follows from it."""

    state: str
    """`delivered`, `failed`, or `pending` for another attempt."""
    status: int | None
    """Of the answer; None: there was none."""
    error: str | None
    again_in_s: int = 0
    pause_host_s: int = 0
    is_gone: bool = False
    """The receiver wants no more at this URL: whatever waits for it fails as well."""


def settle(connection: Connection, claimed: Claimed, settlement: Settlement) -> bool:
    """Writes down how an attempt ended; false when its lease is over and another attempt has begun."""
    is_over = settlement.state != "pending"
    outcome = {"last_status": settlement.status, "last_error": settlement.error, "lease_until": None}
    # The host first, as `claim` does, or the two would wait for each other.
    has_answered = settlement.status is not None
    connection.execute(
        update(callback_hosts)
        .where(callback_hosts.c.host == claimed.host)
        .values(
            failures=0 if has_answered else claimed.host_failures + 1,
            not_before=func.now() + timedelta(seconds=settlement.pause_host_s),
        )
    )
    changed = connection.execute(
        update(callbacks)
        .where(callbacks.c.id == claimed.id, callbacks.c.attempts == claimed.attempt, callbacks.c.state == "pending")
        .values(
            state=settlement.state,
            next_attempt_at=func.now() + timedelta(seconds=settlement.again_in_s),
            finished_at=func.now() if is_over else None,
            **outcome,
        )
    ).rowcount
    if settlement.is_gone:
        connection.execute(
            update(callbacks)
            .where(callbacks.c.host == claimed.host, callbacks.c.url == claimed.url, callbacks.c.state == "pending")
            .values(state="failed", finished_at=func.now(), **outcome)
        )
    return bool(changed)


def due_hosts(connection: Connection) -> list[Host]:
    """The hosts that have callbacks due and no pause, those that answered last time first."""
    statement = text(
        """
        SELECT due.host FROM (
            SELECT DISTINCT host FROM callbacks
            WHERE state = 'pending' AND next_attempt_at <= now() AND (lease_until IS NULL OR lease_until <= now())
        ) due LEFT JOIN callback_hosts hosts USING (host)
        WHERE coalesce(hosts.not_before <= now(), true) ORDER BY coalesce(hosts.failures, 0), due.host
        """
    )
    return [Host(host) for host in connection.scalars(statement)]


def new_hosts(connection: Connection, batch_ids: Sequence[UUID]) -> list[Host]:
    """The hosts that have callbacks of these batches waiting for their first attempt."""
    if not batch_ids:
        return []
    query = select(callbacks.c.host).where(
        callbacks.c.batch_id.in_(batch_ids), callbacks.c.state == "pending", callbacks.c.attempts == 0
    )
    return [Host(host) for host in connection.scalars(query.distinct())]


def callbacks_of_batch(connection: Connection, batch_id: UUID, limit: int) -> Sequence[Row[Any]]:
    """Up to `limit` callbacks of a batch, those first that are not delivered."""
    return connection.execute(
        select(callbacks)
        .where(callbacks.c.batch_id == batch_id)
        .order_by(callbacks.c.state == "delivered", callbacks.c.created_at, callbacks.c.id)
        .limit(limit)
    ).all()


@dataclass(frozen=True)
class CallbackCounts:
    """How many callbacks wait, how many of these have failed at least once, and how many were given up."""

    pending: int
    failing: int
    failed: int


def count_callbacks(connection: Connection) -> CallbackCounts:
    """How the callbacks that are kept stand."""
    pending = callbacks.c.state == "pending"
    row = connection.execute(
        select(
            func.count().filter(pending),
            func.count().filter(pending, callbacks.c.last_error.is_not(None)),
            func.count().filter(callbacks.c.state == "failed"),
        ).where(callbacks.c.state != "delivered")
    ).one()
    return CallbackCounts(*row)


def forget_callbacks(connection: Connection, before: datetime) -> int:
    """Removes callbacks that ended before that moment, and gives up those that have waited since; returns how many."""
    given_up = connection.execute(
        update(callbacks)
        .where(callbacks.c.state == "pending", callbacks.c.created_at < before)
        .values(
            state="failed",
            finished_at=func.now(),
            lease_until=None,
            last_error="given up: " + func.coalesce(callbacks.c.last_error, "it has waited too long for its host"),
        )
    ).rowcount
    forgotten = connection.execute(
        delete(callbacks).where(callbacks.c.state != "pending", callbacks.c.finished_at < before)
    ).rowcount
    connection.execute(delete(callback_hosts).where(callback_hosts.c.not_before < before))
    return given_up + forgotten
