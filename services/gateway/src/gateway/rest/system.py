"""How the system does: health, ledger, tasks, status, reports."""

import asyncio
import logging
from datetime import timedelta
from importlib.metadata import version
from typing import Annotated
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from darkroom.database import callbacks, dispatch, images, recovery, upkeep, vectors
from darkroom.storage import BlobStore
from gateway import library
from gateway.bootstrap import Gateway
from gateway.errors import UnavailableError
from gateway.models import (
    CallbackStatus,
    DispatcherStatus,
    Health,
    Job,
    Ledger,
    Model,
    Readiness,
    Report,
    Reports,
    StoreStatus,
    SystemStatus,
    Task,
    UploadStatus,
)
from gateway.problems import database_away, storage_away
from gateway.rest.dependencies import FromGateway
from gateway.rest.problems import answers_with
from gateway.tasks import ANSWER_S, find_task
from gateway.trace_models import TraceStoreStatus

log = logging.getLogger(__name__)

router = APIRouter(tags=["system"])


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
    return await library.read_ledger(gateway.engine)


@router.get("/v1/status", responses=answers_with())
async def status(gateway: FromGateway) -> SystemStatus:
    """The state of the whole system."""
    async with gateway.engine.connect() as connection:
        counts = await connection.run_sync(images.read_ledger)
        backlog = await connection.run_sync(dispatch.backlog)
        models = await connection.run_sync(vectors.all_models)
        oldest_check_s = await connection.run_sync(recovery.oldest_check_s)
        jobs = await connection.run_sync(upkeep.all_jobs)
        called = await connection.run_sync(callbacks.count_callbacks)
    load = await gateway.pressure.load()
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
        callbacks=CallbackStatus.model_validate(called),
        uploads=UploadStatus(refusal=gateway.pressure.refusal(load), free_bytes=load.free_bytes),
        store=StoreStatus(oldest_check_s=oldest_check_s),
        models=[Model.model_validate(row) for row in models],
        jobs=[Job.model_validate(row) for row in jobs],
        traces=TraceStoreStatus.model_validate(gateway.traces.counters()) if gateway.traces else None,
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
    expires = timedelta(seconds=gateway.settings.result_expires_s)
    return await find_task(gateway.engine, gateway.results, task_id, expires)


def _write(store: BlobStore) -> None:
    writer = store.new_writer()
    try:
        writer.write(b"readyz")
        writer.sync()  # an object store hears nothing before
    finally:
        writer.discard()


async def _answers(gateway: Gateway) -> bool:
    try:
        async with asyncio.timeout(ANSWER_S):
            await gateway.results.ping()
    except (RedisError, OSError):
        return False
    return True
