"""REST and gRPC have the same rules, limits and results: every case runs over both."""

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway_faces import Face, Refused, RestFace
from gateway_outcomes import fail, finish, make_active
from gateway_pictures import MODEL_ID, picture
from gateway_serving import Served, Workers
from gateway_workers import BROKEN
from redis import Redis
from sqlalchemy import Engine, select, update

import darkroom.storage
from darkroom.database import dispatch
from darkroom.database.tables import originals, tasks
from darkroom.workflow import task_ids

pytest_plugins = ["gateway_fixtures"]

UNKNOWN = str(uuid.uuid4())
LARGE = 10_000
"""The byte limit where one is reached."""


@pytest.fixture
def face(face_of: Callable[[Served], Face], gateway: Served) -> Face:
    """A face of a gateway whose broker and Redis are down."""
    return face_of(gateway)


def stored(gateway: Served) -> list[str]:
    root: Path = gateway.parts.store.root  # type: ignore[attr-defined]
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def shown(image: dict[str, Any]) -> dict[str, Any]:
    """An image whose moments can be compared, however they are written."""
    moments = {name: image[name] and datetime.fromisoformat(image[name]) for name in ("created_at", "ready_at")}
    return image | moments


def test_an_upload_is_the_same_image_on_both_faces(face: Face, gateway: Served) -> None:
    content = picture(1, 700_000)  # three chunks
    answer = face.upload(content, filename="Straße ☀.jpg", lane="bulk", tags=["sea", "sun", "sea"], external_id="7")
    batch, image = answer["batch"], answer["image"]
    assert (batch["total"], batch["pending"], batch["ready"], batch["completed_at"]) == (1, 1, 0, None)
    assert image["sha256"] == hashlib.sha256(content).hexdigest()
    assert (image["filename"], image["bytes"], image["batch_id"]) == ("Straße ☀.jpg", 700_000, batch["id"])
    assert (image["status"], image["lane"], image["duplicate"]) == ("accepted", "bulk", False)
    assert (image["tags"], image["external_id"]) == (["sea", "sun"], "7")
    assert len(stored(gateway)) == 1
    assert shown(face.image(image["id"])) == shown(image) == shown(RestFace(gateway).image(image["id"]))
    assert face.ledger() == {"accepted": 1, "ready": 0, "failed": 0, "deleted": 0, "in_flight": 1}


def test_a_batch_shows_its_callback_url_on_both_faces(face: Face, gateway: Served) -> None:
    url = "https://example.org/hook?token=7"
    batch = face.upload(picture(1), callback_url=url)["batch"]
    assert batch["callback_url"] == face.batch(batch["id"])["callback_url"] == url
    assert RestFace(gateway).batch(batch["id"])["callback_url"] == url
    assert face.upload(picture(1))["batch"]["callback_url"] is None


def test_defaults_are_the_same(face: Face, gateway: Served) -> None:
    image = face.upload(picture(1), filename="")["image"]
    expected = {"filename": None, "lane": "interactive", "tags": [], "external_id": None, "error": None, "tasks": {}}
    assert {name: image[name] for name in expected} == expected


def test_a_ready_and_a_failed_image_are_the_same_on_both_faces(face: Face, gateway: Served, engine: Engine) -> None:
    ready, failed = (face.upload(picture(seed))["image"] for seed in (1, 2))
    with engine.begin() as connection:
        dispatch.lease(connection, 2, 60)
    finish(engine, gateway.parts.store, ready["sha256"], [1.0, 0.0, 0.0])
    fail(engine, failed["sha256"], generation=1)
    for image_id in (ready["id"], failed["id"]):
        assert shown(face.image(image_id)) == shown(RestFace(gateway).image(image_id))
    ready, failed = face.image(ready["id"]), face.image(failed["id"])
    assert (ready["status"], ready["format"], ready["width"]) == ("ready", "JPEG", 1600)
    assert ready["ready_at"]
    assert ready["embeddings"] == [{"model": MODEL_ID, "dim": 3}]
    assert ready["tasks"] == {step: str(task_id) for step, task_id in task_ids(ready["sha256"], 1).items()}
    assert (failed["status"], failed["error"]["status"], failed["error"]["remedy"]) == ("failed", 422, "Send another.")


