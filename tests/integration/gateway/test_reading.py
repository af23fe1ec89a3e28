"""Reading, listing, deleting and retrying what was uploaded."""

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from gateway_outcomes import fail, finish
from gateway_pictures import MODEL_ID, picture
from gateway_serving import Served
from redis import Redis
from sqlalchemy import Engine, text

from darkroom.contracts import keys
from darkroom.contracts.base import ThumbnailSize
from darkroom.contracts.keys import Recipe, original_key
from darkroom.database import dispatch, outcomes
from darkroom.workflow import task_ids

pytest_plugins = ["gateway_fixtures"]

VECTOR = [1.0, 0.0, 0.0]


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"]).rpartition("/")[2]


@pytest.fixture
def ready(gateway: Served, engine: Engine) -> dict[str, Any]:
    """A finished image."""
    (image,) = gateway.accepted(picture(1))
    finish(engine, gateway.parts.store, image["sha256"], VECTOR)
    shown: dict[str, Any] = gateway.http.get(f"/v1/images/{image['id']}").json()
    return shown


def test_a_ready_image_has_all_that_is_promised(gateway: Served, ready: dict[str, Any]) -> None:
    assert set(ready) == {
        *("id", "status", "sha256", "filename", "format", "bytes", "width", "height", "taken_at", "tags"),
        *("external_id", "lane", "thumbhash", "palette", "thumbnails", "embeddings", "error", "attempts"),
        *("trace_id", "created_at", "ready_at", "batch_id", "duplicate", "tasks"),
    }
    assert ready["status"] == "ready"
    assert (ready["format"], ready["width"], ready["height"]) == ("JPEG", 1600, 1200)
    assert ready["embeddings"] == [{"model": MODEL_ID, "dim": 3}]
    assert set(ready["thumbnails"]) == {"small", "medium", "large"}
    for thumbnail in ready["thumbnails"].values():
        picture = gateway.http.get(thumbnail["url"])
        assert picture.status_code == 200
        assert len(picture.content) == thumbnail["bytes"]
        assert picture.headers["content-type"] == "image/webp"
    assert ready["error"] is None
    assert ready["ready_at"] >= ready["created_at"]


def test_a_failed_image_says_why(gateway: Served, engine: Engine) -> None:
    (image,) = gateway.accepted(picture(1))
    fail(engine, image["sha256"])
    shown = gateway.http.get(f"/v1/images/{image['id']}").json()
    assert (shown["status"], shown["attempts"]) == ("failed", 1)
    assert shown["error"]["type"].endswith("/image-corrupt")
    assert shown["error"]["remedy"] == "Send another."


def test_bytes_are_cached_for_ever_and_run_by_nobody(gateway: Served, ready: dict[str, Any]) -> None:
    for path in (f"/v1/images/{ready['id']}/original", ready["thumbnails"]["small"]["url"]):
        answer = gateway.http.get(path)
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Accept-Ranges"] == "bytes"
        etag = answer.headers["ETag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            again = gateway.http.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
        assert gateway.http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
        head = gateway.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(answer.content))


def test_an_original_is_saved_under_its_name(gateway: Served) -> None:
    name = 'Straße "1" ☀.jpg'
    answer = gateway.http.post("/v1/images", files=[("file", (name, picture(1)))])
    (image,) = answer.json()["images"]
    original = gateway.http.get(f"/v1/images/{image['id']}/original")
    assert original.content == picture(1)
    assert original.headers["Content-Type"] == "image/jpeg"
    assert original.headers["Content-Disposition"].startswith('attachment; filename="Stra_e ')
    assert "filename*=UTF-8''Stra%C3%9Fe%20" in original.headers["Content-Disposition"]


RANGES = [
    ("bytes=0-9", 206, 0, 10),
    ("bytes=100-", 206, 100, 300_000),
    ("bytes=-50", 206, 299_950, 300_000),
    ("bytes=-999999", 206, 0, 300_000),
    ("bytes=299999-999999", 206, 299_999, 300_000),
    ("bytes=1000-299000", 206, 1000, 299_001),
    ("bytes=5-2", 200, 0, 300_000),
    ("bytes=0-1,5-6", 200, 0, 300_000),
    ("lines=0-1", 200, 0, 300_000),
    ("bytes=-", 200, 0, 300_000),
]


def test_a_range_is_answered(gateway: Served, subtests: pytest.Subtests) -> None:
    content = picture(1, 300_000)
    (image,) = gateway.accepted(content)
    for header, status, start, stop in RANGES:
        with subtests.test(header):
            answer = gateway.http.get(f"/v1/images/{image['id']}/original", headers={"Range": header})
            assert answer.status_code == status
            assert answer.content == content[start:stop]
            assert answer.headers.get("Content-Range") == (
                f"bytes {start}-{stop - 1}/300000" if status == 206 else None
            )


