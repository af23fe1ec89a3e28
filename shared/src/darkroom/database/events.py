"""The event table's two sides: the relay that numbers and stamps, and readers that follow the numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row, func, or_, select, text, update

from darkroom.contracts.events import Event, EventType
from darkroom.contracts.problems import Problem
from darkroom.database.tables import events, images

NUMBERED_CHANNEL = "darkroom_events_numbered"
"""Notified when events have got their numbers: before that, no reader can see them."""

FINAL_TYPES = (EventType.IMAGE_READY, EventType.IMAGE_FAILED, EventType.IMAGE_DELETED)
"""After one of these nothing more happens to an image unless somebody asks for it."""

_NUMBERING_LOCK = 0x72656C61  # "rela"
_PUBLISHING_LOCK = 0x7075626C  # "publ"


def lead_numbering(connection: Connection) -> bool:
    """Whether this connection alone numbers events from now until it closes (a session-level advisory lock)."""
    return bool(connection.scalar(select(func.pg_try_advisory_lock(_NUMBERING_LOCK))))


def lead_publishing(connection: Connection) -> bool:
    """Whether this connection alone publishes events from now until it closes, so that they go out in order."""
    return bool(connection.scalar(select(func.pg_try_advisory_lock(_PUBLISHING_LOCK))))


def number_events(connection: Connection, limit: int) -> int:
    """Numbers committed events in the order of their rows; returns how many. Only who leads the numbering may call it.

    A row that commits later gets a later number, so a reader that has seen number n has seen all before it. Readers
    are notified with the commit.
    """
    count = connection.execute(
        text(
            """
            WITH fresh AS (SELECT row_id FROM events WHERE id IS NULL ORDER BY row_id LIMIT :limit),
                 numbered AS (SELECT row_id, nextval('event_ids') AS id FROM fresh ORDER BY row_id)
            UPDATE events SET id = numbered.id FROM numbered WHERE events.row_id = numbered.row_id
            """
        ),
        {"limit": limit},
    ).rowcount
    if count:
        connection.execute(select(func.pg_notify(NUMBERED_CHANNEL, "")))
    return count


class UnpublishedEvent(NamedTuple):
    """An event, and the W3C trace context of the transition that it tells of, if that was part of a trace."""

    event: Event
    traceparent: str | None


def unpublished_events(connection: Connection, limit: int) -> list[UnpublishedEvent]:
    """Numbered events that no broker has confirmed yet, in order."""
    rows = connection.execute(
        select(events)
        .where(events.c.id.is_not(None), events.c.published_at.is_(None))
        .order_by(events.c.id)
        .limit(limit)
    )
    return [UnpublishedEvent(_event(row), row.traceparent) for row in rows]


def stamp_events(connection: Connection, ids: Sequence[int]) -> None:
    """Marks events as confirmed by the broker."""
    connection.execute(update(events).where(events.c.id.in_(ids)).values(published_at=func.now()))


class HeldNumbers(NamedTuple):
    """What the table can still tell: every event after number `forgotten`, up to `newest`. 0: before the first."""

    forgotten: int
    newest: int


def held_numbers(connection: Connection) -> HeldNumbers:
    """Which numbers the table holds. `upkeep.forget_events` takes events from the front and never the newest."""
    first, newest = connection.execute(select(func.min(events.c.id), func.max(events.c.id))).one()
    return HeldNumbers(first - 1, newest) if newest is not None else HeldNumbers(0, 0)


def events_after(connection: Connection, after: int, limit: int, image_id: UUID | None = None) -> list[Event]:
    """Up to `limit` numbered events after number `after`, in order; of one image only if given."""
    query = select(events).where(events.c.id > after).order_by(events.c.id).limit(limit)
    if image_id is not None:
        query = query.where(events.c.image_id == image_id)
    return [_event(row) for row in connection.execute(query)]


class ImageOutlook(NamedTuple):
    """An image's state (`in_flight`, `ready`, `failed`, `deleted`), and how many final events a reader still gets."""

    state: str
    final_events: int


def image_outlook(connection: Connection, image_id: UUID, after: int) -> ImageOutlook | None:
    """What a reader that has seen number `after` has before it, in one snapshot; None when there is no such image.

    An image in flight will have one final event more; a retried one has some from earlier tries behind it.
    """
    to_come = (
        select(func.count())
        .where(events.c.image_id == image_id, events.c.type.in_(FINAL_TYPES))
        .where(or_(events.c.id.is_(None), events.c.id > after))
        .scalar_subquery()
    )
    row = connection.execute(select(images.c.state, to_come).where(images.c.id == image_id)).one_or_none()
    return None if row is None else ImageOutlook(row[0], row[1] + (row[0] == "in_flight"))


def _event(row: Row[Any]) -> Event:
    return Event(
        id=row.id,
        type=EventType(row.type),
        occurred_at=row.occurred_at,
        batch_id=row.batch_id,
        image_id=row.image_id,
        sha256=row.sha256,
        problem=Problem.from_wire(row.problem) if row.problem else None,
        trace_id=row.trace_id,
    )
