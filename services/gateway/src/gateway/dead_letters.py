"""What a person can do about dead letters: look at them, replay them, drop them."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kombu import Producer
from sqlalchemy import Connection, Row
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom import topology
from darkroom.database import dead_letters, outcomes, upkeep
from darkroom.database.dead_letters import Outcome
from darkroom.errors import PermanentError
from gateway.broker import BrokerLink
from gateway.models import DeadLetter, DeadLetterContent, DeadLetterList, Replayed
from gateway.problems import broker_away

REDIS_HAS_NONE = (
    "Redis, the broker here, has no dead letters: a message that nobody can work on ends in the worker's log alone. "
    "The photo that it was about is found by the reconciler."
)

NOT_SENT_AGAIN = ("x-", "expires")
"""Beginnings of headers that a replayed message does not get: the broker's record of its deaths, and its time limit."""

REPLAYS = "darkroom-replays"
"""A header of ours: how often the message was replayed. It also makes its next death another letter."""


@dataclass(frozen=True)
class _Message:
    """A letter as it goes out again."""

    number: int
    queue: str
    body: bytes
    headers: dict[str, Any]
    content_type: str | None
    content_encoding: str | None
    task_id: str | None


class DeadLetters:
    """The letters in the table, and a link to send them over. What is done twice is done once."""

    def __init__(self, engine: AsyncEngine, link: BrokerLink, *, has_dead_letters: bool) -> None:
        self._engine = engine
        self._link = link
        self._has_dead_letters = has_dead_letters
        self._publisher = ThreadPoolExecutor(1, "replaying")
        self._one_at_a_time = asyncio.Lock()

    def close(self) -> None:
        """Ends the publishing thread and its connection."""
        self._publisher.shutdown(wait=True, cancel_futures=True)
        self._link.close()

    async def list(self, outcome: Outcome | None, limit: int, before: int | None) -> DeadLetterList:
        """A page of letters, newest first."""
        async with self._engine.connect() as connection:
            rows = await connection.run_sync(dead_letters.list_letters, outcome, limit, before)
            counts = await connection.run_sync(dead_letters.count_letters)
        return DeadLetterList(
            supported=self._has_dead_letters,
            note=None if self._has_dead_letters else REDIS_HAS_NONE,
            counts={one: counts.get(one, 0) for one in Outcome},
            dead_letters=[DeadLetter.model_validate(row) for row in rows],
            next_page_token=str(rows[-1].id) if len(rows) == limit else None,
        )

    async def find(self, number: int) -> DeadLetterContent:
        """One letter with what it says; raises `dead-letter-not-found`."""
        async with self._engine.connect() as connection:
            row = await connection.run_sync(dead_letters.find_letter, number)
        if row is None:
            raise _not_found(number)
        return _content(row)

    async def replay(self, number: int) -> DeadLetterContent:
        """Has a letter's work done: a photo's by its dispatcher, any other by sending the message to its queue again.

        A letter that was replayed is left as it is. Raises `dead-letter-not-found`, `dead-letter-not-replayable` and
        `broker-unavailable`.
        """
        async with self._one_at_a_time:
            async with self._engine.begin() as connection:
                message = await connection.run_sync(_begin_replay, number)
            if message is not None:
                # A crash after this sends it twice, which every task bears; noted first, it could be lost.
                await asyncio.get_running_loop().run_in_executor(self._publisher, self._publish, message)
                async with self._engine.begin() as connection:
                    await connection.run_sync(_end_replay, number, f"sent to {message.queue} again")
        return await self.find(number)

    async def replay_kept(self) -> Replayed:
        """Replays every letter that waits for a person; those that cannot be stay. Raises `broker-unavailable`."""
        async with self._engine.connect() as connection:
            waiting = await connection.run_sync(dead_letters.kept_numbers)
        replayed = 0
        for number in waiting:
            try:
                await self.replay(number)
                replayed += 1
            except PermanentError:
                continue  # dropped meanwhile, or nothing that could be sent
        return Replayed(replayed=replayed, kept=len(waiting) - replayed)

    async def drop(self, number: int) -> None:
        """Forgets a letter; raises `dead-letter-not-found`."""
        async with self._engine.begin() as connection:
            is_dropped = await connection.run_sync(dead_letters.drop, number)
            await connection.run_sync(dead_letters.show_counts)
        if not is_dropped:
            raise _not_found(number)

    async def drop_kept(self) -> int:
        """Forgets every letter that waits for a person; returns how many."""
        async with self._engine.begin() as connection:
            count = await connection.run_sync(dead_letters.drop_kept)
            await connection.run_sync(dead_letters.show_counts)
        return count

    def _publish(self, message: _Message) -> None:
        try:
            with self._link.connection() as connection:
                Producer(connection, auto_declare=False).publish(
                    message.body,
                    exchange=topology.TASKS.name,
                    routing_key=message.queue,
                    headers=message.headers,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    correlation_id=message.task_id,
                    delivery_mode="persistent",
                    retry=False,
                    timeout=1,
                    confirm_timeout=1,
                )
        except Exception as error:
            raise broker_away(error) from error


