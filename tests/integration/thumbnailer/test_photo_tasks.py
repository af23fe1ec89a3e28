"""The thumbnailer's tasks in this process: what becomes of errors in the middle of the work on a picture."""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from conftest import eventually
from redis import Redis
from thumbnailer_bench import RECIPE, picture

from darkroom.celery_app import Delivery, bound_publishing, create_app
from darkroom.contracts import keys
from darkroom.contracts.base import Lane
from darkroom.contracts.events import ImagePrepared
from darkroom.contracts.messages import Prepare, PreparedManifest, PrepareQuery, Thumbnails
from darkroom.errors import BlobMissingError, PermanentError, TransientError
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import FileStore
from darkroom.tries import TriesMarkers
from thumbnailer import decoding, describing, rendering
from thumbnailer.decoding import Limits
from thumbnailer.tasks import (
    Photo,
    Resources,
    StalledError,
    computed_s,
    hint,
    is_at_work,
    too_late,
    within_time,
)

DATA = picture()
SHA256 = hashlib.sha256(DATA).hexdigest()
PREPARE = Prepare(sha256=SHA256, generation=1, lane=Lane.INTERACTIVE, recipe=RECIPE)
THUMBNAILS = Thumbnails(sha256=SHA256, generation=1, lane=Lane.INTERACTIVE, recipe=RECIPE)
QUERY = PrepareQuery(source=keys.original_key(SHA256), proxy=keys.query_key("1", "proxy.jpg"))
DELIVERY = Delivery("a", None)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = FileStore(tmp_path)
    store.put(keys.original_key(SHA256), DATA)
    return store


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as redis:
        yield redis


@pytest.fixture
def photo(store: FileStore, redis: Redis) -> Photo:
    # A limit of 0 s: whatever a step takes, the picture used the time up itself.
    return Photo(Resources(store, TriesMarkers(redis), Limits(), 0))


STEPS: dict[str, tuple[object, str, Callable[[Photo], object]]] = {
    "decoding": (decoding, "decode", lambda photo: photo.prepare(PREPARE, DELIVERY)),
    "rendering": (rendering, "render_proxy", lambda photo: photo.prepare(PREPARE, DELIVERY)),
    "describing": (describing, "palette", lambda photo: photo.thumbnails(THUMBNAILS, DELIVERY)),
}

ENDS = {
    "image-took-too-long": SoftTimeLimitExceeded(),
    "image-needs-too-much-memory": MemoryError(),
    "image-not-processable": OSError("encoder error -2 when writing image file"),
    "killed-worker": PermanentError.of("killed-worker", "Killed", 422, "It killed its worker."),
}


@pytest.mark.parametrize("slug", ENDS)
@pytest.mark.parametrize("step", STEPS)
def test_whatever_ends_the_work_on_a_picture_is_a_problem_of_that_picture(
    photo: Photo, store: FileStore, redis: Redis, monkeypatch: pytest.MonkeyPatch, step: str, slug: str
) -> None:
    module, name, work = STEPS[step]
    photo.prepare(PREPARE, DELIVERY)
    if step != "describing":
        store.delete(keys.prepared_key(SHA256, RECIPE))

    def end(*_: object, **__: object) -> None:
        raise ENDS[slug]

    monkeypatch.setattr(module, name, end)

    with pytest.raises(PermanentError) as raised:
        work(photo)

    assert raised.value.problem.slug == slug
    # The child survived, so nothing is held against the photo.
    assert redis.keys("tries:*") == []


def test_a_time_limit_that_servers_used_up_is_not_the_picture_s_fault(
    store: FileStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object, **__: object) -> None:
        raise SoftTimeLimitExceeded()

    monkeypatch.setattr(decoding, "decode", end)
    photo = Photo(Resources(store, TriesMarkers(redis), Limits(), 3600))

    with pytest.raises(TransientError, match="servers the rest"):
        photo.prepare(PREPARE, DELIVERY)
    assert redis.keys("tries:*") == []


@pytest.mark.parametrize(("computes_s", "error"), [(2, StalledError), (3, PermanentError)])
def test_a_time_limit_says_nothing_of_a_picture_whose_process_stood_still(
    monkeypatch: pytest.MonkeyPatch, computes_s: int, error: type[Exception]
) -> None:
    clocks = SimpleNamespace(monotonic=count(0, 25).__next__, process_time=count(0, computes_s).__next__)
    monkeypatch.setattr("thumbnailer.tasks.time", clocks)

    with pytest.raises(error), within_time(25):
        raise SoftTimeLimitExceeded


