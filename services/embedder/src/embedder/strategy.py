"""Micro-batching inside a solo worker: Celery's own requests, computed together, finished by Celery one by one.

A message's way: its queue's consumer → Celery's default strategy, which makes the `Request` → the buffer → a batch on
the model's thread → the consumer's ordinary `on_task_request`, which runs the task's body; that takes its outcome
with `take_outcome`. So acknowledgements, retries, chords and results stay Celery's own. The worker's loop never
computes: it goes on reading queues and answering the broker's heartbeats while a batch runs.
"""

import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from celery import Celery, Task, bootsteps
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from celery.worker.strategy import default
from opentelemetry.trace import INVALID_SPAN, Span, get_current_span
from pydantic import ValidationError

from darkroom.contracts.base import Lane
from darkroom.contracts.messages import Embed, FenceAnswer
from darkroom.contracts.tasks import FENCE, TaskContract
from darkroom.telemetry import measuring, metrics, names, tracing
from darkroom.telemetry.processing import abandon, begin_held_delivery, delivered
from embedder.batching import Buffer, Kind, Outcomes
from embedder.embedding import Job, Outcome

log = logging.getLogger(__name__)

Compute = Callable[[Sequence[Job]], list[Outcome]]

Answer = Callable[[str], FenceAnswer]
"""Answers the fence of this task id by the model; raises nothing."""

_outcome: ContextVar[Outcome | FenceAnswer | None] = ContextVar("outcome", default=None)
"""The outcome of the one delivery that is being handed over: never found by task id, so never another delivery's."""


@dataclass(frozen=True)
class Held:
    """A request that this worker holds, unacknowledged."""

    request: Request
    kind: Kind
    job: Job
    received_ns: int
    """When, in nanoseconds since 1970: the beginning of its delivery's span, which `job` has."""


class MicroBatches:
    """The strategy of every task of one worker that needs the model. All methods run on the worker's loop."""

    def __init__(
        self, contracts: Sequence[TaskContract[Any, Any]], buffer: Buffer[Held], compute: Compute, answer: Answer
    ) -> None:
        self._contracts = {contract.name: contract for contract in contracts}
        self._buffer = buffer
        self._compute = compute
        self._answer = answer
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._bell = _Bell()
        self._running: _Running | None = None
        self._asked: deque[tuple[Request, Future[FenceAnswer]]] = deque()
        self._finished: Outcomes[_Finished] = Outcomes()
        self._alarm: Any = None
        self._consumer: Any = None

    def __call__(self, task: Task, app: Celery, consumer: Any) -> Callable[..., Any]:
        """Celery asks for the handler of a task's messages, once for each connection."""
        handler: Callable[..., Any] = default(task, app, _BufferingConsumer(consumer, self._receive))
        return handler

    def consumer_step(self) -> type[bootsteps.StartStopStep]:
        """Follows the worker's connection: what came over one that is gone is forgotten."""
        batches = self

        class FollowConnection(bootsteps.StartStopStep):  # type: ignore[misc]
            requires = ("celery.worker.consumer.tasks:Tasks",)

            def start(self, consumer: Any) -> None:
                batches.listen(consumer)

            def stop(self, consumer: Any) -> None:
                batches.drop()

        return FollowConnection

    def listen(self, consumer: Any) -> None:
        """Runs on this consumer's loop from now on."""
        self._consumer = consumer
        self._bell.attach(consumer.hub, self._go_on)

    def drop(self) -> None:
        """Forgets every request and outcome: the broker delivers them again. What is computing ends unheard."""
        held = self._buffer.clear() + (self._running.batch if self._running is not None else [])
        for span in (*(each.job.span for each in held), *(finished.span for finished in self._finished.clear())):
            abandon(span)
        self._asked.clear()
        self._running = None

    def take_outcome(self, job: Job) -> Outcome:
        """What the body of a task returns or raises. Computed here and now for a request that was in no batch."""
        outcome = _outcome.get()
        if outcome is not None and not isinstance(outcome, FenceAnswer):
            return outcome
        return self._model_thread.submit(self._compute, [replace(job, span=get_current_span())]).result()[0]

    def end(self) -> None:
        """Returns when the batch that is computing has ended, if one is; none begins after it."""
        self._model_thread.shutdown()

    def take_answer(self, task_id: str) -> FenceAnswer:
        """What the body of a fence returns."""
        outcome = _outcome.get()
        if isinstance(outcome, FenceAnswer):
            return outcome
        return self._model_thread.submit(self._answer, task_id).result()

    def _receive(self, request: Request) -> None:
        if request.task.name == FENCE.name:
            self._ask(request)
            return
        try:
            held = self._held(request)
        except (ValidationError, KeyError, TypeError):
            self._consumer.on_task_request(request)  # its body meets the same error, and fails as any task does
            return
        self._buffer.add(held.kind, held, time.monotonic())
        self._begin_batch_if_due()

    def _held(self, request: Request) -> Held:
        message = self._contracts[request.task.name].arguments.from_wire(request.kwargs["message"])
        if not isinstance(message, Embed):
            kind = Kind.QUERY
        else:
            kind = Kind.BULK if message.lane is Lane.BULK else Kind.INTERACTIVE
        received_ns = tracing.now_ns()
        return Held(request, kind, Job(request.id, message, begin_held_delivery(request, received_ns)), received_ns)

    def _ask(self, request: Request) -> None:
        """Has a fence answered behind the batch that computes: in no batch, so that neither can harm the other."""
        future = self._model_thread.submit(self._answer, request.id)
        self._asked.append((request, future))
        future.add_done_callback(lambda _: self._bell.ring())

    def _begin_batch_if_due(self) -> None:
        while self._running is None and (due_at := self._buffer.due_at()) is not None:
            if self._finished and not (self._buffer.is_urgent or self._buffer.is_full):
                return  # each one handed over makes room for another delivery: the batch is still growing
            wait_s = due_at - time.monotonic()
            if wait_s > 0:
                self._wake_after(wait_s)
                return
            batch = []
            for held in self._buffer.take():
                if held.request.revoked():
                    # Celery acknowledges and records what was revoked or has expired; nothing is computed for it.
                    abandon(held.job.span)
                else:
                    batch.append(held)
            if batch:
                self._begin(batch)

    def _wake_after(self, wait_s: float) -> None:
        def wake() -> None:
            self._alarm = None
            self._begin_batch_if_due()

        if self._alarm is None:
            self._alarm = self._consumer.timer.call_after(wait_s, wake)

    def _begin(self, batch: list[Held]) -> None:
        for held in batch:
            measuring.begin(held.request)
            tracing.record_under(held.job.span, names.WAIT_BATCH, held.received_ns, tracing.now_ns())
        future = self._model_thread.submit(self._compute, [held.job for held in batch])
        self._running = running = _Running(batch, future, time.monotonic())

        def end(_: object) -> None:
            running.ended_ns = tracing.now_ns()
            self._bell.ring()

        future.add_done_callback(end)

    def _go_on(self) -> None:
        """One turn of the loop: takes up a finished batch, begins the next one, and gives one request to Celery.

        One only, so that between two the loop can acknowledge, read, and answer a search.
        """
        if self._running is not None and self._running.future.done():
            running, self._running = self._running, None
            self._end(running)
            self._begin_batch_if_due()
        while self._asked and self._asked[0][1].done():
            request, answer = self._asked.popleft()
            self._finished.add(Kind.INTERACTIVE, _Finished(request, answer.result()))
        if self._finished:
            finished = self._finished.take()
            tracing.record_under(finished.span, names.WAIT_TURN, finished.since_ns, tracing.now_ns())
            token = _outcome.set(finished.outcome)
            try:
                with delivered(finished.span):
                    self._consumer.on_task_request(finished.request)
            finally:
                _outcome.reset(token)
            self._bell.ring()
            self._begin_batch_if_due()

    def _end(self, running: "_Running") -> None:
        batch, seconds = running.batch, time.monotonic() - running.begun_s
        kinds = {kind.value: sum(held.kind is kind for held in batch) for kind in Kind}
        kind = "query" if batch[0].kind is Kind.QUERY else "photos"
        metrics.BATCH_SIZE.labels(kind).observe(len(batch))
        metrics.BATCH_DURATION.labels(kind).observe(seconds)
        log.info("embedder.batch", extra={"size": len(batch), "seconds": round(seconds, 4), **kinds})
        if error := running.future.exception():
            # Not one request's fault. A new process gets them all again, from the broker.
            log.critical("embedder.broken", extra={"error": repr(error)})
            state.should_stop = 1
            return
        for held, outcome in zip(batch, running.future.result(), strict=True):
            self._finished.add(held.kind, _Finished(held.request, outcome, held.job.span, running.ended_ns))