def test_a_range_behind_the_end_is_416(gateway: Served) -> None:
    (image,) = gateway.accepted(picture(1, 300_000))
    for header in ("bytes=300000-", "bytes=300000-300001", "bytes=-0"):
        answer = gateway.http.get(f"/v1/images/{image['id']}/original", headers={"Range": header})
        assert (answer.status_code, slug(answer)) == (416, "range-not-satisfiable")
        assert answer.headers["Content-Range"] == "bytes */300000"


def test_a_range_of_another_version_is_answered_whole(gateway: Served) -> None:
    (image,) = gateway.accepted(picture(1))
    path = f"/v1/images/{image['id']}/original"
    etag = gateway.http.head(path).headers["ETag"]
    partial = {"Range": "bytes=0-9"}
    assert gateway.http.get(path, headers=partial | {"If-Range": etag}).status_code == 206
    assert gateway.http.get(path, headers=partial | {"If-Range": '"old"'}).content == picture(1)


def test_a_thumbnail_before_its_time_is_404(gateway: Served) -> None:
    (image,) = gateway.accepted(picture(1))
    answer = gateway.http.get(f"/v1/images/{image['id']}/thumbnails/small")
    assert (answer.status_code, slug(answer)) == (404, "thumbnail-not-ready")
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("name", ["original", "thumbnails/small"])
def test_a_blob_that_is_missing_is_503_and_made_again_while_the_image_stays_ready(
    gateway: Served, engine: Engine, ready: dict[str, Any], name: str
) -> None:
    key = original_key(ready["sha256"]) if name == "original" else thumbnail_key(ready["sha256"], "small")
    data = gateway.parts.store.get(key)
    gateway.parts.store.delete(key)
    before = gateway.http.get("/v1/ledger").json(), event_types(engine)
    for _ in range(2):  # the second reader starts nothing
        answer = gateway.http.get(f"/v1/images/{ready['id']}/{name}")
        assert (answer.status_code, slug(answer)) == (503, "blob-missing")
        assert answer.headers["Retry-After"] == "2"
        assert gateway.http.get(f"/v1/images/{ready['id']}").json()["status"] == "ready"
    with engine.begin() as connection:
        assert [one.sha256 for one in dispatch.lease(connection, 10, 60)] == [ready["sha256"]]
    gateway.parts.store.put(key, data)
    finish(engine, gateway.parts.store, ready["sha256"], VECTOR)
    assert (gateway.http.get("/v1/ledger").json(), event_types(engine)) == before
    assert gateway.http.get(f"/v1/images/{ready['id']}/{name}").status_code == 200
    (other,) = gateway.accepted(picture(2))
    finish(engine, gateway.parts.store, other["sha256"], VECTOR)
    found = gateway.http.post("/v1/search", json={"image_id": other["id"]}).json()["results"]
    assert [hit["image"]["id"] for hit in found] == [ready["id"]]


def test_the_original_of_an_image_that_failed_without_it_is_gone(gateway: Served, engine: Engine) -> None:
    (image,) = gateway.accepted(picture(1))
    finish(engine, gateway.parts.store, image["sha256"])
    gateway.parts.store.delete(original_key(image["sha256"]))
    with engine.begin() as connection:
        outcomes.lose_original(connection, image["sha256"])
    answer = gateway.http.get(f"/v1/images/{image['id']}/original")
    assert (answer.status_code, slug(answer)) == (410, "original-missing")
    assert gateway.http.get(f"/v1/images/{image['id']}/thumbnails/small").status_code == 200
    (again,) = gateway.accepted(picture(1))  # brings both back
    assert {one["status"] for one in gateway.http.get("/v1/images").json()["images"]} <= {"accepted", "processing"}
    assert gateway.http.get(f"/v1/images/{again['id']}/original").status_code == 200


def event_types(engine: Engine) -> list[str]:
    with engine.begin() as connection:
        return list(connection.scalars(text("SELECT type FROM events ORDER BY row_id")))


def thumbnail_key(sha256: str, size: str) -> str:
    return keys.thumbnail_key(sha256, Recipe.current(), ThumbnailSize(size))


UNKNOWN = uuid4()


