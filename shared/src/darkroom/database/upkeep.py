"""What beat, the reconciler and the sweeper read and write: fences, periodic jobs, unreferenced originals."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from darkroom.contracts.base import BlobKey, Lane, Sha256
from darkroom.contracts.messages import FenceAnswer, Verdict
from darkroom.database.tables import backups, events, fences, originals, periodic_jobs, tasks, usage_reports

_BEAT_LOCK = 0x62656174  # "beat"
_JOB_LOCKS = 0x6A6F6273  # "jobs"


def lead_beat(connection: Connection) -> bool:
    """Whether this connection leads beat from now until it closes (a session-level advisory lock; re-entrant)."""
    return bool(connection.scalar(select(func.pg_try_advisory_lock(_BEAT_LOCK))))


@dataclass(frozen=True)
class FenceRecord:
    """One fence's way through one queue; `returned_at` is None while it is on its way, or lost."""

    number: int
    queue: str
    sent_at: datetime
    returned_at: datetime | None


def database_now(connection: Connection) -> datetime:
    """The database's clock, which also stamps dispatches and fences: clocks of other machines take no part."""
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now


def send_fence(connection: Connection, queue: str) -> int:
    """Records that a fence is about to be sent, and returns its number. Commit, then publish: it may only be late."""
    return int(connection.execute(insert(fences).values(queue=queue).returning(fences.c.number)).scalar_one())


def return_fence(connection: Connection, number: int, answer: FenceAnswer) -> None:
    """Records that a fence came back, and with which answer; the first time counts."""
    connection.execute(
        update(fences)
        .where(fences.c.number == number, fences.c.returned_at.is_(None))
        .values(returned_at=func.clock_timestamp(), verdict=answer.verdict, answer=answer.answer)
    )


LATE_AFTER = timedelta(minutes=2)
"""What an interactive photo may wait in one queue before a person is told: three restarts of a worker, or 8 ticks."""

LATE_AFTER_BULK = timedelta(hours=1)
"""The same for the bulk lane, where a backlog is no fault."""

NONE_SENT_FOR = timedelta(minutes=2)
"""Nothing can be said of a queue through which no fence was sent for so long: the reconciler stands."""


@dataclass(frozen=True)
class QueueProbe:
    """How a queue stands by its fences, which carry a known question: a state, and a sentence for a person.

    `ok`: the last fence to come back had the known answer. `wrong`: it had another. `late`: one is on its way for too
    long, or lost. `unknown`: none has come back yet, or lately, or with an answer.
    """

    queue: str
    state: Literal["ok", "late", "wrong", "unknown"]
    text: str


def probe_states(connection: Connection) -> list[QueueProbe]:
    """How each queue stands that a fence was ever sent through, by name."""
    rows = connection.execute(
        text(
            """
            WITH back AS (
                SELECT DISTINCT ON (queue) number, queue, sent_at, returned_at, verdict, answer
                FROM fences WHERE returned_at IS NOT NULL ORDER BY queue, number DESC
            ), away AS (
                SELECT fences.queue, min(fences.sent_at) AS since
                FROM fences LEFT JOIN back USING (queue)
                WHERE fences.returned_at IS NULL AND fences.number > coalesce(back.number, 0)
                GROUP BY fences.queue
            )
            SELECT queue, back.sent_at, back.returned_at, verdict, answer, since, clock_timestamp() AS now
            FROM back FULL JOIN away USING (queue) ORDER BY queue
            """
        )
    )
    return [_queue_probe(row) for row in rows]


def _queue_probe(row: Row[Any]) -> QueueProbe:
    bound = LATE_AFTER_BULK if row.queue.endswith(".bulk") else LATE_AFTER
    if row.since is not None and row.now - row.since > bound:
        since_s = round((row.now - row.since).total_seconds())
        return QueueProbe(row.queue, "late", f"a probe is on its way for {since_s} s: no worker, or a long backlog")
    if row.sent_at is None:
        return QueueProbe(row.queue, "unknown", "the first probe is on its way")
    if row.since is None and row.now - row.sent_at > NONE_SENT_FOR:
        ago_s = round((row.now - row.sent_at).total_seconds())
        return QueueProbe(row.queue, "unknown", f"no probe was sent for {ago_s} s: does the scheduler run?")
    answer = row.answer or "it came back without an answer"
    if row.verdict == Verdict.WRONG:
        return QueueProbe(row.queue, "wrong", answer)
    wait_s = (row.returned_at - row.sent_at).total_seconds()
    state: Literal["ok", "unknown"] = "ok" if row.verdict == Verdict.OK else "unknown"
    return QueueProbe(row.queue, state, f"back after {wait_s:.2f} s: {answer}")


