"""When an upload may begin."""

from contextlib import AsyncExitStack

import anyio
import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.requests import ClientDisconnect

from darkroom.errors import PermanentError, TransientError
from gateway.errors import retry_after_s
from gateway.pressure import Face, Load, Pressure, UploadLimits
from gateway.problems import database_away, storage_away

LIMITS = UploadLimits(kept_free_bytes=1000, backlog=10, at_once={Face.REST: 3, Face.GRPC: 1})


class Disk:
    """As much of a store as is asked."""

    def __init__(self, free: int | None) -> None:
        self.free = free
        self.asked = 0

    def free_bytes(self) -> int | None:
        self.asked += 1
        return self.free


def pressure_of(load: Load) -> Pressure:
    """One whose last answer is this load, for ever."""

    class Known(Pressure):
        async def load(self) -> Load:
            return load

    return Known(None, None, LIMITS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "load", "expected_bytes", "refusal", "retry_s"),
    [
        ("all is well", Load(5000, 9), 4000, None, None),
        ("an object store is never full", Load(None, 9), 10**12, None, None),
        ("the reserve would be touched", Load(5000, 0), 4001, "storage-full", 60),
        ("the reserve is touched", Load(999, 0), 0, "storage-full", 60),
        ("the backlog is at its limit", Load(5000, 10), 0, "backlog-full", 10),
        ("the database is away", Load(away=database_away()), 0, "database-unavailable", 2),
        ("the store is away", Load(away=storage_away()), 0, "storage-unavailable", 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_upload_is_refused_before_it_begins(
    name: str, load: Load, expected_bytes: int, refusal: str | None, retry_s: int | None
) -> None:
    found = pressure_of(load).refusal(load, expected_bytes)
    assert (found and found.slug) == refusal
    assert (found and retry_after_s(found)) == retry_s


@pytest.mark.anyio
async def test_uploads_that_are_on_their_way_hold_their_room() -> None:
    pressure = pressure_of(Load(5000, 0))
    async with pressure.admitted(Face.REST, 3000):
        with pytest.raises(PermanentError, match="no room"):
            async with pressure.admitted(Face.REST, 2000):
                pass
        async with pressure.admitted(Face.REST, 1000):
            pass
    async with pressure.admitted(Face.REST, 4000):
        pass


@pytest.mark.anyio
async def test_each_face_receives_so_many_uploads_at_once_and_takes_more_when_one_has_ended() -> None:
    pressure = pressure_of(Load(5000, 0))
    async with AsyncExitStack() as under_way:
        for face in (Face.REST, Face.GRPC, Face.REST):
            await under_way.enter_async_context(pressure.admitted(face))
        for _ in range(2):  # who is refused takes nobody's place
            with pytest.raises(TransientError, match="1 uploads are being received") as refusal:
                async with pressure.admitted(Face.GRPC):
                    pass
        assert "DARKROOM_MAX_GRPC_UPLOADS_AT_ONCE" in refusal.value.problem.remedy
        with pytest.raises(ClientDisconnect):
            async with pressure.admitted(Face.REST):
                raise ClientDisconnect
        async with pressure.admitted(Face.REST):
            pass
    async with pressure.admitted(Face.GRPC):
        pass


@pytest.mark.anyio
async def test_a_database_that_is_away_is_asked_once_a_second_by_however_many() -> None:
    engine = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/none", connect_args={"connect_timeout": 2})
    asked = []

    class Counting(Pressure):
        async def _ask(self) -> Load:
            asked.append(now[0])
            return await super()._ask()

    now = [0.0]
    disk = Disk(5000)
    pressure = Counting(engine, disk, LIMITS, clock=lambda: now[0])  # type: ignore[arg-type]

    async def upload() -> None:
        with pytest.raises(TransientError, match="PostgreSQL"):
            async with pressure.admitted(Face.REST, 1):
                pass

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(upload)
    now[0] = 0.9
    await upload()
    now[0] = 1.0
    await upload()
    assert (asked, disk.asked) == ([0.0, 1.0], 0)
    await engine.dispose()
