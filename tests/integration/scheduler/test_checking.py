"""The rolling check of the blob store: what is gone is made again, and what cannot be made again fails."""

import io
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
from celery import Celery
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
    run_sql,
    state_of,
    upload,
)
from sqlalchemy import Engine

from darkroom.celery_app import Delivery, create_app
from darkroom.contracts import keys
from darkroom.contracts.base import Lane, ThumbnailSize
from darkroom.contracts.messages import RecordLoss
from darkroom.database import images, recovery, vectors
from darkroom.errors import TransientError
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import BlobStore, open_blob_store
from scheduler.checking import Pace, check_blobs
from scheduler.finalize import finish
from scheduler.reconciler import Deadlines
from scheduler.settings import SchedulerSettings
from scheduler.tasks import Finishing, Resources

DELIVERY = Delivery("1", None)


@pytest.fixture
def store(blob_url: str) -> BlobStore:
    return open_blob_store(blob_url)


def make_ready(engine: Engine, store: BlobStore, *names: str) -> list[Photo]:
    register_model(engine)
    photos = [upload(engine, store, name) for name in names]
    dispatch_all(engine)
    for photo in photos:
        finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    return photos


def put_vector(store: BlobStore, photo: Photo, components: list[float]) -> None:
    file = io.BytesIO()
    np.save(file, np.array(components, dtype=np.float16))
    store.put(keys.embedding_key(MODEL, photo.sha256), file.getvalue())


