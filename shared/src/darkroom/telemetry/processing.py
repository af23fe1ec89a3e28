"""Deliveries: a span around each, and before it one for the time in the queue.

Celery's signals enclose its own task trace, so what a task publishes next, the join included, is under its span.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from datetime import datetime
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery import Task
from celery.app.task import Context as TaskContext
from celery.signals import task_postrun, task_prerun
from celery.worker.request import Request
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, get_current_span, set_span_in_context

from darkroom.telemetry import names, tracing
from darkroom.telemetry.publishing import queue_of, system_of, task_attributes

log = logging.getLogger(__name__)

_UID = "darkroom.telemetry.processing"
_STATE = "darkroom_processing"

_held: ContextVar[Span | None] = ContextVar("held", default=None)
"""The span of a delivery that its worker held before its task began."""


def trace_tasks() -> None:
    """Has every task of this process traced, and its trace context passed on even when nothing is recorded."""
    task_prerun.connect(_begin, weak=False, dispatch_uid=_UID)
    task_postrun.connect(_end, weak=False, dispatch_uid=_UID)


def begin_delivery(app: Any, name: str, request: Any, keywords: Any, now_ns: int) -> Span:
    """Opens the span of a delivery that begins now, and records how long it has waited.

    `request` has the message's headers and `delivery_info` as attributes. Without a trace to go on with there is none:
    what no call asked for, such as a periodic job, is not traced.
    """
    context = context_of(request)
    if not tracing.is_on() or not tracing.has_trace(context):
        return INVALID_SPAN
    span_name, attributes = _delivery(app, name, request, keywords)
    about = task_attributes(name, getattr(request, "retries", 0), keywords)
    # Before its waits: while it is open, they are kept with it should it fail.
    span = tracing.begin(span_name, attributes, kind=SpanKind.CONSUMER, context=context, start_ns=now_ns)
    _record_waiting(attributes[names.MESSAGING_DESTINATION], request, context, about, now_ns)
    return span


def _delivery(app: Any, name: str, request: Any, keywords: Any) -> tuple[str, dict[str, Any]]:
    """The name of a delivery's span, and all that is known at its beginning."""
    delivery = getattr(request, "delivery_info", None) or {}
    routing_key = str(delivery.get("routing_key") or "")
    queue = queue_of(routing_key)
    attributes: dict[str, Any] = {
        names.MESSAGING_SYSTEM: system_of(app),
        names.MESSAGING_OPERATION_NAME: names.PROCESS,
        names.MESSAGING_OPERATION_TYPE: names.PROCESS,
        names.MESSAGING_DESTINATION: queue,
        names.MESSAGING_ROUTING_KEY: routing_key,
        names.MESSAGING_MESSAGE_ID: request.id,
        **task_attributes(name, getattr(request, "retries", 0), keywords),
    }
    if delivery.get("redelivered"):
        attributes[names.IS_REDELIVERED] = True
        if count := getattr(request, "x-delivery-count", None):  # a retry would still have it from before
            attributes[names.DELIVERY_COUNT] = count
    return f"{names.PROCESS} {queue}", attributes


def begin_held_delivery(request: Request, now_ns: int) -> Span:
    """`begin_delivery` for a request that its worker holds before its task begins."""
    if not tracing.is_on():
        return INVALID_SPAN
    return begin_delivery(request.app, request.task.name, TaskContext(request.request_dict), request.kwargs, now_ns)


@contextmanager
def delivered(span: Span) -> Iterator[None]:
    """In the block, a task that begins goes on with this span instead of opening one."""
    token = _held.set(span)
    try:
        yield
    finally:
        _held.reset(token)


def abandon(span: Span) -> None:
    """Ends the span of a delivery that was given back or dropped before its task began."""
    span.set_attribute(names.IS_ABANDONED, True)
    span.end()


def context_of(request: Any) -> Context:
    """The trace that a request's message belongs to."""
    return tracing.context_of(getattr(request, names.TRACEPARENT, None), getattr(request, names.TRACESTATE, None))


def waited_since_ns(request: Any) -> int | None:
    """When a message began to wait in its queue, in nanoseconds since 1970: published, or its countdown over."""
    published_ns = getattr(request, names.PUBLISHED_AT, None)
    if not isinstance(published_ns, int):
        return None
    return max(published_ns, _due_ns(request) or 0)


def _due_ns(request: Any) -> int | None:
    eta = getattr(request, "eta", None)
    if isinstance(eta, str):
        eta = datetime.fromisoformat(eta)
    return int(eta.timestamp() * 1e9) if isinstance(eta, datetime) else None


