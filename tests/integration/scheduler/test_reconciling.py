"""What the reconciler does about lost work, on a real PostgreSQL and both brokers."""

import shutil
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from celery import Celery
from conftest import eventually
from redis import Redis
from scheduler_photos import (
    MODEL,
    dispatch_all,
    finalize_message,
    leave_everything,
    leave_vector,
    original_of,
    register_model,
    run_sql,
    upload,
)
from sqlalchemy import Engine, func, select, text

from darkroom.celery_app import PUBLISH_OPTIONS, await_no_results, create_app
from darkroom.contracts.base import Lane
from darkroom.database import dispatch, upkeep, vectors
from darkroom.database.tables import backfills, fences, models
from darkroom.database.upkeep import FenceRecord
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import BlobStore, open_blob_store
from darkroom_cli.servers import ChildProcess
from scheduler.finalize import add_vector, finish
from scheduler.publishing import fresh_connection
from scheduler.reconciler import STUBBORN_AFTER, WORK_QUEUES, Deadlines, reconcile, send_fences, send_lost_again

BUNDLED = Path(__file__).parents[3] / "services/embedder/src/embedder/models/tiny"
AT_ONCE = Deadlines(timedelta(0), timedelta(0))
OTHER = "other@ba9876543210"

on_redis = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


@pytest.fixture
def store(blob_url: str) -> BlobStore:
    return open_blob_store(blob_url)