@dataclass
class _Running:
    """The batch on the model's thread."""

    batch: list[Held]
    future: Future[list[Outcome]]
    begun_s: float
    ended_ns: int = 0
    """Nanoseconds since 1970, once it has ended."""


@dataclass(frozen=True)
class _Finished:
    """A request whose outcome is there, its delivery's span, and since when, in nanoseconds since 1970."""

    request: Request
    outcome: Outcome | FenceAnswer
    span: Span = INVALID_SPAN
    since_ns: int = 0


class _Bell:
    """Wakes the worker's loop, from any thread, by a byte in a socket.

    Not `hub.call_soon`: what that is given while the loop runs callbacks or timers waits until something else ends
    the poll, up to a second later; the same holds for the acknowledgements that Celery gives it.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def attach(self, hub: Any, callback: Callable[[], None]) -> None:
        """Calls `callback` on this loop after every ring, or after several."""
        hub.add_reader(self._reader, self._answer, callback)

    def ring(self) -> None:
        with suppress(BlockingIOError):  # full of rings that nobody has heard yet
            self._writer.send(b"\0")

    def _answer(self, callback: Callable[[], None]) -> None:
        with suppress(BlockingIOError):
            self._reader.recv(4096)
        callback()


class _BufferingConsumer:
    """What Celery's default strategy takes for the consumer: what has waited for a countdown or a rate is buffered too.

    Those ways to `on_task_request` are Celery's own, here with ours at their end.
    """

    apply_eta_task = Consumer.apply_eta_task
    _limit_task = Consumer._limit_task
    _limit_post_eta = Consumer._limit_post_eta
    _limit_move_to_pool = Consumer._limit_move_to_pool
    _schedule_bucket_request = Consumer._schedule_bucket_request

    def __init__(self, consumer: Consumer, receive: Callable[[Request], None]) -> None:
        self._consumer = consumer
        self.on_task_request = receive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)