def _begin_replay(connection: Connection, number: int) -> _Message | None:
    """Clears the stamp of a letter's photo; for any other letter the message to send. None: there is nothing more."""
    letter = dead_letters.find_letter(connection, number, lock=True)
    if letter is None:
        raise _not_found(number)
    if letter.outcome == Outcome.REPLAYED:
        return None
    if letter.sha256 is None:
        return _message(letter)
    if not _dispatch_again(connection, letter):
        raise _not_replayable(letter, "its photo is finished, or is under way already")
    _end_replay(connection, number, "the photo is dispatched anew")
    return None


def _dispatch_again(connection: Connection, letter: Row[Any]) -> bool:
    if outcomes.retry_original(connection, letter.sha256):
        return True
    if not upkeep.is_generation(connection, letter.sha256, letter.generation):
        return False
    return bool(outcomes.send_again(connection, [letter.sha256], upkeep.database_now(connection), 0))


def _end_replay(connection: Connection, number: int, cause: str) -> None:
    dead_letters.mark_replayed(connection, number, cause)
    dead_letters.show_counts(connection)


def _message(letter: Row[Any]) -> _Message:
    """The letter's message; raises `dead-letter-not-replayable` when it cannot be sent as it was."""
    if letter.outcome != Outcome.KEPT:
        raise _not_replayable(letter, letter.cause)
    if letter.queue not in topology.CONSUMED_BY:
        raise _not_replayable(letter, f"no worker takes from the queue {letter.queue}")
    if letter.task is None:
        raise _not_replayable(letter, "it is no task, and workers would reject it")
    if letter.headers is None or letter.body_bytes > len(letter.body):
        raise _not_replayable(letter, f"its {letter.body_bytes} bytes were too many to be kept whole")
    told = json.loads(letter.headers)
    headers = {key: value for key, value in told.items() if not key.startswith(NOT_SENT_AGAIN)}
    headers[REPLAYS] = int(told.get(REPLAYS, 0)) + 1
    return _Message(
        letter.id, letter.queue, letter.body, headers, letter.content_type, letter.content_encoding, letter.task_id
    )


def _content(row: Row[Any]) -> DeadLetterContent:
    letter = DeadLetter.model_validate(row)
    return DeadLetterContent(
        **letter.model_dump(),
        content_type=row.content_type,
        headers=None if row.headers is None else json.loads(row.headers),
        body=row.body.decode("utf-8", "replace"),
    )


def _not_found(number: int) -> PermanentError:
    return PermanentError.of(
        "dead-letter-not-found",
        "There is no such dead letter",
        404,
        f"No dead letter has the number {number}; it may have been dropped, or its time is over.",
        value=number,
        remedy="List those that there are: GET /v1/dead-letters.",
    )


def _not_replayable(letter: Row[Any], reason: str) -> PermanentError:
    return PermanentError.of(
        "dead-letter-not-replayable",
        "The dead letter cannot be replayed",
        409,
        f"The dead letter {letter.id} cannot be replayed: {reason}.",
        value=letter.outcome,
        remedy="Look at it (GET /v1/dead-letters/{id}), and drop it when it is of no use.",
    )
