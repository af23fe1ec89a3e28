"""What is removed, what is not, and who wins a race."""

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from scheduler_photos import (
    MODEL,
    Photo,
    dispatch_all,
    finalize_message,
    leave_everything,
    new_id,
    original_of,
    register_model,
    run_sql,
    state_of,
    upload,
)
from sqlalchemy import Engine, func, select, text

from darkroom.contracts import keys
from darkroom.contracts.base import Lane
from darkroom.database import outcomes, traces, upkeep, uploads
from darkroom.database.tables import backups, embeddings, events, fences, idempotency_keys, tasks, trace_rows
from darkroom.database.traces import TraceRow
from darkroom.storage import BlobStore, FileStore
from scheduler.finalize import finish
from scheduler.retention import clean_up, forget_rows, sweep_original, sweep_orphans, sweep_unreferenced
from scheduler.settings import SchedulerSettings

DAY_S = 86_400
SETTINGS = SchedulerSettings(sweep_grace_s=0)
TRACES_EXPIRE = timedelta(hours=24)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "blobs")


@pytest.fixture
def photo(engine: Engine, store: FileStore) -> Photo:
    """A photo that is ready, with all its blobs."""
    register_model(engine)
    photo = upload(engine, store, "a red star")
    dispatch_all(engine)
    finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    return photo


def delete(engine: Engine, photo: Photo) -> None:
    with engine.begin() as connection:
        outcomes.delete_image(connection, photo.image_id)


def blobs(store: BlobStore) -> set[str]:
    """Every blob that belongs to an original."""
    return {blob.key for prefix in ("originals/", "derived/", "embeddings/") for blob in store.walk(prefix)}


def age(store: FileStore, seconds: float, *keys: str) -> None:
    """Makes blobs look as if they were written that long ago."""
    moment = time.time() - seconds
    for key in keys:
        os.utime(store.path(key), (moment, moment))


