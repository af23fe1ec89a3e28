"""Watching events: every one once, in order, however slow or often cut the watcher is."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import OperationalError

from darkroom.contracts.events import Event, EventType
from darkroom.database.events import FINAL_TYPES, HeldNumbers, ImageOutlook
from darkroom.errors import PermanentError
from gateway import events as hubs
from gateway.events import EventHub, Watch

BATCH_ID, A, B = uuid4(), uuid4(), uuid4()


class FakeTable:
    """The table in memory: the same answers, and faults on demand."""

    def __init__(self) -> None:
        self.rows: list[Event] = []
        self.states: dict[UUID, str] = {A: "in_flight", B: "in_flight"}
        self.is_away = False
        self.reads: list[tuple[int, UUID | None]] = []
        self.told: list[int] = []
        """The number of each event in each answer."""

    def add(self, image_id: UUID | None = A, kind: EventType = EventType.IMAGE_ACCEPTED) -> int:
        """One more numbered event; returns its number."""
        number = self.rows[-1].id + 1 if self.rows else 1
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        self.rows.append(Event(id=number, type=kind, occurred_at=moment, batch_id=BATCH_ID, image_id=image_id))
        return number

    def forget(self, up_to: int) -> None:
        self.rows = [row for row in self.rows if row.id > up_to]

    async def held_numbers(self) -> HeldNumbers:
        await self._answer()
        return HeldNumbers(self.rows[0].id - 1, self.rows[-1].id) if self.rows else HeldNumbers(0, 0)

    async def events_after(self, after: int, limit: int, image_id: UUID | None) -> list[Event]:
        await self._answer()
        self.reads.append((after, image_id))
        found = [row for row in self.rows if row.id > after and image_id in (None, row.image_id)][:limit]
        self.told += [row.id for row in found]
        await asyncio.sleep(0)  # more may happen between the answer and its reader
        return found

    async def image_outlook(self, image_id: UUID, after: int) -> ImageOutlook | None:
        await self._answer()
        if image_id not in self.states:
            return None
        mine = [row for row in self.rows if row.id > after and row.image_id == image_id]
        final = sum(row.type in FINAL_TYPES for row in mine)
        return ImageOutlook(self.states[image_id], final + (self.states[image_id] == "in_flight"))

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.is_away:
            raise OperationalError("SELECT", {}, ConnectionError("the database is away"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and memory so small that a few events overflow them, and no long pauses."""
    monkeypatch.setattr(hubs, "PAGE", 3)
    monkeypatch.setattr(hubs, "RECENT", 5)
    monkeypatch.setattr(hubs, "POLL_S", 0.001)


def in_loop(story: Callable[[FakeTable, EventHub], Awaitable[None]], table: FakeTable | None = None) -> None:
    """Runs a story beside a hub."""

    async def run() -> None:
        told = table or FakeTable()
        async with asyncio.timeout(30), running(told) as hub:
            await story(told, hub)

    asyncio.run(run())


@asynccontextmanager
async def running(table: FakeTable) -> AsyncIterator[EventHub]:
    hub = EventHub(table)
    following = asyncio.create_task(hub.run())
    yield hub
    hub.close()
    await following


