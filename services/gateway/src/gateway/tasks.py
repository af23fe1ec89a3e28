"""What is known of a task: from the database that it was issued, from Celery what came of it."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom.database import images
from darkroom.errors import PermanentError
from gateway.errors import UnavailableError
from gateway.models import Task, TaskError
from gateway.problems import results_away

ANSWER_S = 1.0
"""Longest that an answer waits for Redis, which takes a millisecond when it is well."""


async def find_task(engine: AsyncEngine, results: Redis, task_id: UUID, result_expires: timedelta) -> Task:
    """One task's state and result; raises `task-not-found`, `task-expired` and `results-unavailable`."""
    async with engine.connect() as connection:
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
        async with asyncio.timeout(ANSWER_S):
            stored = await results.get(f"celery-task-meta-{task_id}")
    except (RedisError, OSError) as error:  # a timeout is one, too
        raise UnavailableError(results_away()) from error
    return describe_task(row, stored, datetime.now(UTC), result_expires)


def describe_task(row: Row[Any], stored: bytes | str | None, now: datetime, result_expires: timedelta) -> Task:
    """The task in a row of `find_task` and in what Celery stored of it, if it did; raises `task-expired`."""
    known = partial(Task, task_id=row.id, name=row.name, queue=row.queue, issued_at=row.issued_at)
    if stored is not None:
        meta = json.loads(stored)
        state, result = meta["status"], meta.get("result")
        return known(
            state=state,
            # While it runs, Celery keeps the worker's process id and host name there.
            result=result if state == "SUCCESS" else None,
            progress=result if state == "PROGRESS" else None,
            error=_error_in(state, result) if state in ("FAILURE", "RETRY", "REVOKED") else None,
            worker=meta.get("worker"),
            started_at=meta.get("started_at"),
            finished_at=meta.get("date_done"),
        )
    if row.original_status in ("accepted", "processing"):
        return known(state="PENDING")
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
    if row.original_status:
        return known(state="SUCCESS" if row.original_status == "ready" else "REVOKED")
    if row.expires_at is not None and now > row.expires_at:
        # On RabbitMQ the message is dropped without a worker; with one, Celery stores the same error.
        error = TaskError(type="TaskRevokedError", message="expired")
        return known(state="REVOKED", error=error, finished_at=row.expires_at)
    return known(state="PENDING")


def _error_in(state: str, result: Any) -> TaskError:
    """The error that Celery stored as a task's result, without its traceback."""
    error = result if isinstance(result, dict) else {}
    text = error.get("exc_message", result)
    message = " ".join(str(part) for part in text) if isinstance(text, list) else str(text)
    return TaskError(type=str(error.get("exc_type", state)), message=message)
