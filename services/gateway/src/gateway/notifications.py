"""PostgreSQL notifications as bells that ring for whoever waits."""

import logging
import threading
from collections.abc import Mapping
from typing import Protocol

import psycopg
from psycopg import sql
from sqlalchemy import make_url

log = logging.getLogger(__name__)

PAUSE_S = 1.0
"""Between two attempts to connect, and longest time until a stop is seen."""


class Bell(Protocol):
    """What a notification rings: a `threading.Event`, or anything that may be set from another thread."""

    def set(self) -> None:
        """Rings."""


class Bells:
    """Several bells on one rope."""

    def __init__(self, *bells: Bell) -> None:
        self._bells = bells

    def set(self) -> None:
        """Rings each."""
        for bell in self._bells:
            bell.set()


def listen(database_url: str, bells: Mapping[str, Bell], stop: threading.Event) -> None:
    """Sets the bell of a channel whenever something is notified on it, until `stop`. Runs in a thread of its own.

    Notifications are only there for speed: whoever waits also looks by itself every second, so a lost connection
    costs no more than that.
    """
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    while not stop.is_set():
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
                for channel in bells:
                    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                for bell in bells.values():
                    bell.set()  # something may have come while nobody listened
                while not stop.is_set():
                    for notification in connection.notifies(timeout=PAUSE_S):
                        bells[notification.channel].set()
                        if stop.is_set():
                            break
        except psycopg.Error as error:
            log.warning("notifications.lost", extra={"error": str(error)})
            stop.wait(PAUSE_S)
