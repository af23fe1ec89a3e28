"""The scheduler's side of the contracts: load, decide, store, tell."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from celery import Celery
from pydantic import ValidationError
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, OperationalError

from darkroom.celery_app import Delivery, bind
from darkroom.contracts import tasks as contracts
from darkroom.contracts.base import Message
from darkroom.contracts.messages import (
    Fence,
    FenceAnswer,
    Finalize,
    JobReport,
    Nothing,
    RecordEmbedding,
    RecordFailure,
    RecordLoss,
    RegisterModel,
    Verdict,
)
from darkroom.contracts.problems import original_missing
from darkroom.contracts.tasks import TaskContract
from darkroom.database import outcomes, upkeep, vectors
from darkroom.errors import TransientError
from darkroom.storage import BlobStore
from darkroom.telemetry.processing import keys_of_parts, link_to_parts
from darkroom.workflow import task_ids
from scheduler import backups, checking, finalize, reconciler, reports, retention
from scheduler.callbacks import Delivering
from scheduler.notifying import DISPATCH, EVENTS, notify
from scheduler.schedule import CHECK_BLOBS_EVERY_S, job_name
from scheduler.settings import SchedulerSettings

log = logging.getLogger(__name__)

ArgumentsT = TypeVar("ArgumentsT", bound=Message)
ResultT = TypeVar("ResultT", bound=Message)
Body = Callable[[ArgumentsT, Delivery], ResultT]


@dataclass(frozen=True)
class Resources:
    """What a process works with; built in the process that uses it, because connections do not survive a fork."""

    engine: Engine
    store: BlobStore
    publisher: Celery
    """An application that is bound to fail fast when the broker hangs."""
    database_url: str
    deadlines: reconciler.Deadlines
    settings: SchedulerSettings


class Finishing:
    """What the finalize worker does. Its methods run side by side in threads."""

    def __init__(self, app: Celery, resources: Resources) -> None:
        self._app = app
        self._engine = resources.engine
        self._store = resources.store

    def finalize(self, message: Finalize, delivery: Delivery) -> Nothing:
        """Makes an original ready when every artefact is there, and forgets the results of the steps before."""
        ids = task_ids(message.sha256, message.generation)
        link_to_parts(self._app, ids["thumbnails"], ids["embed"])
        if finalize.finish(self._engine, self._store, message, delivery.previous):
            log.info("finalize.ready", extra={"sha256": message.sha256, "generation": message.generation})
            notify(self._engine, EVENTS)
        self._forget_results(ids["thumbnails"], ids["embed"])
        return Nothing()

    def record_failure(self, message: RecordFailure, delivery: Delivery) -> Nothing:
        """Fails an original for a cause, unless a newer dispatch is under way or it is finished."""
        with self._engine.begin() as connection:
            is_changed = outcomes.mark_failed(connection, message.sha256, message.generation, message.problem)
        if is_changed:
            log.info("finalize.failed", extra={"sha256": message.sha256, "problem": message.problem.slug})
            notify(self._engine, EVENTS)
        return Nothing()

    def record_loss(self, message: RecordLoss, delivery: Delivery) -> Nothing:
        """Has an original dispatched again whose step gave up, unless a newer dispatch is under way or it is done.

        One whose bytes are gone fails: no further try would find them.
        """
        if checking.is_lost(self._engine, self._store, message.sha256):
            work = {"sha256": message.sha256, "generation": message.generation, "lane": message.lane}
            return self.record_failure(RecordFailure(**work, problem=original_missing()), delivery)
        with self._engine.begin() as connection:
            is_current = upkeep.is_generation(connection, message.sha256, message.generation)
            now = upkeep.database_now(connection)
            sent = outcomes.send_again(connection, [message.sha256], now, reconciler.BACKOFF_S) if is_current else 0
        if sent:
            log.warning("finalize.lost", extra={"sha256": message.sha256, "cause": message.cause})
            notify(self._engine, DISPATCH)
        return Nothing()

    def record_embedding(self, message: RecordEmbedding, delivery: Delivery) -> Nothing:
        """Stores the vector of a backfill."""
        finalize.add_vector(self._engine, self._store, message.sha256, delivery.previous)
        return Nothing()

    def register_model(self, message: RegisterModel, delivery: Delivery) -> Nothing:
        """Makes an embedder's model known; says how many images lack its vectors and has the first of them planned."""
        with self._engine.begin() as connection:
            state = vectors.register_model(connection, message)
            lacking = vectors.plan_backfill(connection, message.model.id, reconciler.BACKFILL_WINDOW)
        log.info("finalize.model_registered", extra={"model": message.model.id, "state": state, "lacking": lacking})
        if lacking:
            notify(self._engine, DISPATCH)
        return Nothing()

    def return_fence(self, message: Fence, delivery: Delivery) -> Nothing:
        """Records that a fence has passed its queue, whatever it was answered."""
        try:
            answer = FenceAnswer.from_wire(delivery.previous or {})
        except ValidationError:
            answer = FenceAnswer()
        with self._engine.begin() as connection:
            upkeep.return_fence(connection, message.number, answer)
        return Nothing()

    def _forget_results(self, *ids: str) -> None:
        try:
            results = self._app.backend
            results.client.delete(*map(results.get_key_for_task, ids), *keys_of_parts(*ids))
        except RedisError as error:
            log.warning("finalize.results_kept", extra={"error": str(error)})  # they expire


