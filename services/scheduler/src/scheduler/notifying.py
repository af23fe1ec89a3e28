"""Waking the gateway's threads, which look by themselves every second too."""

from sqlalchemy import Engine, func, select

DISPATCH = "darkroom_dispatch"
"""Something waits for dispatch."""

EVENTS = "darkroom_events"
"""Something waits for the event relay."""


def notify(engine: Engine, channel: str) -> None:
    """Wakes whoever listens. Call it after the commit: inside, it would serialise all commits of the database."""
    # One round trip instead of three: there is nothing to commit it with.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(select(func.pg_notify(channel, "")))