@pytest.fixture
def app(broker_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Celery:
    """The publisher, but one that waits for its broker, however busy that is."""
    for name in ("timeout", "confirm_timeout"):
        monkeypatch.setitem(PUBLISH_OPTIONS, name, 60)
    app = create_app("scheduler", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    await_no_results(app)
    return app


def send(engine: Engine, app: Celery, queues: Sequence[str]) -> None:
    """Sends a fence into each queue."""
    with fresh_connection(app) as broker:
        send_fences(engine, app, broker, queues)


def ticks(engine: Engine, app: Celery, count: int, *, held: tuple[str, ...] = ()) -> list[str]:
    """Reconciles several times, with all fences back at once but those of the held queues; returns the summaries."""
    summaries = []
    for _ in range(count):
        summaries.append(reconcile(engine, app, AT_ONCE, timedelta(0)).summary)
        run_sql(
            engine,
            "UPDATE fences SET returned_at = clock_timestamp() WHERE returned_at IS NULL AND queue <> ALL(:held)",
            held=list(held),
        )
    return summaries


@on_redis
def test_what_no_fence_waits_for_is_sent_again_and_the_dispatcher_woken(
    engine: Engine, store: BlobStore, app: Celery, database_url: str
) -> None:
    photo = upload(engine, store, "lost")
    dispatch_all(engine)
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as listener:
        listener.execute("LISTEN darkroom_dispatch")
        ticks(engine, app, 3)
        assert original_of(engine, photo.sha256).dispatched_at is not None  # two stages are behind it, not three
        assert ticks(engine, app, 1)[0].startswith("sent again: 1 interactive, 0 bulk")
        assert [heard.channel for heard in listener.notifies(timeout=60, stop_after=1)] == ["darkroom_dispatch"]
    original = original_of(engine, photo.sha256)
    assert (original.dispatched_at, original.losses) == (None, 1)
    assert dispatch_all(engine) == {photo.sha256: 2}
    assert ticks(engine, app, 1)[0].startswith("sent again: 0 interactive, 0 bulk")  # it was sent after those fences


@on_redis
@pytest.mark.parametrize("queue", ["prepare", "thumbnails", "embed", "finalize"])
def test_what_waits_behind_a_stopped_worker_is_not_sent_again(
    engine: Engine, store: BlobStore, app: Celery, queue: str
) -> None:
    waiting, lost = upload(engine, store, "waiting"), upload(engine, store, "lost", Lane.BULK)
    dispatch_all(engine)
    ticks(engine, app, 8, held=(queue,))
    assert original_of(engine, waiting.sha256).dispatched_at is not None
    assert original_of(engine, lost.sha256).dispatched_at is None  # the bulk lane's queues are its own


@on_redis
def test_a_finished_photo_is_left_alone(engine: Engine, store: BlobStore, app: Celery) -> None:
    register_model(engine)
    photo = upload(engine, store, "done")
    dispatch_all(engine)
    finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    before = original_of(engine, photo.sha256)
    ticks(engine, app, 6)
    assert original_of(engine, photo.sha256) == before


@on_redis
def test_losses_in_a_row_wait_longer_and_longer(engine: Engine, store: BlobStore, app: Celery) -> None:
    photo = upload(engine, store, "unlucky")
    waits = []
    for _ in range(5):
        run_sql(engine, "UPDATE originals SET not_before = now()")
        assert dispatch_all(engine)
        ticks(engine, app, 4)
        original = original_of(engine, photo.sha256)
        with engine.connect() as connection:
            now = connection.scalar(select(func.now()))
        assert original.dispatched_at is None
        waits.append(round((original.not_before - now).total_seconds() / 15))
    assert waits == [0, 1, 2, 4, 4]


@on_redis
def test_fences_reach_their_queues_after_redis_was_flushed(engine: Engine, app: Celery, redis_url: str) -> None:
    ticks(engine, app, 1)
    redis = Redis.from_url(redis_url)
    redis.flushall()
    ticks(engine, app, 1)
    assert {queue for queue in WORK_QUEUES if redis.llen(queue) == 1} == set(WORK_QUEUES)


def test_a_fence_passes_the_real_workers_and_comes_back(
    spawn: Callable[..., ChildProcess], engine: Engine, app: Celery
) -> None:
    queues = ["prepare", "thumbnails", "prepare.bulk", "thumbnails.bulk", "finalize", "finalize.bulk"]
    send(engine, app, queues)
    for command, *arguments in (
        ("darkroom-thumbnailer", "--lane", "interactive"),
        ("darkroom-thumbnailer", "--lane", "bulk"),
        ("darkroom-scheduler", "finalize"),
    ):
        spawn(command, *arguments, DARKROOM_WORKER_CONCURRENCY="1")

    def back() -> dict[str, str]:
        with engine.connect() as connection:
            returned = select(fences.c.queue, fences.c.verdict).where(fences.c.returned_at.is_not(None))
            return {row.queue: row.verdict for row in connection.execute(returned)}

    assert eventually(lambda: len(back()) == len(queues) and back(), within_s=90) == dict.fromkeys(queues, "ok")


def damaged_model(folder: Path) -> Path:
    """The bundled model with every tenth byte in a quarter of its weights turned around, as a bad disk would."""
    shutil.copytree(BUNDLED, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    middle, end = len(weights) // 2, len(weights) * 3 // 4
    weights[middle:end:10] = bytes(reversed(weights[middle:end:10]))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@on_redis
def test_damaged_weights_and_a_stopped_worker_are_alarms_and_fail_no_photo(
    spawn: Callable[..., ChildProcess], engine: Engine, store: BlobStore, app: Celery, tmp_path: Path
) -> None:
    photo = upload(engine, store, "waiting")
    dispatch_all(engine)
    send(engine, app, ["embed", "embed.bulk", "prepare"])
    damaged = damaged_model(tmp_path / "damaged")
    spawn("darkroom-embedder", DARKROOM_MODEL=str(damaged), DARKROOM_MODEL_THREADS="1")
    spawn("darkroom-scheduler", "finalize")

    def states() -> dict[str, str]:
        with engine.connect() as connection:
            return {one.queue: one.state for one in upkeep.probe_states(connection)}

    waiting = {"embed": "wrong", "embed.bulk": "wrong", "prepare": "unknown"}
    eventually(lambda: states() == waiting, within_s=120)
    run_sql(engine, "UPDATE fences SET sent_at = sent_at - interval '3 minutes' WHERE queue = 'prepare'")
    alarm = reconcile(engine, app, Deadlines(timedelta(seconds=40))).alarm
    assert alarm is not None
    assert "embed is wrong: cosine 1.0000 to the answer at the start, " in alarm
    assert "prepare is late: a probe is on its way for " in alarm
    assert original_of(engine, photo.sha256).status == "processing"


@on_redis
def test_a_new_model_takes_over_when_every_photo_has_its_vector(engine: Engine, store: BlobStore, app: Celery) -> None:
    register_model(engine)
    photos = [upload(engine, store, name) for name in ("one", "two")]
    dispatch_all(engine)
    for photo in photos:
        finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    assert register_model(engine, OTHER, 8) == "filling"

    assert f"2 images lack a vector of {OTHER}" in ticks(engine, app, 1)[0]
    with engine.begin() as connection:
        leased = dispatch.lease_backfills(connection, 10, 60)
        dispatch.stamp_backfills(connection, leased)
    assert sorted(one.sha256 for one in leased) == sorted(photo.sha256 for photo in photos)
    add_vector(engine, store, photos[0].sha256, leave_vector(store, photos[0].sha256, OTHER, 8).to_wire())

    ticks(engine, app, 3)  # the other one was lost, and waits for dispatch again
    with engine.connect() as connection:
        assert connection.execute(select(backfills.c.sha256, backfills.c.dispatched_at)).all() == [
            (photos[1].sha256, None)
        ]
        active = vectors.active_model(connection)
        assert active is not None and active.id == MODEL
    add_vector(engine, store, photos[1].sha256, leave_vector(store, photos[1].sha256, OTHER, 8).to_wire())
    ticks(engine, app, 1)
    with engine.connect() as connection:
        states = {row.id: row.state for row in connection.execute(select(models))}
    assert states == {MODEL: "retired", OTHER: "active"}


@on_redis
def test_going_back_to_the_old_model_drops_what_was_planned_for_the_new_one(
    engine: Engine, store: BlobStore, app: Celery
) -> None:
    register_model(engine)
    photo = upload(engine, store, "one")
    dispatch_all(engine)
    finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    register_model(engine, OTHER, 8)
    ticks(engine, app, 1)
    register_model(engine)  # an embedder with the old model starts again
    assert f"0 images lack a vector of {MODEL}" in ticks(engine, app, 1)[0]
    with engine.connect() as connection:
        assert connection.execute(select(backfills)).all() == []
        active = vectors.active_model(connection)
        assert active is not None and active.id == MODEL


@on_redis
def test_a_photo_finished_with_the_old_model_after_the_switch_gets_its_vector_too(
    engine: Engine, store: BlobStore, app: Celery
) -> None:
    register_model(engine)
    register_model(engine, OTHER, 8)
    ticks(engine, app, 1)
    photo = upload(engine, store, "late")
    dispatch_all(engine)
    finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    assert f"1 images lack a vector of {OTHER}" in ticks(engine, app, 1)[0]


@on_redis
def test_a_photo_that_gets_no_vector_is_an_alarm(engine: Engine, store: BlobStore, app: Celery) -> None:
    register_model(engine)
    photo = upload(engine, store, "stubborn")
    dispatch_all(engine)
    finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    register_model(engine, OTHER, 8)
    assert reconcile(engine, app, AT_ONCE, timedelta(0)).alarm is None
    with engine.begin() as connection:
        connection.execute(text("UPDATE backfills SET generation = :often"), {"often": STUBBORN_AFTER})
    alarm = reconcile(engine, app, AT_ONCE, timedelta(0)).alarm
    assert alarm is not None and alarm.startswith(f"1 images got no vector of {OTHER}")


@on_redis
def test_of_20_000_rows_none_is_sent_again_while_they_wait_and_all_when_they_are_lost(
    engine: Engine, app: Celery
) -> None:
    """The rules of the fences on real rows, at default limits, under a clock of ours."""
    with engine.begin() as connection:
        start = upkeep.database_now(connection)
        connection.execute(
            text(
                "INSERT INTO originals (sha256, bytes, lane, status, generation, dispatched_at) "
                "SELECT encode(sha256(n::text::bytea), 'hex'), 1, 'interactive', 'processing', 1, :start "
                "FROM generate_series(1, 20000) n"
            ),
            {"start": start},
        )
    deadlines = Deadlines(timedelta(seconds=TaskSettings().step_deadline_s))

    def at(seconds: float) -> datetime:
        return start + timedelta(seconds=seconds)

    def fences_back(queues: Sequence[str], *sent_s: int) -> list[FenceRecord]:
        return [FenceRecord(1, queue, at(sent), at(sent + 0.2)) for queue in queues for sent in sent_s]

    def sent_again(history: list[FenceRecord], now_s: float) -> int:
        return send_lost_again(engine, Lane.INTERACTIVE, history, at(now_s), deadlines)

    flowing = [queue for queue in WORK_QUEUES if queue != "embed"]
    stopped = fences_back(["embed"], -15) + [FenceRecord(2, "embed", at(sent), None) for sent in (15, 45, 105, 225)]
    for now_s in range(5, 600, 60):
        assert sent_again(fences_back(flowing, *range(-60, now_s, 5)) + stopped, now_s) == 0
    flushed = fences_back(WORK_QUEUES, *range(605, 700, 5))
    assert sent_again(flushed, 685) == 0
    assert [sent_again(flushed, 695) for _ in range(5)] == [5000, 5000, 5000, 5000, 0]
