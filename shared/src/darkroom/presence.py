"""Who is there to work: each worker says so in the result store, with what it has done, in hand and how fast.

Brokers cannot tell it: Redis knows no consumers, and no broker knows whether a consumer gets anything done.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from celery import Celery, bootsteps
from celery.worker import state
from celery.worker.request import Request
from kombu.utils.imports import symbol_by_name
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from darkroom.contracts.messages import QueueWork, WorkerPresence
from darkroom.topology import Node, queue_of_key

log = logging.getLogger(__name__)

INDEX = "workers"
"""A set of the names of workers that may be there: those whose key has expired are gone."""

INTERVAL_S = 2.0
EXPIRES_S = 10
"""A worker that has said nothing for so long is gone, or stuck."""

ANSWER_S = 0.5
"""Longest that a worker's loop stands still for a result store that hangs, …"""

MAX_PAUSE_S = 30.0
"""… and how seldom it tries again in the end."""

WINDOW_S = 60.0
"""Rates are of the last minute."""


def key_of(name: str) -> str:
    """Where the presence of a worker of this name is."""
    return f"{INDEX}:{name}"


class Handled:
    """How many messages of each queue were taken off for good, in all and per second. For any number of threads."""

    def __init__(self, now_s: float) -> None:
        self._counts: Counter[str] = Counter()
        self._turn = threading.Lock()
        self._marks: deque[tuple[float, Counter[str]]] = deque([(now_s, Counter())])

    def add(self, queue: str) -> None:
        """Counts one."""
        with self._turn:
            self._counts[queue] += 1

    def mark(self, now_s: float) -> dict[str, tuple[int, float]]:
        """The count of each queue and its rate since the oldest mark of the last minute; call it every few seconds."""
        with self._turn:
            counts = self._counts.copy()
        while len(self._marks) > 1 and self._marks[1][0] <= now_s - WINDOW_S:
            self._marks.popleft()
        since_s, before = self._marks[0]
        self._marks.append((now_s, counts))
        span_s = max(now_s - since_s, INTERVAL_S)  # the first moments are not extrapolated
        return {queue: (count, (count - before[queue]) / span_s) for queue, count in counts.items()}


def counting(kind: type[Request], handled: Handled) -> type[Request]:
    """A kind of request that is counted when it is acknowledged: done, failed or sent again, but not handed back."""

    class CountingRequest(kind):  # type: ignore[misc]
        def acknowledge(self) -> None:
            if not self.acknowledged and (queue := _queue_of(self)) is not None:
                handled.add(queue)
            super().acknowledge()

    return CountingRequest


def announce_presence(app: Celery, node: Node, pool: str) -> None:
    """Has the worker of this application say that it is there for as long as it consumes.

    Call it when every task is bound.
    """
    handled = Handled(time.monotonic())
    for task in app.tasks.values():
        task.Request = counting(symbol_by_name(task.Request), handled)
    redis = Redis.from_url(
        app.conf.result_backend,
        socket_timeout=ANSWER_S,
        socket_connect_timeout=ANSWER_S,
        retry=Retry(NoBackoff(), 0),  # the next time is soon, and the loop waits meanwhile
    )
    app.steps["consumer"].add(_presence_step(PresenceWriter(redis), handled, node, pool))


class PresenceWriter:
    """Writes one worker's presence. A result store that is away costs its loop little and less."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._failures = 0
        self._not_before_s = 0.0

    def write(self, presence: WorkerPresence, now_s: float) -> None:
        """Says that the worker is there."""
        if now_s < self._not_before_s:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.set(key_of(presence.name), presence.model_dump_json(), ex=EXPIRES_S)
                pipeline.sadd(INDEX, presence.name)
                pipeline.execute()
        except (RedisError, OSError) as error:
            self._failures += 1
            pause_s = min(MAX_PAUSE_S, INTERVAL_S * 2**self._failures)
            self._not_before_s = now_s + pause_s
            log.warning("presence.not_written", extra={"error": repr(error), "pause_s": pause_s})
        else:
            self._failures = 0

    def remove(self, name: str) -> None:
        """Says that the worker takes no more messages; without a result store its presence expires."""
        if self._failures:
            return
        try:
            self._redis.delete(key_of(name))
        except (RedisError, OSError) as error:
            log.warning("presence.not_removed", extra={"error": repr(error)})


def _presence_step(writer: PresenceWriter, handled: Handled, node: Node, pool: str) -> type[bootsteps.StartStopStep]:
    class Presence(bootsteps.StartStopStep):  # type: ignore[misc]
        """Speaks from the worker's own loop: one that is stuck, or has no broker, is not there."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, consumer: Any) -> None:
            def speak() -> None:
                now_s = time.monotonic()
                writer.write(presence_of(consumer, node, pool, handled.mark(now_s)), now_s)

            speak()
            self.entry = consumer.timer.call_repeatedly(INTERVAL_S, speak)

        def stop(self, consumer: Any) -> None:
            if entry := getattr(self, "entry", None):
                entry.cancel()
                writer.remove(consumer.hostname)

    return Presence


def presence_of(consumer: Any, node: Node, pool: str, handled: Mapping[str, tuple[int, float]]) -> WorkerPresence:
    """What there is to say of a worker's consumer now."""
    in_hand = Counter(_queue_of(request) for request in _reserved())
    queues = {}
    for queue in consumer.app.amqp.queues.consume_from:
        count, rate_per_s = handled.get(queue, (0, 0.0))
        queues[queue] = QueueWork(handled=count, in_hand=in_hand[queue], rate_per_s=round(rate_per_s, 3))
    return WorkerPresence(
        name=consumer.hostname,
        node=node.value,
        pool=pool,
        concurrency=consumer.pool.num_processes or 1,
        queues=queues,
    )


def _reserved() -> list[Request]:
    """The requests that this worker holds, running or not."""
    while True:
        try:
            return list(state.reserved_requests)
        except RuntimeError:  # a thread of the pool finished one while we looked
            continue


def _queue_of(request: Request) -> str | None:
    return queue_of_key(str(request.delivery_info.get("routing_key") or ""))