def test_the_same_bytes_twice_are_one_original(face: Face, gateway: Served, engine: Engine) -> None:
    assert [face.upload(picture(1))["image"]["duplicate"] for _ in range(3)] == [False, True, True]
    with engine.connect() as connection:
        assert len(connection.execute(select(originals)).all()) == 1
    assert len(stored(gateway)) == 1


REFUSALS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "too many bytes": (picture(1, LARGE + 1), {}, "image-too-large"),
    "an empty file": (b"", {}, "empty-file"),
    "not a picture": (b"<html>" * 100, {}, "unsupported-format"),
    "a short one": (b"\xff", {}, "unsupported-format"),
    "an unknown lane": (picture(1), {"lane": "fast"}, "invalid-field"),
    "a long tag": (picture(1), {"tags": "x" * 65}, "invalid-field"),
    "an empty tag": (picture(1), {"tags": ""}, "invalid-field"),
    "many tags": (picture(1), {"tags": [str(n) for n in range(33)]}, "invalid-field"),
    "a tag with NUL": (picture(1), {"tags": "a\0b"}, "invalid-field"),
    "a long external id": (picture(1), {"external_id": "x" * 257}, "invalid-field"),
    "an empty external id": (picture(1), {"external_id": ""}, "invalid-field"),
    "a callback to this machine": (picture(1), {"callback_url": "https://127.0.0.1/"}, "invalid-field"),
    "a callback over http": (picture(1), {"callback_url": "http://example.org/"}, "invalid-field"),
    "an empty callback": (picture(1), {"callback_url": ""}, "invalid-field"),
    "a long name": (picture(1), {"filename": "n" * 256}, "invalid-field"),
    "a huge field": (picture(1), {"external_id": "x" * 5000}, "field-too-large"),
    "many fields": (picture(1), {"tags": ["t"] * 101}, "too-many-fields"),
    "a long key": (picture(1), {"key": "k" * 256}, "invalid-field"),
    "an empty key": (picture(1), {"key": ""}, "invalid-field"),
}


def test_a_refused_upload_is_refused_alike_and_leaves_nothing(
    serve: Callable[..., Served], face_of: Callable[[Served], Face], subtests: pytest.Subtests
) -> None:
    gateway = serve(max_upload_bytes=LARGE)
    face = face_of(gateway)
    for case, (content, fields, slug) in REFUSALS.items():
        with subtests.test(case):
            with pytest.raises(Refused) as refusal:
                face.upload(content, **fields)
            assert (refusal.value.slug, refusal.value.code) == (slug, grpc.StatusCode.INVALID_ARGUMENT)
            assert refusal.value.told["remedy"]
            assert stored(gateway) == []
            assert face.ledger()["accepted"] == 0


def test_a_refusal_names_the_file_the_value_and_the_limit(
    serve: Callable[..., Served], face_of: Callable[[Served], Face]
) -> None:
    with pytest.raises(Refused) as refusal:
        face_of(serve(max_upload_bytes=LARGE)).upload(picture(2, 20_000), filename="huge.jpg")
    told = refusal.value.told
    assert (told["file"], told["limit"]) == ("huge.jpg", str(LARGE))
    assert LARGE < int(told["value"]) <= 20_000
    assert "DARKROOM_MAX_UPLOAD_BYTES" in told["remedy"]


