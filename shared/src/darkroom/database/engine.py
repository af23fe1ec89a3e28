"""Connections, and bringing a database up to the present schema."""

import select
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from darkroom.settings import DatabaseSettings
from darkroom.telemetry.database import trace_transactions

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_MIGRATION_LOCK = 0x6461726B  # "dark": two services that start at once must not migrate at once

CONNECT_S = 5
"""Longest wait for a new connection."""


def _options(settings: DatabaseSettings) -> dict[str, Any]:
    return {
        "pool_size": settings.database_pool_size,
        "max_overflow": 0,
        "connect_args": {
            "connect_timeout": CONNECT_S,
            # A generic plan would use HNSW for rare filters: 2.5 rows of 10 in 11 ms instead of 10 in 0.85 ms.
            # A transaction that waits this long for a lock, or idles this long in one, is a bug; end it, keep the rest.
            "options": "-c plan_cache_mode=force_custom_plan -c lock_timeout=20s "
            "-c idle_in_transaction_session_timeout=60s -c timezone=UTC",
        },
    }


def sync_engine(settings: DatabaseSettings) -> Engine:
    """A pool for threads and processes; connects on first use."""
    engine = create_engine(settings.database_url.get_secret_value(), **_options(settings))
    _replace_cut_connections(engine)
    trace_transactions(engine)
    return engine


def async_engine(settings: DatabaseSettings) -> "AsyncEngine":
    """A pool for an event loop; connects on first use."""
    from sqlalchemy.ext.asyncio import create_async_engine  # 6 MB in each process, of which one needs it

    engine = create_async_engine(settings.database_url.get_secret_value(), **_options(settings))
    _replace_cut_connections(engine.sync_engine)
    trace_transactions(engine.sync_engine)
    return engine


def _replace_cut_connections(engine: Engine) -> None:
    """Has the pool hand out no connection that PostgreSQL has ended: after its restart that is all of them.

    Nothing is asked of the server, as a ping would: one that has ended a connection has sent something to read, and one
    that is silent would not answer a ping either.
    """
    event.listen(engine, "checkout", _check_uncut)


def _check_uncut(_: Any, record: ConnectionPoolEntry, __: Any) -> None:
    connection = record.driver_connection
    if connection is None or connection.closed:
        raise InvalidatePoolError
    watched = select.poll()
    watched.register(connection.fileno(), select.POLLIN)
    if watched.poll(0):
        raise InvalidatePoolError


def migrate(engine: Engine) -> None:
    """Brings the schema up to date. Safe to call from several processes at once and on an up-to-date database."""
    from alembic import command  # 8 MB in each process, of which the one that migrates needs it and ends
    from alembic.config import Config

    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        connection.commit()
        try:
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})
            connection.commit()
