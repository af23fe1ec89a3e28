"""A Celery application for one process: every option that decides a message's fate, with its reason."""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from celery import Celery, Task
from celery.backends.redis import RedisBackend
from celery.canvas import Signature
from celery.exceptions import Ignore, Reject
from celery.states import FAILURE, STARTED
from kombu import Connection
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from darkroom import redis_broker, topology
from darkroom.contracts.base import Lane, Message
from darkroom.contracts.messages import RecordFailure, RecordLoss, Work
from darkroom.contracts.tasks import RECORD_FAILURE, RECORD_LOSS, TaskContract
from darkroom.errors import PermanentError, TransientError
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.telemetry import tracing
from darkroom.telemetry.publishing import TracedAMQP

log = logging.getLogger(__name__)

TRACED_REQUEST = "darkroom.telemetry.processing:TracedRequest"

PROGRESS = "PROGRESS"
"""The state of a running task that has said how far it is: by custom, not one of Celery's own constants."""

ArgumentsT = TypeVar("ArgumentsT", bound=Message)
ResultT = TypeVar("ResultT", bound=Message)


def create_app(name: str, broker: BrokerSettings, tasks: TaskSettings) -> Celery:
    """An application that knows the whole topology and connects to nothing until it is used."""
    broker_url = broker.broker_url.get_secret_value()
    app = Celery(
        name,
        broker=broker_url,
        backend=broker.result_url.get_secret_value(),
        set_as_current=False,  # a process may hold several, as the tests do; nothing finds one by accident
    )
    app.amqp_cls = TracedAMQP  # every message carries its trace and its time
    app.conf.update(
        # JSON only: a pickled message would run code in whoever reads it.
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        enable_utc=True,
        timezone="UTC",
        # The topology is data; a misspelt queue is an error, not a new classic queue.
        task_queues=topology.task_queues(declare=broker.broker_declare),
        task_create_missing_queues=False,
        task_default_queue="finalize",
        task_default_exchange=topology.TASKS.name,
        task_default_exchange_type="topic",
        task_default_routing_key="finalize",
        # A message is taken off its queue when its work is done, or handed back when its process died.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # One message for each free slot: a prefetched one waits behind a slow neighbour while other slots are idle.
        worker_prefetch_multiplier=1,
        task_track_started=True,
        task_time_limit=tasks.task_hard_limit_s,
        task_soft_time_limit=tasks.task_soft_limit_s,
        result_expires=broker.result_expires_s,
        # A join must outlive the longest backlog between its parts; `finalize` removes the parts' results itself.
        result_chord_expires=broker.chord_expires_s,
        # A Redis that is away for seconds must not fail a task that has done its work.
        result_backend_always_retry=True,
        result_backend_max_retries=10,
        result_backend_max_sleep_between_retries_ms=1000,
        # Our JSON formatter stays in charge of the root logger.
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        # Reconnect for ever: a worker that gives up needs a person.
        broker_connection_max_retries=None,
        broker_transport_options=_transport_options(broker_url, tasks),
        broker_transport=redis_broker.TRANSPORT if broker_url.startswith("redis:") else None,
        # Our own: `bind` gives the first to every task, and `ensure_topology` obeys the second.
        darkroom_max_retries=tasks.task_max_retries,
        darkroom_declare=broker.broker_declare,
    )
    return app


def _transport_options(broker_url: str, tasks: TaskSettings) -> dict[str, Any]:
    if broker_url.startswith("amqp"):
        return {"confirm_publish": True}
    # Redis hands back what a killed process held after this time; shorter would run long tasks twice.
    # By default only every tenth of the looks every 10 s is one: a lost message would wait 100 s longer than it must.
    # Who does so holds a lock, for 5 minutes by default when it is killed meanwhile; two at once would do no harm.
    return {
        "visibility_timeout": tasks.task_hard_limit_s + 30,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 5,
    }


