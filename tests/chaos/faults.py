"""Every kind of fault that a storm brings. Each waits for what it can harm, then harms it."""

import os
import random
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from darkroom_house import House, InFlight, Stage, connection_errors
from kombu import Producer
from kombu.message import Message
from redis.exceptions import RedisError

from darkroom.contracts import keys
from darkroom.topology import CONSUMED_BY, TASKS, task_queue
from darkroom_cli.local import SERVICES

POOLS = ("thumbnailer", "thumbnailer-bulk", "maintenance")
"""The processes that work in children."""

PURGED = ("prepare", "prepare.bulk", "thumbnails", "thumbnails.bulk", "embed", "embed.bulk", "finalize")

BROKEN_AT_ONCE = 4
"""Photos of which one blob is broken."""


def concerns(process: str, photo: InFlight) -> bool:
    """Whether the next step of a photo is this process's."""
    match process:
        case "dispatcher":
            return photo.stage is Stage.WAITING
        case "thumbnailer":
            return photo.lane == "interactive" and photo.stage in (Stage.DISPATCHED, Stage.PREPARED)
        case "thumbnailer-bulk":
            return photo.lane == "bulk" and photo.stage in (Stage.DISPATCHED, Stage.PREPARED)
        case "embedder":
            return photo.stage is Stage.PREPARED
        case "finalize":
            return photo.stage in (Stage.PREPARED, Stage.MADE)
    return True


Meanwhile = Callable[[], object]
"""Lets something happen in the middle of a fault."""


class MissedError(Exception):
    """What was to be harmed had gone by itself a moment before."""


class Fault(ABC):
    """One fault on one house. `choose` and `hold_s` are its strike's own."""

    poll_s = 0.02
    """How often it looks for work: a small photo is through a step in some tens of milliseconds."""

    def __init__(self, house: House, choose: random.Random, hold_s: float) -> None:
        self.house = house
        self.choose = choose
        self.hold_s = hold_s

    def arm(self) -> None:
        """Whatever must be so before work comes that can be harmed; called again when none came."""
        return

    def work(self, since: datetime) -> Counter[str]:
        """What is in flight that the fault would harm; nothing: it must wait."""
        return Counter(photo.stage.value for photo in self.house.in_flight(since) if self.harms(photo))

    def harms(self, photo: InFlight) -> bool:
        """Whether the fault can strike this photo."""
        return True

    @abstractmethod
    def strike(self, meanwhile: Meanwhile) -> str:
        """Does it, calls `meanwhile` in the middle of it, and returns when its cause is gone.

        The answer says what was hit, as far as the kind does not. Raises `MissedError`.
        """


class OnProcess(Fault):
    """A fault of one process, or of one child of its pool; `part`: of what in it there must be work."""

    poll_s = 0.005

    def __init__(
        self,
        house: House,
        choose: random.Random,
        hold_s: float,
        *,
        process: str,
        is_child: bool = False,
        part: str | None = None,
    ) -> None:
        super().__init__(house, choose, hold_s)
        self.process = process
        self.is_child = is_child
        self.part = part or process

    def arm(self) -> None:
        self.house.pid(self.process)

    def harms(self, photo: InFlight) -> bool:
        return concerns(self.part, photo)

    def work(self, since: datetime) -> Counter[str]:
        # A process that is just coming back has no child yet.
        if self.is_child and self.house.child(self.process) is None:
            return Counter()
        return super().work(since)

    def victim(self) -> int:
        """The id of the process to strike."""
        return (self.house.child(self.process) if self.is_child else None) or self.house.pid(self.process)


class Kill(OnProcess):
    """kill -9. The storm goes on while the supervisor starts it again."""

    def strike(self, meanwhile: Meanwhile) -> str:
        pid = self.victim()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError as error:
            raise MissedError(f"{self.process} had ended") from error
        meanwhile()
        return ""


class Pause(OnProcess):
    """SIGSTOP and, after a while, SIGCONT: to all of a process's group, or to one child."""

    def strike(self, meanwhile: Meanwhile) -> str:
        pid = self.victim()
        with self.house.stopped(pid, is_group=not self.is_child):
            meanwhile()
            time.sleep(self.hold_s)
        return f"{self.hold_s:g} s"


