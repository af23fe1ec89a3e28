"""Reads the dead letters of RabbitMQ: what was rejected, or delivered too often.

A plain consumer inside the maintenance worker's main process. As tasks they would be rejected for good, and a thread
beside a process that forks is a trap. It keeps no connection open between two letters, so that no child inherits one.

Every letter is a row before the broker is told that it was read, but for those that merely outlived their use. What is
delivered again is found there.
"""

import json
import logging
import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from kombu import Consumer, Message
from kombu.exceptions import KombuError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, OperationalError

from darkroom import topology
from darkroom.contracts import tasks
from darkroom.contracts.messages import JobReport, Work
from darkroom.database import dead_letters, outcomes, upkeep
from darkroom.database.dead_letters import DeadLetter, Outcome
from darkroom.errors import TransientError
from darkroom.tries import TriesMarkers, died_alone, killed_worker
from scheduler.notifying import DISPATCH, EVENTS, notify
from scheduler.reconciler import BACKOFF_S

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""Until a letter is tried again whose fate could not be written down."""

HELD = 10
"""Letters taken at once."""

MAX_BODY_BYTES = 65_536
"""Of a body, and of the headers, are kept. Our longest message, a whole workflow, has 5 KB."""

CONTRACTS = {contract.name: contract for contract in tasks.ALL}

MENDED = {
    tasks.FENCE.name: "the reconciler sends another fence",
    tasks.RETURN_FENCE.name: "the reconciler sends another fence",
    tasks.RECORD_EMBEDDING.name: "the reconciler plans the vector again",
    tasks.DELIVER_CALLBACKS.name: "the callbacks are rows, and a job hints at what is due",
    tasks.PREPARE_QUERY.name: "the search that asked for it has ended",
    tasks.EMBED_TEXT.name: "the search that asked for it has ended",
    tasks.EMBED_PICTURE.name: "the search that asked for it has ended",
} | {contract.name: "beat sends the job again" for contract in tasks.ALL if contract.result is JobReport}
"""Why nothing is missing without a message of these tasks. What is neither here nor a photo's work is kept."""

_LETTERS = uuid.UUID("b9c5c4de-6f0e-4a55-93f8-0d6c6f1f2a53")

_VOLATILE = frozenset({"x-delivery-count", "x-acquired-count"})
"""Headers that change when the same letter is delivered again."""


def letter_in(message: Message) -> DeadLetter:
    """The letter in a delivery."""
    body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
    properties = {"content_type": message.content_type, "content_encoding": message.content_encoding}
    routing_key = str((message.delivery_info or {}).get("routing_key") or "")
    return letter_of(message.headers or {}, routing_key, body, properties)


def letter_of(headers: dict[str, Any], routing_key: str, body: bytes, properties: dict[str, Any]) -> DeadLetter:
    """The letter with these headers and this body; what is too long to be kept is cut."""
    newest, deaths = _deaths(headers)
    told = json.dumps({key: headers[key] for key in sorted(headers) if key not in _VOLATILE}, default=str)
    queue = newest.get("queue") or topology.queue_of_key(routing_key)
    return DeadLetter(
        fingerprint=uuid.uuid5(_LETTERS, f"{told}\n{body.hex()}"),
        queue=_text(queue),
        task=_text(headers.get("task")),
        task_id=_text(headers.get("id")),
        reason=_text(newest.get("reason")) or "unknown",
        deaths=deaths,
        headers=told if len(told) <= MAX_BODY_BYTES else None,
        content_type=_text(properties.get("content_type")),
        content_encoding=_text(properties.get("content_encoding")),
        body=body[:MAX_BODY_BYTES],
        body_bytes=len(body),
    )


