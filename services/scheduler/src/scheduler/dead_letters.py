"""Reads the dead letters of RabbitMQ: what was rejected, or delivered too often.

A plain consumer inside the maintenance worker's main process. As tasks they would be rejected for good, and a thread
beside a process that forks is a trap. It keeps no connection open between two letters, so that no child inherits one.
"""

import logging
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import Any

from celery import Celery, bootsteps
from kombu import Consumer, Message
from kombu.exceptions import KombuError
from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, OperationalError

from darkroom import topology
from darkroom.contracts import tasks
from darkroom.contracts.messages import Work
from darkroom.database import outcomes, upkeep
from darkroom.errors import TransientError
from darkroom.tries import TriesMarkers, died_alone, killed_worker
from scheduler.notifying import DISPATCH, EVENTS, notify
from scheduler.reconciler import BACKOFF_S

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""Until a letter is tried again whose fate could not be written down."""

HELD = 10
"""Letters taken at once."""

JOB = "dead_letters"
"""The row in `periodic_jobs` that shows what became of them."""

CONTRACTS = {contract.name: contract for contract in tasks.ALL}


class Fate(Enum):
    """What became of a dead letter."""

    FAILED = "failed"
    SENT_AGAIN = "sent again"
    DROPPED = "dropped"
    UNREADABLE = "unreadable"


class DeadLetters:
    """Decides about one letter after the other, and counts."""

    def __init__(self, engine: Engine, tries: TriesMarkers) -> None:
        self._engine = engine
        self._tries = tries
        self._counts: Counter[Fate] = Counter()

    def settle(self, headers: dict[str, Any], payload: Callable[[], Any]) -> Fate:
        """Fails the photo that killed its worker alone, has other lost work dispatched again, counts the rest.

        `payload` decodes the body. Raises `TransientError` or an error of the database when nothing could be decided.
        """
        try:
            fate = self._decide(headers, payload)
            self._counts[fate] += 1
            self._show()
        finally:
            self._engine.dispose()
        return fate

    def _decide(self, headers: dict[str, Any], payload: Callable[[], Any]) -> Fate:
        contract = CONTRACTS.get(str(headers.get("task")))
        context = {"task": headers.get("task"), "task_id": headers.get("id"), "deaths": headers.get("x-death")}
        if contract is not None and not issubclass(contract.arguments, Work):
            log.warning("dead_letters.dropped", extra=context)  # fences and jobs come again by themselves
            return Fate.DROPPED
        try:
            if contract is None:
                raise ValueError("no contract has this name")
            _, keywords, _ = payload()
            work = Work.from_wire(keywords["message"])
        except (ValueError, TypeError, LookupError, KombuError) as error:
            log.error("dead_letters.unreadable", extra=context | {"error": str(error)})
            return Fate.UNREADABLE
        fate = self._fail_or_send_again(work, str(headers.get("id")))
        log.warning("dead_letters.settled", extra=context | {"sha256": work.sha256, "fate": fate.value})
        return fate

    def _fail_or_send_again(self, work: Work, task_id: str) -> Fate:
        [tries] = self._tries.unfinished(task_id)
        if died_alone(tries):
            with self._engine.begin() as connection:
                outcomes.mark_failed(connection, work.sha256, work.generation, killed_worker().problem)
            notify(self._engine, EVENTS)
            return Fate.FAILED
        with self._engine.begin() as connection:
            now = upkeep.database_now(connection)
            is_current = upkeep.is_generation(connection, work.sha256, work.generation)
            sent = outcomes.send_again(connection, [work.sha256], now, BACKOFF_S) if is_current else 0
        if not sent:
            return Fate.DROPPED
        notify(self._engine, DISPATCH)
        return Fate.SENT_AGAIN

    def _show(self) -> None:
        summary = ", ".join(f"{self._counts[fate]} {fate.value}" for fate in Fate) + " since the start"
        unreadable = self._counts[Fate.UNREADABLE]
        alarm = f"{unreadable} dead letters could not be read; the log has them" if unreadable else None
        with self._engine.begin() as connection:
            upkeep.job_started(connection, JOB)
            upkeep.job_finished(connection, JOB, summary, alarm, is_success=True)


def dead_letter_step(letters: DeadLetters) -> type[bootsteps.ConsumerStep]:
    """The part of a worker's consumer that reads the dead letters. It acknowledges what was settled."""

    class ReadDeadLetters(bootsteps.ConsumerStep):  # type: ignore[misc]
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def get_consumers(self, channel: Any) -> list[Consumer]:
            queue = topology.dead_letter_queue()
            consumer = Consumer(channel, [queue], on_message=self._take, accept=["json"], no_ack=False)
            consumer.qos(prefetch_count=HELD)
            return [consumer]

        def start(self, worker: Any) -> None:
            self._timer = worker.timer
            super().start(worker)

        def _take(self, message: Message) -> None:
            try:
                letters.settle(message.headers or {}, message.decode)
            except (TransientError, OperationalError, InterfaceError) as error:
                log.warning("dead_letters.postponed", extra={"error": str(error), "seconds": RETRY_S})
                self._timer.call_after(RETRY_S, self._take, (message,))
                return
            except Exception:  # a letter must not end the worker that also mends everything else
                log.exception("dead_letters.lost", extra={"headers": message.headers})
            message.ack_log_error(log, Exception)

    return ReadDeadLetters


def add_dead_letters(app: Celery, letters: DeadLetters) -> None:
    """Has this application's worker read the dead letters."""
    app.steps["consumer"].add(dead_letter_step(letters))
