"""A prefetch window for each queue, on RabbitMQ and on Redis alike."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from celery import Celery
from kombu import Connection, Consumer, Queue


def use_windows(app: Celery, windows: Mapping[str, int]) -> None:
    """Has the worker of this application hold at most so many unacknowledged messages of each queue that it takes."""
    app.amqp.Consumer = partial(QueueConsumers, windows=windows)


class QueueConsumers:
    """Stands where Celery's one task consumer stands, and has one for each queue, each on a channel of its own.

    On one channel, a backlog of bulk work would use up the window that other work needs: Redis counts a window for the
    whole channel, and RabbitMQ fixes it when a consumer starts. See docs/decisions/0003-batching.md.
    """

    def __init__(
        self, connection: Connection, *, queues: Sequence[Queue], windows: Mapping[str, int], **options: Any
    ) -> None:
        def open_consumer(queue: Queue) -> Consumer:
            window = windows[queue.name]
            return Consumer(connection.channel(), queues=[queue], prefetch_count=window, **options)

        self._open = open_consumer
        self._on_message: Callable[[Any], None] | None = None
        self._consumers = {queue.name: self._open(queue) for queue in queues}

    @property
    def queues(self) -> list[Queue]:
        """What is consumed now; `celery inspect active_queues` shows it."""
        return [queue for consumer in self._consumers.values() for queue in consumer.queues]

    @property
    def on_message(self) -> Callable[[Any], None] | None:
        """Called with every message, whichever queue it came from."""
        return self._on_message

    @on_message.setter
    def on_message(self, callback: Callable[[Any], None]) -> None:
        self._on_message = callback
        for consumer in self._consumers.values():
            consumer.on_message = callback

    def consume(self) -> None:
        """Begins to take messages, from each queue as many as its window allows."""
        for consumer in self._consumers.values():
            consumer.consume()

    def cancel(self) -> None:
        """Takes no more messages; those held stay unacknowledged until their work is done or the connection closes."""
        for consumer in self._consumers.values():
            consumer.cancel()

    close = cancel

    def consuming_from(self, name: str) -> bool:
        """Whether messages are taken from this queue."""
        return name in self._consumers and bool(self._consumers[name].consuming_from(name))

    def add_queue(self, queue: Queue) -> None:
        """Takes from a queue that was cancelled, at the next `consume`."""
        if queue.name in self._consumers:
            self._consumers[queue.name].add_queue(queue)
        else:  # cancelled before the connection was made
            self._consumers[queue.name] = self._open(queue)
            self._consumers[queue.name].on_message = self._on_message

    def cancel_by_queue(self, queue: Queue | str) -> None:
        """Takes no more from one queue. Its channel stays: what came over it is acknowledged over it."""
        name = queue if isinstance(queue, str) else queue.name
        if name in self._consumers:
            self._consumers[name].cancel_by_queue(name)

    def qos(self, **_: Any) -> None:
        """Leaves the windows as they are: Celery would widen its one window for every message with a countdown."""
