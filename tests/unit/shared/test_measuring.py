"""What is counted of a task: once each, however Celery tells of its end."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from billiard.einfo import ExceptionInfo
from celery.exceptions import Ignore, Reject, Retry, Terminated, WorkerLostError

from darkroom.errors import BlobMissingError, PermanentError, TransientError
from darkroom.telemetry import measuring, metrics, names
from darkroom.telemetry.measuring import measured, outcome_of, problem_of

PROBLEM = PermanentError.of("image-truncated", "Cut", 422, "It ends too early.")


class CeleryRequest:
    """The part of Celery's request that tells of an end: every one of them acknowledges, and asks nobody."""

    def __init__(self, task: str, *, published_ns: int | None = None, redelivered: bool = False) -> None:
        self.task = SimpleNamespace(name=task)
        self.request_dict: dict[str, Any] = {names.PUBLISHED_AT: published_ns}
        self.delivery_info = {"routing_key": "embed.bulk", "redelivered": redelivered}
        self.acknowledgements = 0

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Nothing to do."""

    def on_failure(self, exc_info: ExceptionInfo, return_ok: bool = False) -> None:
        self.acknowledge()

    def on_timeout(self, soft: bool, timeout: int) -> None:
        if not soft:
            self.acknowledge()

    def _announce_revoked(self, reason: str, terminated: bool, signum: object, expired: bool) -> None:
        self.acknowledge()

    def acknowledge(self) -> None:
        self.acknowledgements += 1


@pytest.fixture
def task() -> Iterator[str]:
    """A task's name that no other test counts under."""
    name = f"test.{uuid4().hex}"
    yield name
    for metric in (metrics.TASK_DURATION, metrics.TASK_FAILURES):
        metric.remove_by_labels({"task": name})


def accepted(task: str, **options: Any) -> Any:
    request = measured(CeleryRequest)(task, **options)
    request.on_accepted(1, time.monotonic())
    return request


def counted(task: str) -> dict[str, float]:
    """How many tries of a task ended, by outcome."""
    [family] = metrics.TASK_DURATION.collect()
    samples = [each for each in family.samples if each.name.endswith("_count") and each.labels["task"] == task]
    return {each.labels["outcome"]: each.value for each in samples}


def failures(task: str) -> dict[str, float]:
    [family] = metrics.TASK_FAILURES.collect()
    return {each.labels["problem"]: each.value for each in family.samples if each.labels["task"] == task}


def einfo(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except BaseException:
        return ExceptionInfo()


def waits() -> tuple[float, float]:
    """How many waits in `embed.bulk` were measured, and their seconds."""
    sample = {each.name: each.value for each in _samples(metrics.QUEUE_WAIT, "embed.bulk")}
    return sample.get("darkroom_queue_wait_seconds_count", 0), sample.get("darkroom_queue_wait_seconds_sum", 0)


def _samples(metric: Any, queue: str) -> list[Any]:
    [family] = metric.collect()
    return [each for each in family.samples if each.labels.get("queue") == queue and not each.name.endswith("_bucket")]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (PROBLEM, "failure"),
        (TransientError("away"), "failure"),
        (ValueError("?"), "failure"),
        (Retry("again", exc=OSError()), "retry"),
        (Ignore(), "ignored"),
        (Reject("no"), "rejected"),
        (Terminated(15), "revoked"),
        (WorkerLostError("died"), "lost"),
        (SystemExit(1), "lost"),
    ],
)
def test_how_a_try_ended_is_read_from_its_error(error: BaseException, outcome: str) -> None:
    assert outcome_of(error) == outcome


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (PROBLEM, "image-truncated"),
        (BlobMissingError("key"), "transient"),
        (OSError(28, "full"), "transient"),
        (ValueError("?"), "unforeseen"),
    ],
)
def test_a_failure_is_counted_under_its_problem(error: BaseException, problem: str) -> None:
    assert problem_of(error) == problem


def test_a_task_that_is_only_acknowledged_has_succeeded_once(task: str) -> None:
    request = accepted(task)
    request.acknowledge()
    request.acknowledge()
    assert counted(task) == {"success": 1}
    assert request.acknowledgements == 2


@pytest.mark.parametrize(
    ("error", "outcome", "problems"),
    [
        (PROBLEM, "failure", {"image-truncated": 1}),
        (Retry("again"), "retry", {}),
        (WorkerLostError("died"), "lost", {}),
    ],
)
def test_an_error_counts_once_though_it_is_acknowledged_too(
    task: str, error: Exception, outcome: str, problems: dict[str, float]
) -> None:
    accepted(task).on_failure(einfo(error), return_ok=True)
    assert counted(task) == {outcome: 1}
    assert failures(task) == problems


def test_a_killed_child_is_a_timeout_and_a_soft_limit_is_not_an_end(task: str) -> None:
    request = accepted(task)
    request.on_timeout(True, 25)
    assert counted(task) == {}
    request.on_timeout(False, 30)
    assert counted(task) == {"timeout": 1}
    assert failures(task) == {"time-limit": 1}


def test_what_is_revoked_counts_only_if_it_had_begun(task: str) -> None:
    measured(CeleryRequest)(task)._announce_revoked("revoked", False, None, False)
    assert counted(task) == {}
    accepted(task)._announce_revoked("terminated", True, 15, False)
    assert counted(task) == {"revoked": 1}


def test_time_before_the_batch_is_waiting_and_the_batch_is_work(task: str) -> None:
    count, seconds = waits()
    request = measured(CeleryRequest)(task, published_ns=time.time_ns() - 5_000_000_000)
    measuring.begin(request)
    waited = waits()
    assert waited[0] == count + 1
    assert 4.99 < waited[1] - seconds < 60
    request.on_accepted(1, time.monotonic() + 100)  # handed to Celery when its batch is done: not a second wait
    assert waits() == waited
    request.acknowledge()
    assert counted(task) == {"success": 1}


def test_a_clock_that_is_ahead_makes_no_negative_wait(task: str) -> None:
    count, seconds = waits()
    accepted(task, published_ns=time.time_ns() + 60_000_000_000)
    assert waits() == (count + 1, seconds)


def test_a_redelivery_is_counted(task: str) -> None:
    before = metrics.REDELIVERIES.labels("embed.bulk")._value.get()
    accepted(task, redelivered=True)
    accepted(task, redelivered=False)
    assert metrics.REDELIVERIES.labels("embed.bulk")._value.get() == before + 1


def test_where_nobody_measures_a_begin_is_nothing() -> None:
    measuring.begin(CeleryRequest("test.unmeasured"))