BREAKAGES: dict[str, Callable[[BlobStore, Photo], None]] = {
    **{
        f"no {size.value} thumbnail": lambda store, photo, size=size: store.delete(  # type: ignore[misc]
            keys.thumbnail_key(photo.sha256, RECIPE, size)
        )
        for size in ThumbnailSize
    },
    "no proxy": lambda store, photo: store.delete(keys.proxy_key(photo.sha256, RECIPE)),
    "a cut proxy": lambda store, photo: store.put(keys.proxy_key(photo.sha256, RECIPE), b"x"),
    "no manifest": lambda store, photo: store.delete(keys.prepared_key(photo.sha256, RECIPE)),
    "a manifest that is none": lambda store, photo: store.put(keys.described_key(photo.sha256, RECIPE), b"{"),
    "no vector": lambda store, photo: store.delete(keys.embedding_key(MODEL, photo.sha256)),
    "a vector of the wrong length": lambda store, photo: put_vector(store, photo, [1, 0, 0]),
    "a vector of the wrong norm": lambda store, photo: put_vector(store, photo, [1, 1, 1, 1]),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_what_is_gone_is_made_again_while_the_photo_stays_ready(
    engine: Engine, store: BlobStore, breakage: str
) -> None:
    broken, whole = make_ready(engine, store, "broken", "whole")
    before = events_of(engine, broken)
    BREAKAGES[breakage](store, broken)

    report = check_blobs(engine, store, 10)

    assert (report.summary, report.alarm) == ("checked 2 photos: 1 to rebuild, 0 without their original", None)
    assert [state_of(engine, photo) for photo in (broken, whole)] == ["ready", "ready"]
    assert dispatch_all(engine) == {broken.sha256: 3}
    finish(engine, store, finalize_message(broken.sha256, 3), leave_everything(store, broken.sha256))
    assert events_of(engine, broken) == before
    assert check_blobs(engine, store, 10).summary.startswith("checked 2 photos: 0 to rebuild")
    with engine.begin() as connection:
        assert images.read_ledger(connection) == images.count_images(connection)
        assert vectors.vector_of_image(connection, MODEL, broken.image_id) is not None


@pytest.mark.parametrize("content", [None, b"cut"])
def test_a_photo_whose_original_is_gone_fails_with_its_cause_and_comes_back_by_an_upload(
    engine: Engine, store: BlobStore, content: bytes | None
) -> None:
    lost, _ = make_ready(engine, store, "lost", "whole")
    store.delete(keys.original_key(lost.sha256))
    if content is not None:
        store.put(keys.original_key(lost.sha256), content)

    assert check_blobs(engine, store, 10).summary == "checked 2 photos: 0 to rebuild, 1 without their original"

    assert state_of(engine, lost) == "failed"
    assert original_of(engine, lost.sha256).error["type"].endswith("original-missing")
    assert events_of(engine, lost) == ["image.accepted", "image.ready", "batch.completed", "image.failed"]
    check_blobs(engine, store, 10)
    assert events_of(engine, lost)[-1:] == ["image.failed"]

    again = upload(engine, store, "lost")
    assert [state_of(engine, photo) for photo in (lost, again)] == ["in_flight", "in_flight"]
    [generation] = dispatch_all(engine).values()
    finish(engine, store, finalize_message(lost.sha256, generation), leave_everything(store, lost.sha256))
    assert [state_of(engine, photo) for photo in (lost, again)] == ["ready", "ready"]
    with engine.begin() as connection:
        assert images.read_ledger(connection) == images.count_images(connection)


def test_an_empty_store_is_an_alarm_and_fails_nobody(engine: Engine, store: BlobStore) -> None:
    photos = make_ready(engine, store, "one", "two")
    for blob in [blob for prefix in ("originals", "derived", "embeddings") for blob in store.walk(prefix)]:
        store.delete(blob.key)
    report = check_blobs(engine, store, 10)
    assert report.alarm is not None and "is it mounted?" in report.alarm
    assert [state_of(engine, photo) for photo in photos] == ["ready", "ready"]
    assert dispatch_all(engine) == {}


def test_each_turn_takes_those_that_wait_longest_and_the_age_is_that_of_the_next(
    engine: Engine, store: BlobStore
) -> None:
    with engine.begin() as connection:
        assert recovery.oldest_check_s(connection) is None
    photos = make_ready(engine, store, "one", "two", "three")
    for hours, photo in enumerate(photos, start=1):
        statement = "UPDATE originals SET checked_at = now() - make_interval(hours => :hours) WHERE sha256 = :sha256"
        run_sql(engine, statement, hours=hours, sha256=photo.sha256)
    ages = []
    for _ in photos:
        with engine.begin() as connection:
            ages.append(round((recovery.oldest_check_s(connection) or 0) / 3600))
        check_blobs(engine, store, 1)
    assert ages == [3, 2, 1]


def test_unfinished_failed_and_deleted_photos_are_not_looked_at(engine: Engine, store: BlobStore) -> None:
    broken = upload(engine, store, "broken")
    dispatch_all(engine)
    fail(engine, broken.sha256)
    upload(engine, store, "waiting")
    assert check_blobs(engine, store, 10).summary.startswith("checked 0 photos")


@pytest.mark.parametrize(("blobs_per_s", "photos"), [(0, 0), (1, 4), (100, 375)])
def test_the_pace_is_in_blobs_a_second(blobs_per_s: int, photos: int) -> None:
    assert Pace(blobs_per_s, every_s=30).photos == photos


@pytest.fixture
def finishing(engine: Engine, store: BlobStore, database_url: str, redis_url: str) -> Finishing:
    """What the finalize worker does, without the worker."""
    app: Celery = create_app("test", BrokerSettings(broker_url=redis_url, result_url=redis_url), TaskSettings())
    deadlines = Deadlines(timedelta(0), timedelta(0))
    return Finishing(app, Resources(engine, store, app, database_url, deadlines, SchedulerSettings()))


def loss(photo: Photo) -> RecordLoss:
    return RecordLoss(sha256=photo.sha256, generation=1, lane=Lane.INTERACTIVE, cause="no blob")


def test_a_step_that_gave_up_for_want_of_the_original_fails_the_photo(
    engine: Engine, store: BlobStore, finishing: Finishing
) -> None:
    lost, _ = upload(engine, store, "lost"), upload(engine, store, "other")
    dispatch_all(engine)
    store.delete(keys.original_key(lost.sha256))
    finishing.record_loss(loss(lost), DELIVERY)
    assert original_of(engine, lost.sha256).error["type"].endswith("original-missing")
    assert state_of(engine, lost) == "failed"


def test_a_worker_without_the_mounted_store_fails_nobody(
    engine: Engine, store: BlobStore, finishing: Finishing
) -> None:
    photos = [upload(engine, store, name) for name in ("one", "two")]
    dispatch_all(engine)
    for photo in photos:
        store.delete(keys.original_key(photo.sha256))
    with pytest.raises(TransientError, match="mounted"):
        finishing.record_loss(loss(photos[0]), DELIVERY)
    assert state_of(engine, photos[0]) == "in_flight"


def test_a_step_that_gave_up_is_dispatched_again_at_once_and_an_older_one_is_not(
    engine: Engine, store: BlobStore, finishing: Finishing
) -> None:
    photo = upload(engine, store, "unlucky")
    dispatch_all(engine)
    finishing.record_loss(loss(photo), DELIVERY)
    finishing.record_loss(loss(photo), DELIVERY)
    assert dispatch_all(engine) == {photo.sha256: 2}
    finishing.record_loss(loss(photo), DELIVERY)
    assert (original_of(engine, photo.sha256).losses, dispatch_all(engine)) == (1, {})


def test_a_vector_that_never_gets_a_unit_is_refused_until_it_is_made_again(engine: Engine, store: BlobStore) -> None:
    register_model(engine)
    photo = upload(engine, store, "bent")
    dispatch_all(engine)
    results = leave_everything(store, photo.sha256)
    put_vector(store, photo, [1, 1, 1, 1])
    with pytest.raises(TransientError, match="length"):
        finish(engine, store, finalize_message(photo.sha256), results)
    leave_vector(store, photo.sha256)
    assert finish(engine, store, finalize_message(photo.sha256), results)
