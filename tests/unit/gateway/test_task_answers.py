"""What is answered about a task, from what the database and Celery know of it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from darkroom.errors import PermanentError
from gateway.tasks import describe_task

NOW = datetime(2026, 7, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
TASK = UUID(int=7)


@dataclass
class Row:
    """A row of `find_task`."""

    original_status: str | None
    issued_at: datetime = NOW - timedelta(minutes=1)
    name: str = "embedder.embed"
    id: UUID = TASK
    queue: str | None = "embed"
    expires_at: datetime | None = None


@pytest.mark.parametrize(
    ("status", "age", "state"),
    [
        ("accepted", timedelta(), "PENDING"),
        ("processing", timedelta(days=3), "PENDING"),  # a long backlog is not an expired result
        ("ready", timedelta(minutes=59), "SUCCESS"),
        ("failed", timedelta(minutes=59), "REVOKED"),
        (None, timedelta(minutes=59), "PENDING"),
        ("ready", timedelta(minutes=61), None),
        ("failed", timedelta(minutes=61), None),
        (None, timedelta(days=3), None),
    ],
)
def test_without_a_stored_result_the_original_tells(status: str | None, age: timedelta, state: str | None) -> None:
    row: Any = Row(status, NOW - age)
    if state is None:
        with pytest.raises(PermanentError) as expired:
            describe_task(row, None, NOW, HOUR)
        assert (expired.value.problem.slug, expired.value.problem.status) == ("task-expired", 410)
    else:
        assert describe_task(row, None, NOW, HOUR).state == state


def test_a_stored_result_is_answered_however_old_it_is() -> None:
    row: Any = Row("ready", NOW - timedelta(days=3))
    stored = json.dumps({"status": "SUCCESS", "result": {"dim": 3}})
    assert describe_task(row, stored.encode(), NOW, HOUR).result == {"dim": 3}


@pytest.mark.parametrize(
    ("result", "kind", "message"),
    [
        ({"exc_type": "ValueError", "exc_message": ["a", 7], "exc_module": "builtins"}, "ValueError", "a 7"),
        ({"exc_type": "ValueError", "exc_message": "text"}, "ValueError", "text"),
        ("text", "FAILURE", "text"),
        (None, "FAILURE", "None"),
    ],
)
def test_a_failure_is_an_error_without_a_traceback(result: Any, kind: str, message: str) -> None:
    row: Any = Row("failed")
    stored = json.dumps({"status": "FAILURE", "result": result, "traceback": "File secret.py"})
    task = describe_task(row, stored, NOW, HOUR)
    assert task.error is not None
    assert (task.state, task.error.type, task.error.message) == ("FAILURE", kind, message)
    assert "secret" not in task.model_dump_json()


def test_what_a_running_task_stores_about_its_worker_is_not_shown() -> None:
    row: Any = Row("processing")
    stored = json.dumps({"status": "STARTED", "result": {"pid": 7, "hostname": "inside"}})
    assert "inside" not in describe_task(row, stored, NOW, HOUR).model_dump_json()


def test_a_task_that_nobody_took_in_time_is_revoked() -> None:
    row: Any = Row(None, expires_at=NOW)
    assert describe_task(row, None, NOW, HOUR).state == "PENDING"
    late = describe_task(row, None, NOW + timedelta(seconds=1), HOUR)
    assert late.error is not None
    assert (late.state, late.error.message, late.finished_at) == ("REVOKED", "expired", NOW)


def test_a_running_task_tells_how_far_it_is() -> None:
    row: Any = Row(None)
    stored = {"status": "PROGRESS", "result": {"done": 1.5, "total": 6, "unit": "s"}, "worker": "embedder@host"}
    task = describe_task(row, json.dumps(stored | {"started_at": NOW.isoformat()}), NOW, HOUR)
    assert task.progress is not None
    assert (task.state, task.result, task.progress.model_dump()) == ("PROGRESS", None, stored["result"])
    assert (task.queue, task.worker, task.started_at, task.finished_at) == ("embed", "embedder@host", NOW, None)
