"""Finds what the infrastructure lost, by fences and not by age. docs/decisions/0002-fences.md says why."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from celery import Celery, chain
from kombu import Connection
from kombu.transport import virtual
from sqlalchemy import Engine

from darkroom.celery_app import PUBLISH_OPTIONS, request
from darkroom.contracts.base import Lane
from darkroom.contracts.messages import Fence, JobReport
from darkroom.contracts.tasks import EMBED, FENCE, FINALIZE, RECORD_EMBEDDING, RETURN_FENCE
from darkroom.database import outcomes, upkeep, vectors
from darkroom.database.upkeep import FenceRecord
from darkroom.topology import STAGES
from scheduler.notifying import DISPATCH, notify
from scheduler.publishing import fresh_connection

log = logging.getLogger(__name__)

Path: TypeAlias = tuple[tuple[str, ...], ...]
"""The queues of each stage in order; those of one stage are used side by side."""

BACKFILL_PATH: Path = ((EMBED.queue_for(Lane.BULK),), (RECORD_EMBEDDING.queue,))

HISTORY = timedelta(days=1)
"""How old a fence can be and still prove a loss: the longest backlog in which losses are found."""

CALM_EVERY = timedelta(seconds=13)
"""Between the fences of a queue while nothing is late: every third tick of 5 s, which may come a little early."""

SUSPECT_AFTER = timedelta(seconds=10)
"""An original that is unfinished so long after its dispatch has fences sent at every tick: p99 is below it."""

FIRST_PATIENCE = timedelta(seconds=30)
"""No fence counts as lost before while something waits in its queue: six ticks, and more than a step's p99."""

GONE_AFTER = timedelta(seconds=10)
"""A fence on its way through queues that are empty counts as lost after this: two ticks, and far more than it takes."""

FINALIZE_QUEUES = {FINALIZE.queue_for(lane) for lane in Lane}

FINALIZE_DEADLINE = timedelta(seconds=10)
"""`finalize` reads some small blobs and commits one transaction: tens of milliseconds, p99 below 1 s.

One that takes longer is sent again for nothing: both lock the original, so whoever comes second finds it settled.
"""

MAX_SENT_AGAIN = 5000
"""Originals in one tick and lane, half a second of work; the next tick goes on."""

BACKOFF_S = 15
"""Wait before the third dispatch, doubled up to a minute: something is broken that sending alone does not mend."""

BACKFILL_WINDOW = 5000
"""Backfills that are planned at once: an hour of work for a slow CPU, a minute for a GPU."""

STUBBORN_AFTER = 5
"""Dispatches of one backfill before a person is told."""


def path_of(lane: Lane) -> Path:
    """The queues that a photo of this lane goes through."""
    return tuple(
        tuple(stage.interactive if lane is Lane.INTERACTIVE else stage.bulk for stage in group) for group in STAGES
    )


WORK_QUEUES: tuple[str, ...] = tuple(
    dict.fromkeys(queue for lane in Lane for queues in path_of(lane) for queue in queues)
)
"""Every queue that fences go through."""


@dataclass(frozen=True)
class Deadlines:
    """How long after it was taken off its queue a message of a stage has ended one way or the other."""

    step: timedelta
    """`prepare`, `thumbnails` and `embed`: the hard time limit, which is also the most work that an embedder holds."""
    finalize: timedelta = FINALIZE_DEADLINE

    def of(self, queue: str) -> timedelta:
        """The deadline behind a queue."""
        return self.finalize if queue in FINALIZE_QUEUES else self.step


def overdue_before(path: Path, history: Sequence[FenceRecord], now: datetime, deadlines: Deadlines) -> datetime | None:
    """Whatever was dispatched before this moment and is not finished was lost; None while nothing can be said.

    Walks the fences backwards. One that came back from a stage's queue says: what was published to it before the
    fence was sent has been taken off, and has ended a deadline after the fence's return. When that was before a
    fence was sent into the next stage's queue, the next stage's messages were ahead of that fence, and so on.
    """
    moment = now
    for queues in reversed(path):
        sent = [_newest_back_by(history, queue, moment - deadlines.of(queue)) for queue in queues]
        if not all(sent):
            return None
        moment = min(one for one in sent if one is not None)
    return moment


def due_fences(
    history: Sequence[FenceRecord],
    queues: Sequence[str],
    now: datetime,
    *,
    every: timedelta = timedelta(0),
    empty: Collection[str] = (),
) -> list[str]:
    """The queues that get a fence now: those whose last one is back and was sent `every` ago, or must be lost.

    A fence counts as lost after twice the wait of the last one that came back, then after four times and so on, never
    below `FIRST_PATIENCE`: over a stop of ten hours a queue gets about ten. One whose queue and the one back are in
    `empty` waits nowhere, and counts as lost after `GONE_AFTER`.
    """
    return [
        queue
        for queue in queues
        if _needs_fence(
            [one for one in history if one.queue == queue], now, every, {queue, RETURN_FENCE.queue} <= set(empty)
        )
    ]


def _newest_back_by(history: Sequence[FenceRecord], queue: str, moment: datetime) -> datetime | None:
    sent = [
        one.sent_at
        for one in history
        if one.queue == queue and one.returned_at is not None and one.returned_at <= moment
    ]
    return max(sent, default=None)


