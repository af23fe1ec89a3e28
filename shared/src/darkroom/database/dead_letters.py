"""Dead letters as rows: recorded before the broker forgets them, settled, replayed, dropped.

Lock order: the letter's row before the original's; the row of the job that shows them last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from darkroom.contracts.messages import Work
from darkroom.database import upkeep
from darkroom.database.tables import dead_letters

JOB = "dead_letters"
"""The row in `periodic_jobs` that shows what became of them."""


class Outcome(StrEnum):
    """What became of a dead letter."""

    KEPT = "kept"
    """Nobody sends this work again: it waits for a person."""
    DISPATCHED_AGAIN = "dispatched_again"
    FAILED_IMAGE = "failed_image"
    OBSOLETE = "obsolete"
    """Nothing is missing without it."""
    REPLAYED = "replayed"


@dataclass(frozen=True)
class DeadLetter:
    """A message as it died. `body` may be cut: `body_bytes` says how long it was."""

    fingerprint: UUID
    """The same for every delivery of one letter."""
    queue: str | None
    """Where it died."""
    task: str | None
    task_id: str | None
    reason: str
    """The broker's word: `rejected`, `delivery_limit`, `expired`, `maxlen`; `unknown` when it gave none."""
    deaths: int
    headers: str | None
    """JSON; None when it was too long."""
    content_type: str | None
    content_encoding: str | None
    body: bytes
    body_bytes: int


def record(connection: Connection, letter: DeadLetter) -> int | None:
    """Keeps a letter and returns its number; None when it was recorded before, and then there is nothing to do."""
    values = vars(letter) | {"outcome": Outcome.KEPT.value, "cause": ""}
    statement = upsert(dead_letters).values(values).on_conflict_do_nothing().returning(dead_letters.c.id)
    number = connection.scalar(statement)
    return None if number is None else int(number)


def settle(connection: Connection, number: int, outcome: Outcome, cause: str, work: Work | None = None) -> None:
    """Notes what became of a recorded letter, why, and of which dispatch of a photo it was."""
    origin = {} if work is None else {"sha256": work.sha256, "generation": work.generation}
    connection.execute(
        update(dead_letters).where(dead_letters.c.id == number).values(outcome=outcome.value, cause=cause, **origin)
    )


def list_letters(connection: Connection, outcome: Outcome | None, limit: int, before: int | None) -> Sequence[Row[Any]]:
    """Up to `limit` letters without their bodies, newest first; those older than number `before` if given."""
    columns = [column for column in dead_letters.c if column.name not in ("headers", "body")]
    query = select(*columns).order_by(dead_letters.c.id.desc()).limit(limit)
    if outcome is not None:
        query = query.where(dead_letters.c.outcome == outcome.value)
    if before is not None:
        query = query.where(dead_letters.c.id < before)
    return connection.execute(query).all()


def find_letter(connection: Connection, number: int, *, lock: bool = False) -> Row[Any] | None:
    """One whole letter; with `lock`, held until the transaction ends."""
    query = select(dead_letters).where(dead_letters.c.id == number)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def kept_numbers(connection: Connection) -> list[int]:
    """The letters that wait for a person, oldest first."""
    query = select(dead_letters.c.id).where(dead_letters.c.outcome == Outcome.KEPT.value).order_by(dead_letters.c.id)
    return list(connection.scalars(query))


def mark_replayed(connection: Connection, number: int, cause: str) -> None:
    """Notes that a letter's work was asked for again; the first time counts."""
    connection.execute(
        update(dead_letters)
        .where(dead_letters.c.id == number, dead_letters.c.outcome != Outcome.REPLAYED.value)
        .values(outcome=Outcome.REPLAYED.value, cause=cause, replayed_at=func.now())
    )


def drop(connection: Connection, number: int) -> bool:
    """Removes one letter; false when there is none."""
    return connection.execute(delete(dead_letters).where(dead_letters.c.id == number)).rowcount == 1


def drop_kept(connection: Connection) -> int:
    """Removes every letter that waits for a person; returns how many."""
    return connection.execute(delete(dead_letters).where(dead_letters.c.outcome == Outcome.KEPT.value)).rowcount


def forget(connection: Connection, settled_before: datetime, kept_before: datetime) -> int:
    """Removes letters whose time is over, those that wait for a person later; returns how many."""
    is_kept = dead_letters.c.outcome == Outcome.KEPT.value
    over = or_(
        dead_letters.c.received_at < kept_before,
        ~is_kept & (dead_letters.c.received_at < settled_before),
    )
    return connection.execute(delete(dead_letters).where(over)).rowcount


def count_letters(connection: Connection) -> dict[Outcome, int]:
    """How many letters are held, by outcome; those of which there are none are left out."""
    query = select(dead_letters.c.outcome, func.count()).group_by(dead_letters.c.outcome)
    return {Outcome(outcome): count for outcome, count in connection.execute(query)}


def show_counts(connection: Connection) -> None:
    """Brings the job's row up to date, with an alarm while a letter waits for a person."""
    counts = count_letters(connection)
    held = [f"{counts[outcome]} {outcome.value.replace('_', ' ')}" for outcome in Outcome if outcome in counts]
    kept = counts.get(Outcome.KEPT, 0)
    plural = "s wait" if kept > 1 else " waits"
    alarm = f"{kept} dead letter{plural} for a person: `darkroom dead-letters list`" if kept else None
    upkeep.job_started(connection, JOB)
    upkeep.job_finished(connection, JOB, ", ".join(held) or "none", alarm, is_success=True)