class Restart(Fault):
    """A server is ended, by kill -9 unless `by` is another signal, and comes back with what it had on its disk."""

    def __init__(
        self,
        house: House,
        choose: random.Random,
        hold_s: float,
        *,
        server: Callable[[House], str],
        by: signal.Signals = signal.SIGKILL,
    ) -> None:
        super().__init__(house, choose, hold_s)
        self.server = server(house)
        self.by = by

    def strike(self, meanwhile: Meanwhile) -> str:
        pid = self.house.pid(self.server)
        os.kill(pid, self.by)
        meanwhile()
        begun = time.monotonic()
        self.house.await_another(self.server, pid)
        return f"{self.server}, away for {time.monotonic() - begun:.0f} s"


class HangBroker(Fault):
    """The broker holds its connections open and answers nothing."""

    def strike(self, meanwhile: Meanwhile) -> str:
        with self.house.stopped(self.house.pid(self.house.broker_process), is_group=True):
            meanwhile()
            time.sleep(self.hold_s)
        return f"{self.house.broker_process}, {self.hold_s:g} s"


class FlushRedis(Fault):
    """Results, joins and tries markers are gone; where Redis is the broker, messages and bindings too."""

    def harms(self, photo: InFlight) -> bool:
        return photo.stage is Stage.PREPARED

    def strike(self, meanwhile: Meanwhile) -> str:
        with self.house.redis() as redis:
            held = int(redis.dbsize())
            redis.flushall()
        meanwhile()
        return f"{held} keys"


class FillDisk(Fault):
    """Nothing more can be written to the blob store for a while."""

    def strike(self, meanwhile: Meanwhile) -> str:
        with self.house.disk.full():
            meanwhile()
            time.sleep(self.hold_s)
        return f"{self.hold_s:g} s"


class OnQueue(Fault):
    """A fault of the messages that wait in one queue. Its consumer is killed first, so that some do."""

    poll_s = 0.1
    at_least = 1

    def __init__(self, house: House, choose: random.Random, hold_s: float) -> None:
        super().__init__(house, choose, hold_s)
        self.queue = choose.choice(PURGED)

    def arm(self) -> None:
        consumer = CONSUMED_BY[self.queue].value
        with suppress(ProcessLookupError):
            os.kill(self.house.pid(consumer), signal.SIGKILL)

    def work(self, since: datetime) -> Counter[str]:
        waiting = self.house.depth(self.queue)
        return Counter({f"in {self.queue}": waiting} if waiting >= self.at_least else {})


class PurgeQueue(OnQueue):
    """Whoever keeps the broker purged a queue."""

    def strike(self, meanwhile: Meanwhile) -> str:
        with self.house.broker() as connection, connection.channel() as channel:
            purged = task_queue(self.queue)(channel).purge()
        if not purged:
            raise MissedError(f"nothing waited in {self.queue}")
        meanwhile()
        return f"{purged} messages of {self.queue}"


class ShuffleQueue(OnQueue):
    """Messages are taken from a queue and put back twice, in another order."""

    at_least = 2

    def strike(self, meanwhile: Meanwhile) -> str:
        taken: list[Message] = []
        with self.house.broker() as connection, connection.channel() as channel:
            queue, producer = task_queue(self.queue)(channel), Producer(channel)
            while (message := queue.get(no_ack=False)) is not None:
                taken.append(message)
            meanwhile()
            for message in self.choose.sample(taken * 2, 2 * len(taken)):
                publish_again(producer, self.queue, message)
            for message in taken:
                message.ack()
        if len(taken) < self.at_least:
            raise MissedError(f"{len(taken)} messages waited in {self.queue}")
        return f"{len(taken)} messages of {self.queue}, each twice"


