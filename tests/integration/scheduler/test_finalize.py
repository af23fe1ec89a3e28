"""Finishing photos on a real PostgreSQL, and through the real worker on both brokers."""

import os
import signal
import threading
from collections.abc import Callable

import pytest
from celery import Celery
from conftest import eventually
from kombu import Connection
from redis import Redis
from scheduler_photos import (
    MODEL,
    RECIPE,
    Photo,
    dispatch_all,
    events_of,
    fail,
    finalize_message,
    leave_everything,
    leave_vector,
    original_of,
    register_model,
    state_of,
    upload,
)
from sqlalchemy import Engine, func, select, text

from darkroom import topology
from darkroom.celery_app import create_app, declare_topology, request
from darkroom.contracts import keys
from darkroom.contracts.messages import ModelReference, RecordEmbedding, RecordFailure, RegisterModel
from darkroom.contracts.tasks import FINALIZE, RECORD_EMBEDDING, RECORD_FAILURE, REGISTER_MODEL
from darkroom.database import images, outcomes, vectors
from darkroom.database.tables import embeddings
from darkroom.errors import BlobMissingError
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import BlobStore, open_blob_store
from darkroom.workflow import task_ids
from darkroom_cli.servers import ChildProcess
from scheduler.finalize import UnknownModelError, UnusableArtefactError, add_vector, finish, load_artefacts
from scheduler.worker import FINALIZE_THREADS


@pytest.fixture
def store(blob_url: str) -> BlobStore:
    return open_blob_store(blob_url)


@pytest.fixture
def photo(engine: Engine, store: BlobStore) -> Photo:
    """A photo on its way, and the model that embeds it."""
    register_model(engine)
    photo = upload(engine, store, "a red star")
    dispatch_all(engine)
    return photo


def test_a_photo_with_every_artefact_gets_ready(engine: Engine, store: BlobStore, photo: Photo) -> None:
    assert finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    assert state_of(engine, photo) == "ready"
    assert events_of(engine, photo) == ["image.accepted", "image.ready", "batch.completed"]
    with engine.connect() as connection:
        assert vectors.vector_of_image(connection, MODEL, photo.image_id) is not None


def test_the_same_message_twice_changes_nothing(engine: Engine, store: BlobStore, photo: Photo) -> None:
    results = leave_everything(store, photo.sha256)
    finish(engine, store, finalize_message(photo.sha256), results)
    before = original_of(engine, photo.sha256), events_of(engine, photo)
    assert not finish(engine, store, finalize_message(photo.sha256), results)
    assert (original_of(engine, photo.sha256), events_of(engine, photo)) == before
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(embeddings)) == 1


def test_two_that_finish_one_photo_at_once_do_not_wait_for_each_other(
    engine: Engine, store: BlobStore, photo: Photo
) -> None:
    results = leave_everything(store, photo.sha256)
    barrier, changed = threading.Barrier(4), []

    def run() -> None:
        barrier.wait(60)
        changed.append(finish(engine, store, finalize_message(photo.sha256), results))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(changed) == [False, False, False, True]
    assert events_of(engine, photo).count("image.ready") == 1


@pytest.mark.parametrize(
    "part", ["large.webp", "medium.webp", "small.webp", "proxy.jpg", "prepared.json", "described.json"]
)
def test_nothing_is_ready_while_a_picture_is_missing(engine: Engine, store: BlobStore, photo: Photo, part: str) -> None:
    results = leave_everything(store, photo.sha256)
    store.delete(f"{keys.derived_prefix(photo.sha256)}r1-webp/{part}")
    with pytest.raises(BlobMissingError):
        finish(engine, store, finalize_message(photo.sha256), results)
    assert state_of(engine, photo) == "in_flight"


def test_nothing_is_ready_while_a_picture_has_another_size(engine: Engine, store: BlobStore, photo: Photo) -> None:
    results = leave_everything(store, photo.sha256)
    store.put(f"{keys.derived_prefix(photo.sha256)}r1-webp/small.webp", b"cut")
    with pytest.raises(UnusableArtefactError, match="has 3 bytes"):
        finish(engine, store, finalize_message(photo.sha256), results)


def test_nothing_is_ready_while_a_manifest_is_cut_or_of_another_photo(
    engine: Engine, store: BlobStore, photo: Photo
) -> None:
    results = leave_everything(store, photo.sha256)
    key = f"{keys.derived_prefix(photo.sha256)}r1-webp/described.json"
    whole = store.get(key)
    for wrong in (whole[:-10], whole.replace(photo.sha256.encode(), b"0" * 64)):
        store.put(key, wrong)
        with pytest.raises(UnusableArtefactError, match=r"described\.json"):
            finish(engine, store, finalize_message(photo.sha256), results)