def queue_ages(connection: Connection) -> dict[str, float]:
    """How long the oldest message of each queue has waited, in seconds, as far as its fences tell.

    That is the age of the oldest fence on its way or the wait of the last that came back, whichever is longer: a fence
    that was sent a second ago says nothing of what is before it in the queue.
    """
    rows = connection.execute(
        text(
            """
            WITH queues AS (SELECT DISTINCT queue FROM fences)
            SELECT queue, extract(epoch FROM greatest(
                clock_timestamp() - (
                    SELECT min(sent_at) FROM fences
                    WHERE fences.queue = queues.queue AND returned_at IS NULL AND number > coalesce(back.number, 0)
                ),
                back.returned_at - back.sent_at
            )) AS age_s
            FROM queues LEFT JOIN LATERAL (
                SELECT number, sent_at, returned_at FROM fences
                WHERE fences.queue = queues.queue AND returned_at IS NOT NULL ORDER BY number DESC LIMIT 1
            ) back ON true
            """
        )
    )
    return {row.queue: max(0.0, float(row.age_s)) for row in rows}


def fence_history(connection: Connection, newer_than: datetime) -> list[FenceRecord]:
    """Every fence sent since then, oldest first."""
    rows = connection.execute(select(fences).where(fences.c.sent_at > newer_than).order_by(fences.c.number))
    return [FenceRecord(row.number, row.queue, row.sent_at, row.returned_at) for row in rows]


def forget_fences(connection: Connection, before: datetime) -> int:
    """Removes old fences; returns how many."""
    return connection.execute(delete(fences).where(fences.c.sent_at < before)).rowcount


def thin_fences(connection: Connection, before: datetime, keep_every_s: int) -> int:
    """Of the fences older than `before` that came back, leaves each queue the first in every `keep_every_s` seconds.

    Returns how many went. A long backlog needs old fences, but not every one of them.
    """
    statement = text(
        """
        WITH placed AS (
            SELECT number, row_number() OVER (
                PARTITION BY queue, floor(extract(epoch FROM sent_at) / :every) ORDER BY number
            ) AS place
            FROM fences WHERE sent_at < :before AND returned_at IS NOT NULL
        )
        DELETE FROM fences USING placed WHERE fences.number = placed.number AND placed.place > 1
        """
    )
    return connection.execute(statement, {"before": before, "every": keep_every_s}).rowcount


def has_unfinished(connection: Connection, dispatched_before: datetime) -> bool:
    """Whether any original is unfinished that was dispatched before that moment."""
    statement = select(originals.c.sha256).where(
        originals.c.status.in_(["accepted", "processing"]), originals.c.dispatched_at < dispatched_before
    )
    return connection.scalar(statement.limit(1)) is not None


def overdue_originals(connection: Connection, lane: Lane, dispatched_before: datetime, limit: int) -> list[Sha256]:
    """Unfinished originals of a lane that were dispatched before that moment, oldest first."""
    return list(
        connection.scalars(
            select(originals.c.sha256)
            .where(
                originals.c.status.in_(["accepted", "processing"]),
                originals.c.lane == lane.value,
                originals.c.dispatched_at < dispatched_before,
            )
            .order_by(originals.c.dispatched_at)
            .limit(limit)
        )
    )


def is_generation(connection: Connection, sha256: Sha256, generation: int) -> bool:
    """Whether this is the newest dispatch of an original."""
    return connection.scalar(select(originals.c.generation).where(originals.c.sha256 == sha256)) == generation


def requeue_backfills(connection: Connection, dispatched_before: datetime) -> int:
    """Clears the stamp of backfills that were lost; returns how many."""
    statement = text("UPDATE backfills SET dispatched_at = NULL WHERE dispatched_at < :before")
    return connection.execute(statement, {"before": dispatched_before}).rowcount


def begin_sweep(connection: Connection, unreferenced_before: datetime, limit: int) -> list[Sha256]:
    """Marks originals that nothing refers to for long enough; an upload of the same bytes takes the mark off.

    Those that an earlier sweep marked and did not finish are among them.
    """
    return list(
        connection.scalars(
            text(
                """
                WITH swept AS (
                    SELECT sha256 FROM originals WHERE unreferenced_at < :before
                    ORDER BY sha256 LIMIT :limit FOR UPDATE SKIP LOCKED
                )
                UPDATE originals SET status = 'sweeping' FROM swept WHERE originals.sha256 = swept.sha256
                RETURNING originals.sha256
                """
            ),
            {"before": unreferenced_before, "limit": limit},
        )
    )


def lock_swept(connection: Connection, sha256: Sha256) -> bool:
    """Locks a marked original, so that its blobs may be removed; false when an upload has claimed it meanwhile."""
    found = connection.scalar(
        select(originals.c.sha256)
        .where(originals.c.sha256 == sha256, originals.c.status == "sweeping", originals.c.unreferenced_at.is_not(None))
        .with_for_update()
    )
    return found is not None


