"""Events as they happen, for any number of watchers: read from the table once, handed to all of them.

`EventHub.subscribe` is all that a face of the gateway needs:

    watch = await hub.subscribe(after=last_seen_id)        # may refuse: events-expired, image-not-found
    async for event in watch: ...                          # ends when `watch.is_over`
    while not watch.is_over: events = await watch.batch(idle_s=15)   # the same, with time for a heartbeat

Nothing has to be closed. Events arrive once each, in the order of their ids; resume after the last one, or from
`watch.position`, which `batch` moves past what it returns and past what is none of the watcher's business.
"""

import asyncio
import logging
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from operator import attrgetter
from typing import Protocol, TypeVar
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom.contracts.events import Event
from darkroom.database import events
from darkroom.database.events import FINAL_TYPES, HeldNumbers, ImageOutlook
from darkroom.errors import PermanentError
from gateway.search import image_not_found

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How late an event may be that no notification told of, and the pause while the database is away."""

PAGE = 500
"""Events read, or handed to one watcher, at a time."""

RECENT = 2000
"""Newest events in memory, about 1 KB each, for all watchers together; who is further behind reads the table."""

REPLAYS = 2
"""Watchers that read the table at once: a thousand that come back together must not keep uploads from the pool."""

ResultT = TypeVar("ResultT")


class EventTable(Protocol):
    """What the hub reads. Raises SQLAlchemyError or OSError while the database is away."""

    async def held_numbers(self) -> HeldNumbers:
        """Which numbers there are."""

    async def events_after(self, after: int, limit: int, image_id: UUID | None) -> list[Event]:
        """The next events, of one image only if given."""

    async def image_outlook(self, image_id: UUID, after: int) -> ImageOutlook | None:
        """What a reader of one image's events has before it."""


class PostgresEvents:
    """The event table of a database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def held_numbers(self) -> HeldNumbers:
        """See `darkroom.database.events`, as for the others."""
        return await self._read(events.held_numbers)

    async def events_after(self, after: int, limit: int, image_id: UUID | None) -> list[Event]:
        """The next events."""
        return await self._read(lambda connection: events.events_after(connection, after, limit, image_id))

    async def image_outlook(self, image_id: UUID, after: int) -> ImageOutlook | None:
        """One image's state, and what is to come."""
        return await self._read(lambda connection: events.image_outlook(connection, image_id, after))

    async def _read(self, query: Callable[[Connection], ResultT]) -> ResultT:
        async with self._engine.connect() as connection:
            return await connection.run_sync(query)


class EventHub:
    """One per process: follows the numbered events and wakes those who wait for them.

    Watchers have no queues. Each is a position in the one list of recent events, so a slow one costs no memory, and
    one that the list has left behind goes on from the table: it loses nothing and delays nobody.
    """

    def __init__(self, table: EventTable) -> None:
        self._table = table
        self._recent: list[Event] = []
        self._forgotten = 0
        """`_recent` has every event after this number, up to `_position`."""
        self._position: int | None = None
        self._bell = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[UUID | None, set[Watch]] = {}
        self._replays = asyncio.Semaphore(REPLAYS)
        self.is_closed = False
        """Whether the gateway is ending: watches are over, and clients resume elsewhere."""

    def set(self) -> None:
        """Has the hub look for new events at once. May be called from any thread while the loop runs."""
        self._loop.call_soon_threadsafe(self._bell.set)

    async def run(self) -> None:
        """Follows the table until it is closed; outlives every outage of the database."""
        while not self.is_closed:
            self._bell.clear()
            try:
                has_more = await self._advance()
            except (SQLAlchemyError, OSError) as error:
                log.warning("events.pause", extra={"error": repr(error), "pause_s": POLL_S})
                has_more = False
            if not has_more:
                await _until(self._bell, POLL_S)

    def close(self) -> None:
        """Ends every watch after what it has been given. Call it in the loop's thread."""
        self.is_closed = True
        self._bell.set()
        for watches in self._waiting.values():
            for watch in watches:
                watch.wake()
        self._waiting.clear()

    async def subscribe(
        self, after: int | None = None, image_id: UUID | None = None, *, follow: bool = True
    ) -> "Watch":
        """The events after number `after`, first from the table and then as they happen.

        Without `after`, all events begin now, and an image's with the oldest that is still held. With `follow=False`
        an image's end after its final event, and are over from the start when `after` was that. Raises the problems
        `events-expired` and `image-not-found`, and SQLAlchemyError when the database is away.
        """
        to_come = None
        if image_id is not None:
            outlook = await self._table.image_outlook(image_id, after or 0)
            if outlook is None:
                raise image_not_found(image_id)
            if not follow:
                to_come = outlook.final_events
            if to_come == 0 and after is None:
                raise image_not_found(image_id) if outlook.state == "deleted" else _image_expired(image_id)
        if after is None and image_id is None and self._position is not None:
            after = self._position
        elif after is None or self._position is None or not self._forgotten <= after <= self._position:
            held = await self._table.held_numbers()
            if after is None:
                after = held.newest if image_id is None else held.forgotten
            _check_held(after, held)
        return Watch(self, after, image_id, to_come)

    async def _advance(self) -> bool:
        """Takes in what is new; returns whether there may be more."""
        if self._position is None:
            self._position = self._forgotten = (await self._table.held_numbers()).newest
        after = self._position
        new = await self._table.events_after(after, PAGE, None)
        if new:
            self._take(new)
        return len(new) == PAGE

    def _take(self, new: Sequence[Event]) -> None:
        self._recent.extend(new)
        self._position = new[-1].id
        if len(self._recent) >= 2 * RECENT:
            self._forgotten = self._recent[-RECENT - 1].id
            del self._recent[:-RECENT]
        for event in new:
            for key in {None, event.image_id}:
                for watch in self._waiting.pop(key, ()):
                    watch.wake(event.id - 1)

    def recent(self, after: int) -> list[Event] | None:
        """Up to a page of events after a number; None when only the table has them all."""
        if self._position is None or after < self._forgotten:
            return None
        start = bisect_right(self._recent, after, key=attrgetter("id"))
        return self._recent[start : start + PAGE]

    async def replay(self, after: int, image_id: UUID | None) -> list[Event]:
        """A page of the table; raises `events-expired` when some of it has gone."""
        async with self._replays:
            found = await self._table.events_after(after, PAGE, image_id)
            _check_held(after, await self._table.held_numbers())  # after it: what goes, goes from the front
        return found

    @property
    def position(self) -> int:
        """The newest number that has been handed out; 0 before the first."""
        return self._position or 0

    def has_handed_out(self, number: int) -> bool:
        """Whether a watch that stands at this number has to wait for the next event."""
        return self._position is not None and number >= self._position

    def wait(self, watch: "Watch", image_id: UUID | None) -> None:
        """Has a watch woken by the next event, of one image only if given."""
        self._waiting.setdefault(image_id, set()).add(watch)

    def forget(self, watch: "Watch", image_id: UUID | None) -> None:
        """Takes back `wait`."""
        watches = self._waiting.get(image_id, set())
        watches.discard(watch)
        if not watches:
            self._waiting.pop(image_id, None)