def test_nothing_is_ready_while_the_vector_is_missing(engine: Engine, store: BlobStore, photo: Photo) -> None:
    results = leave_everything(store, photo.sha256)
    store.delete(keys.embedding_key(MODEL, photo.sha256))
    with pytest.raises(BlobMissingError):
        finish(engine, store, finalize_message(photo.sha256), results)


def test_a_model_that_has_not_registered_yet_makes_nothing_ready(
    engine: Engine, store: BlobStore, photo: Photo
) -> None:
    results = leave_everything(store, photo.sha256, "other@ba9876543210")
    with pytest.raises(UnknownModelError):
        finish(engine, store, finalize_message(photo.sha256), results)
    assert state_of(engine, photo) == "in_flight"
    assert events_of(engine, photo) == ["image.accepted"]


def test_a_late_success_outdoes_a_failure(engine: Engine, store: BlobStore, photo: Photo) -> None:
    assert fail(engine, photo.sha256)
    assert finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    assert state_of(engine, photo) == "ready"
    assert original_of(engine, photo.sha256).error is None


def test_a_failure_of_an_older_dispatch_is_ignored(engine: Engine, store: BlobStore, photo: Photo) -> None:
    with engine.begin() as connection:
        now = connection.scalar(select(func.clock_timestamp()))
        assert outcomes.send_again(connection, [photo.sha256], now, 60) == 1
    assert dispatch_all(engine) == {photo.sha256: 2}
    assert not fail(engine, photo.sha256, generation=1)
    assert state_of(engine, photo) == "in_flight"


def test_a_failure_never_outdoes_a_success(engine: Engine, store: BlobStore, photo: Photo) -> None:
    finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    assert not fail(engine, photo.sha256)
    assert state_of(engine, photo) == "ready"


def test_a_deleted_image_is_not_revived(engine: Engine, store: BlobStore, photo: Photo) -> None:
    with engine.begin() as connection:
        outcomes.delete_image(connection, photo.image_id)
    finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    assert state_of(engine, photo) == "deleted"
    assert "image.ready" not in events_of(engine, photo)
    assert original_of(engine, photo.sha256).unreferenced_at is not None


def test_the_vector_of_a_backfill_is_stored_and_its_plan_is_done(
    engine: Engine, store: BlobStore, photo: Photo
) -> None:
    finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    other = "other@ba9876543210"
    assert register_model(engine, other, 8) == "filling"
    with engine.begin() as connection:
        assert vectors.plan_backfill(connection, other, 10) == 1
    add_vector(engine, store, photo.sha256, leave_vector(store, photo.sha256, other, 8).to_wire())
    with engine.begin() as connection:
        assert vectors.plan_backfill(connection, other, 10) == 0
        assert vectors.stubborn_backfills(connection, 0) == 0


def test_a_finish_and_a_backfill_of_one_photo_do_not_wait_in_a_ring(
    engine: Engine, store: BlobStore, photo: Photo
) -> None:
    """The finish holds the photo's row and has not written its vector yet when the backfill comes."""
    results = leave_everything(store, photo.sha256)
    artefacts = load_artefacts(store, photo.sha256, RECIPE)
    with engine.begin() as connection:
        outcomes.mark_ready(connection, photo.sha256, artefacts)
        backfill = threading.Thread(target=add_vector, args=(engine, store, photo.sha256, results[1]))
        backfill.start()
        with engine.connect() as other:
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            eventually(lambda: other.scalar(waiting))
        assert vectors.store_vector(connection, MODEL, photo.sha256, [1, 0, 0, 0])
    backfill.join(60)
    assert not backfill.is_alive()
    with engine.connect() as connection:
        assert vectors.vector_of_image(connection, MODEL, photo.image_id) != [1, 0, 0, 0]  # the later one


