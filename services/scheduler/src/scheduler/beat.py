"""Beat: sends the periodic jobs. One leads, any number stand by.

Leadership is a session-level advisory lock in PostgreSQL, asked for at every tick on a connection of its own: it ends
with that connection, whether we close it, die or are cut off. When a job was last sent is a row. Nothing is kept on
disk or in Redis, so that a flush there changes nothing here.
"""

import logging
import signal
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry, Scheduler, Service
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from darkroom.celery_app import PUBLISH_OPTIONS, request
from darkroom.contracts.messages import Nothing
from darkroom.database import upkeep
from darkroom.telemetry import metrics
from scheduler.publishing import fresh_connection
from scheduler.schedule import JOBS, PeriodicJob

log = logging.getLogger(__name__)

TICK_S = 1.0
"""How late a job may be, and how soon a standby sees that the leader is gone."""

NEVER = datetime(2000, 1, 1, tzinfo=UTC)
"""When a job without a row was last sent."""


class LeaderScheduler(Scheduler):  # type: ignore[misc]
    """Celery's scheduler with its state in PostgreSQL. Survives outages of database, broker and Redis."""

    def __init__(self, app: Celery, engine: Engine, heartbeat_file: Path | None, **options: Any) -> None:
        self._engine = engine
        self._heartbeat_file = heartbeat_file
        self._connection: Connection | None = None
        self.is_leading = False
        """Whether the last tick was a leader's."""
        super().__init__(app, **options)

    def setup_schedule(self) -> None:
        """Our jobs and none of Celery's own."""
        self.schedule = {job.name: self._entry(job) for job in JOBS}

    def tick(self, *_: Any, **__: Any) -> float:
        """Sends what is due if we lead; returns the seconds until the next tick. Raises nothing."""
        if self._heartbeat_file is not None:
            self._heartbeat_file.parent.mkdir(parents=True, exist_ok=True)
            self._heartbeat_file.touch()
        try:
            connection = self._leading_connection()
            if connection is not None:
                self._send_due(connection)
        except SQLAlchemyError as error:
            log.warning("beat.database_away", extra={"error": str(error)})
            self._resign()
        metrics.BEAT_LEADING.set(self.is_leading)
        metrics.BEAT_TICK.set_to_current_time()
        return TICK_S

    def close(self) -> None:
        """Ends the leadership."""
        self._resign()
        super().close()

    def _leading_connection(self) -> Connection | None:
        if self._connection is None:
            # Detached, because a pool would keep the session, and the lock with it.
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()
            self._connection = connection
        if not upkeep.lead_beat(self._connection):
            return None
        if not self.is_leading:
            sent = {row.name: row.scheduled_at for row in upkeep.all_jobs(self._connection)}
            for entry in self.schedule.values():
                entry.last_run_at = sent.get(entry.name) or NEVER
            self.is_leading = True
            log.info("beat.leading")
        return self._connection

    def _send_due(self, connection: Connection) -> None:
        due = [entry for entry in self.schedule.values() if entry.is_due().is_due]
        for entry in due:
            try:
                self._publish(entry)
            except Exception as error:  # whatever the broker's client raises: the job stays due
                log.warning("beat.not_sent", extra={"job": entry.name, "error": repr(error)})
                return
            # After the publish: dying in between sends a job twice, and every job may run twice.
            sent = self.reserve(entry)
            upkeep.job_scheduled(connection, sent.name, sent.last_run_at)
            metrics.JOBS_SENT.labels(entry.name).inc()
            log.info("beat.sent", extra={"job": entry.name})

    def _publish(self, entry: ScheduleEntry) -> None:
        with fresh_connection(self.app) as connection:
            self.send_task(entry.task, entry.args, entry.kwargs, connection=connection, **entry.options)

    def _resign(self) -> None:
        connection, self._connection, self.is_leading = self._connection, None, False
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _entry(self, job: PeriodicJob) -> ScheduleEntry:
        call = request(self.app, job.contract, Nothing(), expires=job.expires_s, ignore_result=True)
        return self.Entry(
            name=job.name,
            task=call.task,
            kwargs=call.kwargs,
            options={**call.options, **PUBLISH_OPTIONS},
            schedule=job.when,
            last_run_at=NEVER,
            app=self.app,
        )


def run_beat(app: Celery, engine: Engine, heartbeat_file: Path | None) -> None:
    """Ticks until a signal. `app` must be bound (`darkroom.celery_app.bound_publishing`)."""
    signal.signal(signal.SIGTERM, _leave)
    service = Service(app, scheduler_cls=partial(LeaderScheduler, engine=engine, heartbeat_file=heartbeat_file))
    service.start()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)  # the service's loop catches it and closes the scheduler
