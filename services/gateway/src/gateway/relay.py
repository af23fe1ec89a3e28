"""Publishes events: numbers what was committed, sends it to the broker in that order, stamps what was confirmed.

Two threads, because a broker that is away must not keep events from those who read the table.
"""

import logging
import threading
from collections.abc import Callable

from kombu import Producer
from sqlalchemy import Connection, Engine

from darkroom import topology
from darkroom.celery_app import PUBLISH_OPTIONS
from darkroom.database import callbacks, events
from darkroom.database.events import UnpublishedEvent
from darkroom.telemetry import metrics, names, tracing
from darkroom.telemetry.publishing import publish_event
from darkroom.workflow import callback_hint
from gateway.broker import BrokerLink

log = logging.getLogger(__name__)

CHANNEL = "darkroom_events"
"""Notified by whoever has committed an event."""

POLL_S = 1.0
MAX_PAUSE_S = 5.0
BATCH = 100


class Relay:
    """Of all relays, in all processes, one numbers and one publishes: those that hold the lock for it."""

    def __init__(self, engine: Engine, link: BrokerLink) -> None:
        self._engine = engine
        self._link = link
        self.bell = threading.Event()
        """Set it to have new events numbered at once."""
        self.numbered = threading.Event()
        """Set it to have numbered events published at once."""

    def run_numbering(self, stop: threading.Event) -> None:
        """Numbers until `stop` is set (ring the bell as well); needs no broker, and outlives the database's outages."""
        self._lead("numbering", events.lead_numbering, self.number_once, self.bell, stop)

    def run_publishing(self, stop: threading.Event) -> None:
        """Publishes until `stop` is set (set `numbered` as well); outlives every outage of broker and database."""
        self._lead("publishing", events.lead_publishing, self.publish_once, self.numbered, stop)

    def number_once(self, connection: Connection) -> int:
        """Numbers up to a batch of events over the leader's own connection; returns how many.

        When the connection is lost, so is the lock: nothing is numbered by two relays at once.
        """
        count = events.number_events(connection, BATCH)
        connection.commit()
        return count

    def publish_once(self, connection: Connection) -> int:
        """Publishes up to a batch of numbered events; returns how many. Raises what stopped it."""
        waiting = events.unpublished_events(connection, BATCH)
        told = [one.event.batch_id for one in waiting if one.event.type in callbacks.TOLD_TYPES]
        hosts = callbacks.new_hosts(connection, told)
        connection.commit()  # no transaction is open while we talk to the broker
        confirmed: list[int] = []
        try:
            if waiting:
                with self._link.connection() as broker:
                    producer = Producer(broker, auto_declare=False)
                    for one in waiting:
                        _publish(producer, one)
                        metrics.EVENTS_PUBLISHED.labels(one.event.type.value).inc()
                        confirmed.append(one.event.id)
                    for host in hosts:  # without this they would wait for the job that hints
                        callback_hint(self._link.app, host).apply_async(connection=broker, **PUBLISH_OPTIONS)
        finally:
            if confirmed:
                events.stamp_events(connection, confirmed)
                connection.commit()
        return len(confirmed)

    def _lead(
        self,
        role: str,
        lead: Callable[[Connection], bool],
        work_once: Callable[[Connection], int],
        bell: threading.Event,
        stop: threading.Event,
    ) -> None:
        failures = 0
        while not stop.is_set():
            try:
                with self._engine.connect() as connection:
                    # The lock belongs to the session, which must end with us and not go back to the pool.
                    connection.detach()
                    while not stop.is_set() and not _is_leader(connection, role, lead):
                        stop.wait(POLL_S)
                    while not stop.is_set():
                        bell.clear()
                        count = work_once(connection)
                        failures = 0
                        if count < BATCH:  # that was all: who has committed more since then has rung again
                            bell.wait(POLL_S)
            except Exception as error:  # a thread that ends would end all events, silently
                failures += 1
                pause_s = min(MAX_PAUSE_S, 0.1 * 2**failures)
                log.warning("relay.pause", extra={"role": role, "error": repr(error), "pause_s": pause_s})
                stop.wait(pause_s)


def _is_leader(connection: Connection, role: str, lead: Callable[[Connection], bool]) -> bool:
    is_leader = lead(connection)
    connection.commit()
    if is_leader:
        log.info("relay.leading", extra={"role": role})
    return is_leader


def _publish(producer: Producer, unpublished: UnpublishedEvent) -> None:
    """As a child of the transition that the event tells of, where its part of the trace ends."""
    event = unpublished.event
    about: dict[str, str] = {names.MESSAGING_MESSAGE_ID: str(event.id)}
    if event.sha256 is not None:
        about[names.IMAGE_SHA256] = event.sha256
    if event.image_id is not None:
        about[names.IMAGE_ID] = str(event.image_id)
    with tracing.within(tracing.context_of(unpublished.traceparent)):
        publish_event(
            producer,
            event.to_wire(),
            event.type.value,
            about,
            exchange=topology.EVENTS.name,
            delivery_mode="persistent",
            message_id=str(event.id),
            **PUBLISH_OPTIONS,
        )