class Held:
    """A store whose first delete waits until it is let go."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self.reached, self.go_on = threading.Event(), threading.Event()

    def delete(self, key: str) -> None:
        self.reached.set()
        if not self.go_on.wait(60):
            raise TimeoutError("nobody let the delete go on")
        self._store.delete(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def start(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs a function in a thread; its answer is in the list when the thread has ended."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    return thread, answers


def waits_for_a_lock(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def test_a_deleted_photo_goes_with_all_its_blobs(engine: Engine, store: FileStore, photo: Photo) -> None:
    assert len(blobs(store)) == 8
    delete(engine, photo)
    assert sweep_unreferenced(engine, store, 0) == 1
    assert blobs(store) == set()
    assert original_of(engine, photo.sha256) is None
    assert state_of(engine, photo) == "deleted"
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(embeddings)) == 0


def test_a_deleted_photo_stays_for_the_grace_time(engine: Engine, store: FileStore, photo: Photo) -> None:
    delete(engine, photo)
    assert sweep_unreferenced(engine, store, 3600) == 0
    run_sql(engine, "UPDATE originals SET unreferenced_at = now() - interval '2 hours'")
    assert sweep_unreferenced(engine, store, 3600) == 1


def test_a_photo_with_another_image_stays(engine: Engine, store: FileStore, photo: Photo) -> None:
    other = upload(engine, store, "a red star")
    delete(engine, photo)
    assert sweep_unreferenced(engine, store, 0) == 0
    assert state_of(engine, other) == "ready"
    assert len(blobs(store)) == 8


def test_a_sweep_that_died_half_way_is_finished_by_the_next(engine: Engine, store: FileStore, photo: Photo) -> None:
    delete(engine, photo)
    with engine.begin() as connection:
        assert upkeep.begin_sweep(connection, upkeep.database_now(connection), 10) == [photo.sha256]
    store.delete(keys.original_key(photo.sha256))
    assert sweep_unreferenced(engine, store, 0) == 1
    assert blobs(store) == set()


def test_an_upload_that_comes_first_keeps_the_blobs(engine: Engine, store: FileStore, photo: Photo) -> None:
    """The upload holds the lock and has not committed; the sweeper has marked the original before."""
    delete(engine, photo)
    with engine.begin() as connection:
        upkeep.begin_sweep(connection, upkeep.database_now(connection), 10)
    again = uploads.Upload(new_id(), (uploads.ReceivedFile(new_id(), photo.sha256, 10, None),), Lane.INTERACTIVE)
    with engine.begin() as connection:
        known = uploads.lock_originals(connection, again)
        sweeper, answers = start(lambda: sweep_original(engine, store, photo.sha256, [MODEL]))
        while sweeper.is_alive() and not waits_for_a_lock(engine):
            time.sleep(0.01)
        uploads.accept(connection, again, known)
    sweeper.join(60)
    assert answers == [False]
    assert len(blobs(store)) == 8
    assert original_of(engine, photo.sha256).status == "accepted"


def test_an_upload_that_comes_second_writes_its_own_blob(engine: Engine, store: FileStore, photo: Photo) -> None:
    """The sweeper is among the blobs; the upload of the same bytes waits for it and finds nothing."""
    delete(engine, photo)
    held = Held(store)
    sweeper, swept = start(lambda: sweep_unreferenced(engine, held, 0))
    assert held.reached.wait(60)
    uploader, uploaded = start(lambda: upload(engine, store, "a red star"))
    while uploader.is_alive() and not waits_for_a_lock(engine):
        time.sleep(0.01)
    held.go_on.set()
    sweeper.join(60)
    uploader.join(60)
    assert swept == [1]
    assert blobs(store) == {keys.original_key(photo.sha256)}
    assert state_of(engine, uploaded[0]) == "in_flight"
    assert dispatch_all(engine) == {photo.sha256: 1}


def test_old_blobs_without_a_row_go_and_young_ones_stay(engine: Engine, store: FileStore, photo: Photo) -> None:
    kept = blobs(store)
    old, young = "0" * 64, "1" * 64
    for sha256 in (old, young):
        store.put(keys.original_key(sha256), b"x")
        leave_everything(store, sha256)
    age(store, 2 * DAY_S, *(key for key in blobs(store) if old in key or photo.sha256 in key))
    assert sweep_orphans(engine, store, time.time() - DAY_S) == 8
    assert blobs(store) == kept | {key for key in blobs(store) if young in key}
    assert original_of(engine, old) is None


def test_an_upload_during_an_orphan_sweep_writes_its_own_blob(engine: Engine, store: FileStore) -> None:
    """Same bytes as an orphan: without the lock, the upload would find the blob, and the sweeper take it away."""
    photo = upload(engine, store, "orphan")
    run_sql(engine, "DELETE FROM images")
    run_sql(engine, "DELETE FROM originals")
    age(store, 2 * DAY_S, keys.original_key(photo.sha256))
    held = Held(store)
    sweeper, swept = start(lambda: sweep_orphans(engine, held, time.time() - DAY_S))
    assert held.reached.wait(60)
    uploader, _ = start(lambda: upload(engine, store, "orphan"))
    while uploader.is_alive() and not waits_for_a_lock(engine):
        time.sleep(0.01)
    held.go_on.set()
    sweeper.join(60)
    uploader.join(60)
    assert swept == [1]
    assert store.exists(keys.original_key(photo.sha256))
    assert original_of(engine, photo.sha256).status == "accepted"


def test_clean_up_removes_what_is_left_over_by_age(engine: Engine, store: FileStore) -> None:
    ages = {
        "incoming/old": 2 * DAY_S,
        "incoming/young": 60,
        "queries/old/proxy.jpg": 7200,
        "queries/young/proxy.jpg": 60,
        "backups/unfinished.dump": 2 * DAY_S,
        "backups/running.dump": 60,
        **{f"backups/{day}.dump": day * DAY_S for day in range(10)},
    }
    for key, seconds in ages.items():
        store.put(key, b"x")
        age(store, seconds, key)
    with engine.begin() as connection:
        for day in range(10):
            upkeep.record_backup(connection, f"backups/{day}.dump", 1, "0" * 64)
    for day in range(10):
        run_sql(
            engine,
            "UPDATE backups SET created_at = now() - make_interval(days => :day) WHERE key = :key",
            day=day,
            key=f"backups/{day}.dump",
        )
    report = clean_up(engine, store, SETTINGS, time.time())
    left = {blob.key for prefix in ("incoming/", "queries/", "backups/") for blob in store.walk(prefix)}
    assert left == {
        "incoming/young",
        "queries/young/proxy.jpg",
        "backups/running.dump",
        *(f"backups/{day}.dump" for day in range(7)),
    }
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(backups)) == 7
    assert report.summary == "removed 0 unreferenced originals, 0 orphaned blobs, 6 leftovers, 0 rows"
    assert report.alarm is None


def test_rows_go_when_their_time_is_over(engine: Engine, store: FileStore, photo: Photo) -> None:
    with engine.begin() as connection:
        uploads.record_idempotent(connection, "key", "print", photo.batch_id)
        upkeep.send_fence(connection, "prepare")
        traces.add_rows(connection, [TraceRow(photo.batch_id, 1, b"spans")])

    def counts() -> list[int]:
        with engine.connect() as connection:
            return [
                connection.scalar(select(func.count()).select_from(table)) or 0
                for table in (idempotency_keys, fences, events, tasks, trace_rows)
            ]

    run_sql(engine, "UPDATE events SET id = nextval('event_ids'), published_at = now()")
    before = counts()
    assert forget_rows(engine, TRACES_EXPIRE) == 0
    run_sql(engine, "UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
    run_sql(engine, "UPDATE fences SET sent_at = now() - interval '25 hours'")
    run_sql(engine, "UPDATE events SET occurred_at = now() - interval '8 days'")
    run_sql(engine, "UPDATE tasks SET issued_at = now() - interval '31 days'")
    run_sql(engine, "UPDATE trace_rows SET received_at = now() - interval '25 hours'")
    assert forget_rows(engine, TRACES_EXPIRE) == sum(before) - 1 > 0
    assert counts() == [0, 0, 1, 0, 0]  # the newest event stays, to tell a reader that it has missed none


def test_old_fences_are_thinned_and_those_on_their_way_are_not(engine: Engine) -> None:
    run_sql(
        engine,
        "INSERT INTO fences (queue, sent_at, returned_at) SELECT queue, sent, sent + interval '1 second' "
        "FROM unnest(ARRAY['prepare', 'embed']) queue, "
        "generate_series(now() - interval '3 hours', now(), interval '15 seconds') sent",
    )
    run_sql(
        engine,
        "INSERT INTO fences (queue, sent_at) SELECT 'prepare', now() - interval '2 hours' FROM generate_series(1, 5)",
    )
    forget_rows(engine, TRACES_EXPIRE)
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT queue, count(*) FILTER (WHERE sent_at < now() - interval '1 hour' AND returned_at IS NOT NULL)"
                " AS old, count(*) FILTER (WHERE sent_at > now() - interval '1 hour') AS new,"
                " count(*) FILTER (WHERE returned_at IS NULL) AS on_their_way FROM fences GROUP BY queue"
            )
        ).all()
    assert {row.queue: row.on_their_way for row in rows} == {"prepare": 5, "embed": 0}
    assert all(12 <= row.old <= 13 and row.new >= 239 for row in rows)
