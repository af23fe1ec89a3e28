"""How every queue stands: what the broker, the workers and the fences say, put together.

Each of the three may be away: then its figures are null, and `unknown` says why. All that poll share one measurement.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from kombu.exceptions import ChannelError
from kombu.transport import virtual
from redis.asyncio import Redis
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom import presence, topology
from darkroom.contracts.messages import WorkerPresence
from darkroom.database import dead_letters, upkeep
from darkroom.database.dead_letters import Outcome
from darkroom.database.upkeep import QueueProbe
from gateway.broker import BrokerLink
from gateway.dead_letters import REDIS_HAS_NONE
from gateway.errors import UnavailableError
from gateway.models import DeadLetterQueue, Probe, Queue, QueueOverview, Worker

FRESH_S = 1.0
"""How old a measurement may be that answers a call: a hundred pollers cost the broker what one does."""

ANSWER_S = 1.0
"""Longest that an answer waits for Redis, which takes a millisecond when it is well."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Depth:
    """What the broker says of one queue: messages ready, and consumers where it knows them."""

    ready: int
    consumers: int | None


@dataclass(frozen=True)
class Standing:
    """What the database says of the queues: seconds waited, the fences' answers, and letters that wait for a person."""

    ages_s: Mapping[str, float]
    probes: Mapping[str, QueueProbe]
    kept: int


class BrokerDepths:
    """Asks the broker in a thread of its own, over one connection."""

    def __init__(self, link: BrokerLink, *, has_dead_letters: bool) -> None:
        self._link = link
        self._queues = (*topology.CONSUMED_BY, *([topology.DEAD_LETTERS] if has_dead_letters else []))
        self._thread = ThreadPoolExecutor(1, "depths")

    async def read(self) -> dict[str, Depth]:
        """Each queue's depth; raises whatever the broker's client raises, after about 3 s."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read)

    def close(self) -> None:
        """Ends the thread and the connection."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._link.close()

    def _read(self) -> dict[str, Depth]:
        was_connected = self._link.is_connected
        try:
            return self._ask()
        except Exception:
            if not was_connected:
                raise
        return self._ask()  # the connection was from before an outage, or a queue was removed: over a fresh one

    def _ask(self) -> dict[str, Depth]:
        with self._link.connection() as connection:
            return {queue: _depth(connection.default_channel, queue) for queue in self._queues}


def _depth(channel: Any, queue: str) -> Depth:
    is_virtual = isinstance(channel, virtual.Channel)
    try:
        found = channel.queue_declare(queue, passive=True)
    except ChannelError:
        if is_virtual:
            return Depth(0, None)  # on Redis, a queue that is empty is not there
        raise
    return Depth(found.message_count, None if is_virtual else found.consumer_count)


class QueueView:
    """The figures of all queues, measured when somebody asks, and at most once in `FRESH_S`."""

    def __init__(self, engine: AsyncEngine, depths: BrokerDepths, results: Redis, *, has_dead_letters: bool) -> None:
        self._engine = engine
        self._depths = depths
        self._results = results
        self._has_dead_letters = has_dead_letters
        self._measuring: asyncio.Task[QueueOverview] | None = None
        self._measured_s = 0.0

    async def read(self) -> QueueOverview:
        """How the queues stand now; raises `queues-unknown` when neither broker nor workers nor database tell."""
        is_over = self._measuring is not None and self._measuring.done()
        if self._measuring is None or (is_over and time.monotonic() > self._measured_s + FRESH_S):
            self._measuring = asyncio.create_task(self._measure())
        return await asyncio.shield(self._measuring)  # one that hangs up does not take the others' answer along

    async def _measure(self) -> QueueOverview:
        try:
            depths, workers, standing = await asyncio.gather(
                _or_why(self._depths.read(), "the broker does not answer"),
                _or_why(self._present_workers(), "Redis, where workers say that they are there, does not answer"),
                _or_why(self._standing(), "the database does not answer"),
            )
            faults = [one for one in (depths, workers, standing) if isinstance(one, str)]
            if len(faults) == 3:
                raise _unknown("; ".join(faults))
            return overview(depths, workers, standing, has_dead_letters=self._has_dead_letters, now=datetime.now(UTC))
        finally:
            self._measured_s = time.monotonic()

    async def _present_workers(self) -> list[WorkerPresence]:
        async with asyncio.timeout(ANSWER_S):
            names = sorted(_text(name) for name in await self._results.smembers(presence.INDEX))
            told = await self._results.mget([presence.key_of(name) for name in names]) if names else []
            gone = [name for name, text in zip(names, told, strict=True) if text is None]
            if gone:  # one that comes back adds its name again
                await self._results.srem(presence.INDEX, *gone)
        return [WorkerPresence.from_json(text) for text in told if text is not None]

    async def _standing(self) -> Standing:
        def read(connection: Connection) -> Standing:
            probes = {probe.queue: probe for probe in upkeep.probe_states(connection)}
            kept = dead_letters.count_letters(connection).get(Outcome.KEPT, 0)
            return Standing(upkeep.queue_ages(connection), probes, kept)

        async with self._engine.connect() as connection:
            return await connection.run_sync(read)


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