def _record_waiting(queue: str, request: Any, context: Context, about: Any, now_ns: int) -> None:
    since_ns = waited_since_ns(request)
    if since_ns is None:
        return
    published_ns = getattr(request, names.PUBLISHED_AT)
    if since_ns > published_ns:
        tracing.record(f"{names.DELAY} {queue}", published_ns, min(since_ns, now_ns), about, context=context)
    tracing.record(f"{names.WAIT} {queue}", since_ns, now_ns, about, context=context)


def _begin(task: Task, kwargs: dict[str, Any], **_: Any) -> None:
    request = task.request
    span = _held.get()
    if span is None:
        span = begin_delivery(task.app, task.name, request, kwargs, tracing.now_ns())
    context = set_span_in_context(span, Context()) if span is not INVALID_SPAN else context_of(request)
    setattr(request, _STATE, (span, attach(context)))
    if request.chord and span.get_span_context().trace_flags.sampled:
        _remember(task, request.id)


def _end(task: Task, state: str, retval: Any, **_: Any) -> None:
    span, token = getattr(task.request, _STATE, (INVALID_SPAN, None))
    if span.is_recording():
        span.set_attribute(names.TASK_STATE, state or "LOST")
        if state == "RETRY":
            if isinstance(retval.when, int | float):
                span.set_attribute(names.RETRY_DELAY, retval.when)
            tracing.fail(span, retval.exc or retval)
        elif isinstance(retval, BaseException) and state == "FAILURE":
            tracing.fail(span, retval)
        elif state is None:
            span.set_status(StatusCode.ERROR, "the task did not end")
    span.end()
    if isinstance(token, Token):
        detach(token)


# --- Deliveries whose process ended ---------------------------------------------------------------------------------


class TracedRequest(Request):  # type: ignore[misc]
    """A request whose delivery shows in its trace even when the child that had it was killed with its spans."""

    _is_told = False

    @property
    def trace_context(self) -> Context:
        """The trace that the message belongs to, for what the parent process publishes on its behalf."""
        return context_of(self._context)

    def on_timeout(self, soft: bool, timeout: int) -> None:
        if not soft:
            self._tell_of_death("time-limit", f"killed after {timeout} s")
        super().on_timeout(soft, timeout)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, WorkerLostError | SystemExit):
            self._tell_of_death("worker-lost", str(error))
        super().on_failure(exc_info, *args, **options)

    def _tell_of_death(self, error_type: str, text: str) -> None:
        if self._is_told:
            return
        self._is_told = True
        end_ns = tracing.now_ns()
        start_ns = int(self.time_start * 1e9) if self.time_start else end_ns
        name, attributes = _delivery(self.app, self.task.name, self._context, self.kwargs)
        attributes |= {names.TASK_STATE: "LOST", names.ERROR_TYPE: error_type}
        tracing.record_aside(
            name, start_ns, end_ns, attributes, text, context=self.trace_context, kind=SpanKind.CONSUMER
        )


# --- Joins ----------------------------------------------------------------------------------------------------------
# The header of a chord must answer the same bytes each time, so it cannot carry span ids. They go beside it.


def _remember(task: Task, task_id: str) -> None:
    """Keeps the current span's context for whoever joins this task with others."""
    try:
        task.backend.client.set(_key(task_id), tracing.traceparent() or "", ex=task.app.conf.result_chord_expires)
    except Exception as error:  # a trace without a link is no reason to fail a photo
        log.warning("tracing.not_remembered", extra={"task_id": task_id, "error": repr(error)})


def link_to_parts(app: Any, *task_ids: str) -> None:
    """Links the current span to the last delivery of each of these parts of its chord."""
    current = get_current_span()
    if not current.get_span_context().trace_flags.sampled or not tracing.is_on():
        return
    try:
        remembered = app.backend.client.mget([_key(task_id) for task_id in task_ids])
    except Exception as error:
        log.warning("tracing.not_linked", extra={"task_ids": task_ids, "error": repr(error)})
        return
    for traceparent in remembered:
        for link in tracing.link_to(traceparent.decode() if traceparent else None):
            current.add_link(link.context, link.attributes)


def keys_of_parts(*task_ids: str) -> list[str]:
    """Under which the result store keeps something for a join; to be deleted when it is done."""
    return [_key(task_id) for task_id in task_ids]


def _key(task_id: str) -> str:
    return f"trace:{task_id}"
