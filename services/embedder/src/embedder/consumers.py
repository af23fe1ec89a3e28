"""A prefetch window for each queue, on RabbitMQ and on Redis alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kombu import Connection, Consumer, Queue


class QueueConsumers:
    """Stands where Celery's one task consumer stands, and has one for each queue, each on a channel of its own.

    On one channel, a backlog of bulk work would use up the window that searches need: Redis counts a window for the
    whole channel, and RabbitMQ fixes it when a consumer starts. See docs/decisions/0003-batching.md.
    """

    def __init__(
        self, connection: Connection, *, queues: Sequence[Queue], windows: Mapping[str, int], **options: Any
    ) -> None:
        self.queues = list(queues)
        self._consumers = [
            Consumer(connection.channel(), queues=[queue], prefetch_count=windows[queue.name], **options)
            for queue in queues
        ]

    @property
    def on_message(self) -> Callable[[Any], None] | None:
        """Called with every message, whichever queue it came from."""
        on_message: Callable[[Any], None] | None = self._consumers[0].on_message
        return on_message

    @on_message.setter
    def on_message(self, callback: Callable[[Any], None]) -> None:
        for consumer in self._consumers:
            consumer.on_message = callback

    def consume(self) -> None:
        """Begins to take messages, from each queue as many as its window allows."""
        for consumer in self._consumers:
            consumer.consume()

    def cancel(self) -> None:
        """Takes no more messages; those held stay unacknowledged until their work is done or the connection closes."""
        for consumer in self._consumers:
            consumer.cancel()

    close = cancel

    def qos(self, **_: Any) -> None:
        """Leaves the windows as they are: Celery would widen its one window for every message with a countdown."""
