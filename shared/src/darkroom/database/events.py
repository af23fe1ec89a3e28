"""The event table's two sides: the relay that numbers and stamps, and readers that follow the numbers."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select, text, update

from darkroom.contracts.events import Event, EventType
from darkroom.contracts.problems import Problem
from darkroom.database.tables import events

_RELAY_LOCK = 0x72656C61  # "rela"


def lead_relay(connection: Connection) -> bool:
    """Whether this connection is the one relay from now until it closes (a session-level advisory lock)."""
    return bool(connection.scalar(select(func.pg_try_advisory_lock(_RELAY_LOCK))))


def number_events(connection: Connection, limit: int) -> int:
    """Numbers committed events in the order of their rows; returns how many. Only the leading relay may call it.

    A row that commits later gets a later number, so a reader that has seen number n has seen all before it.
    """
    return connection.execute(
        text(
            """
            WITH fresh AS (SELECT row_id FROM events WHERE id IS NULL ORDER BY row_id LIMIT :limit),
                 numbered AS (SELECT row_id, nextval('event_ids') AS id FROM fresh ORDER BY row_id)
            UPDATE events SET id = numbered.id FROM numbered WHERE events.row_id = numbered.row_id
            """
        ),
        {"limit": limit},
    ).rowcount


def unpublished_events(connection: Connection, limit: int) -> list[Event]:
    """Numbered events that no broker has confirmed yet, in order."""
    rows = connection.execute(
        select(events)
        .where(events.c.id.is_not(None), events.c.published_at.is_(None))
        .order_by(events.c.id)
        .limit(limit)
    )
    return [_event(row) for row in rows]


def stamp_events(connection: Connection, ids: Sequence[int]) -> None:
    """Marks events as confirmed by the broker."""
    connection.execute(update(events).where(events.c.id.in_(ids)).values(published_at=func.now()))


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