def publish_again(producer: Producer, queue: str, message: Message) -> None:
    """Publishes a message that was taken from a queue, as it was, to the same queue."""
    kept = ("correlation_id", "reply_to", "priority", "expiration")
    producer.publish(
        message.body,
        exchange=TASKS.name,
        routing_key=queue,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers={name: value for name, value in message.headers.items() if not name.startswith("x-")},
        **{name: message.properties[name] for name in kept if message.properties.get(name) is not None},
    )


class BreakBlobs(Fault):
    """Artefacts are cut, emptied and removed: of photos in flight and of finished ones. Never an original."""

    def harms(self, photo: InFlight) -> bool:
        return photo.stage in (Stage.PREPARED, Stage.MADE)

    def work(self, since: datetime) -> Counter[str]:
        photos = [photo for photo in self.house.in_flight(since) if self.harms(photo)]
        self.on_their_way = [photo.sha256 for photo in photos]
        return Counter(photo.stage.value for photo in photos)

    def strike(self, meanwhile: Meanwhile) -> str:
        finished = [str(row[0]) for row in self.house.rows("SELECT sha256 FROM originals WHERE status = 'ready'")]
        meanwhile()
        victims = self.on_their_way[: BROKEN_AT_ONCE // 2]
        victims += self.choose.sample(sorted(finished), min(len(finished), BROKEN_AT_ONCE - len(victims)))
        broken = list(filter(None, map(self._break_one, victims)))
        if not broken:
            raise MissedError("nothing was there any more")
        return ", ".join(broken)

    def _break_one(self, sha256: str) -> str:
        root = self.house.store.root
        derived = (root / keys.derived_prefix(sha256)).rglob("*.*")
        blobs = sorted(path for path in (*derived, *self.house.vectors(sha256)) if path.is_file())
        if not blobs:
            return ""
        path = self.choose.choice(blobs)
        way = self.choose.choice(list(WAYS))
        try:
            WAYS[way](path)
        except FileNotFoundError:
            return ""
        name = "vector" if path.suffix == ".npy" else path.name
        return f"{way} {name} of {sha256[:8]}"


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


WAYS: Mapping[str, Callable[[Path], None]] = {
    "cut": _cut,
    "emptied": lambda path: os.truncate(path, 0),
    "removed": Path.unlink,
}


MakeFault = Callable[[House, random.Random, float], Fault]

KINDS: Mapping[str, MakeFault] = {
    **{f"kill {one.name}": partial(Kill, process=one.name) for one in SERVICES},
    **{f"pause {one.name}": partial(Pause, process=one.name) for one in SERVICES},
    # A thread of the gateway: nothing harms it alone, but these strike while photos wait for it.
    "kill the dispatcher": partial(Kill, process="gateway", part="dispatcher"),
    "pause the dispatcher": partial(Pause, process="gateway", part="dispatcher"),
    **{f"kill a child of {name}": partial(Kill, process=name, is_child=True) for name in POOLS},
    **{f"pause a child of {name}": partial(Pause, process=name, is_child=True) for name in POOLS},
    "restart the broker": partial(Restart, server=lambda house: house.broker_process),
    "hang the broker": HangBroker,
    "flush Redis": FlushRedis,
    "restart Redis": partial(Restart, server=lambda house: "redis"),
    # The postmaster ends its sessions in good order; kill -9 has it recover from its log.
    "restart PostgreSQL": partial(Restart, server=lambda house: "postgres", by=signal.SIGINT),
    "kill PostgreSQL": partial(Restart, server=lambda house: "postgres"),
    "fill the disk": FillDisk,
    "purge a queue": PurgeQueue,
    "duplicate and reorder messages": ShuffleQueue,
    "break blobs": BreakBlobs,
}
"""Every kind by its name. Each service is killed and paused, also those that will be added."""


@dataclass(frozen=True)
class Struck:
    """One strike as it was: when, in seconds since the storm began, what was in flight, what was hit."""

    at_s: float
    kind: str
    in_flight: dict[str, int]
    hit: str
    took_s: float


def missed(house: House) -> tuple[type[Exception], ...]:
    """What a strike may meet that came too late, or because an earlier fault is still felt: it tries again."""
    return (MissedError, *connection_errors(house.broker()), RedisError, OSError)
