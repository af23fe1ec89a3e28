"""A publisher's connection to the broker, of which nothing survives a failure."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.transport import virtual

from darkroom import topology
from darkroom.celery_app import ensure_topology

log = logging.getLogger(__name__)


class BrokerLink:
    """One connection for one thread at a time, made on first use with the topology declared or seen over it.

    After any failure it is thrown away without a goodbye: a hung broker would not answer one, and a confirm that comes
    late must not count for the message after it.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._connection: Connection | None = None
        self._turn = threading.Lock()
        self.is_connected = False
        """Whether the broker answered when it was last used."""

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The live connection; whatever the block raises, the next one starts with a fresh one."""
        with self._turn:
            try:
                if self._connection is not None and _has_lost_bindings(self._connection):
                    log.warning("broker.bindings_lost")
                    self._drop()
                if self._connection is None:
                    self._connection = self.app.connection_for_write()
                    ensure_topology(self.app, self._connection)
                    log.info("broker.connected")
                yield self._connection
                self.is_connected = True
            except BaseException:
                self._drop()
                raise

    def check(self) -> None:
        """Returns when the broker has answered; raises whatever went wrong."""
        with self.connection() as connection:
            topology.TASKS(connection.default_channel).declare(passive=not self.app.conf.darkroom_declare)

    def close(self) -> None:
        """Ends the connection."""
        with self._turn:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection, self.is_connected = self._connection, None, False
        if connection is not None:
            with suppress(Exception):  # it is broken already; what matters is that its socket is closed
                connection.collect(socket_timeout=0.1)


def _has_lost_bindings(connection: Connection) -> bool:
    """Whether a Redis was emptied under us: it would drop every message, and no error would say so."""
    channel: Any = connection.default_channel
    return isinstance(channel, virtual.Channel) and len(channel.get_table(topology.TASKS.name)) < len(
        topology.CONSUMED_BY
    )