def _needs_fence(fences: Sequence[FenceRecord], now: datetime, every: timedelta, waits_nowhere: bool) -> bool:
    last_wait, last_number = timedelta(0), 0
    for one in fences:
        if one.returned_at is not None and one.number > last_number:
            last_wait, last_number = one.returned_at - one.sent_at, one.number
    on_their_way = [one.sent_at for one in fences if one.number > last_number]
    if not on_their_way:
        return not fences or now - max(one.sent_at for one in fences) >= every
    patience: timedelta = max(FIRST_PATIENCE, 2 * last_wait) * 2 ** (len(on_their_way) - 1)
    return now - max(on_their_way) >= (GONE_AFTER if waits_nowhere else patience)


def reconcile(engine: Engine, app: Celery, deadlines: Deadlines, every: timedelta = CALM_EVERY) -> JobReport:
    """One tick: has lost work dispatched again, plans vectors for a new model, sends the next fences.

    Raises whatever database or broker raise; the next tick does what this one did not.
    """
    with engine.begin() as connection:
        now = upkeep.database_now(connection)
        history = upkeep.fence_history(connection, now - HISTORY)
        is_late = upkeep.has_unfinished(connection, now - SUSPECT_AFTER)
    sent_again = {lane: send_lost_again(engine, lane, history, now, deadlines) for lane in Lane}
    backfill, vectors_alarm = fill_vectors(engine, history, now, deadlines)
    every = timedelta(0) if is_late else every
    queues: list[str] = []
    # Asking how long the queues are needs a connection: not at a tick at which no fence can be due.
    if due_fences(history, WORK_QUEUES, now, every=every, empty=WORK_QUEUES):
        with fresh_connection(app) as broker:
            queues = due_fences(history, WORK_QUEUES, now, every=every, empty=empty_queues(broker))
            send_fences(engine, app, broker, queues)
    losses = ", ".join(f"{count} {lane.value}" for lane, count in sent_again.items())
    alarms = [*([vectors_alarm] if vectors_alarm else []), *probe_alarms(engine)]
    return JobReport(
        summary=f"sent again: {losses}; {backfill}; fences sent: {len(queues)}", alarm="; ".join(alarms) or None
    )


def probe_alarms(engine: Engine) -> list[str]:
    """A sentence for each queue whose probe is late or was answered wrongly. It fails no photo."""
    with engine.connect() as connection:
        states = upkeep.probe_states(connection)
    bad = [one for one in states if one.state in ("late", "wrong")]
    for one in bad:
        log.error("reconciler.bad_probe", extra={"queue": one.queue, "state": one.state, "text": one.text})
    return [f"{one.queue} is {one.state}: {one.text}" for one in bad]


def send_lost_again(
    engine: Engine, lane: Lane, history: Sequence[FenceRecord], now: datetime, deadlines: Deadlines
) -> int:
    """Clears the stamp of a lane's overdue originals and wakes the dispatcher; returns how many there were."""
    before = overdue_before(path_of(lane), history, now, deadlines)
    if before is None:
        return 0
    with engine.begin() as connection:
        overdue = upkeep.overdue_originals(connection, lane, before, MAX_SENT_AGAIN)
        count = outcomes.send_again(connection, overdue, before, BACKOFF_S)
    if count:
        log.warning("reconciler.sent_again", extra={"lane": lane.value, "originals": count, "overdue": overdue[:10]})
        notify(engine, DISPATCH)
    return count


def fill_vectors(
    engine: Engine, history: Sequence[FenceRecord], now: datetime, deadlines: Deadlines
) -> tuple[str, str | None]:
    """Plans the vectors that the present model lacks, and activates it when none is missing.

    Also for the active model: a photo that was embedded by the one before may have been finished after the switch.
    Returns a sentence for the report and one for an alarm.
    """
    with engine.begin() as connection:
        model = vectors.present_model(connection)
        if model is None:
            return "no model has registered", None
        vectors.forget_backfills_except(connection, model.id)
        before = overdue_before(BACKFILL_PATH, history, now, deadlines)
        lost = upkeep.requeue_backfills(connection, before) if before is not None else 0
        lacking = vectors.plan_backfill(connection, model.id, BACKFILL_WINDOW)
        stubborn = vectors.stubborn_backfills(connection, STUBBORN_AFTER)
        is_complete = lacking == 0 and model.state == "filling"
        if is_complete:
            vectors.activate_model(connection, model.id)
    if is_complete:
        log.info("reconciler.model_activated", extra={"model": model.id})
    if lacking:
        log.info("reconciler.vectors_lacking", extra={"model": model.id, "images": lacking, "lost": lost})
        notify(engine, DISPATCH)
    alarm = f"{stubborn} images got no vector of {model.id} in {STUBBORN_AFTER} tries; see the embedder's log"
    return f"{lacking} images lack a vector of {model.id}", alarm if stubborn else None


def empty_queues(broker: Connection) -> set[str]:
    """The work queues in which no message waits; one that a worker holds counts as taken."""
    with broker.channel() as channel:
        # To Redis, a queue that is empty does not exist; on RabbitMQ we may not be allowed to declare it.
        is_passive = not isinstance(channel, virtual.Channel)
        waiting = {queue: channel.queue_declare(queue, passive=is_passive).message_count for queue in WORK_QUEUES}
    return {queue for queue, messages in waiting.items() if messages == 0}


def send_fences(engine: Engine, app: Celery, broker: Connection, queues: Sequence[str]) -> None:
    """Sends a fence into each queue. A row without a message is a fence that is lost; the other way round is worse."""
    for queue in queues:
        with engine.begin() as connection:
            number = upkeep.send_fence(connection, queue)
        fence = Fence(number=number, queue=queue)
        chain(
            request(app, FENCE, fence, queue=queue, ignore_result=True),
            request(app, RETURN_FENCE, fence, ignore_result=True, takes_result=True),
            app=app,
        ).apply_async(connection=broker, **PUBLISH_OPTIONS)