def bound_publishing(app: Celery) -> None:
    """Makes publishing fail within about 3 s when the broker is gone or hangs. For publishers, never for workers."""
    app.conf.broker_connection_timeout = 0.5
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        "max_retries": 1,
        "interval_start": 0,
        "interval_max": 0.2,
    }
    if app.conf.broker_url.startswith("amqp"):
        app.conf.broker_transport_options |= {"connect_retries_timeout": 2, "read_timeout": 1, "write_timeout": 1}
    else:
        app.conf.broker_transport_options |= {"socket_timeout": 2, "socket_connect_timeout": 0.5}
    app.conf.redis_socket_connect_timeout = 0.5
    app.conf.redis_socket_timeout = 2
    app.conf.result_backend_transport_options = {
        "retry_policy": {"max_retries": 2, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}
    }
    await_no_results(app)


_STORE_UNLESS_DONE = """
local before = redis.call('GET', KEYS[1])
if before and cjson.decode(before)['status'] == 'SUCCESS' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
"""


class UnawaitedResults(RedisBackend):  # type: ignore[misc]
    """A result store that subscribes to nothing: `AsyncResult.get` does not work, everything else does.

    Celery subscribes to the result of every task that it sends and of every part of a chord, in the hope that somebody
    waits. In a process that lives long nobody does and nothing ends the subscriptions; and with Redis away nothing
    could be sent.

    A state is stored in one round trip: Celery takes two, and between them a success could still be written over.
    """

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:
        return {}

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        return result

    @cached_property
    def _store_unless_done(self) -> Any:
        return self.client.register_script(_STORE_UNLESS_DONE)

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        value = self.encode(meta | {"task_id": task_id})
        expires_s = self.failure_expires if state == FAILURE else self.expires
        self.ensure(self._store_unless_done, ([self.get_key_for_task(task_id)], [value, expires_s]))
        return result

    def _get_result_meta(self, result: Any, state: str, traceback: Any, request: Any, **options: Any) -> dict[str, Any]:
        # Who began it, and when: stored beside the result, which is all that a join reads.
        meta: dict[str, Any] = super()._get_result_meta(result, state, traceback, request, **options)
        if request is not None:
            if state == STARTED:
                request.started_at = self.app.now().isoformat()
            meta |= {"started_at": getattr(request, "started_at", None), "worker": getattr(request, "hostname", None)}
        return meta


def await_no_results(app: Celery) -> None:
    """Has a process that never waits for a result use `UnawaitedResults`. Call it before the application is used."""
    app.backend_cls = f"{__name__}:{UnawaitedResults.__name__}+{app.conf.result_backend}"


PUBLISH_OPTIONS: dict[str, Any] = {"retry": False, "confirm_timeout": 1, "timeout": 1}
"""Options of `apply_async` that go with `bound_publishing`. A publish that timed out may still have been delivered."""


def declare_topology(connection: Connection) -> None:
    """Declares every exchange, queue and binding over this connection. Safe at any time, also after a flushed Redis."""
    with connection.channel() as channel:
        for exchange in (topology.TASKS, topology.EVENTS, topology.DEAD):
            exchange(channel).declare()
        for queue in (*topology.task_queues(), topology.dead_letter_queue()):
            queue(channel).declare()


def declare_delayed_delivery(connection: Connection) -> None:
    """Declares what carries messages with a countdown on RabbitMQ, and leads them back to every task queue.

    A worker that may declare does the same by itself; this is for the owner of a topology whose workers may not.
    """
    declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
    for queue in topology.task_queues():
        bind_queue_to_native_delayed_delivery_exchange(connection, queue)


def ensure_topology(app: Celery, connection: Connection) -> None:
    """Declares the topology, or sees that it is there in a process that may not (`DARKROOM_BROKER_DECLARE=false`).

    Raises whatever the broker's client raises; when something is missing, a `NotFound` of the channel.
    """
    if app.conf.darkroom_declare:
        declare_topology(connection)
        return
    with connection.channel() as channel:
        for exchange in (topology.TASKS, topology.EVENTS, topology.DEAD):
            exchange(channel).declare(passive=True)
        for queue in (*topology.task_queues(), topology.dead_letter_queue()):
            queue(channel).queue_declare(passive=True)


