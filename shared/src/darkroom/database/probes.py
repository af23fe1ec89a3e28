"""Which probes were sent: their task ids, and how many in the last minute."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, delete, func, insert, select

from darkroom.contracts.tasks import PROBE
from darkroom.database.tables import tasks

_PROBE_LOCK = 0x70726F62  # "prob"

MINUTE = timedelta(minutes=1)


def issue(connection: Connection, task_id: UUID, queue: str, expires_s: float, per_minute: int) -> float | None:
    """Records a probe's task id; or returns in how many seconds one may be sent, when the last minute had enough.

    One transaction at a time in all gateways. Commit before publishing.
    """
    connection.execute(select(func.pg_advisory_xact_lock(_PROBE_LOCK)))
    now = connection.execute(select(func.clock_timestamp())).scalar_one()
    limiting = connection.scalar(
        select(tasks.c.issued_at)
        .where(tasks.c.name == PROBE.name, tasks.c.issued_at > now - MINUTE)
        .order_by(tasks.c.issued_at.desc())
        .offset(per_minute - 1)
        .limit(1)
    )
    if limiting is not None:
        return float((limiting + MINUTE - now).total_seconds())
    expires_at = now + timedelta(seconds=expires_s)
    connection.execute(
        insert(tasks).values(id=task_id, name=PROBE.name, queue=queue, issued_at=now, expires_at=expires_at)
    )
    return None


def withdraw(connection: Connection, task_id: UUID) -> None:
    """Forgets a probe that could not be published."""
    connection.execute(delete(tasks).where(tasks.c.id == task_id, tasks.c.name == PROBE.name))
