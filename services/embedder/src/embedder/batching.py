"""Which requests are computed together, and when: decided from counts and a clock alone."""

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

QUERY_WINDOW = 4
"""Searches held at once; they never wait for each other's batch to fill."""

QUERY_TURNS = 8
"""After so many batches of searches in a row, waiting pictures get one batch: a flood of searches cannot stop them."""

BULK_SHARE = 0.25
"""Of the batches that interactive pictures are in: bulk never stands still, and delays them by no more than this."""

TURNS_AHEAD = 3
"""Finished interactive pictures that are handed over before a finished bulk one that waits: bulk keeps its share."""

HELD_BATCHES = 2
"""Of each lane, one batch is computed while the next one is already here."""


class Kind(Enum):
    """The three lists of the buffer, in the order in which they are emptied."""

    QUERY = "query"
    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True)
class Sizes:
    """How many pictures go into one batch, and how many messages of each kind the worker holds unacknowledged."""

    batch: int
    query: int
    interactive: int
    bulk: int

    @classmethod
    def fitting(cls, batch_size: int, picture_s: float, held_s: float) -> "Sizes":
        """The sizes for a model that takes `picture_s` seconds a picture: a slow one gets smaller batches.

        So small that no message is held longer than about `held_s`, even a bulk one that moves by its share alone.
        """
        batches_passing = HELD_BATCHES / BULK_SHARE + 1
        batch = max(1, min(batch_size, int(held_s / (batches_passing * picture_s))))
        return cls(batch, QUERY_WINDOW, HELD_BATCHES * batch, HELD_BATCHES * batch)


class Buffer(Generic[ItemT]):
    """Requests that wait for a batch."""

    def __init__(self, sizes: Sizes, wait_s: float) -> None:
        self._sizes = sizes
        self._wait_s = wait_s
        self._waiting: dict[Kind, deque[tuple[float, ItemT]]] = {kind: deque() for kind in Kind}
        self._query_turns = 0
        self._bulk_due = 0.0

    def add(self, kind: Kind, item: ItemT, now_s: float) -> None:
        """Puts an item behind the others of its kind."""
        self._waiting[kind].append((now_s, item))

    def clear(self) -> list[ItemT]:
        """Forgets everything, because its deliveries belong to a connection that is gone; returns what it was."""
        forgotten = [item for waiting in self._waiting.values() for _, item in waiting]
        for waiting in self._waiting.values():
            waiting.clear()
        return forgotten

    @property
    def has_query(self) -> bool:
        """Whether a search waits."""
        return bool(self._waiting[Kind.QUERY])

    @property
    def is_urgent(self) -> bool:
        """Whether somebody waits for an answer: a search, or whoever uploaded an interactive picture."""
        return self.has_query or bool(self._waiting[Kind.INTERACTIVE])

    @property
    def is_full(self) -> bool:
        """Whether waiting longer would not make the next batch any larger."""
        return self._pictures() >= self._sizes.batch

    def due_at(self) -> float | None:
        """When the next batch should begin, on the clock of `add`; None while nothing waits.

        A search and a full batch are due at once; others when the oldest has waited its time for company.
        """
        since = [waiting[0][0] for waiting in self._waiting.values() if waiting]
        if not since:
            return None
        return min(since) if self.has_query or self.is_full else min(since) + self._wait_s

    def take(self) -> list[ItemT]:
        """The next batch, oldest first within each kind; empty when nothing waits.

        Searches go alone: their batch is small and quick. Interactive pictures fill a batch with a share kept for
        bulk, which gets no more than that share while any of them wait.
        """
        if self.has_query and not (self._query_turns >= QUERY_TURNS and self._pictures()):
            self._query_turns += 1
            return self._pop(Kind.QUERY, self._sizes.query)
        self._query_turns = 0
        interactive, bulk = len(self._waiting[Kind.INTERACTIVE]), len(self._waiting[Kind.BULK])
        if not interactive:
            return self._pop(Kind.BULK, self._sizes.batch)
        # Kept as a fraction over several batches, because a quarter of a small batch is no whole picture.
        self._bulk_due = min(self._bulk_due + self._sizes.batch * BULK_SHARE, self._sizes.batch) if bulk else 0.0
        share = min(int(self._bulk_due), bulk)
        self._bulk_due -= share
        return self._pop(Kind.INTERACTIVE, self._sizes.batch - share) + self._pop(Kind.BULK, share)

    def _pictures(self) -> int:
        return len(self._waiting[Kind.INTERACTIVE]) + len(self._waiting[Kind.BULK])

    def _pop(self, kind: Kind, limit: int) -> list[ItemT]:
        waiting = self._waiting[kind]
        return [waiting.popleft()[1] for _ in range(min(limit, len(waiting)))]


class Outcomes(Generic[ItemT]):
    """What is computed and is handed over one at a time: to record a result can take longer than to compute it."""

    def __init__(self) -> None:
        self._waiting: dict[Kind, deque[ItemT]] = {kind: deque() for kind in Kind}
        self._turns_ahead = 0

    def __bool__(self) -> bool:
        return any(self._waiting.values())

    def add(self, kind: Kind, item: ItemT) -> None:
        """Puts an item behind the others of its kind."""
        self._waiting[kind].append(item)

    def clear(self) -> list[ItemT]:
        """Forgets everything; returns what it was."""
        forgotten = [item for waiting in self._waiting.values() for item in waiting]
        for waiting in self._waiting.values():
            waiting.clear()
        return forgotten

    def take(self) -> ItemT:
        """The next one: searches first, then interactive before bulk, which gets every fourth turn of theirs.

        Raises `IndexError` when nothing waits.
        """
        query, interactive, bulk = (self._waiting[kind] for kind in Kind)
        if query:
            return query.popleft()
        if interactive and (not bulk or self._turns_ahead < TURNS_AHEAD):
            self._turns_ahead += bool(bulk)
            return interactive.popleft()
        self._turns_ahead = 0
        return bulk.popleft()