def test_what_the_disk_cannot_take_is_told_alike(
    face: Face, gateway: Served, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    cases = {
        errno.ENOSPC: ("storage-full", grpc.StatusCode.RESOURCE_EXHAUSTED, 60),
        errno.EIO: ("storage-unavailable", grpc.StatusCode.UNAVAILABLE, 2),
    }
    for number, expected in cases.items():

        def broken(*_: Any, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with subtests.test(errno.errorcode[number]):
            monkeypatch.setattr(darkroom.storage.FileWriter, "sync", broken)
            with pytest.raises(Refused) as refusal:
                face.upload(picture(1))
            assert (refusal.value.slug, refusal.value.code, refusal.value.retry_s) == expected
            assert stored(gateway) == []


def test_what_nobody_foresaw_is_told_alike_and_without_its_cause(
    face: Face, gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("gateway.uploads.uploads.accept", break_down)
    with pytest.raises(Refused) as refusal:
        face.upload(picture(1))
    assert (refusal.value.slug, refusal.value.code) == ("internal-error", grpc.StatusCode.INTERNAL)
    assert "secret" not in str(refusal.value)


def test_an_idempotency_key_holds_across_the_faces(face: Face, gateway: Served) -> None:
    first = RestFace(gateway).upload(picture(1), key="key-1", tags=["a"])
    again = face.upload(picture(1), key="key-1", tags=["a"])
    assert (first["batch"]["id"], shown(first["image"])) == (again["batch"]["id"], shown(again["image"]))
    others: list[dict[str, Any]] = [{}, {"tags": ["b"]}, {"tags": ["a"], "lane": "bulk"}, {"filename": "other.jpg"}]
    for other in others:
        with pytest.raises(Refused) as refusal:
            face.upload(picture(1), key="key-1", **other)
        assert refusal.value.slug == "idempotency-key-reused"
    assert face.ledger()["accepted"] == 1
    assert not any(key.startswith("incoming") for key in stored(gateway))


def test_an_upload_goes_on_with_its_clients_trace(face: Face, engine: Engine) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    image = face.upload(picture(1), trace=f"00-{trace}-00f067aa0ba902b7-01")["image"]
    assert image["trace_id"] == trace
    with engine.connect() as connection:
        row = connection.execute(select(originals)).one()
    assert row.traceparent.startswith(f"00-{trace}-")
    assert "00f067aa0ba902b7" not in row.traceparent
    assert face.upload(picture(2))["image"]["trace_id"] not in (None, trace)


def test_images_are_listed_alike(face: Face, gateway: Served, engine: Engine) -> None:
    uploaded = [face.upload(picture(n), tags=["odd" if n % 2 else "even", "all"])["image"] for n in range(5)]
    fail(engine, uploaded[3]["sha256"])
    newest_first = [image["id"] for image in reversed(uploaded)]
    pages, token = [], None
    while True:
        page = face.images(limit=2, **({"page_token": token} if token else {}))
        pages.append([image["id"] for image in page["images"]])
        token = page["next_page_token"]
        if token is None:
            break
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [image for page in pages for image in page] == newest_first

    def listed(**query: Any) -> list[int]:
        return [newest_first[::-1].index(image["id"]) for image in face.images(**query)["images"]]

    assert listed() == [4, 3, 2, 1, 0]
    assert listed(tag="even") == [4, 2, 0]
    assert listed(tag=["all", "odd"], status="accepted") == [1]
    assert listed(status="failed") == [3]
    assert listed(tag="none") == []


def test_a_deleted_image_is_gone(face: Face, gateway: Served) -> None:
    image = face.upload(picture(1))["image"]
    face.delete(image["id"])
    for call in (face.image, face.delete, face.retry):
        with pytest.raises(Refused) as refusal:
            call(image["id"])
        assert (refusal.value.slug, refusal.value.code) == ("image-not-found", grpc.StatusCode.NOT_FOUND)
    batch = face.batch(image["batch_id"])
    assert (batch["deleted"], batch["pending"], batch["images"]) == (1, 0, [])
    assert face.ledger()["deleted"] == 1


def test_a_failed_image_can_be_retried_and_no_other(face: Face, engine: Engine) -> None:
    failing, waiting = (face.upload(picture(seed))["image"] for seed in (1, 2))
    fail(engine, failing["sha256"])
    retried = face.retry(failing["id"])
    assert (retried["status"], retried["error"]) == ("accepted", None)
    for image in (failing, waiting):
        with pytest.raises(Refused) as refusal:
            face.retry(image["id"])
        assert (refusal.value.slug, refusal.value.code) == ("image-not-failed", grpc.StatusCode.FAILED_PRECONDITION)
        assert (refusal.value.told["value"], refusal.value.told["limit"]) == ("in_flight", "failed")


def test_a_thumbnail_has_the_same_bytes(face: Face, gateway: Served, engine: Engine) -> None:
    image = face.upload(picture(1))["image"]
    with pytest.raises(Refused) as refusal:
        face.thumbnail(image["id"], "small")
    assert refusal.value.slug == "thumbnail-not-ready"
    finish(engine, gateway.parts.store, image["sha256"])
    ready = face.image(image["id"])
    for size in ("small", "medium", "large"):
        delivered = face.thumbnail(image["id"], size)
        assert delivered == RestFace(gateway).thumbnail(image["id"], size)
        assert (delivered.media_type, len(delivered.content)) == ("image/webp", ready["thumbnails"][size]["bytes"])
    blob = next(key for key in stored(gateway) if "large" in key)
    content = gateway.parts.store.get(blob) + bytes(700_000)  # several messages
    gateway.parts.store.put(blob, content)
    assert face.thumbnail(image["id"], "large").content == content
    gateway.parts.store.delete(blob)
    with pytest.raises(Refused) as refusal:
        face.thumbnail(image["id"], "large")
    assert (refusal.value.slug, refusal.value.code) == ("blob-missing", grpc.StatusCode.UNAVAILABLE)


MISSING: dict[str, tuple[Callable[[Face], Any], str]] = {
    "image": (lambda face: face.image(UNKNOWN), "image-not-found"),
    "delete": (lambda face: face.delete(UNKNOWN), "image-not-found"),
    "retry": (lambda face: face.retry(UNKNOWN), "image-not-found"),
    "thumbnail": (lambda face: face.thumbnail(UNKNOWN, "small"), "image-not-found"),
    "batch": (lambda face: face.batch(UNKNOWN), "batch-not-found"),
    "task": (lambda face: face.task(UNKNOWN), "task-not-found"),
}

INVALID: dict[str, Callable[[Face], Any]] = {
    "an image id": lambda face: face.image("7"),
    "a batch id": lambda face: face.batch("x"),
    "a task id": lambda face: face.task("not-a-uuid"),
    "an id to delete": lambda face: face.delete("7"),
    "an id to retry": lambda face: face.retry("7"),
    "a thumbnail's id": lambda face: face.thumbnail("7", "small"),
    "a size": lambda face: face.thumbnail(UNKNOWN, "huge"),
    "limit 0": lambda face: face.images(limit=0),
    "limit 201": lambda face: face.images(limit=201),
    "a status": lambda face: face.images(status="deleted"),
    "an empty tag": lambda face: face.images(tag=""),
    "a tag with NUL": lambda face: face.images(tag="a\0b"),
    "many tags": lambda face: face.images(tag=["t"] * 33),
    "nothing asked": lambda face: face.search(),
    "a blank text": lambda face: face.search(text="  "),
    "a long text": lambda face: face.search(text="x" * 2001),
    "search limit 0": lambda face: face.search(text="a", limit=0),
    "search limit 101": lambda face: face.search(text="a", limit=101),
    "a lane": lambda face: face.search(text="a", filter={"lane": "fast"}),
    "no UUID": lambda face: face.search(image_id="red"),
    "a kind of probe": lambda face: face.probe("sleep"),
    "a probed service": lambda face: face.probe("add", service="gateway"),
    "a probe's lane": lambda face: face.probe("add", lane="fast"),
    "no time": lambda face: face.probe("cpu", seconds=0),
    "endless": lambda face: face.probe("add", expires_seconds=0),
    "a countdown into the past": lambda face: face.probe("add", countdown_seconds=-1),
    "a countdown beyond its end": lambda face: face.probe("add", countdown_seconds=5, expires_seconds=5),
    "a picture's limit": lambda face: face.search_picture(picture(1), limit=0),
    "a picture's lane": lambda face: face.search_picture(picture(1), filter={"lane": "fast"}),
}


def test_what_cannot_be_is_refused_alike(face: Face, gateway: Served, subtests: pytest.Subtests) -> None:
    for case, (call, slug) in MISSING.items():
        with subtests.test(f"missing: {case}"):
            with pytest.raises(Refused) as refusal:
                call(face)
            assert (refusal.value.slug, refusal.value.code) == (slug, grpc.StatusCode.NOT_FOUND)
            assert refusal.value.told["value"] == UNKNOWN
    for case, call in INVALID.items():
        with subtests.test(f"invalid: {case}"):
            with pytest.raises(Refused) as refusal:
                call(face)
            assert (refusal.value.slug, refusal.value.code) == ("invalid-request", grpc.StatusCode.INVALID_ARGUMENT)
            assert json.loads(refusal.value.told["value"])
    for token in ("x", "!!!!", "AAAA", ""):
        with subtests.test(f"page token {token!r}"):
            with pytest.raises(Refused) as refusal:
                face.images(page_token=token)
            assert refusal.value.slug == "invalid-field"
    assert stored(gateway) == []


def test_searches_find_the_same(
    serve: Callable[..., Served],
    face_of: Callable[[Served], Face],
    start_workers: Callable[..., Workers],
    engine: Engine,
    redis_url: str,
    subtests: pytest.Subtests,
) -> None:
    gateway = serve(broker_url=redis_url, result_url=redis_url)
    start_workers(redis_url, redis_url)
    face = face_of(gateway)
    vectors = {"red": [1.0, 0.0, 0.0], "pink": [0.8, 0.6, 0.0], "green": [0.28, 0.96, 0.0], "blue": [0.0, 0.0, 1.0]}
    ids = {}
    for seed, (colour, vector) in enumerate(vectors.items()):
        lane = "bulk" if colour == "pink" else "interactive"
        image = face.upload(picture(seed), tags=[colour, "colour"], lane=lane)["image"]
        finish(engine, gateway.parts.store, image["sha256"], vector)
        ids[colour] = image["id"]

    def found(answer: dict[str, Any]) -> list[str]:
        return [hit["image"]["tags"][0] for hit in answer["results"]]

    answer = face.search(text="  something red ")
    assert (found(answer), answer["model"]) == (["red", "pink", "green", "blue"], MODEL_ID)
    assert [hit["score"] for hit in answer["results"]] == pytest.approx([1.0, 0.8, 0.28, 0.0], abs=0.001)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    narrowed: dict[str, tuple[dict[str, Any], list[str]]] = {
        "limit": ({"text": "red", "limit": 2}, ["red", "pink"]),
        "two tags": ({"text": "red", "filter": {"tags": ["colour", "pink"]}}, ["pink"]),
        "a lane": ({"text": "red", "filter": {"lane": "bulk"}}, ["pink"]),
        "an age": ({"text": "red", "filter": {"created_after": later}}, []),
        "an image": ({"image_id": ids["red"], "limit": 2}, ["pink", "green"]),
    }
    for case, (query, expected) in narrowed.items():
        with subtests.test(case):
            assert found(face.search(**query)) == expected
    assert found(face.search_picture(picture(9), limit=2)) == ["green", "pink"]
    assert found(face.search_picture(picture(9), filter={"tags": ["blue"]})) == ["blue"]
    refused = {
        "image-corrupt": picture(1) + BROKEN,
        "unsupported-format": b"<html>" * 10,
        "empty-file": b"",
    }
    for slug, content in refused.items():
        with subtests.test(slug):
            with pytest.raises(Refused) as refusal:
                face.search_picture(content)
            assert refusal.value.slug == slug
    assert not any(key.startswith(("queries", "incoming")) for key in stored(gateway))
    waiting = face.upload(picture(50))["image"]
    with pytest.raises(Refused) as refusal:
        face.search(image_id=waiting["id"])
    assert (refusal.value.slug, refusal.value.code) == ("image-not-ready", grpc.StatusCode.FAILED_PRECONDITION)


def test_a_search_that_cannot_be_answered_says_when_to_try_again(face: Face, engine: Engine) -> None:
    for slug in ("model-not-ready", "search-unavailable"):
        with pytest.raises(Refused) as refusal:
            face.search(text="red")
        assert (refusal.value.slug, refusal.value.code) == (slug, grpc.StatusCode.UNAVAILABLE)
        assert refusal.value.retry_s == 2
        make_active(engine)


def test_a_task_is_told_alike(
    serve: Callable[..., Served], face_of: Callable[[Served], Face], redis_url: str, engine: Engine
) -> None:
    gateway = serve(result_url=redis_url)
    face = face_of(gateway)
    image = face.upload(picture(1))["image"]
    with engine.begin() as connection:
        dispatch.lease(connection, 1, 60)
    ids = task_ids(image["sha256"], 1)
    results: dict[str, Any] = {
        "prepare": {"status": "SUCCESS", "result": {"manifest": "derived/x", "sizes": [1, 2]}},
        "embed": {"status": "FAILURE", "result": {"exc_type": "PermanentError", "exc_message": ["It is damaged."]}},
        "finalize": {"status": "STARTED", "result": {"pid": 7}},
    }
    with Redis.from_url(redis_url) as redis:
        for step, result in results.items():
            redis.set(f"celery-task-meta-{ids[step]}", json.dumps(result))
    told = {step: face.task(str(task_id)) for step, task_id in ids.items()}
    assert told["prepare"]["result"] == {"manifest": "derived/x", "sizes": [1, 2]}
    assert told["embed"]["error"] == {"type": "PermanentError", "message": "It is damaged."}
    states = {step: told[step]["state"] for step in (*results, "thumbnails")}
    assert states == {"prepare": "SUCCESS", "embed": "FAILURE", "finalize": "STARTED", "thumbnails": "PENDING"}
    assert told == {step: RestFace(gateway).task(str(task_id)) for step, task_id in ids.items()}


def test_a_probe_that_is_too_long_is_refused_alike(face: Face, subtests: pytest.Subtests) -> None:
    for name, value, limit, service in (
        ("seconds", 21, "20", "thumbnailer"),
        ("seconds", 2.5, "2", "embedder"),
        ("countdown_seconds", 31, "30", "thumbnailer"),
        ("expires_seconds", 3601, "3600", "scheduler"),
    ):
        with subtests.test(f"{name} for the {service}"):
            with pytest.raises(Refused) as refusal:
                face.probe("slow", service=service, **{name: value})
            assert (refusal.value.slug, refusal.value.code) == ("invalid-field", grpc.StatusCode.INVALID_ARGUMENT)
            assert (refusal.value.told["value"], refusal.value.told["limit"]) == (f"{value:g}", limit)


def test_a_probe_without_a_broker_leaves_nothing_behind(face: Face, engine: Engine) -> None:
    with pytest.raises(Refused) as refusal:
        face.probe("add")
    assert (refusal.value.slug, refusal.value.retry_s) == ("probe-not-sent", 2)
    with engine.connect() as connection:
        assert connection.execute(select(tasks)).all() == []


def test_the_rate_limit_of_probes_is_that_of_all_gateways(
    serve: Callable[..., Served], face_of: Callable[[Served], Face], redis_url: str, engine: Engine
) -> None:
    faces = [face_of(serve(broker_url=redis_url, probes_per_minute=3)) for _ in range(2)]
    for number in range(3):
        faces[number % 2].probe("add")
    for face in faces:
        with pytest.raises(Refused) as refusal:
            face.probe("add")
        assert (refusal.value.slug, refusal.value.code) == ("too-many-probes", grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert refusal.value.told["limit"] == "3"
        assert refusal.value.retry_s is not None and 0 < refusal.value.retry_s <= 60
    with engine.begin() as connection:
        aged = connection.execute(update(tasks).values(issued_at=tasks.c.issued_at - timedelta(minutes=1)))
        assert aged.rowcount == 3  # what was refused was never issued
    faces[1].probe("add")


def test_a_task_without_redis_is_told_alike(face: Face, engine: Engine) -> None:
    image = face.upload(picture(1))["image"]
    with engine.begin() as connection:
        dispatch.lease(connection, 1, 60)
    with pytest.raises(Refused) as refusal:
        face.task(str(task_ids(image["sha256"], 1)["prepare"]))
    assert (refusal.value.slug, refusal.value.retry_s) == ("results-unavailable", 2)
