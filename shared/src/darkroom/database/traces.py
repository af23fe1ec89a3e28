"""Spans of the last hours, compressed: one row for each trace and export batch."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, delete, func, insert, select, text

from darkroom.contracts.base import Sha256
from darkroom.database.tables import originals, trace_rows


class TraceRow(NamedTuple):
    """The spans that one export has of one trace, compressed."""

    trace_id: UUID
    spans: int
    payload: bytes


def add_rows(connection: Connection, rows: Iterable[TraceRow]) -> None:
    """Inserts rows. The commit does not wait for the disk: what a crash takes of the last moment can be missed."""
    connection.execute(text("SET LOCAL synchronous_commit = off"))
    connection.execute(insert(trace_rows), [row._asdict() for row in rows])


def read_rows(connection: Connection, trace_ids: Sequence[UUID], max_bytes: int) -> tuple[list[bytes], bool]:
    """The payloads of these traces, first come first, up to `max_bytes` bytes; and whether that is all of them."""
    placed = (
        select(
            trace_rows.c.row_id,
            trace_rows.c.payload,
            func.sum(func.octet_length(trace_rows.c.payload)).over(order_by=trace_rows.c.row_id).label("bytes_so_far"),
            func.count().over().label("total"),
        )
        .where(trace_rows.c.trace_id.in_(trace_ids))
        .subquery()
    )
    rows = connection.execute(
        select(placed.c.payload, placed.c.total).where(placed.c.bytes_so_far <= max_bytes).order_by(placed.c.row_id)
    ).all()
    if not rows:
        return [], not connection.scalar(
            select(select(trace_rows).where(trace_rows.c.trace_id.in_(trace_ids)).exists())
        )
    return [row.payload for row in rows], len(rows) == rows[0].total


def traceparent_of(connection: Connection, sha256: Sha256) -> str | None:
    """The W3C context under which an original is worked on."""
    return connection.scalar(select(originals.c.traceparent).where(originals.c.sha256 == sha256))


def forget_rows(connection: Connection, before: datetime) -> int:
    """Removes rows that arrived before that moment; returns how many."""
    return connection.execute(delete(trace_rows).where(trace_rows.c.received_at < before)).rowcount
