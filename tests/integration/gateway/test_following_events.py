"""Server-sent events on a real gateway: every event once, in order, over cuts, outages and a thousand watchers."""

import asyncio
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from conftest import eventually
from gateway_outcomes import fail, finish
from gateway_pictures import picture
from gateway_serving import Served
from gateway_streams import Stream
from sqlalchemy import Engine, text

from darkroom.contracts.events import Event
from darkroom.database import events as table
from darkroom.database import outcomes, upkeep
from darkroom.database.engine import migrate, sync_engine
from darkroom.settings import DatabaseSettings
from darkroom_cli.servers import ChildProcess, PostgresServer
from darkroom_cli.servers.ports import reserve_port
from gateway import events as hubs
from gateway.rest import events as rest

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]
CONSUMER = Path(__file__).parents[3] / "examples" / "consume_events.py"


def happen(engine: Engine, count: int, image_id: UUID | None = None, detail: str = "") -> None:
    """Inserts events in one transaction, not numbered yet."""
    problem = (
        f'{{"type": "https://darkroom.example/problems/x", "title": "x", "status": 422, "detail": "{detail}"}}'
        if detail
        else None
    )
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO events (type, batch_id, image_id, problem) SELECT 'image.accepted', gen_random_uuid(), "
                ":image, CAST(:problem AS jsonb) FROM generate_series(1, :count)"
            ),
            {"count": count, "image": image_id or uuid4(), "problem": problem},
        )


def number(engine: Engine) -> None:
    """Does the relay's part that readers need."""
    with engine.begin() as connection:
        while table.number_events(connection, 1000):
            pass


def numbers(engine: Engine, image_id: UUID | None = None) -> list[int]:
    with engine.connect() as connection:
        return [event.id for event in table.events_after(connection, 0, 10**6, image_id)]