UNKNOWN_PATHS = [
    ("GET", f"/v1/images/{UNKNOWN}", "image-not-found"),
    ("DELETE", f"/v1/images/{UNKNOWN}", "image-not-found"),
    ("POST", f"/v1/images/{UNKNOWN}:retry", "image-not-found"),
    ("GET", f"/v1/images/{UNKNOWN}/original", "image-not-found"),
    ("GET", f"/v1/images/{UNKNOWN}/thumbnails/small", "image-not-found"),
    ("GET", f"/v1/batches/{UNKNOWN}", "batch-not-found"),
    ("GET", f"/v1/tasks/{UNKNOWN}", "task-not-found"),
]


def test_what_is_not_there_is_404(gateway: Served, subtests: pytest.Subtests) -> None:
    for method, path, problem in UNKNOWN_PATHS:
        with subtests.test(f"{method} {path}"):
            answer = gateway.http.request(method, path)
            assert (answer.status_code, slug(answer)) == (404, problem)
            assert str(UNKNOWN) == answer.json()["value"]


INVALID = [
    ("GET", "/v1/images/7"),
    ("GET", "/v1/batches/x"),
    ("GET", "/v1/tasks/not-a-uuid"),
    ("DELETE", "/v1/images/7"),
    ("POST", "/v1/images/7:retry"),
    ("GET", f"/v1/images/{UNKNOWN}/thumbnails/huge"),
    ("GET", "/v1/images?limit=0"),
    ("GET", "/v1/images?limit=201"),
    ("GET", "/v1/images?status=deleted"),
    ("GET", "/v1/images?colour=red"),
    ("GET", "/v1/images?tag="),
    ("GET", "/v1/images?tag=a%00b"),
    ("GET", "/v1/reports?limit=0"),
]


def test_a_value_that_cannot_be_accepted_is_422(gateway: Served, subtests: pytest.Subtests) -> None:
    for method, path in INVALID:
        with subtests.test(f"{method} {path}"):
            answer = gateway.http.request(method, path)
            assert (answer.status_code, slug(answer)) == (422, "invalid-request")
            assert answer.json()["detail"]


def test_a_deleted_image_is_gone_and_its_blobs_are_left_to_the_sweeper(
    gateway: Served, engine: Engine, ready: dict[str, Any]
) -> None:
    path = f"/v1/images/{ready['id']}"
    answer = gateway.http.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    for gone in (path, f"{path}/original", f"{path}/thumbnails/small"):
        assert gateway.http.get(gone).status_code == 404
    assert gateway.http.delete(path).status_code == 404
    assert gateway.http.get("/v1/images").json()["images"] == []
    batch = gateway.http.get(f"/v1/batches/{ready['batch_id']}").json()
    assert (batch["deleted"], batch["ready"], batch["images"]) == (1, 0, [])
    assert gateway.http.get("/v1/ledger").json()["deleted"] == 1
    assert gateway.parts.store.exists(original_key(ready["sha256"]))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT unreferenced_at IS NOT NULL FROM originals"))


def test_a_failed_image_can_be_retried_and_no_other(gateway: Served, engine: Engine, ready: dict[str, Any]) -> None:
    failing, waiting = gateway.accepted(picture(2), picture(3))
    fail(engine, failing["sha256"])
    answer = gateway.http.post(f"/v1/images/{failing['id']}:retry")
    assert (answer.status_code, answer.json()["status"], answer.json()["error"]) == (202, "accepted", None)
    for other, state in ((ready, "ready"), (waiting, "in_flight"), (failing, "in_flight")):
        refused = gateway.http.post(f"/v1/images/{other['id']}:retry")
        assert (refused.status_code, slug(refused), refused.json()["value"]) == (409, "image-not-failed", state)
    assert gateway.http.get("/v1/ledger").json()["in_flight"] == 2


def test_a_batch_counts_its_images(gateway: Served, engine: Engine) -> None:
    images = gateway.accepted(*[picture(n) for n in range(4)])
    finish(engine, gateway.parts.store, images[0]["sha256"], VECTOR)
    fail(engine, images[1]["sha256"])
    gateway.http.delete(f"/v1/images/{images[2]['id']}")
    batch = gateway.http.get(f"/v1/batches/{images[0]['batch_id']}").json()
    counters = {name: batch[name] for name in ("total", "ready", "failed", "deleted", "pending")}
    assert counters == {"total": 4, "ready": 1, "failed": 1, "deleted": 1, "pending": 1}
    assert [image["id"] for image in batch["images"]] == [images[0]["id"], images[1]["id"], images[3]["id"]]