async def reached(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - what it waits for tells nobody
        await asyncio.sleep(0)


async def take(watch: Watch, count: int) -> list[int]:
    """The next numbers."""
    return [(await anext(watch)).id for _ in range(count)]


def test_a_watch_replays_and_goes_on_live() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        watch = await hub.subscribe(after=2)
        assert await take(watch, 6) == [3, 4, 5, 6, 7, 8]
        for _ in range(20):
            table.add()
        assert await take(watch, 20) == list(range(9, 29))

    table = FakeTable()
    for _ in range(8):
        table.add()
    in_loop(story, table)


def test_without_a_number_events_begin_now() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        table.add()
        watch = await hub.subscribe()
        first = watch.position
        number = table.add()
        assert await take(watch, number - first) == list(range(first + 1, number + 1))
        assert first in (0, 1)

    in_loop(story)


@pytest.mark.parametrize("seed", range(20))
def test_watchers_cut_at_random_get_every_event_once(seed: int) -> None:
    chance = random.Random(seed)

    async def story(table: FakeTable, hub: EventHub) -> None:
        total = 120

        async def watcher(image_id: UUID | None) -> list[int]:
            seen: list[int] = []
            after = 0
            while True:
                watch = await hub.subscribe(after, image_id)
                for _ in range(chance.randrange(1, 12)):
                    page = await watch.batch(idle_s=chance.choice([0.0005, 0.01]))
                    seen += [event.id for event in page]
                    for _ in range(chance.choice([0, 0, 3, 40])):  # now and then slower than memory reaches
                        await asyncio.sleep(0)
                # Either the last event's number or the position that a heartbeat carried.
                after = chance.choice([watch.position, seen[-1] if seen else 0])
                if len(table.rows) == total and seen == expected(image_id):
                    return seen

        def expected(image_id: UUID | None) -> list[int]:
            return [row.id for row in table.rows if image_id in (None, row.image_id)]

        async def writer() -> None:
            for _ in range(total):
                table.add(chance.choice([A, A, A, B, None]))
                if chance.random() < 0.2:
                    hub.set()
                for _ in range(chance.choice([0, 0, 0, 5, 30])):
                    await asyncio.sleep(0)

        watchers = [asyncio.create_task(watcher(image_id)) for image_id in (None, None, A, B, B)]
        await writer()
        for image_id, seen in zip((None, None, A, B, B), await asyncio.gather(*watchers), strict=True):
            assert seen == expected(image_id)

    in_loop(story)


def test_an_event_is_read_once_for_all_watchers() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        watches = [await hub.subscribe(after=0) for _ in range(50)]
        first = [asyncio.create_task(take(watch, 1)) for watch in watches]
        await reached(lambda: len(hub._waiting.get(None, ())) == 50)
        before = len(table.told)
        table.add()
        assert await asyncio.gather(*first) == [[1]] * 50
        assert table.told[before:] == [1]

    in_loop(story)


def test_a_slow_watcher_costs_no_memory_and_misses_nothing() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        slow, quick = await hub.subscribe(after=0), await hub.subscribe(after=0)
        for number in range(1, 201):
            table.add()
            assert await take(quick, 1) == [number]
            assert len(hub._recent) <= 2 * hubs.RECENT
        assert await take(slow, 200) == list(range(1, 201))

    in_loop(story)


def test_a_watcher_of_a_quiet_image_reads_no_table() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        watch = await hub.subscribe(0, B)
        waiting = asyncio.create_task(take(watch, 1))
        await reached(lambda: B in hub._waiting)
        for _ in range(100):
            table.add(A)
        number = table.add(B)
        assert await waiting == [number]
        assert [read for read in table.reads if read[1] == B] in ([], [(0, B)])

    in_loop(story)


def test_an_event_that_comes_while_a_watch_reads_the_table_is_not_skipped() -> None:
    class RacingTable(FakeTable):
        """Answers a watcher, and before the answer arrives the hub takes in an event of that watcher's image."""

        hub: EventHub

        async def events_after(self, after: int, limit: int, image_id: UUID | None) -> list[Event]:
            found = await super().events_after(after, limit, image_id)
            if image_id == B and self.rows[-1].image_id == A:
                self.add(B)
                await self.hub._advance()
            return found

    async def story() -> None:
        table = RacingTable()
        for _ in range(4):
            table.add(A)
        table.hub = hub = EventHub(table)
        await hub._advance()  # it stands at 4 and has nothing in memory: the watch has to read the table
        watch = await hub.subscribe(0, B)
        assert [event.id for event in await watch.batch(idle_s=10)] == [5]

    asyncio.run(story())


def test_an_idle_watch_returns_empty_and_moves_its_position() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        watch = await hub.subscribe(0, B)
        for _ in range(4):
            table.add(A)
        while watch.position < 4:
            assert await watch.batch(idle_s=0.005) == []
        assert not watch.is_over

    in_loop(story)


def test_an_outage_of_the_database_loses_nothing() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        live, late = await hub.subscribe(after=0), await hub.subscribe(after=0)
        table.add()
        assert await take(live, 1) == [1]
        table.is_away = True
        for _ in range(30):
            table.add()
        assert await live.batch(idle_s=0.02) == []
        table.is_away = False
        assert await take(live, 30) == list(range(2, 32))
        table.is_away = True
        replaying = asyncio.create_task(take(late, 31))
        await asyncio.sleep(0.01)
        assert not replaying.done()
        table.is_away = False
        assert await replaying == list(range(1, 32))

    in_loop(story)


def test_a_hub_that_starts_without_its_database_skips_nothing() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        await asyncio.sleep(0.01)
        table.is_away = False
        watch = await hub.subscribe(after=0)
        table.add()
        table.add()
        assert await take(watch, 2) == [1, 2]

    table = FakeTable()
    table.is_away = True
    in_loop(story, table)


@pytest.mark.parametrize("after", [0, 3, 11, 10**9])
def test_numbers_that_cannot_be_told_are_refused(after: int) -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        with pytest.raises(PermanentError) as refused:
            await hub.subscribe(after)
        assert (refused.value.problem.slug, refused.value.problem.status) == ("events-expired", 410)
        assert refused.value.problem.value == after
        assert refused.value.problem.limit == (4 if after < 4 else 10)
        assert (await hub.subscribe(4)).position == 4
        assert (await hub.subscribe(10)).position == 10

    table = FakeTable()
    for _ in range(10):
        table.add()
    table.forget(4)
    in_loop(story, table)


def test_a_watch_whose_next_events_are_forgotten_says_so() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        watch = await hub.subscribe(after=0)
        assert len(await watch.batch()) == 3
        table.forget(20)
        with pytest.raises(PermanentError, match="no longer all kept"):
            await watch.batch()

    table = FakeTable()
    for _ in range(30):
        table.add()
    in_loop(story, table)


ACCEPTED, READY, FAILED, DELETED = (
    EventType.IMAGE_ACCEPTED,
    EventType.IMAGE_READY,
    EventType.IMAGE_FAILED,
    EventType.IMAGE_DELETED,
)


@pytest.mark.parametrize(
    ("state", "history", "after", "future", "told"),
    [
        ("ready", [ACCEPTED, READY], None, [], [1, 2]),
        ("ready", [ACCEPTED, READY], 1, [], [2]),
        ("ready", [ACCEPTED, READY], 2, [], []),
        ("in_flight", [ACCEPTED], None, [READY], [1, 2]),
        ("in_flight", [ACCEPTED], 1, [FAILED], [2]),
        ("in_flight", [ACCEPTED, FAILED], None, [READY], [1, 2, 3]),  # tried again
        ("ready", [ACCEPTED, FAILED, READY], None, [], [1, 2, 3]),
        ("deleted", [ACCEPTED, READY, DELETED], None, [], [1, 2, 3]),
        ("in_flight", [ACCEPTED], None, [DELETED], [1, 2]),
    ],
)
def test_an_image_ends_with_its_final_event(
    state: str, history: list[EventType], after: int | None, future: list[EventType], told: list[int]
) -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        watch = await hub.subscribe(after, A, follow=False)
        for kind in future:
            table.add(A, kind)
        table.add(B)
        assert [event.id async for event in watch] == told
        assert watch.is_over
        assert watch.position == (told[-1] if told else after)

    table = FakeTable()
    table.states[A] = state
    for kind in history:
        table.add(A, kind)
    in_loop(story, table)


def test_an_image_whose_events_are_gone_is_told_from_one_that_never_was() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        for image_id, slug in ((A, "events-expired"), (B, "image-not-found"), (uuid4(), "image-not-found")):
            with pytest.raises(PermanentError) as refused:
                await hub.subscribe(None, image_id, follow=False)
            assert refused.value.problem.slug == slug
        watch = await hub.subscribe(None, A)
        number = table.add(A, DELETED)
        assert await take(watch, 1) == [number]

    table = FakeTable()
    table.states = {A: "ready", B: "deleted"}
    in_loop(story, table)


def test_closing_ends_every_watch() -> None:
    async def story(table: FakeTable, hub: EventHub) -> None:
        watches = [await hub.subscribe(0), await hub.subscribe(0, A), await hub.subscribe(0, B)]
        waiting = [asyncio.create_task(anext(watch, None)) for watch in watches]
        await asyncio.sleep(0.01)
        hub.close()
        assert await asyncio.gather(*waiting) == [None] * 3
        assert all(watch.is_over for watch in watches)
        assert hub._waiting == {}

    in_loop(story)
