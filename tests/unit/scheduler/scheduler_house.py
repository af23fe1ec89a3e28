"""A house of queues and workers under a clock of its own, with the reconciler's real rules: hours in milliseconds."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from darkroom.contracts.base import Lane
from darkroom.database.upkeep import FenceRecord
from scheduler.reconciler import CALM_EVERY, SUSPECT_AFTER, Deadlines, due_fences, overdue_before, path_of
from scheduler.schedule import RECONCILE_EVERY_S

START = datetime(2026, 5, 4, 12, tzinfo=UTC)
QUEUES = tuple(queue for stage in path_of(Lane.INTERACTIVE) for queue in stage)
PARTS = frozenset({"thumbnails", "embed"})


@dataclass
class Photo:
    """One original: when it was dispatched last, its generation, and the parts of its join that have come back."""

    dispatched_s: float = 0
    generation: int = 0
    joined: set[str] = field(default_factory=set)
    is_ready: bool = False


@dataclass(frozen=True)
class Work:
    """A message about a photo."""

    photo: Photo
    generation: int


@dataclass(frozen=True)
class Fence:
    """A fence, or on the queue `finalize` its return."""

    number: int
    is_back: bool = False


class House:
    """Queues, workers that take `per_s` messages a second unless they are stopped, and a reconciler."""

    def __init__(self, *, per_s: int, first_tick_s: float = 0) -> None:
        self.now_s = 0.0
        self.photos: list[Photo] = []
        self.stopped: set[str] = set()
        self.sent_again = 0
        self._per_s = per_s
        self._next_tick_s = first_tick_s
        self._queues: dict[str, deque[Work | Fence]] = {queue: deque() for queue in QUEUES}
        self._fences: list[FenceRecord] = []
        self._deadlines = Deadlines(timedelta(seconds=30))

    def dispatch(self, photos: Iterable[Photo]) -> None:
        """Publishes a dispatch of each."""
        for photo in photos:
            photo.dispatched_s, photo.generation, photo.joined = self.now_s, photo.generation + 1, set()
            self._queues["prepare"].append(Work(photo, photo.generation))

    def lose_everything(self) -> None:
        """Purges every queue and forgets every join."""
        for queue in self._queues.values():
            queue.clear()
        for photo in self.photos:
            photo.joined = set()
            photo.generation += 1  # whatever a worker still holds joins nothing

    def run(self, seconds: int) -> None:
        """Lets time pass."""
        for _ in range(seconds):
            for queue in QUEUES:
                if queue not in self.stopped:
                    self._work(queue)
            self.now_s += 1
            if self.now_s >= self._next_tick_s:
                self._next_tick_s += RECONCILE_EVERY_S
                self._reconcile()

    @property
    def unfinished(self) -> list[Photo]:
        """The photos that are not ready."""
        return [photo for photo in self.photos if not photo.is_ready]

    def _work(self, name: str) -> None:
        queue = self._queues[name]
        for _ in range(min(self._per_s, len(queue))):
            match queue.popleft():
                case Fence(number, is_back=True):
                    index = number - 1
                    sent = self._fences[index]
                    self._fences[index] = FenceRecord(number, sent.queue, sent.sent_at, self._at(self.now_s))
                case Fence(number):
                    self._queues["finalize"].append(Fence(number, is_back=True))
                case Work() as work:
                    self._go_on(name, work)

    def _go_on(self, name: str, work: Work) -> None:
        photo = work.photo
        if name == "prepare":
            for part in PARTS:
                self._queues[part].append(work)
        elif name in PARTS:
            if work.generation == photo.generation:
                photo.joined.add(name)
                if photo.joined == PARTS:
                    self._queues["finalize"].append(work)
        else:
            photo.is_ready = True

    def _reconcile(self) -> None:
        now = self._at(self.now_s)
        unfinished = self.unfinished
        before = overdue_before(path_of(Lane.INTERACTIVE), self._fences, now, self._deadlines)
        if before is not None:
            lost = [photo for photo in unfinished if self._at(photo.dispatched_s) < before]
            self.sent_again += len(lost)
            self.dispatch(lost)
        is_late = any(self._at(photo.dispatched_s) < now - SUSPECT_AFTER for photo in unfinished)
        empty = {queue for queue, waiting in self._queues.items() if not waiting}
        every = timedelta(0) if is_late else CALM_EVERY
        for queue in due_fences(self._fences, QUEUES, now, every=every, empty=empty):
            number = len(self._fences) + 1
            self._fences.append(FenceRecord(number, queue, now, None))
            self._queues[queue].append(Fence(number))

    def _at(self, seconds: float) -> datetime:
        return START + timedelta(seconds=seconds)
