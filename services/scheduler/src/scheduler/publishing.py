"""A connection to publish over that nothing of an outage has touched."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from celery import Celery
from kombu import Connection

from darkroom.celery_app import ensure_topology


@contextmanager
def fresh_connection(app: Celery) -> Iterator[Connection]:
    """A new connection with the topology declared over it: a flushed Redis would drop whatever is sent to it.

    Raises whatever the broker's client raises. `app` should be bound (`darkroom.celery_app.bound_publishing`).
    """
    connection = app.connection_for_write()
    try:
        ensure_topology(app, connection)
        yield connection
    except BaseException:
        with suppress(Exception):
            connection.collect(socket_timeout=0.1)  # without a goodbye: a hung broker would not answer it
        raise
    connection.release()