def test_images_are_listed_newest_first_page_by_page(gateway: Served) -> None:
    uploaded = [gateway.accepted(picture(n))[0]["id"] for n in range(7)]
    pages, token = [], None
    while True:
        answer = gateway.http.get("/v1/images", params={"limit": 3, **({"page_token": token} if token else {})}).json()
        pages.append([image["id"] for image in answer["images"]])
        token = answer["next_page_token"]
        if token is None:
            break
        gateway.accepted(picture(100 + len(pages)))  # a new one does not move what was not read yet
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [image for page in pages for image in page] == uploaded[::-1]


def test_a_page_token_that_is_not_ours_is_422(gateway: Served) -> None:
    for token in ("x", "!!!!", "AAAA", "", "a" * 22 + "?"):
        answer = gateway.http.get("/v1/images", params={"page_token": token})
        assert (answer.status_code, slug(answer)) == (422, "invalid-field"), token


def test_lists_can_be_narrowed(gateway: Served, engine: Engine) -> None:
    (accepted,) = gateway.accepted(picture(1), tags=["a"])
    (processing,) = gateway.accepted(picture(2), tags=["a", "b"])
    (ready,) = gateway.accepted(picture(3), tags=["b"])
    (failed,) = gateway.accepted(picture(4))
    with engine.begin() as connection:
        statement = text("UPDATE originals SET status = 'processing' WHERE sha256 = :sha256")
        connection.execute(statement, {"sha256": processing["sha256"]})
    finish(engine, gateway.parts.store, ready["sha256"], VECTOR)
    fail(engine, failed["sha256"])

    def listed(**query: Any) -> list[str]:
        return [image["id"] for image in gateway.http.get("/v1/images", params=query).json()["images"]]

    for status, image in {"accepted": accepted, "processing": processing, "ready": ready, "failed": failed}.items():
        assert listed(status=status) == [image["id"]]
    assert listed(tag="a") == [processing["id"], accepted["id"]]
    assert listed(tag=["a", "b"]) == [processing["id"]]
    assert listed(tag="b", status="ready") == [ready["id"]]
    assert listed(tag="c") == []


def test_a_task_answers_with_what_celery_stored(
    serve: Callable[..., Served], redis_url: str, engine: Engine, photo: bytes
) -> None:
    gateway = serve(result_url=redis_url)
    (image,) = gateway.accepted(photo)
    with engine.begin() as connection:
        dispatch.lease(connection, 1, 60)
    ids = task_ids(image["sha256"], 1)

    def task(step: str) -> httpx.Response:
        return gateway.http.get(f"/v1/tasks/{ids[step]}")

    def store(step: str, status: str, result: Any) -> None:
        with Redis.from_url(redis_url) as redis:
            redis.set(f"celery-task-meta-{ids[step]}", json.dumps({"status": status, "result": result}))

    pending = task("prepare").json()
    assert pending.pop("issued_at")
    unknown = ("result", "progress", "error", "worker", "started_at", "finished_at")
    assert pending == dict.fromkeys(unknown) | {
        "task_id": ids["prepare"],
        "name": "thumbnailer.prepare",
        "state": "PENDING",
        "queue": "prepare",
    }
    store("prepare", "STARTED", {"pid": 7, "hostname": "worker@host"})
    assert (task("prepare").json()["state"], task("prepare").json()["result"]) == ("STARTED", None)
    store("prepare", "SUCCESS", {"manifest": "derived/x"})
    assert (task("prepare").json()["state"], task("prepare").json()["result"]) == ("SUCCESS", {"manifest": "derived/x"})
    store("embed", "FAILURE", {"exc_type": "PermanentError", "exc_message": ["It is damaged."], "exc_module": "x"})
    assert task("embed").json()["error"] == {"type": "PermanentError", "message": "It is damaged."}

    finish(engine, gateway.parts.store, image["sha256"])
    assert task("thumbnails").json()["state"] == "SUCCESS", "its result was forgotten by the join"
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET issued_at = now() - interval '2 hours'"))
    expired = task("thumbnails")
    assert (expired.status_code, slug(expired), expired.json()["limit"]) == (410, "task-expired", 3600)


def test_a_task_without_redis_is_503(gateway: Served, engine: Engine, photo: bytes) -> None:
    (image,) = gateway.accepted(photo)
    with engine.begin() as connection:
        dispatch.lease(connection, 1, 60)
    answer = gateway.http.get(f"/v1/tasks/{task_ids(image['sha256'], 1)['prepare']}")
    assert (answer.status_code, slug(answer)) == (503, "results-unavailable")


def test_thumbnails_lie_where_their_recipe_says(gateway: Served, ready: dict[str, Any]) -> None:
    etag = gateway.http.head(ready["thumbnails"]["large"]["url"]).headers["ETag"]
    assert etag == f'"{ready["sha256"]}-{Recipe.current().slug}-large"'
