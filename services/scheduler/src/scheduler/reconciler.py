"""Finds what the infrastructure lost, by fences and not by age. docs/decisions/0002-fences.md says why."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypeAlias

from celery import Celery, chain
from sqlalchemy import Engine

from darkroom.celery_app import PUBLISH_OPTIONS, request
from darkroom.contracts.base import Lane
from darkroom.contracts.messages import Fence, JobReport
from darkroom.contracts.tasks import EMBED, FENCE, RECORD_EMBEDDING, RETURN_FENCE
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

FIRST_PATIENCE = timedelta(seconds=30)
"""No fence counts as lost before: two ticks, and more than a step's p99."""

MAX_SENT_AGAIN = 1000
"""Originals in one tick and lane; the next tick goes on."""

BACKOFF_S = 60
"""Wait before the third dispatch, doubled each time: something is broken that sending alone does not mend."""

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


def overdue_before(
    path: Path, history: Sequence[FenceRecord], now: datetime, stage_deadline: timedelta
) -> datetime | None:
    """Whatever was dispatched before this moment and is not finished was lost; None while nothing can be said.

    Walks the fences backwards. One that came back from a stage's queue says: what was published to it before the
    fence was sent has been taken off, and has ended `stage_deadline` after the fence's return. When that was before a
    fence was sent into the next stage's queue, the next stage's messages were ahead of that fence, and so on.
    """
    moment = now
    for queues in reversed(path):
        sent = [_newest_back_by(history, queue, moment - stage_deadline) for queue in queues]
        if not all(sent):
            return None
        moment = min(one for one in sent if one is not None)
    return moment


def due_fences(history: Sequence[FenceRecord], queues: Sequence[str], now: datetime) -> list[str]:
    """The queues that get a fence now: those in which none is on its way, or only such as must be lost.

    A fence counts as lost after twice the wait of the last one that came back, then after four times and so on, never
    below `FIRST_PATIENCE`: over a stop of ten hours a queue gets about ten.
    """
    return [queue for queue in queues if _needs_fence([one for one in history if one.queue == queue], now)]


def _newest_back_by(history: Sequence[FenceRecord], queue: str, moment: datetime) -> datetime | None:
    sent = [
        one.sent_at
        for one in history
        if one.queue == queue and one.returned_at is not None and one.returned_at <= moment
    ]
    return max(sent, default=None)


def _needs_fence(fences: Sequence[FenceRecord], now: datetime) -> bool:
    last_wait, last_number = timedelta(0), 0
    for one in fences:
        if one.returned_at is not None and one.number > last_number:
            last_wait, last_number = one.returned_at - one.sent_at, one.number
    on_their_way = [one.sent_at for one in fences if one.number > last_number]
    if not on_their_way:
        return True
    patience: timedelta = max(FIRST_PATIENCE, 2 * last_wait) * 2 ** (len(on_their_way) - 1)
    return now - max(on_their_way) >= patience


def reconcile(engine: Engine, app: Celery, stage_deadline: timedelta) -> JobReport:
    """One tick: has lost work dispatched again, plans vectors for a new model, sends the next fences.

    Raises whatever database or broker raise; the next tick does what this one did not.
    """
    with engine.begin() as connection:
        now = upkeep.database_now(connection)
        history = upkeep.fence_history(connection, now - HISTORY)
    sent_again = {lane: send_lost_again(engine, lane, history, now, stage_deadline) for lane in Lane}
    backfill, vectors_alarm = fill_vectors(engine, history, now, stage_deadline)
    queues = due_fences(history, WORK_QUEUES, now)
    send_fences(engine, app, queues)
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
    engine: Engine, lane: Lane, history: Sequence[FenceRecord], now: datetime, stage_deadline: timedelta
) -> int:
    """Clears the stamp of a lane's overdue originals and wakes the dispatcher; returns how many there were."""
    before = overdue_before(path_of(lane), history, now, stage_deadline)
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
    engine: Engine, history: Sequence[FenceRecord], now: datetime, stage_deadline: timedelta
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
        before = overdue_before(BACKFILL_PATH, history, now, stage_deadline)
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


def send_fences(engine: Engine, app: Celery, queues: Sequence[str]) -> None:
    """Sends a fence into each queue. A row without a message is a fence that is lost; the other way round is worse."""
    with fresh_connection(app) as broker:
        for queue in queues:
            with engine.begin() as connection:
                number = upkeep.send_fence(connection, queue)
            fence = Fence(number=number, queue=queue)
            chain(
                request(app, FENCE, fence, queue=queue, ignore_result=True),
                request(app, RETURN_FENCE, fence, ignore_result=True, takes_result=True),
                app=app,
            ).apply_async(connection=broker, **PUBLISH_OPTIONS)
