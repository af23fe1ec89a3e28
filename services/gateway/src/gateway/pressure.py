"""Whether an upload may begin. Asked before its first byte is read, so that a refusal costs nobody anything."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from anyio.to_thread import run_sync
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom.contracts.problems import Problem
from darkroom.database import images
from darkroom.errors import PermanentError
from darkroom.storage import BlobStore
from gateway.errors import UnavailableError
from gateway.problems import backlog_full, database_away, storage_away, storage_full, too_many_uploads

FRESH_S = 1.0
"""How long an answer holds: one query and one look at the disk a second, however many uploads come."""

ANSWER_S = 5.0
"""A database that takes longer for sixteen rows is as good as away."""


class Face(StrEnum):
    """Over which an upload comes, by the setting that bounds it."""

    REST = "DARKROOM_MAX_UPLOADS_AT_ONCE"
    GRPC = "DARKROOM_MAX_GRPC_UPLOADS_AT_ONCE"


@dataclass(frozen=True)
class UploadLimits:
    """How much may be taken in: bytes of the store that stay free, images in flight, and uploads at once."""

    kept_free_bytes: int
    backlog: int
    at_once: Mapping[Face, int]


@dataclass(frozen=True)
class Load:
    """How things stood: free bytes of the store (None: as many as one pays for), images in flight, what is away."""

    free_bytes: int | None = None
    in_flight: int = 0
    away: Problem | None = None


class Pressure:
    """Refuses uploads while the database or the store is away, too much waits or comes at once, or the disk is full."""

    def __init__(
        self,
        engine: AsyncEngine,
        store: BlobStore,
        limits: UploadLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._store = store
        self._limits = limits
        self._clock = clock
        self._asking = asyncio.Lock()
        self._load: Load | None = None
        self._asked_at = 0.0
        self._expected_bytes = 0
        self._at_once = Counter[Face]()

    @asynccontextmanager
    async def admitted(self, face: Face, expected_bytes: int = 0) -> AsyncIterator[None]:
        """Lets an upload of about that many bytes begin, and holds room for it until the block ends.

        Raises the problems `database-unavailable`, `storage-unavailable`, `backlog-full`, `storage-full` and
        `too-many-uploads`.
        """
        if refusal := self.refusal(await self.load(), expected_bytes) or self._crowded(face):
            raise PermanentError(refusal) if refusal.status == 507 else UnavailableError(refusal)
        self._expected_bytes += expected_bytes
        self._at_once[face] += 1
        try:
            yield
        finally:
            self._expected_bytes -= expected_bytes
            self._at_once[face] -= 1

    def _crowded(self, face: Face) -> Problem | None:
        limit = self._limits.at_once[face]
        return too_many_uploads(limit, face) if self._at_once[face] >= limit else None

    def refusal(self, load: Load, expected_bytes: int = 0) -> Problem | None:
        """Why an upload of that many bytes may not begin; None: it may."""
        if load.away is not None:
            return load.away
        if load.in_flight >= self._limits.backlog:
            return backlog_full(load.in_flight, self._limits.backlog)
        if load.free_bytes is not None:
            # What has arrived of the others is counted twice, as written and as expected: the safe side.
            left = load.free_bytes - self._expected_bytes - expected_bytes
            if left < self._limits.kept_free_bytes:
                return storage_full(load.free_bytes, self._limits.kept_free_bytes)
        return None

    async def load(self) -> Load:
        """How things stand, at most a second old."""
        async with self._asking:
            if self._load is None or self._clock() - self._asked_at >= FRESH_S:
                self._load = await self._ask()
                self._asked_at = self._clock()
            return self._load

    async def _ask(self) -> Load:
        try:
            async with asyncio.timeout(ANSWER_S), self._engine.connect() as connection:
                ledger = await connection.run_sync(images.read_ledger)
        except (SQLAlchemyError, OSError, TimeoutError):
            return Load(away=database_away())
        try:
            return Load(await run_sync(self._store.free_bytes), ledger["in_flight"])
        except OSError:
            return Load(away=storage_away())