def pass_fence(message: Fence, delivery: Delivery) -> FenceAnswer:
    """That it is answered at all is all there is to know of a queue whose work is in the database."""
    return FenceAnswer(verdict=Verdict.OK, answer="it is answered")


def register_finishing(app: Celery, finishing: Finishing) -> None:
    """Binds the finalize worker's tasks."""
    bind(app, contracts.FINALIZE, with_database(finishing.finalize))
    bind(app, contracts.RECORD_FAILURE, with_database(finishing.record_failure))
    bind(app, contracts.RECORD_LOSS, with_database(finishing.record_loss))
    bind(app, contracts.RECORD_EMBEDDING, with_database(finishing.record_embedding))
    bind(app, contracts.REGISTER_MODEL, with_database(finishing.register_model))
    bind(app, contracts.RETURN_FENCE, with_database(finishing.return_fence))
    bind(app, contracts.FENCE, pass_fence)


RECONCILE_LIMIT_S = 60
"""A tick takes milliseconds; one that hangs must not cost more than a few turns."""


def register_jobs(app: Celery, resources: Callable[[], Resources]) -> None:
    """Binds the periodic jobs."""

    def add(contract: TaskContract[Nothing, JobReport], run: Callable[[Resources], JobReport], **options: Any) -> None:
        bind(app, contract, with_database(as_job(contract, resources, run)), **options)

    # Not tried again: the next tick comes sooner.
    limits = {"max_retries": 0, "soft_time_limit": RECONCILE_LIMIT_S - 5, "time_limit": RECONCILE_LIMIT_S}
    add(contracts.RECONCILE, lambda it: reconciler.reconcile(it.engine, it.publisher, it.deadlines), **limits)
    add(contracts.CHECK_BLOBS, lambda it: checking.check_blobs(it.engine, it.store, _photos_to_check(it.settings)))
    add(contracts.CLEAN_UP, lambda it: retention.clean_up(it.engine, it.store, it.settings, time.time()))
    add(
        contracts.BACK_UP,
        lambda it: backups.back_up(it.engine, it.store, it.database_url, it.settings.pg_bin_dir, datetime.now(UTC)),
    )
    add(contracts.REPORT_USAGE, lambda it: reports.report_usage(it.engine, it.store, datetime.now(UTC)))
    add(contracts.AUDIT_LEDGER, lambda it: reports.audit_ledger(it.engine))
    bind(app, contracts.FENCE, pass_fence)


def _photos_to_check(settings: SchedulerSettings) -> int:
    return checking.Pace(settings.blob_checks_per_s, CHECK_BLOBS_EVERY_S).photos


def with_database(body: Body[ArgumentsT, ResultT]) -> Body[ArgumentsT, ResultT]:
    """The same, but a database that is away or a deadlock is a `TransientError`, so that it is tried again."""

    def run(message: ArgumentsT, delivery: Delivery) -> ResultT:
        try:
            return body(message, delivery)
        except (OperationalError, InterfaceError) as error:
            raise TransientError(f"the database did not answer: {error}") from error

    return run


def register_callbacks(app: Celery, delivering: Delivering) -> None:
    """Binds the callbacks worker's tasks."""
    bind(app, contracts.DELIVER_CALLBACKS, with_database(delivering.deliver))
    hint = as_job(contracts.HINT_CALLBACKS, lambda: delivering, Delivering.hint_at_due)
    bind(app, contracts.HINT_CALLBACKS, with_database(hint), max_retries=0)
    bind(app, contracts.FENCE, pass_fence)


class HasEngine(Protocol):
    """What a job works with, whatever else it has."""

    @property
    def engine(self) -> Engine:
        """Where its row is."""


ResourcesT = TypeVar("ResourcesT", bound=HasEngine)


def as_job(
    contract: TaskContract[Nothing, JobReport],
    resources: Callable[[], ResourcesT],
    run: Callable[[ResourcesT], JobReport],
) -> Body[Nothing, JobReport]:
    """A periodic job that runs once at a time, and whose row shows how it went: an error is an alarm, too."""
    name = job_name(contract)

    def body(message: Nothing, delivery: Delivery) -> JobReport:
        engine = resources().engine
        with running_alone(engine, name) as is_alone:
            if not is_alone:
                # On Redis a job that takes longer than a minute is delivered again while it runs.
                return JobReport(summary="runs already")
            with engine.begin() as connection:
                upkeep.job_started(connection, name)
            try:
                report = run(resources())
            except Exception as error:
                log.exception("maintenance.failed", extra={"job": name})
                with engine.begin() as connection:
                    alarm = f"{type(error).__name__}: {error}"
                    upkeep.job_finished(connection, name, "failed", alarm, is_success=False)
                raise
            with engine.begin() as connection:
                upkeep.job_finished(connection, name, report.summary, report.alarm, is_success=True)
        level = logging.ERROR if report.alarm else logging.INFO
        log.log(level, "maintenance.done", extra={"job": name, "summary": report.summary, "alarm": report.alarm})
        return report

    return body


@contextmanager
def running_alone(engine: Engine, name: str) -> Iterator[bool]:
    """Whether nobody else runs the job of this name until the block ends."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()  # the lock is the session's: back in the pool, it would be held for ever
        yield upkeep.lock_job(connection, name)
