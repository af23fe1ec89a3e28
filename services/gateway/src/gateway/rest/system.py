"""How the system does: health, ledger, tasks, status, reports."""

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Annotated, Any
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query
from redis.exceptions import RedisError
from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError

from darkroom.database import dispatch, images, upkeep, vectors
from darkroom.errors import PermanentError
from darkroom.storage import BlobStore
from gateway.bootstrap import Gateway
from gateway.errors import UnavailableError
from gateway.rest.dependencies import FromGateway
from gateway.rest.models import (
    DispatcherStatus,
    Health,
    Job,
    Ledger,
    Model,
    Readiness,
    Report,
    Reports,
    SystemStatus,
    Task,
    TaskError,
)
from gateway.rest.problems import answers_with, database_away, results_away, storage_away

log = logging.getLogger(__name__)

router = APIRouter(tags=["system"])

RESULTS_S = 1.0
"""Longest that an answer waits for Redis, which takes a millisecond when it is well."""


@router.get("/healthz")
async def healthz() -> Health:
    """The process is alive and its event loop runs."""
    return Health()


@router.get("/readyz", responses=answers_with())
async def readyz(gateway: FromGateway) -> Readiness:
    """Whether uploads are accepted: the database answers and is migrated, the blob store can be written."""
    try:
        async with gateway.engine.connect() as connection:
            await connection.run_sync(images.read_ledger)
            model = await connection.run_sync(vectors.active_model)
    except (SQLAlchemyError, OSError) as error:
        raise UnavailableError(database_away()) from error
    try:
        await run_sync(_write, gateway.store)
    except OSError as error:
        raise UnavailableError(storage_away()) from error
    broker, results = gateway.broker.is_connected, await _answers(gateway)
    return Readiness(
        broker=broker,
        results=results,
        model=model.id if model else None,
        photo_ready=broker and results and model is not None,
    )


@router.get("/v1/ledger", responses=answers_with())
async def ledger(gateway: FromGateway) -> Ledger:
    """How many images were accepted, and what became of them."""
    async with gateway.engine.connect() as connection:
        return Ledger(**await connection.run_sync(images.read_ledger))


@router.get("/v1/status", responses=answers_with())
async def status(gateway: FromGateway) -> SystemStatus:
    """The state of the whole system."""
    async with gateway.engine.connect() as connection:
        counts = await connection.run_sync(images.read_ledger)
        backlog = await connection.run_sync(dispatch.backlog)
        models = await connection.run_sync(vectors.all_models)
        jobs = await connection.run_sync(upkeep.all_jobs)
    return SystemStatus(
        version=version("darkroom-gateway"),
        ledger=Ledger(**counts),
        dispatcher=DispatcherStatus(
            enabled=gateway.settings.dispatcher_enabled,
            connected=gateway.broker.is_connected,
            waiting=backlog.originals,
            oldest_wait_s=backlog.oldest_s,
            backfills=backlog.backfills,
        ),
        models=[Model.model_validate(row) for row in models],
        jobs=[Job.model_validate(row) for row in jobs],
    )


@router.get("/v1/reports", responses=answers_with())
async def reports(gateway: FromGateway, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> Reports:
    """The usage reports, newest first."""
    async with gateway.engine.connect() as connection:
        rows = await connection.run_sync(upkeep.newest_reports, limit)
    return Reports(reports=[Report.model_validate(row) for row in rows])


@router.get("/v1/tasks/{task_id}", responses=answers_with(404, 410))
async def task(gateway: FromGateway, task_id: UUID) -> Task:
    """One task's state and result."""
    async with gateway.engine.connect() as connection:
        row = await connection.run_sync(images.find_task, task_id)
    if row is None:
        raise PermanentError.of(
            "task-not-found",
            "There is no such task",
            404,
            f"No task with the id {task_id} was ever issued, or it was so long ago that this is forgotten.",
            value=str(task_id),
            remedy="Take a task id from an image's `tasks`.",
        )
    try:
        async with asyncio.timeout(RESULTS_S):
            stored = await gateway.results.get(f"celery-task-meta-{task_id}")
    except (RedisError, OSError) as error:  # a timeout is one, too
        raise UnavailableError(results_away()) from error
    return describe_task(row, stored, datetime.now(UTC), timedelta(seconds=gateway.settings.result_expires_s))


def describe_task(row: Row[Any], stored: bytes | str | None, now: datetime, result_expires: timedelta) -> Task:
    """The task in a row of `find_task` and in what Celery stored of it, if it did; raises `task-expired`."""
    if stored is not None:
        meta = json.loads(stored)
        state, result = meta["status"], meta.get("result")
        if state not in ("FAILURE", "RETRY", "REVOKED"):
            return Task(task_id=row.id, name=row.name, state=state, result=_answer_of(state, result), error=None)
        error = result if isinstance(result, dict) else {}
        text = error.get("exc_message", result)
        message = " ".join(str(part) for part in text) if isinstance(text, list) else str(text)
        failure = TaskError(type=str(error.get("exc_type", state)), message=message)
        return Task(task_id=row.id, name=row.name, state=state, result=None, error=failure)
    if row.original_status in ("accepted", "processing"):
        return Task(task_id=row.id, name=row.name, state="PENDING", result=None, error=None)
    if now - row.issued_at > result_expires:
        raise PermanentError.of(
            "task-expired",
            "The task's result has expired",
            410,
            f"The task {row.id} was issued at {row.issued_at.isoformat()}; results are kept for "
            f"{result_expires.total_seconds():g} s.",
            value=str(row.id),
            limit=round(result_expires.total_seconds()),
            remedy="Look at the image: GET /v1/images/{id}.",
        )
    # Its result was dropped early, by the join that used it; or it never ran, because a step before it failed.
    state = "SUCCESS" if row.original_status == "ready" else "REVOKED" if row.original_status else "PENDING"
    return Task(task_id=row.id, name=row.name, state=state, result=None, error=None)


def _answer_of(state: str, result: Any) -> Any:
    # While it runs, Celery keeps the worker's process id and host name there.
    return result if state == "SUCCESS" else None


def _write(store: BlobStore) -> None:
    writer = store.new_writer()
    try:
        writer.write(b"readyz")
    finally:
        writer.discard()


async def _answers(gateway: Gateway) -> bool:
    try:
        async with asyncio.timeout(RESULTS_S):
            await gateway.results.ping()
    except (RedisError, OSError):
        return False
    return True