def test_a_time_limit_blames_the_picture_where_nobody_knows_what_was_computed() -> None:
    assert isinstance(too_late(30, None), PermanentError)


def test_what_a_process_has_computed_is_known_until_it_is_gone() -> None:
    child = subprocess.Popen(["sleep", "60"])
    assert computed_s(child.pid) == pytest.approx(0, abs=5)
    child.kill()
    child.wait()
    assert computed_s(child.pid) is None
    before = computed_s(os.getpid())
    assert before is not None
    eventually(lambda: (computed_s(os.getpid()) or 0) > before)  # asking takes time, too


def test_a_killed_child_is_held_against_its_photo_only_if_it_was_busy_with_it(redis: Redis) -> None:
    tries = TriesMarkers(redis)
    assert not is_at_work(tries, "a")
    with tries.guard("a"):
        assert is_at_work(tries, "a")
    assert not is_at_work(tries, "a")
    assert not is_at_work(TriesMarkers(Redis(port=1)), "a"), "nobody can tell"


def test_the_same_in_a_search_picture_is_its_answer(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(rendering, "render_proxy", end)

    answer = photo.prepare_query(QUERY, DELIVERY)

    assert answer.problem is not None
    assert (answer.problem.slug, answer.problem.status) == ("image-not-processable", 500)
    assert "ZeroDivisionError: division by zero" in answer.problem.detail


def test_a_missing_blob_is_not_the_picture_s_fault(photo: Photo) -> None:
    with pytest.raises(BlobMissingError):
        photo.thumbnails(THUMBNAILS, DELIVERY)


@pytest.mark.parametrize("size", ["large", "proxy"])
def test_a_damaged_rendition_is_not_the_picture_s_fault_and_is_made_again(
    photo: Photo, store: FileStore, size: str
) -> None:
    photo.prepare(PREPARE, DELIVERY)
    manifest = PreparedManifest.model_validate_json(store.get(keys.prepared_key(SHA256, RECIPE)))
    key = getattr(manifest, size).key
    whole = store.get(key)
    store.put(key, bytes(len(whole)))  # as long as it must be: only decoding it tells

    with pytest.raises(TransientError, match="damaged"):
        photo.thumbnails(THUMBNAILS, DELIVERY)
    photo.prepare(PREPARE, DELIVERY)

    assert store.get(key) == whole
    photo.thumbnails(THUMBNAILS, DELIVERY)


def test_a_photo_without_its_original_is_not_prepared_even_when_its_pictures_are_there(
    photo: Photo, store: FileStore
) -> None:
    photo.prepare(PREPARE, DELIVERY)
    store.delete(keys.original_key(SHA256))
    with pytest.raises(BlobMissingError):
        photo.prepare(PREPARE, DELIVERY)


def test_a_full_disk_is_not_the_picture_s_fault(
    photo: Photo, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(key: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "put", full)

    with pytest.raises(OSError, match="No space left"):
        photo.prepare(PREPARE, DELIVERY)


def test_without_redis_no_picture_is_opened(store: FileStore, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "decode", lambda *_: pytest.fail("it was opened"))
    with Redis.from_url(f"{redis_url.rpartition(':')[0]}:1/0") as nowhere:
        photo = Photo(Resources(store, TriesMarkers(nowhere), Limits(), 25))
        with pytest.raises(TransientError, match="tries marker"):
            photo.prepare(PREPARE, DELIVERY)


def test_a_photo_that_died_alone_is_not_opened_again(
    photo: Photo, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.set("tries:a", 2)
    monkeypatch.setattr(decoding, "decode", lambda *_: pytest.fail("it was opened"))

    with pytest.raises(PermanentError) as raised:
        photo.prepare(PREPARE, DELIVERY)

    assert raised.value.problem.slug == "killed-worker"


def test_a_hint_that_nobody_takes_does_not_fail_its_photo(store: FileStore, redis_url: str) -> None:
    nowhere = BrokerSettings(broker_url="amqp://guest:guest@127.0.0.1:9//", result_url=redis_url)
    app = create_app("thumbnailer", nowhere, TaskSettings())
    bound_publishing(app)
    hint(app, ImagePrepared(occurred_at=datetime.now(UTC), sha256=SHA256, generation=1))