def remove_swept(connection: Connection, sha256: Sha256) -> None:
    """Removes the row whose blobs are gone; its vectors go with it."""
    connection.execute(delete(originals).where(originals.c.sha256 == sha256, originals.c.status == "sweeping"))


def claim_orphan(connection: Connection, sha256: Sha256) -> bool:
    """Locks a hash that has no row, so that its blobs may be removed; false when it has one after all.

    An upload of these bytes waits for the lock, then finds no blob and writes its own. `remove_swept` ends it.
    """
    statement = (
        upsert(originals)
        .values(sha256=sha256, bytes=0, lane=Lane.BULK.value, status="sweeping", unreferenced_at=func.now())
        .on_conflict_do_nothing()
        .returning(originals.c.sha256)
    )
    return connection.scalar(statement) is not None


def known_originals(connection: Connection, shas: Sequence[Sha256]) -> set[Sha256]:
    """Those of `shas` that have a row."""
    return set(connection.scalars(select(originals.c.sha256).where(originals.c.sha256.in_(shas))))


def forget_tasks(connection: Connection, before: datetime) -> int:
    """Removes issued task ids older than `before`; returns how many."""
    return connection.execute(delete(tasks).where(tasks.c.issued_at < before)).rowcount


def forget_events(connection: Connection, before: datetime) -> int:
    """Removes events that happened before `before`; returns how many.

    Only from the front, up to the first that is younger or not yet published, and never the newest: what is left tells
    a reader whether it has missed anything.
    """
    first_kept = select(func.min(events.c.id)).where(
        or_(events.c.occurred_at >= before, events.c.published_at.is_(None))
    )
    newest = select(func.max(events.c.id))
    kept_from = func.least(first_kept.scalar_subquery(), newest.scalar_subquery())
    return connection.execute(delete(events).where(events.c.id < kept_from)).rowcount


def lock_job(connection: Connection, name: str) -> bool:
    """Whether this connection may run the job, from now until it closes; false while another one runs it."""
    return bool(connection.scalar(select(func.pg_try_advisory_lock(_JOB_LOCKS, func.hashtext(name)))))


def job_scheduled(connection: Connection, name: str, at: datetime) -> None:
    """Records when beat last sent a job."""
    statement = upsert(periodic_jobs).values(name=name, scheduled_at=at)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"scheduled_at": statement.excluded.scheduled_at})
    )


def job_started(connection: Connection, name: str) -> None:
    """Records that a job began."""
    statement = upsert(periodic_jobs).values(name=name, started_at=func.now())
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"started_at": statement.excluded.started_at})
    )


def job_finished(connection: Connection, name: str, summary: str, alarm: str | None, *, is_success: bool) -> None:
    """Records how a job ended; the alarm stays until a run without one."""
    moments = {"finished_at": func.now()} | ({"succeeded_at": func.now()} if is_success else {})
    connection.execute(
        update(periodic_jobs).where(periodic_jobs.c.name == name).values(summary=summary, alarm=alarm, **moments)
    )


def all_jobs(connection: Connection) -> Sequence[Row[Any]]:
    """Every periodic job's last run."""
    return connection.execute(select(periodic_jobs).order_by(periodic_jobs.c.name)).all()


def newest_reports(connection: Connection, limit: int) -> Sequence[Row[Any]]:
    """Up to `limit` usage reports, newest first."""
    return connection.execute(select(usage_reports).order_by(usage_reports.c.period_start.desc()).limit(limit)).all()


def save_report(connection: Connection, start: datetime, end: datetime, report: dict[str, Any]) -> None:
    """Keeps a period's usage report, in place of the one before."""
    statement = upsert(usage_reports).values(period_start=start, period_end=end, report=report)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["period_start"],
            set_={"period_end": end, "report": statement.excluded.report, "created_at": func.now()},
        )
    )


def record_backup(connection: Connection, key: BlobKey, size: int, sha256: str) -> None:
    """Makes a verified backup known."""
    connection.execute(insert(backups).values(key=key, bytes=size, sha256=sha256))


def backups_beyond(connection: Connection, kept: int) -> list[BlobKey]:
    """The backups that are older than the newest `kept`."""
    return list(connection.scalars(select(backups.c.key).order_by(backups.c.created_at.desc()).offset(kept)))


def known_backups(connection: Connection) -> set[BlobKey]:
    """Every backup that has a row."""
    return set(connection.scalars(select(backups.c.key)))


def forget_backup(connection: Connection, key: BlobKey) -> None:
    """Removes the row of a backup whose blob is gone."""
    connection.execute(delete(backups).where(backups.c.key == key))