async def _or_why(figures: Awaitable[ResultT], fault: str) -> ResultT | str:
    """The figures, or a sentence that says why there are none."""
    try:
        return await figures
    except Exception as error:  # the broker's client may raise anything, and the other figures are right
        return f"{fault} ({type(error).__name__})"


def overview(
    depths: Mapping[str, Depth] | str,
    workers: Sequence[WorkerPresence] | str,
    standing: Standing | str,
    *,
    has_dead_letters: bool,
    now: datetime,
) -> QueueOverview:
    """The answer from what was found out; a sentence stands where nothing was."""
    unknown: dict[str, str] = {}
    if isinstance(depths, str):
        unknown["depth"] = depths
    if isinstance(workers, str):
        unknown |= {"in_hand": workers, "rate_per_s": workers}
        if not any(depth.consumers is not None for depth in _known(depths).values()):
            unknown["consumers"] = workers
    if isinstance(standing, str):
        unknown |= {"oldest_age_s": standing, "probe": standing}
    note = None if has_dead_letters else REDIS_HAS_NONE
    return QueueOverview(
        measured_at=now,
        broker="rabbitmq" if has_dead_letters else "redis",
        queues=[
            _queue(name, node.value, _known(depths).get(name), workers, standing)
            for name, node in topology.CONSUMED_BY.items()
        ],
        dead_letters=DeadLetterQueue(
            name=topology.DEAD_LETTERS,
            node=topology.Node.MAINTENANCE.value,
            supported=has_dead_letters,
            note=note,
            depth=depth.ready if (depth := _known(depths).get(topology.DEAD_LETTERS)) else None,
            consumers=depth.consumers if depth else None,
            kept=None if isinstance(standing, str) else standing.kept,
        ),
        workers=[] if isinstance(workers, str) else [_worker(one) for one in workers],
        unknown=unknown,
    )


def _known(depths: Mapping[str, Depth] | str) -> Mapping[str, Depth]:
    return {} if isinstance(depths, str) else depths


def _queue(
    name: str, node: str, depth: Depth | None, workers: Sequence[WorkerPresence] | str, standing: Standing | str
) -> Queue:
    consumers, in_hand, rate_per_s = (depth.consumers if depth else None), None, None
    if not isinstance(workers, str):
        shares = [one.queues[name] for one in workers if name in one.queues]
        consumers = len(shares)
        in_hand = sum(share.in_hand for share in shares)
        rate_per_s = round(sum(share.rate_per_s for share in shares), 3)
    age_s, probe = None, None
    if not isinstance(standing, str):
        age_s = standing.ages_s.get(name)
        probe = standing.probes.get(name)
    return Queue(
        name=name,
        node=node,
        depth=depth.ready if depth else None,
        oldest_age_s=None if age_s is None else round(age_s, 3),
        consumers=consumers,
        in_hand=in_hand,
        rate_per_s=rate_per_s,
        probe=None if probe is None else Probe(state=probe.state, text=probe.text),
    )


def _worker(one: WorkerPresence) -> Worker:
    return Worker(
        name=one.name,
        node=one.node,
        pool=one.pool,
        concurrency=one.concurrency,
        queues=list(one.queues),
        in_hand=sum(share.in_hand for share in one.queues.values()),
        handled=sum(share.handled for share in one.queues.values()),
    )


def _unknown(faults: str) -> UnavailableError:
    return UnavailableError.of(
        "queues-unknown",
        "Nothing is known of the queues",
        f"All who could tell are away: {faults}.",
        remedy="Start PostgreSQL, the broker and Redis; uploads wait for the first alone.",
    )
