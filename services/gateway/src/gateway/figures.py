"""The figures of the whole system, measured when somebody scrapes this gateway's metrics.

Every gateway shows the same ones. A part that is away takes its own figures along, and nothing else: they are absent
until it is back, and `darkroom_part_up` says so.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import Gauge
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, Row
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom.database import dispatch, images, upkeep
from darkroom.database.dispatch import Backlog
from darkroom.errors import DarkroomError
from darkroom.telemetry import metrics
from gateway.models import QueueOverview
from gateway.queues import QueueView
from gateway.trace_store import Counters, TraceStore

FRESH_S = 2.0
"""How old the figures may be: any number of scrapes cost the database what one does."""

ANSWER_S = 4.0
"""Longest that a scrape waits for a part that hangs; Prometheus gives up after 10 s."""


@dataclass(frozen=True)
class Standing:
    """What the database says."""

    ledger: dict[str, int]
    backlog: Backlog
    jobs: Sequence[Row[Any]]


class SystemFigures:
    """Sets the gauges of the gateway's registry. In the event loop alone."""

    def __init__(self, engine: AsyncEngine, queues: QueueView, results: Redis, traces: TraceStore | None) -> None:
        self._engine = engine
        self._queues = queues
        self._results = results
        self._traces = traces
        self._spans = Counters()
        self._measuring: asyncio.Task[None] | None = None
        self._measured_s = 0.0

    async def measure(self) -> None:
        """Brings every gauge up to date, or makes it absent."""
        is_over = self._measuring is not None and self._measuring.done()
        if self._measuring is None or (is_over and time.monotonic() > self._measured_s + FRESH_S):
            self._measuring = asyncio.create_task(self._measure())
        await asyncio.shield(self._measuring)  # one that hangs up does not take the others' figures along
        if self._traces is not None:
            self._count_spans(self._traces.counters())

    async def _measure(self) -> None:
        standing, queues, has_redis = await asyncio.gather(self._standing(), self._overview(), self._has_redis())
        _show_standing(standing)
        _show_queues(queues)
        has_broker = queues is not None and "depth" not in queues.unknown
        for part, is_up in {"database": standing is not None, "broker": has_broker, "redis": has_redis}.items():
            metrics.PART_UP.labels(part).set(is_up)
        self._measured_s = time.monotonic()

    async def _standing(self) -> Standing | None:
        def read(connection: Connection) -> Standing:
            return Standing(images.read_ledger(connection), dispatch.backlog(connection), upkeep.all_jobs(connection))

        try:
            async with asyncio.timeout(ANSWER_S), self._engine.connect() as connection:
                return await connection.run_sync(read)
        except (SQLAlchemyError, OSError):  # a TimeoutError is one
            return None

    async def _overview(self) -> QueueOverview | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._queues.read()
        except (DarkroomError, OSError):
            return None

    async def _has_redis(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._results.ping()
        except (RedisError, OSError):
            return False
        return True

    def _count_spans(self, now: Counters) -> None:
        before, self._spans = asdict(self._spans), now
        for outcome, count in asdict(now).items():
            metrics.TRACE_SPANS.labels(outcome).inc(count - before[outcome])


def _show_standing(standing: Standing | None) -> None:
    for gauge in (
        metrics.LEDGER,
        metrics.DISPATCH_BACKLOG,
        metrics.DISPATCH_WAIT,
        metrics.JOB_STARTED,
        metrics.JOB_SUCCEEDED,
        metrics.JOB_ALARM,
    ):
        gauge.clear()
    if standing is None:
        return
    for state, count in standing.ledger.items():
        metrics.LEDGER.labels(state).set(count)
    metrics.DISPATCH_BACKLOG.labels("photos").set(standing.backlog.originals)
    metrics.DISPATCH_BACKLOG.labels("backfills").set(standing.backlog.backfills)
    metrics.DISPATCH_WAIT.labels("photos").set(standing.backlog.oldest_s or 0)
    for job in standing.jobs:
        metrics.JOB_ALARM.labels(job.name).set(job.alarm is not None)
        if job.started_at is not None:
            metrics.JOB_STARTED.labels(job.name).set(job.started_at.timestamp())
        if job.succeeded_at is not None:
            metrics.JOB_SUCCEEDED.labels(job.name).set(job.succeeded_at.timestamp())


def _show_queues(overview: QueueOverview | None) -> None:
    gauges: dict[Gauge, str] = {
        metrics.QUEUE_MESSAGES: "depth",
        metrics.QUEUE_AGE: "oldest_age_s",
        metrics.QUEUE_IN_HAND: "in_hand",
        metrics.QUEUE_CONSUMERS: "consumers",
    }
    for gauge in (*gauges, metrics.QUEUE_PROBE, metrics.DEAD_LETTERS):
        gauge.clear()
    if overview is None:
        return
    for queue in overview.queues:
        for gauge, figure in gauges.items():
            _set(gauge, queue.name, getattr(queue, figure))
        if queue.probe is not None:
            for state in ("ok", "late", "wrong", "unknown"):
                metrics.QUEUE_PROBE.labels(queue.name, state).set(queue.probe.state == state)
    _set(metrics.DEAD_LETTERS, "queued", overview.dead_letters.depth)
    _set(metrics.DEAD_LETTERS, "kept", overview.dead_letters.kept)


def _set(gauge: Gauge, label: str, value: float | None) -> None:
    if value is not None:
        gauge.labels(label).set(value)
