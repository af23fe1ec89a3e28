"""Redis as the broker, with less work for each message than kombu does by itself."""

from typing import Any

from kombu.transport import redis

from darkroom import topology


class Channel(redis.Channel):  # type: ignore[misc]
    """kombu's channel, whose commands share one client, and which knows the way of a task without asking for it.

    kombu 5.7 makes a client for every command, which takes twice as long as the command itself, and reads all bindings
    of the exchange before every message. Ours are the same in every process, and each queue is bound under its name.
    """

    _commands: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:  # these wait for messages: each is one connection's own
            return super()._create_client(asynchronous=True)
        if self._commands is None or self._commands.connection_pool is not self.pool:
            self._commands = super()._create_client()
        return self._commands

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        if exchange == topology.TASKS.name and routing_key in topology.CONSUMED_BY:
            return [routing_key]
        queues: list[str] = super()._lookup(exchange, routing_key, default)
        return queues


class Transport(redis.Transport):  # type: ignore[misc]
    """kombu's transport with our `Channel`."""

    Channel = Channel


TRANSPORT = f"{__name__}:{Transport.__name__}"
"""What Celery's `broker_transport` takes it by."""
