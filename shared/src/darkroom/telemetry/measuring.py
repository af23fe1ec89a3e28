"""Tasks in figures: how long each waited and ran, and how it ended.

They are taken by Celery's `Request`, which lives in the worker's main process whatever its pool is. Children of prefork
come and go; in them Prometheus' client would need its multiprocess mode, which leaves a file for each child that ever
was, reads all of them at every scrape, and knows no process metrics.
"""

import time
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery import Celery, bootsteps
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry, Terminated, WorkerLostError
from celery.signals import worker_before_create_process
from celery.worker import state
from celery.worker.request import Request
from kombu.utils.imports import symbol_by_name

from darkroom.errors import PermanentError, TransientError
from darkroom.telemetry import metrics
from darkroom.telemetry.processing import waited_since_ns
from darkroom.topology import queue_of_key

SUCCESS, FAILURE, TIMEOUT, REVOKED = "success", "failure", "timeout", "revoked"

_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (Retry, "retry"),
    (Ignore, "ignored"),
    (Reject, "rejected"),
    (Terminated, REVOKED),
    (WorkerLostError, "lost"),
    (SystemExit, "lost"),  # as billiard tells it
)


def outcome_of(error: BaseException) -> str:
    """How a try has ended that raised this."""
    return next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), FAILURE)


def problem_of(error: BaseException) -> str:
    """What a failure is counted under: the slug of its problem, or a word for an error that has none."""
    if isinstance(error, PermanentError):
        return error.problem.slug
    return "transient" if isinstance(error, (TransientError, OSError)) else "unforeseen"


def measure_worker(app: Celery) -> None:
    """Has the worker of this application measure itself. Call it when every task is bound."""
    for task in app.tasks.values():
        task.Request = measured(symbol_by_name(task.Request))
    app.steps["consumer"].add(ShowConnection)
    metrics.TASKS_RUNNING.set_function(lambda: len(state.active_requests))
    worker_before_create_process.connect(_count_child, weak=False)


def begin(request: Request) -> None:
    """Says that work on a request begins now, before Celery is handed it; nothing where nobody measures."""
    begin_measuring = getattr(request, "begin_measuring", None)
    if begin_measuring is not None:
        begin_measuring(time.monotonic())


def measured(kind: type[Request]) -> type[Request]:
    """A kind of request that is measured."""

    class MeasuredRequest(kind):  # type: ignore[misc]
        _begun_s: float | None = None
        _is_measured = False

        def begin_measuring(self, begun_s: float) -> None:
            """Ends the waiting, at a moment of the monotonic clock; only the first call counts."""
            if self._begun_s is not None:
                return
            self._begun_s = begun_s
            queue = queue_of_key(str(self.delivery_info.get("routing_key") or "")) or "other"
            since_ns = waited_since_ns(Context(self.request_dict))
            if since_ns is not None:
                begun_ns = time.time_ns() - int((time.monotonic() - begun_s) * 1e9)
                metrics.QUEUE_WAIT.labels(queue).observe(max(0, begun_ns - since_ns) / 1e9)  # clocks may disagree
            if self.delivery_info.get("redelivered"):
                metrics.REDELIVERIES.labels(queue).inc()

        def on_accepted(self, pid: int, time_accepted: float) -> None:
            super().on_accepted(pid, time_accepted)
            self.begin_measuring(time_accepted)

        def on_failure(self, exc_info: Any, *arguments: Any, **options: Any) -> Any:
            error = exc_info.exception
            if isinstance(error, ExceptionWithTraceback):  # from a child process
                error = error.exc
            self._end(outcome_of(error), problem_of(error))
            return super().on_failure(exc_info, *arguments, **options)

        def on_timeout(self, soft: bool, timeout: int) -> None:
            if not soft:
                self._end(TIMEOUT, "time-limit")
            super().on_timeout(soft, timeout)

        def _announce_revoked(self, *arguments: Any) -> None:
            self._end(REVOKED)
            super()._announce_revoked(*arguments)

        def acknowledge(self) -> None:
            # Celery's class for each task overrides `on_success`; all ends but this one have told before.
            super().acknowledge()
            self._end(SUCCESS)

        def _end(self, outcome: str, problem: str = "") -> None:
            if self._begun_s is None or self._is_measured:
                return
            self._is_measured = True
            metrics.TASK_DURATION.labels(self.task.name, outcome).observe(time.monotonic() - self._begun_s)
            if outcome in (FAILURE, TIMEOUT):
                metrics.TASK_FAILURES.labels(self.task.name, problem).inc()

    return MeasuredRequest


class ShowConnection(bootsteps.StartStopStep):  # type: ignore[misc]
    """Shows whether the worker consumes."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Called at each connection."""
        metrics.WORKER_CONNECTED.set(1)

    def stop(self, consumer: Any) -> None:
        """Called when it is lost."""
        metrics.WORKER_CONNECTED.set(0)


def _count_child(**_: Any) -> None:
    metrics.CHILDREN_STARTED.inc()
