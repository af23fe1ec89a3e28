"""A span for each database transaction that is part of a trace. The one module of telemetry that knows SQLAlchemy."""

from typing import Any

from opentelemetry.trace import SpanKind
from sqlalchemy import Connection, Engine, event

from darkroom.telemetry import names, tracing

_SPAN = "darkroom.telemetry.span"


def trace_transactions(engine: Engine) -> None:
    """Has every transaction of this pool traced, from its first statement until the pool has its connection back.

    Not until the commit: SQLAlchemy tells of one before it is sent, and what takes time is the disk.
    """
    event.listen(engine, "begin", _begin)
    event.listen(engine, "checkin", _end)


def _begin(connection: Connection) -> None:
    if tracing.is_recording():
        _finish(connection.info)
        attributes = {names.DB_SYSTEM: "postgresql"}
        connection.info[_SPAN] = tracing.begin(names.TRANSACTION, attributes, kind=SpanKind.CLIENT)


def _end(dbapi_connection: Any, record: Any) -> None:
    _finish(record.info)


def _finish(info: dict[str, Any]) -> None:
    if (span := info.pop(_SPAN, None)) is not None:
        span.end()