@pytest.fixture
def app(broker_url: str, redis_url: str) -> Celery:
    """A client of the real worker; what it publishes waits for the worker to start."""
    app = create_app("test", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    with app.connection_for_write() as connection:
        declare_topology(connection)
    return app


PATIENT = {"DARKROOM_TASK_MAX_RETRIES": "6"}
"""Tries for two minutes, where a test brings what is missing as soon as it sees that it was missed."""


def test_the_worker_finishes_fails_and_registers(
    spawn: Callable[..., ChildProcess], app: Celery, engine: Engine, store: BlobStore, redis_url: str
) -> None:
    worker = spawn("darkroom-scheduler", "finalize", **PATIENT)
    registration = RegisterModel(model=ModelReference(id=MODEL, source="bundled"), dim=4)
    good, bad = upload(engine, store, "good"), upload(engine, store, "bad")
    dispatch_all(engine)
    results = leave_everything(store, good.sha256)
    ids = task_ids(good.sha256, 1)
    redis = Redis.from_url(redis_url)
    for step in ("thumbnails", "embed"):
        app.backend.store_result(ids[step], {}, "SUCCESS")

    # The photo first: its model is still unknown, and it is tried again.
    call = request(app, FINALIZE, finalize_message(good.sha256), takes_result=True)
    for _ in range(2):
        call.apply_async(args=[results])
    failure = RecordFailure(
        sha256=bad.sha256,
        generation=1,
        lane="interactive",
        problem={"type": "https://darkroom.example/problems/x", "title": "x", "status": 422, "detail": "x"},
    )
    request(app, RECORD_FAILURE, failure).apply_async()
    eventually(lambda: state_of(engine, bad) == "failed", within_s=60)
    request(app, REGISTER_MODEL, registration).apply_async()
    eventually(lambda: state_of(engine, good) == "ready", within_s=60)
    eventually(lambda: not any(redis.exists(f"celery-task-meta-{ids[step]}") for step in ("thumbnails", "embed")))
    request(app, RECORD_EMBEDDING, RecordEmbedding(sha256=good.sha256), takes_result=True).apply_async(
        args=[results[1]]
    )
    assert worker.is_running
    with engine.connect() as connection:
        ledger = images.read_ledger(connection)
    assert ledger == {"accepted": 2, "ready": 1, "failed": 1, "deleted": 0, "in_flight": 0}
    assert events_of(engine, good).count("image.ready") == 1


def test_a_blob_that_comes_late_is_waited_for(
    spawn: Callable[..., ChildProcess], app: Celery, engine: Engine, store: BlobStore, photo: Photo
) -> None:
    """Two tries at least: a second delayed message has to find its way, too."""
    results = leave_everything(store, photo.sha256)
    key = keys.embedding_key(MODEL, photo.sha256)
    vector = store.get(key)
    store.delete(key)
    call = request(app, FINALIZE, finalize_message(photo.sha256), takes_result=True, task_id="late")
    call.apply_async(args=[results])
    worker = spawn("darkroom-scheduler", "finalize", **PATIENT)
    eventually(lambda: worker.log_tail(1000).count("Retry in") >= 2, within_s=60)
    store.put(key, vector)
    eventually(lambda: state_of(engine, photo) == "ready", within_s=60)


def test_a_stop_commits_what_is_under_way_and_hands_back_the_rest(
    spawn: Callable[..., ChildProcess], app: Celery, engine: Engine, store: BlobStore, broker_url: str
) -> None:
    register_model(engine)
    photos = [upload(engine, store, f"photo {number}") for number in range(30)]
    dispatch_all(engine)
    for photo in photos:
        call = request(app, FINALIZE, finalize_message(photo.sha256), takes_result=True)
        call.apply_async(args=[leave_everything(store, photo.sha256)])
    with engine.begin() as connection:
        connection.execute(text("SELECT FROM originals FOR UPDATE"))  # holds every transaction up
        worker = spawn("darkroom-scheduler", "finalize")
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :database")
        name = {"database": engine.url.database}
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            eventually(lambda: other.scalar(waiting, name) == FINALIZE_THREADS, within_s=60)
        os.kill(worker.pid or 0, signal.SIGTERM)
        eventually(lambda: "Warm shutdown" in worker.log_tail(1000))
    eventually(lambda: not worker.is_running, within_s=40)  # the grace period of docker-compose.yml
    assert worker.exit_status == 0
    ready = [photo for photo in photos if state_of(engine, photo) == "ready"]
    assert FINALIZE_THREADS <= len(ready) < len(photos)
    with Connection(broker_url) as connection, connection.channel() as channel:
        handed_back = topology.task_queue("finalize")(channel)
        eventually(lambda: handed_back.queue_declare(passive=True).message_count == len(photos) - len(ready))
    assert {original_of(engine, photo.sha256).attempts for photo in photos} == {0}