def request(
    app: Celery,
    contract: TaskContract[ArgumentsT, ResultT],
    message: ArgumentsT,
    *,
    lane: Lane = Lane.INTERACTIVE,
    queue: str | None = None,
    task_id: str | None = None,
    takes_result: bool = False,
    **options: Any,
) -> Signature:
    """The call of a task by its contract, to publish or to put into a canvas; nothing is sent yet.

    `takes_result` hands it the result of the step before, as its first argument.
    """
    name = queue or contract.queue_for(lane)
    # With a countdown, Celery looks at `queue` alone, and would send what has none to the default queue.
    options |= {"exchange": topology.TASKS.name, "routing_key": name, "queue": name}
    if task_id is not None:
        options["task_id"] = task_id
    return app.signature(
        contract.name, kwargs={"message": message.to_wire()}, immutable=not takes_result, options=options
    )


@dataclass(frozen=True)
class Delivery:
    """What a task may know about the message that started it: no more than this, so that tasks stay thin."""

    task_id: str
    previous: Any
    """The result of the step before; a list of results for the body of a chord."""
    report_progress: Callable[[float, float, str], None] = lambda done, total, unit: None
    """Tells whoever asks for the task that `done` of `total` are done, in this unit. A hint: it never fails a task."""


def bind(
    app: Celery,
    contract: TaskContract[ArgumentsT, ResultT],
    function: Callable[[ArgumentsT, Delivery], ResultT],
    **options: Any,
) -> Task:
    """Registers `function` as the worker's side of a contract.

    A `PermanentError` about an original is published as `record_failure` before the task fails. A `TransientError` or
    an operating system's error is tried again after 1, 2, 4 … whole seconds; when all tries are used up, that is
    published as `record_loss`. Errbacks are not used: an outage is not the photo's fault.
    """

    def run(self: Task, previous: Any = None, *, message: dict[str, Any]) -> dict[str, Any]:
        arguments = contract.arguments.from_wire(message)
        try:
            return function(arguments, Delivery(self.request.id, previous, partial(_report_progress, self))).to_wire()
        except PermanentError as error:
            if isinstance(arguments, Work):
                report_failure(app, arguments, error)
            raise
        except (TransientError, OSError) as error:
            if isinstance(arguments, Work) and self.request.retries >= self.max_retries:
                report_loss(app, arguments, error)
                raise
            delay_s = retry_delay_s(self.request.retries, random.random())  # noqa: S311 (jitter, not a secret)
            # The queue by name: the key that a delayed message came with has its delay in front.
            queue = contract.queue_for(arguments.lane if isinstance(arguments, Work) else Lane.INTERACTIVE)
            with tracing.keeping():
                raise self.retry(exc=error, countdown=delay_s, queue=queue) from error

    run.__name__ = contract.name.rpartition(".")[2]
    run.__doc__ = function.__doc__
    options.setdefault("Request", TRACED_REQUEST)
    return app.task(
        bind=True,
        name=contract.name,
        max_retries=options.pop("max_retries", app.conf.darkroom_max_retries),
        throws=(PermanentError, Ignore, Reject),
        shared=False,  # with this application alone: Celery would register it in every other of this process too
        **options,
    )(run)


def _report_progress(task: Task, done: float, total: float, unit: str) -> None:
    if task.request.ignore_result:
        return
    try:
        task.update_state(state=PROGRESS, meta={"done": round(done, 3), "total": round(total, 3), "unit": unit})
    except Exception as error:  # whatever the result store raises
        log.warning("task.progress_lost", extra={"task_id": task.request.id, "error": repr(error)})


def report_failure(app: Celery, work: Work, error: PermanentError) -> None:
    """Publishes the cause of a permanent failure to `finalize`."""
    failure = RecordFailure(sha256=work.sha256, generation=work.generation, lane=work.lane, problem=error.problem)
    with tracing.keeping():
        request(app, RECORD_FAILURE, failure, lane=work.lane, ignore_result=True).apply_async()


def report_loss(app: Celery, work: Work, error: Exception) -> None:
    """Publishes to `finalize` that a step has ended for a cause which is not the photo's."""
    cause = f"{type(error).__name__}: {error}"[:500]
    loss = RecordLoss(sha256=work.sha256, generation=work.generation, lane=work.lane, cause=cause)
    request(app, RECORD_LOSS, loss, lane=work.lane, ignore_result=True).apply_async()


def retry_delay_s(retries: int, jitter: float) -> int:
    """Whole seconds until the next try: 1, 2, 4 … plus at most one by `jitter` in 0..1.

    Whole, because Celery's delayed delivery refuses a countdown between 0 and 1.
    """
    return int(2**retries) + round(jitter)
