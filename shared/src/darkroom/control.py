"""Celery's remote control, made right for how our workers run.

`celery inspect` and `celery control` work as Celery documents them. In place of Celery's own stand here only those
commands that would lose work, end a worker, or do nothing and say "ok". docs/celery-tools.md is their cheat sheet.
"""

from typing import Any

from celery.platforms import EX_OK
from celery.worker import control, state

from darkroom.contracts import tasks
from darkroom.contracts.base import Lane
from darkroom.topology import CONSUMED_BY

Answer = dict[str, Any]


def correct_commands() -> None:
    """Has the worker of this process answer with the commands below. Celery's descriptions of them stay."""
    corrected = (pool_grow, pool_shrink, time_limit, rate_limit, add_consumer, cancel_consumer, shutdown)
    control.Panel.data.update({command.__name__: command for command in corrected})


def pool_grow(worker: Any, n: int = 1, **_: Any) -> Answer:
    """Starts `n` more child processes until the next restart. Refused where the pool has none."""
    pool = worker.consumer.pool
    if not hasattr(pool, "grow"):
        return _refused(
            f"the {_kind(pool)} pool of this worker cannot grow: start another worker of its kind"
            + (", or restart it with a higher DARKROOM_WORKER_CONCURRENCY" if _kind(pool) == "threads" else "")
        )
    if n < 1:
        return _refused(f"cannot grow by {n}: give a number from 1")
    answer: Answer = control.pool_grow(worker, n)
    _renew_windows(worker.consumer)
    return answer


def pool_shrink(worker: Any, n: int = 1, **_: Any) -> Answer:
    """Ends `n` idle child processes. Refused where the pool has none, and for the last one."""
    pool = worker.consumer.pool
    if not hasattr(pool, "shrink"):
        return _refused(f"the {_kind(pool)} pool of this worker cannot shrink: stop the worker, or one of several")
    if not 1 <= n < pool.num_processes:
        # Celery would go on taking photos, for nobody.
        return _refused(
            f"cannot shrink {pool.num_processes} processes by {n}: one must stay; to pause the worker, cancel_consumer"
        )
    answer: Answer = control.pool_shrink(worker, n)
    _renew_windows(worker.consumer)
    return answer


def time_limit(
    worker: Any, task_name: str | None = None, hard: float | None = None, soft: float | None = None, **_: Any
) -> Answer:
    """Sets the limits of one task, in seconds. Refused where the pool knows none."""
    kind = _kind(worker.consumer.pool)
    if kind != "prefork":
        return _refused(
            f"the {kind} pool of this worker knows no time limits: its watchdog ends the process after "
            "DARKROOM_TASK_HARD_LIMIT_S, which a restart reads again"
        )
    answer: Answer = control.time_limit(worker, task_name, hard=hard, soft=soft)
    return answer


def rate_limit(worker: Any, task_name: str, rate_limit: str, **_: Any) -> Answer:
    """Sets how often a task may begin. What waited under the old limit goes back to its queue."""
    buckets = [bucket for bucket in worker.consumer.task_buckets.values() if bucket is not None]
    answer: Answer = control.rate_limit(worker, task_name, rate_limit)
    if "ok" in answer:
        # Celery makes new buckets for every task; what is in the old ones would be held at the old rate.
        for bucket in buckets:
            waiting = [request for request, _ in bucket.contents]
            bucket.clear_pending()
            for request in waiting:
                request.reject(requeue=True)
    return answer


def add_consumer(worker: Any, queue: str, **_: Any) -> Answer:
    """Takes from one more queue, or again from one that was cancelled, until the next restart."""
    known = [name for name in CONSUMED_BY if _tasks_of(name) <= set(worker.app.tasks)]
    if queue not in known:
        # A made up queue would be a classic one on a direct exchange, and unknown tasks would be rejected for good.
        return _refused(f"this worker knows not all tasks of {queue}; it can take from {', '.join(known)}")
    answer: Answer = control.add_consumer(worker, queue)
    return answer


def cancel_consumer(worker: Any, queue: str, **_: Any) -> Answer:
    """Takes nothing more from a queue, until add_consumer or the next restart."""
    consumed = [each.name for each in worker.consumer.task_consumer.queues]
    if queue not in consumed:
        return _refused(f"this worker does not take from {queue}, but from {', '.join(consumed) or 'no queue'}")
    answer: Answer = control.cancel_consumer(worker, queue)
    return answer


def shutdown(worker: Any, msg: str = "Got shutdown from remote", **_: Any) -> Answer:
    """Ends the worker as SIGTERM does. Celery's own ends before it answers, which reads as "no nodes replied"."""
    control.logger.warning(msg)
    state.should_stop = EX_OK
    return {"ok": "finishes what runs, hands back what it holds, and ends; its supervisor starts it again"}


def _renew_windows(consumer: Any) -> None:
    """Lets RabbitMQ deliver for the pool's new size: on quorum queues a consumer keeps the window it began with."""

    def renew() -> None:
        consumer.task_consumer.qos(prefetch_count=consumer.qos.value, apply_global=False)
        consumer.task_consumer.cancel()
        consumer.task_consumer.consume()

    if consumer.connection.transport.driver_type == "amqp":
        consumer.call_soon(renew)


def _tasks_of(queue: str) -> set[str]:
    return {contract.name for contract in tasks.ALL if queue in {contract.queue_for(lane) for lane in Lane}}


def _kind(pool: Any) -> str:
    """`prefork`, `threads` or `solo`, as the command line names it."""
    kind = type(pool).__module__.rpartition(".")[2]
    return "threads" if kind == "thread" else kind


def _refused(reason: str) -> Answer:
    return {"error": reason}