class Watch(AsyncIterator[Event]):
    """One watcher's way through the events; for one task at a time, which may be cancelled and go on."""

    def __init__(self, hub: EventHub, position: int, image_id: UUID | None, to_come: int | None) -> None:
        self._hub = hub
        self._image_id = image_id
        self._to_come = to_come
        """Final events until the end; None: there is no end."""
        self._woken = asyncio.Event()
        self._taken: list[Event] = []
        self.position = position
        """Everything up to this number has been handed out: where to resume."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come, because of the image's final event or because the gateway ends."""
        return self._to_come == 0 or self._hub.is_closed

    @property
    def is_cut(self) -> bool:
        """Whether the gateway's end came before this watch's own."""
        return self._to_come != 0 and self._hub.is_closed

    async def __anext__(self) -> Event:
        """The next event."""
        while not self._taken:
            if self.is_over:
                raise StopAsyncIteration
            self._taken = list(reversed(await self.batch()))
        return self._taken.pop()

    async def batch(self, idle_s: float = 60.0) -> Sequence[Event]:
        """The next events, a page at most; none when nothing came for `idle_s` or the watch is over.

        Raises `events-expired` when the table has lost what this watch was about to read.
        """
        try:
            async with asyncio.timeout(idle_s):
                while not self.is_over:
                    if found := await self._available():
                        return self._up_to_the_end(found)
                    if self._hub.has_handed_out(self.position):
                        await self._next_wake()
        except TimeoutError:
            pass
        return []

    async def _available(self) -> list[Event]:
        """What there is already, perhaps nothing; moves `position` past it."""
        recent = self._hub.recent(self.position)
        if recent is not None:
            self.position = recent[-1].id if recent else self.position
            return [event for event in recent if self._image_id in (None, event.image_id)]
        handed_out = self._hub.position
        try:
            found = await self._hub.replay(self.position, self._image_id)
        except (SQLAlchemyError, OSError) as error:
            log.warning("events.replay_pause", extra={"error": repr(error), "pause_s": POLL_S})
            await asyncio.sleep(POLL_S)
            return []
        if found:
            self.position = found[-1].id
        if len(found) < PAGE:  # there was no more for us when the hub stood there
            self.position = max(self.position, handed_out)
        if not found and not handed_out:
            await asyncio.sleep(POLL_S)  # the hub has not found the database yet
        return found

    async def _next_wake(self) -> None:
        self._woken.clear()
        self._hub.wait(self, self._image_id)
        try:
            await self._woken.wait()
        finally:
            self._hub.forget(self, self._image_id)
            if not self._woken.is_set():  # idle for too long: nothing that came meanwhile was for us
                self.position = max(self.position, self._hub.position)

    def wake(self, position: int = 0) -> None:
        """Called by the hub: nothing up to `position` was for this watch."""
        self.position = max(self.position, position)
        self._woken.set()

    def _up_to_the_end(self, found: list[Event]) -> list[Event]:
        if self._to_come is None:
            return found
        for index, event in enumerate(found):
            if event.type in FINAL_TYPES:
                self._to_come -= 1
                if self._to_come == 0:
                    self.position = event.id
                    return found[: index + 1]
        return found


async def _until(bell: asyncio.Event, at_most_s: float) -> None:
    try:
        async with asyncio.timeout(at_most_s):
            await bell.wait()
    except TimeoutError:
        pass


def _check_held(after: int, held: HeldNumbers) -> None:
    if after < held.forgotten:
        raise _expired(
            after, held.forgotten, f"Events after {after} are no longer all kept; the oldest number to resume from is"
        )
    if after > held.newest:
        raise _expired(after, held.newest, f"No event has the number {after} yet; the newest is")


def _expired(after: int, limit: int, text: str) -> PermanentError:
    return PermanentError.of(
        "events-expired",
        "The events after this number cannot be told",
        410,
        f"{text} {limit}.",
        value=after,
        limit=limit,
        remedy="Read the present state (GET /v1/images), and follow the events without a number.",
    )


def _image_expired(image_id: UUID) -> PermanentError:
    return PermanentError.of(
        "events-expired",
        "The image's events are no longer kept",
        410,
        f"The image {image_id} is finished, and its events are so old that they are no longer kept.",
        value=str(image_id),
        remedy="Read the image (GET /v1/images/{id}), or follow what happens to it from now on.",
    )