def _deaths(headers: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The newest entry of the broker's own record, and how often the message died in all."""
    entries = headers.get("x-death")
    entries = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    counts = [one.get("count") for one in entries]
    return (entries[0] if entries else {}), max(1, sum(count for count in counts if isinstance(count, int)))


def _text(value: object) -> str | None:
    """What PostgreSQL takes as text, and no more of it than a person reads."""
    if value is None:
        return None
    return str(value).encode("utf-8", "replace").decode().replace("\0", "\ufffd")[:200]


def outlived(headers: dict[str, Any]) -> bool:
    """Whether nobody took a message within the time that its sender had given it: it has no use any more, as agreed.

    A job's next message comes by itself, and a search or a probe has ended. An hour without a maintenance worker would
    leave a thousand such rows. A photo's work has no such time; should it get one, it is looked at like any other.
    """
    newest, _ = _deaths(headers)
    contract = CONTRACTS.get(str(headers.get("task")))
    is_work = contract is not None and issubclass(contract.arguments, Work)
    return newest.get("reason") == "expired" and "original-expiration" in newest and not is_work


class DeadLetters:
    """Decides about one letter after the other."""

    def __init__(self, engine: Engine, tries: TriesMarkers) -> None:
        self._engine = engine
        self._tries = tries

    def settle(self, letter: DeadLetter, payload: Callable[[], Any]) -> Outcome | None:
        """Records a letter and what is done about it, in one transaction; None when it was settled before.

        Fails the photo that killed its worker alone, has other lost work dispatched again, keeps what a person must
        decide. `payload` decodes the body. Raises `TransientError` or an error of the database when nothing could be
        decided.
        """
        try:
            work, fault = _work_of(letter, payload)
            is_killer = work is not None and died_alone(self._tries.unfinished(letter.task_id or "")[0])
            with self._engine.begin() as connection:
                number = dead_letters.record(connection, letter)
                if number is None:
                    return None
                if work is None:
                    outcome, cause = _without_photo(letter, fault)
                else:
                    outcome, cause = _fail_or_send_again(connection, work, is_killer=is_killer)
                dead_letters.settle(connection, number, outcome, cause, work)
                dead_letters.show_counts(connection)
            self._tell(letter, number, outcome, cause)
        finally:
            self._engine.dispose()
        return outcome

    def keep(self, letter: DeadLetter, fault: str) -> None:
        """Records a letter that could not be dealt with; does nothing when it is recorded already."""
        try:
            with self._engine.begin() as connection:
                number = dead_letters.record(connection, letter)
                if number is not None:
                    dead_letters.settle(connection, number, Outcome.KEPT, fault)
                    dead_letters.show_counts(connection)
        finally:
            self._engine.dispose()

    def _tell(self, letter: DeadLetter, number: int, outcome: Outcome, cause: str) -> None:
        level = logging.ERROR if outcome is Outcome.KEPT else logging.WARNING
        context = {"letter": number, "task": letter.task, "task_id": letter.task_id, "queue": letter.queue}
        log.log(level, "dead_letters.settled", extra=context | {"outcome": outcome.value, "cause": cause})
        if outcome in (Outcome.FAILED_IMAGE, Outcome.DISPATCHED_AGAIN):
            notify(self._engine, EVENTS if outcome is Outcome.FAILED_IMAGE else DISPATCH)


def _work_of(letter: DeadLetter, payload: Callable[[], Any]) -> tuple[Work | None, str]:
    """The photo's work in a letter, or why there is none."""
    contract = CONTRACTS.get(letter.task or "")
    if contract is None:
        return None, f"no task is named {letter.task}" if letter.task else "it is no task of Darkroom"
    if not issubclass(contract.arguments, Work):
        return None, "nothing sends it again by itself"
    try:
        _, keywords, _ = payload()
        return Work.from_wire(keywords["message"]), ""
    except (ValueError, TypeError, LookupError, KombuError) as error:
        return None, f"it cannot be read: {_text(error)}"


def _without_photo(letter: DeadLetter, fault: str) -> tuple[Outcome, str]:
    mended = MENDED.get(letter.task or "")
    return (Outcome.OBSOLETE, mended) if mended is not None else (Outcome.KEPT, fault)


def _fail_or_send_again(connection: Connection, work: Work, *, is_killer: bool) -> tuple[Outcome, str]:
    if is_killer and outcomes.mark_failed(connection, work.sha256, work.generation, killed_worker().problem):
        return Outcome.FAILED_IMAGE, "the photo killed its worker while nothing else was in it"
    now = upkeep.database_now(connection)
    if upkeep.is_generation(connection, work.sha256, work.generation) and outcomes.send_again(
        connection, [work.sha256], now, BACKOFF_S
    ):
        return Outcome.DISPATCHED_AGAIN, "the photo is not finished and did not kill its worker alone"
    return Outcome.OBSOLETE, "the photo is finished, or a later dispatch of it is under way"


def dead_letter_step(letters: DeadLetters) -> type[bootsteps.ConsumerStep]:
    """The part of a worker's consumer that reads the dead letters. It acknowledges what was written down."""

    class ReadDeadLetters(bootsteps.ConsumerStep):  # type: ignore[misc]
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def get_consumers(self, channel: Any) -> list[Consumer]:
            queue = topology.dead_letter_queue(declare=self._declare)
            consumer = Consumer(channel, [queue], on_message=self._take, accept=["json"], no_ack=False)
            consumer.qos(prefetch_count=HELD)
            return [consumer]

        def start(self, worker: Any) -> None:
            self._timer = worker.timer
            self._declare = worker.app.conf.darkroom_declare
            super().start(worker)

        def _take(self, message: Message) -> None:
            try:
                if not outlived(message.headers or {}):
                    _write_down(letters, message)
            except Exception as error:  # a letter must not end the worker that also mends everything else
                log.warning("dead_letters.postponed", extra={"error": repr(error), "seconds": RETRY_S})
                self._timer.call_after(RETRY_S, self._take, (message,))
                return
            message.ack_log_error(log, Exception)

    return ReadDeadLetters


def _write_down(letters: DeadLetters, message: Message) -> None:
    letter = letter_in(message)
    try:
        letters.settle(letter, message.decode)
    except (TransientError, OperationalError, InterfaceError):
        raise  # what is away comes back
    except Exception as error:
        log.exception("dead_letters.unsettled", extra={"task": letter.task, "task_id": letter.task_id})
        letters.keep(letter, f"an error of Darkroom: {_text(repr(error))}")


def add_dead_letters(app: Celery, letters: DeadLetters) -> None:
    """Has this application's worker read the dead letters."""
    app.steps["consumer"].add(dead_letter_step(letters))