@contextmanager
def numbering(engine: Engine) -> Iterator[None]:
    """Numbers what is committed for as long as the block runs, and once more."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(0.01):
            number(engine)
        number(engine)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_a_stream_tells_an_image_from_upload_to_ready(gateway: Served, engine: Engine) -> None:
    image, other = gateway.accepted(picture(1), picture(2))
    number(engine)

    async def watch() -> list[dict[str, object]]:
        stream = await Stream.open(gateway.url, f"/v1/images/{image['id']}/events")
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        told = []
        async for event in stream.events():
            told.append(event)
            if len(told) == 1:
                await asyncio.to_thread(fail, engine, other["sha256"])
                await asyncio.to_thread(finish, engine, gateway.parts.store, image["sha256"], [1.0, 0.0, 0.0])
                await asyncio.to_thread(number, engine)
        assert stream.is_complete
        return told

    told = asyncio.run(watch())
    with engine.connect() as connection:
        stored = table.events_after(connection, 0, 10, UUID(image["id"]))
    assert [event["type"] for event in told] == ["image.accepted", "image.ready"]
    assert told == [event.to_wire() for event in stored], "as on the exchange"


def test_a_finished_image_is_told_and_ended_unless_it_is_followed(gateway: Served, engine: Engine) -> None:
    (image,) = gateway.accepted(picture(1))
    path = f"/v1/images/{image['id']}/events"
    fail(engine, image["sha256"])
    with engine.begin() as connection:
        assert outcomes.retry_image(connection, UUID(image["id"])) == "failed"
    finish(engine, gateway.parts.store, image["sha256"], [1.0, 0.0, 0.0])
    number(engine)
    history = numbers(engine, UUID(image["id"]))
    assert len(history) == 3, "accepted, failed, ready"

    async def watch() -> None:
        assert await (await Stream.open(gateway.url, path)).take(10) == history
        assert await (await Stream.open(gateway.url, path, history[0])).take(10) == history[1:]
        following = await Stream.open(gateway.url, f"{path}?follow=true")
        assert await following.take(3) == history
        assert gateway.http.delete(f"/v1/images/{image['id']}").status_code == 204
        await asyncio.to_thread(number, engine)
        assert len(await following.take(1)) == 1
        following.close()
        assert len(await (await Stream.open(gateway.url, path)).take(10)) == 4, "its end is told after it is deleted"

    asyncio.run(watch())
    seen_all = gateway.http.get(path, headers={"Last-Event-ID": str(numbers(engine, UUID(image["id"]))[-1])})
    assert (seen_all.status_code, seen_all.content) == (204, b""), "a browser that gets this stays away"


def test_the_header_goes_before_the_query(gateway: Served, engine: Engine) -> None:
    happen(engine, 5)
    number(engine)

    async def first(path: str, last_id: int | None) -> list[int]:
        stream = await Stream.open(gateway.url, path, last_id)
        ids = await stream.take(1)
        stream.close()
        return ids

    assert asyncio.run(first("/v1/events?last_event_id=1", None)) == [2]
    assert asyncio.run(first("/v1/events?last_event_id=1", 3)) == [4]
    assert asyncio.run(first("/v1/events?last_event_id=1", 0)) == [1]


def test_a_stream_without_a_number_can_be_resumed_before_its_first_event(gateway: Served, engine: Engine) -> None:
    happen(engine, 5)
    number(engine)

    async def watch() -> None:
        stream = await Stream.open(gateway.url, "/v1/events")
        async for line in stream.lines():
            if line.startswith("id: "):
                break
        stream.close()
        await asyncio.to_thread(happen, engine, 2)
        await asyncio.to_thread(number, engine)
        began = int(line.removeprefix("id: "))
        again = await Stream.open(gateway.url, "/v1/events", began)
        assert await again.take(7 - began) == list(range(began + 1, 8))
        again.close()

    asyncio.run(watch())


def test_a_quiet_stream_has_heartbeats_that_carry_its_position(
    gateway: Served, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "HEARTBEAT_S", 0.05)
    (image,) = gateway.accepted(picture(1))
    number(engine)

    async def watch() -> None:
        stream = await Stream.open(gateway.url, f"/v1/images/{image['id']}/events", 1)
        await asyncio.to_thread(happen, engine, 3)
        await asyncio.to_thread(number, engine)
        heartbeats = 0
        async for line in stream.lines():
            assert line.startswith((":", "id: ", "retry: ")) or not line, "nothing that happens to the image"
            heartbeats += line == ": heartbeat"
            if line == "id: 4":
                break
        assert heartbeats
        stream.close()

    asyncio.run(watch())


@pytest.mark.parametrize("last_id", ["0", "3", "21", str(2**63 - 1)])
def test_what_cannot_be_told_is_gone(serve: Serve, engine: Engine, last_id: str) -> None:
    happen(engine, 20)
    number(engine)
    with engine.begin() as connection:
        table.stamp_events(connection, list(range(1, 11)))
        assert upkeep.forget_events(connection, upkeep.database_now(connection)) == 10
    gateway = serve()  # one that has not seen them itself
    answer = gateway.http.get("/v1/events", headers={"Last-Event-ID": last_id}, timeout=60)
    assert (answer.status_code, answer.headers["content-type"]) == (410, "application/problem+json")
    problem = answer.json()
    assert problem["type"].endswith("/events-expired")
    assert (problem["value"], problem["limit"]) == (int(last_id), 10 if int(last_id) < 10 else 20)

    async def nearest() -> None:
        stream = await Stream.open(gateway.url, "/v1/events", problem["limit"])
        assert stream.status == 200
        if problem["limit"] == 10:
            assert await stream.take(10) == list(range(11, 21))
        stream.close()

    asyncio.run(nearest())


def test_what_is_no_number_or_no_image_is_refused(gateway: Served, engine: Engine) -> None:
    for wrong in ("x", "-1", str(2**63)):
        assert gateway.http.get("/v1/events", headers={"Last-Event-ID": wrong}).status_code == 422
        assert gateway.http.get("/v1/events", params={"last_event_id": wrong}).status_code == 422
    nobody = gateway.http.get(f"/v1/images/{uuid4()}/events")
    assert (nobody.status_code, nobody.json()["type"].rpartition("/")[2]) == (404, "image-not-found")
    (image,) = gateway.accepted(picture(1))
    fail(engine, image["sha256"])
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM events"))
    forgotten = gateway.http.get(f"/v1/images/{image['id']}/events")
    assert (forgotten.status_code, forgotten.json()["type"].rpartition("/")[2]) == (410, "events-expired")


def test_streams_are_described(gateway: Served) -> None:
    paths = gateway.http.get("/openapi.json").json()["paths"]
    for path in ("/v1/events", "/v1/images/{image_id}/events"):
        call = paths[path]["get"]
        assert "text/event-stream" in call["responses"]["200"]["content"]
        assert {"Last-Event-ID", "last_event_id"} <= {parameter["name"] for parameter in call["parameters"]}
        assert "410" in call["responses"]


def test_cut_at_random_under_concurrent_writers_nothing_is_missed_or_told_twice(
    gateway: Served, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "RECENT", 20)  # so that both sides of the seam are walked
    monkeypatch.setattr(hubs, "PAGE", 7)
    chance = random.Random(7)
    mine, is_written = uuid4(), threading.Event()

    def write(seed: int) -> None:
        """Transactions that overlap: a row that is inserted first may be seen last."""
        own = random.Random(seed)
        for _ in range(25):
            with engine.begin() as connection:
                for image_id in own.choices([mine, uuid4()], k=own.randrange(1, 6)):
                    connection.execute(
                        text(
                            "INSERT INTO events (type, batch_id, image_id) "
                            "VALUES ('image.accepted', gen_random_uuid(), :id)"
                        ),
                        {"id": image_id},
                    )
                time.sleep(own.random() / 50)

    async def watcher(path: str, image_id: UUID | None) -> None:
        seen: list[int] = []
        last_id: str | None = "0"
        in_vain = 0
        while not (is_written.is_set() and seen == await asyncio.to_thread(numbers, engine, image_id)):
            stream = await Stream.open(gateway.url, path, last_id)
            before = len(seen)
            try:
                # Later after each time that it came before the first event, which takes long on a busy machine.
                async with asyncio.timeout(chance.random() / 4 * 2 ** min(in_vain, 5)):
                    async for event in stream.events():
                        seen.append(event["id"])
            except TimeoutError:
                pass
            last_id = stream.last_id
            stream.close()
            assert seen == sorted(set(seen))
            in_vain = 0 if len(seen) > before else in_vain + 1

    async def watch() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(watcher("/v1/events", None))
                group.create_task(watcher(f"/v1/images/{mine}/events?follow=true", mine))
            writing = [asyncio.to_thread(write, seed) for seed in range(3)]
            with numbering(engine):
                await asyncio.gather(*writing)
            is_written.set()

    with engine.begin() as connection:  # an image of its own, with no other event than these
        (image,) = gateway.accepted(picture(1))
        connection.execute(text("DELETE FROM events"))
        mine = UUID(image["id"])
    asyncio.run(asyncio.wait_for(watch(), 90))
    assert len(numbers(engine)) > 150


WATCHERS, EVENTS, CUT = 1000, 100, 100


def test_a_thousand_watchers_get_a_hundred_events_each_and_a_hundred_of_them_are_cut(
    gateway: Served, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * WATCHERS + 500)), hard))
    reads: list[int] = []
    read = table.events_after

    def counted(connection: object, after: int, limit: int, image_id: UUID | None = None) -> list[Event]:
        found = read(connection, after, limit, image_id)
        reads.extend(event.id for event in found)
        return found

    async def watch() -> list[list[int]]:
        streams = []
        for _ in range(WATCHERS // 50):
            streams += await asyncio.gather(*(Stream.open(gateway.url, "/v1/events", 0) for _ in range(50)))
        is_first_half_told = asyncio.Event()

        async def watcher(index: int, stream: Stream) -> list[int]:
            seen = await stream.take(EVENTS // 2 if index >= CUT else 1 + index % (EVENTS // 2))
            if index < CUT:
                stream.close()
                await is_first_half_told.wait()
                stream = await Stream.open(gateway.url, "/v1/events", stream.last_id)
            seen += await stream.take(EVENTS - len(seen))
            stream.close()
            return seen

        watching = [asyncio.create_task(watcher(*each)) for each in enumerate(streams)]
        for _ in range(EVENTS // 10):
            await asyncio.to_thread(happen, engine, 10)
            await asyncio.to_thread(number, engine)
        is_first_half_told.set()
        return await asyncio.gather(*watching)

    monkeypatch.setattr(table, "events_after", counted)
    try:
        told = asyncio.run(asyncio.wait_for(watch(), 120))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told == [list(range(1, EVENTS + 1))] * WATCHERS
    assert reads == list(range(1, EVENTS + 1)), "each event was read once for all watchers"


def test_a_client_that_takes_nothing_is_cut_and_can_resume(
    gateway: Served, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rest, "STALL_S", 0.5)
    monkeypatch.setattr(hubs, "RECENT", 50)
    total = 6000

    async def taken_after(last_id: str | None) -> list[int]:
        """All events from there on, by a client that comes back when it is cut: on a busy machine it may be slow."""
        ids: list[int] = []
        while not ids or ids[-1] < total:
            stream = await Stream.open(gateway.url, "/v1/events", last_id)
            ids += await stream.take(total - (ids[-1] if ids else int(last_id or 0)))
            last_id = stream.last_id
            stream.close()
        return ids

    async def watch() -> None:
        stalled = await Stream.open(gateway.url, "/v1/events", 0, buffer_bytes=4096)
        stalled.writer.transport.pause_reading()
        quick = asyncio.create_task(taken_after("0"))
        for _ in range(6):
            await asyncio.to_thread(happen, engine, total // 6, None, "x" * 4000)
        await asyncio.to_thread(number, engine)
        assert await quick == list(range(1, total + 1)), "nobody waits for the slow one"
        assert len(gateway.parts.events._recent) <= 2 * hubs.RECENT + hubs.PAGE
        await asyncio.to_thread(eventually, lambda: "events.client_stalled" in caplog.text)
        stalled.writer.transport.resume_reading()
        seen = await stalled.take(total)
        assert not stalled.is_complete
        assert 0 < len(seen) < total
        assert seen + await taken_after(stalled.last_id) == list(range(1, total + 1))

    asyncio.run(watch())


def test_a_client_that_hangs_up_leaves_nothing_behind(gateway: Served, engine: Engine) -> None:
    async def watch() -> None:
        streams = [await Stream.open(gateway.url, "/v1/events") for _ in range(20)]
        await asyncio.to_thread(eventually, lambda: len(gateway.parts.events._waiting.get(None, ())) == 20)
        for stream in streams:
            stream.close()
        await asyncio.to_thread(eventually, lambda: gateway.parts.events._waiting == {})

    asyncio.run(watch())


def test_streams_outlive_a_restart_of_the_database(serve: Serve, server_folder: Path) -> None:
    server = PostgresServer(server_folder / "events-restarted")
    server.start()
    own = sync_engine(DatabaseSettings(database_url=server.url))
    try:
        migrate(own)
        gateway = serve(database_url=server.url)

        async def watch() -> None:
            stream = await Stream.open(gateway.url, "/v1/events", 0)
            await asyncio.to_thread(happen, own, 3)
            await asyncio.to_thread(number, own)
            assert await stream.take(3) == [1, 2, 3]
            await asyncio.to_thread(server.stop)
            refused = await Stream.open(gateway.url, f"/v1/images/{uuid4()}/events")
            assert refused.status == 503
            await asyncio.to_thread(server.start)
            await asyncio.to_thread(happen, own, 2)
            await asyncio.to_thread(number, own)
            after_the_crash = numbers(own)[3:]
            assert await stream.take(2) == after_the_crash
            stream.close()

        asyncio.run(asyncio.wait_for(watch(), 90))
    finally:
        own.dispose()
        server.stop()


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_gateway_that_stops_ends_its_streams(spawn: Callable[..., ChildProcess], engine: Engine) -> None:
    port = reserve_port()
    process = spawn("darkroom-gateway", DARKROOM_HTTP_PORT=str(port))
    url = f"http://127.0.0.1:{port}"

    async def connected() -> Stream:
        while True:
            try:
                return await Stream.open(url, "/v1/events")
            except OSError:
                await asyncio.sleep(0.1)

    async def watch() -> None:
        streams = [await connected() for _ in range(5)]
        happen(engine, 3)
        assert [await stream.take(3) for stream in streams] == [[1, 2, 3]] * 5, "the relay numbers, the hub is woken"
        started = time.monotonic()
        os.kill(process.pid or 0, signal.SIGTERM)
        assert [await stream.take(1) for stream in streams] == [[]] * 5
        assert all(stream.is_complete for stream in streams)
        await asyncio.to_thread(eventually, lambda: not process.is_running)
        print(f"stopped in {time.monotonic() - started:.2f} s")

    asyncio.run(asyncio.wait_for(watch(), 90))


def test_the_example_consumer_prints_what_is_published(
    serve: Serve, engine: Engine, amqp_url: str, redis_url: str, tmp_path: Path
) -> None:
    output = tmp_path / "consumer.log"
    with output.open("w") as file:
        consumer = subprocess.Popen([sys.executable, str(CONSUMER), amqp_url], stdout=file, stderr=subprocess.STDOUT)
    try:
        gateway = serve(broker_url=amqp_url, result_url=redis_url, relay_enabled=True)
        seeds = itertools.count()

        def hears() -> bool:
            """The consumer's queue is bound at some moment; what is published before, it cannot get."""
            gateway.accepted(picture(next(seeds)))
            return "image.accepted" in output.read_text()

        eventually(hears, every_s=0.5)
        (image,) = gateway.accepted(picture(1000))
        fail(engine, image["sha256"])
        eventually(lambda: f"image.failed {image['id']} The file is damaged" in output.read_text())
    finally:
        consumer.kill()
        consumer.wait()
    ids = [int(line.split()[0]) for line in output.read_text().splitlines()]
    assert ids == sorted(set(ids))
