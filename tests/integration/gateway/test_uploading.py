"""Uploads: what is stored when the answer comes, what is refused, and that nothing half done is left behind."""

import asyncio
import errno
import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import eventually
from gateway_outcomes import fail, finish
from gateway_pictures import picture
from gateway_serving import Served, peak_bytes, reset_peak_bytes, stop_and_go
from sqlalchemy import Engine, event, select

import darkroom.storage
from darkroom.database.tables import originals
from darkroom_cli.servers import ChildProcess
from darkroom_cli.servers.ports import reserve_port
from gateway import library
from gateway.rest import images as routes

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]


def stored(gateway: Served, folder: str = "") -> list[str]:
    """The keys of all blobs in a folder of the store, those without a name among them."""
    root: Path = gateway.parts.store.root  # type: ignore[attr-defined]
    return sorted(path.relative_to(root).as_posix() for path in (root / folder).rglob("*") if path.is_file())


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    return str(answer.json()["type"]).rpartition("/")[2]


def nothing_is_stored(gateway: Served) -> bool:
    return stored(gateway) == [] and gateway.http.get("/v1/ledger").json()["accepted"] == 0


def test_an_upload_is_accepted_while_broker_and_redis_are_down(gateway: Served) -> None:
    contents = [picture(n) for n in range(3)]
    answer = gateway.upload(*contents, lane="bulk", tags=["sea", "sun", "sea"], external_id="album-7")
    assert answer.status_code == 202
    batch, images = answer.json()["batch"], answer.json()["images"]
    assert (batch["total"], batch["pending"], batch["ready"], batch["completed_at"]) == (3, 3, 0, None)
    assert [image["sha256"] for image in images] == [hashlib.sha256(content).hexdigest() for content in contents]
    assert [image["id"] for image in images] == sorted(image["id"] for image in images)
    for image, content in zip(images, contents, strict=True):
        key = f"originals/{image['sha256'][:2]}/{image['sha256']}"
        assert gateway.parts.store.get(key) == content
        assert image == gateway.http.get(f"/v1/images/{image['id']}").json()
        assert (image["status"], image["lane"], image["duplicate"]) == ("accepted", "bulk", False)
        assert (image["tags"], image["external_id"]) == (["sea", "sun"], "album-7")
        assert (image["bytes"], image["batch_id"]) == (len(content), batch["id"])
    assert len(stored(gateway)) == 3
    assert gateway.http.get("/v1/ledger").json() == {
        "accepted": 3,
        "ready": 0,
        "failed": 0,
        "deleted": 0,
        "in_flight": 3,
    }


def test_file_folder_and_row_are_durable_before_the_answer(
    gateway: Served, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def noting_fsync(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        fsync(descriptor)
        happened.append(f"synced {Path(f'/proc/self/fd/{descriptor}').readlink().parent.name}")

    monkeypatch.setattr(darkroom.storage.os, "fsync", noting_fsync)
    event.listen(gateway.parts.acceptance.engine, "commit", lambda connection: happened.append("committed"))
    gateway.accepted(photo)
    happened.append("answered")
    # The file while it has no name yet, the new folders, the name in them; then the row.
    assert happened[0] == "synced incoming"
    assert happened[-3:] == ["synced originals", "committed", "answered"]
    assert set(happened[1:-3]) <= {"synced blobs", f"synced {gateway.parts.store.root.parent.name}"}


def test_the_same_bytes_twice_are_one_original(gateway: Served, engine: Engine, photo: bytes) -> None:
    first, second = gateway.accepted(photo, photo)
    (third,) = gateway.accepted(photo)
    assert [image["duplicate"] for image in (first, second, third)] == [False, True, True]
    assert len({image["id"] for image in (first, second, third)}) == 3
    with engine.connect() as connection:
        assert len(connection.execute(select(originals)).all()) == 1
    assert len(stored(gateway)) == 1


def test_a_duplicate_of_a_finished_photo_is_finished_at_once(gateway: Served, engine: Engine) -> None:
    ready, failed = gateway.accepted(picture(1), picture(2))
    finish(engine, gateway.parts.store, ready["sha256"], [1.0, 0.0, 0.0])
    fail(engine, failed["sha256"])
    answer = gateway.upload(picture(1), picture(2)).json()
    assert [image["status"] for image in answer["images"]] == ["ready", "failed"]
    assert answer["images"][0]["thumbnails"]["small"]["width"] == 16
    assert answer["images"][1]["error"]["title"] == "The file is damaged"
    assert (answer["batch"]["ready"], answer["batch"]["failed"], answer["batch"]["pending"]) == (1, 1, 0)
    assert answer["batch"]["completed_at"] is not None


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has so many requests wait for each other when their bytes are there and none has touched a row."""

    def prepare(count: int) -> None:
        barrier = asyncio.Barrier(count)

        def waiting(call: Callable[..., Any]) -> Callable[..., Any]:
            async def waits(*arguments: Any, **options: Any) -> Any:
                await barrier.wait()
                return await call(*arguments, **options)

            return waits

        monkeypatch.setattr(routes, "accept_form", waiting(routes.accept_form))
        monkeypatch.setattr(library, "delete_image", waiting(library.delete_image))

    return prepare


def test_two_identical_uploads_at_once_are_one_original(
    gateway: Served, engine: Engine, together: Callable[[int], None]
) -> None:
    together(8)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: gateway.accepted(picture(1)), range(8)))
    assert sorted(image["duplicate"] for (image,) in answers) == [False] + [True] * 7
    with engine.connect() as connection:
        assert len(connection.execute(select(originals)).all()) == 1
    assert len(stored(gateway)) == 1
    assert gateway.http.get("/v1/ledger").json()["accepted"] == 8


def test_an_upload_and_a_delete_at_once_leave_the_photo_there(
    gateway: Served, engine: Engine, together: Callable[[int], None]
) -> None:
    uploaded_before = [gateway.accepted(picture(seed)) for seed in range(10)]
    together(2)
    for seed, (image,) in enumerate(uploaded_before):
        with ThreadPoolExecutor(2) as pool:
            deleted = pool.submit(gateway.http.delete, f"/v1/images/{image['id']}")
            uploaded = pool.submit(gateway.accepted, picture(seed))
        assert deleted.result().status_code == 204
        (again,) = uploaded.result()
        with engine.connect() as connection:
            row = connection.execute(select(originals).where(originals.c.sha256 == image["sha256"])).one()
        assert row.unreferenced_at is None, "the sweeper would take the blob away"
        assert gateway.http.get(f"/v1/images/{again['id']}/original").content == picture(seed)
    assert gateway.http.get("/v1/ledger").json()["deleted"] == 10


LARGE = 10_000
"""The byte limit in these tests."""

REFUSALS: dict[str, tuple[list[tuple[str, Any]], dict[str, Any], int, str]] = {
    "too many bytes": ([("file", ("big.jpg", picture(1, LARGE + 1)))], {}, 413, "image-too-large"),
    "one of several": (
        [("file", ("ok.jpg", picture(1))), ("file", ("big.jpg", picture(2, LARGE + 1)))],
        {},
        413,
        "image-too-large",
    ),
    "too many files": ([("file", (f"{n}.jpg", picture(n))) for n in range(4)], {}, 413, "too-many-files"),
    "an empty file": ([("file", ("none.jpg", b""))], {}, 422, "empty-file"),
    "not a picture": ([("file", ("page.jpg", b"<html>" * 100))], {}, 415, "unsupported-format"),
    "a short one": ([("file", ("short.jpg", b"\xff"))], {}, 415, "unsupported-format"),
    "no file": ([("picture", (None, b"text"))], {}, 422, "no-file"),
    "an unknown field": ([("file", ("a.jpg", picture(1)))], {"album": "summer"}, 422, "unknown-field"),
    "an unknown lane": ([("file", ("a.jpg", picture(1)))], {"lane": "fast"}, 422, "invalid-field"),
    "a long tag": ([("file", ("a.jpg", picture(1)))], {"tags": "x" * 65}, 422, "invalid-field"),
    "an empty tag": ([("file", ("a.jpg", picture(1)))], {"tags": ""}, 422, "invalid-field"),
    "many tags": ([("file", ("a.jpg", picture(1)))], {"tags": [str(n) for n in range(33)]}, 422, "invalid-field"),
    "a tag with NUL": ([("file", ("a.jpg", picture(1)))], {"tags": "a\0b"}, 422, "invalid-field"),
    "a long external id": ([("file", ("a.jpg", picture(1)))], {"external_id": "x" * 257}, 422, "invalid-field"),
    "a long name": ([("file", ("n" * 256, picture(1)))], {}, 422, "invalid-field"),
    "a huge field": ([("file", ("a.jpg", picture(1)))], {"external_id": "x" * 5000}, 413, "field-too-large"),
    "many fields": ([("file", ("a.jpg", picture(1)))], {"tags": ["t"] * 101}, 413, "too-many-fields"),
    "not UTF-8": ([("file", ("a.jpg", picture(1))), ("external_id", (None, b"\xff"))], {}, 422, "invalid-field"),
}


def test_one_refused_file_refuses_the_request_and_nothing_is_stored(serve: Serve, subtests: pytest.Subtests) -> None:
    gateway = serve(max_upload_bytes=LARGE, max_upload_files=3)
    for case, (files, fields, status, problem) in REFUSALS.items():
        with subtests.test(case):
            answer = gateway.http.post("/v1/images", files=files, data=fields)
            assert (answer.status_code, slug(answer)) == (status, problem), answer.text
            assert answer.json()["remedy"]
            assert nothing_is_stored(gateway)


def test_a_refusal_names_the_file_the_value_and_the_limit(serve: Serve) -> None:
    gateway = serve(max_upload_bytes=LARGE)
    files = [("file", ("fine.jpg", picture(1))), ("file", ("huge.jpg", picture(2, 20_000)))]
    problem = gateway.http.post("/v1/images", files=files).json()
    assert (problem["file"], problem["limit"]) == ("huge.jpg", LARGE)
    assert LARGE < problem["value"] <= 20_000
    assert "DARKROOM_MAX_UPLOAD_BYTES" in problem["remedy"]


BODIES = {
    "no multipart": ("application/json", b"{}", 415, "wrong-content-type"),
    "no type": ("", b"abc", 415, "wrong-content-type"),
    "no boundary": ("multipart/form-data", b"abc", 415, "wrong-content-type"),
    "a boundary that is too long": (f"multipart/form-data; boundary={'x' * 300}", b"", 400, "malformed-upload"),
    "no end": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + picture(1),
        400,
        "malformed-upload",
    ),
    "no boundary in it": ("multipart/form-data; boundary=x", b"nothing of the kind", 400, "malformed-upload"),
    "no disposition": (
        "multipart/form-data; boundary=x",
        b"--x\r\nA: b\r\n\r\nc\r\n--x--",
        400,
        "malformed-upload",
    ),
    "a name that is not UTF-8": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="\xff"\r\n\r\nc\r\n--x--\r\n',
        400,
        "malformed-upload",
    ),
    "nothing": ("multipart/form-data; boundary=x", b"--x--\r\n", 422, "no-file"),
}


def test_a_body_that_cannot_be_read_is_a_problem(gateway: Served, subtests: pytest.Subtests) -> None:
    for case, (content_type, body, status, problem) in BODIES.items():
        with subtests.test(case):
            answer = gateway.http.post("/v1/images", content=body, headers={"Content-Type": content_type})
            assert (answer.status_code, slug(answer)) == (status, problem), answer.text
            assert nothing_is_stored(gateway)


def test_a_full_disk_is_507_and_leaves_nothing(gateway: Served, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):

        def no_room(*_: Any, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(darkroom.storage.FileWriter, "sync", no_room)
        answer = gateway.upload(photo)
        assert (answer.status_code, slug(answer)) == (507, "storage-full")
        assert nothing_is_stored(gateway)


def test_an_unwritable_store_is_503(gateway: Served, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(darkroom.storage.FileStore, "new_writer", broken)
    answer = gateway.upload(photo)
    assert (answer.status_code, slug(answer)) == (503, "storage-unavailable")
    assert answer.headers["Retry-After"]
    ready = gateway.http.get("/readyz")
    assert (ready.status_code, slug(ready)) == (503, "storage-unavailable")


def test_a_body_in_chunks_of_any_size_is_stored_as_it_was_sent(gateway: Served) -> None:
    """Sent at once, so that many small chunks arrive together before anything is read of them."""
    photo = picture(1) + bytes(index % 251 for index in range(600_000))
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + photo + b"\r\n--b--\r\n"
    sizes, chunks, start = itertools.cycle([1, 1, 2, 90_000, 1, 300, 7, 20_000, 3]), list[bytes](), 0
    while piece := form[start : start + next(sizes)]:
        chunks.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        start += len(piece)
    head = b"POST /v1/images HTTP/1.1\r\nHost: darkroom\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    url = gateway.http.base_url
    with socket.create_connection((url.host, url.port or 0)) as connection:
        kind = b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        connection.sendall(b"".join([head, kind, *chunks, b"0\r\n\r\n"]))
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 202 ")
    (key,) = stored(gateway)
    assert gateway.parts.store.get(key) == photo


def test_a_client_that_hangs_up_leaves_nothing(gateway: Served) -> None:
    url = httpx.URL(gateway.url)
    head = (
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 9000000\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + picture(1) + b"\r\n"
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="b.jpg"\r\n\r\n'
    )
    with socket.create_connection((url.host, url.port or 0)) as connection:
        connection.sendall(head + picture(2, 1_000_000))
        # The first file is synced and the second has begun.
        eventually(lambda: len(stored(gateway, "incoming")) == 2)
    eventually(lambda: nothing_is_stored(gateway))


def test_an_error_after_the_bytes_were_placed_stores_no_row(
    gateway: Served, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("gateway.uploads.uploads.accept", break_down)
    answer = gateway.upload(photo)
    assert (answer.status_code, slug(answer)) == (500, "internal-error")
    assert "secret" not in answer.text
    monkeypatch.undo()
    assert gateway.http.get("/v1/ledger").json()["accepted"] == 0
    assert stored(gateway, "incoming") == []
    (image,) = gateway.accepted(photo)
    assert image["duplicate"] is False


def test_the_same_idempotency_key_gives_the_same_answer(gateway: Served) -> None:
    def upload(*seeds: int, **fields: str) -> httpx.Response:
        contents = [picture(seed) for seed in seeds]
        return gateway.upload(*contents, headers={"Idempotency-Key": "key-1"}, **fields)

    first, again = upload(1, 2), upload(1, 2)
    assert first.status_code == again.status_code == 202
    assert first.json() == again.json()
    assert gateway.http.get("/v1/ledger").json()["accepted"] == 2
    for other in (upload(2, 1), upload(1), upload(1, 2, tags="new"), upload(1, 2, lane="bulk")):
        assert (other.status_code, slug(other)) == (422, "idempotency-key-reused")
    assert gateway.http.get("/v1/ledger").json()["accepted"] == 2
    assert stored(gateway, "incoming") == []


def test_two_requests_with_one_idempotency_key_at_once_are_accepted_once(
    gateway: Served, together: Callable[[int], None]
) -> None:
    together(6)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: gateway.upload(picture(1), headers={"Idempotency-Key": "k"}), range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["batch"]["id"] for answer in answers}) == 1
    assert gateway.http.get("/v1/ledger").json()["accepted"] == 1


def test_of_two_different_requests_with_one_key_at_once_one_is_refused(
    gateway: Served, together: Callable[[int], None]
) -> None:
    together(2)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda n: gateway.upload(picture(n), headers={"Idempotency-Key": "k"}), range(2)))
    assert sorted(answer.status_code for answer in answers) == [202, 422]
    assert gateway.http.get("/v1/ledger").json()["accepted"] == 1


def test_an_idempotency_key_must_be_short_and_plain(gateway: Served, photo: bytes, subtests: pytest.Subtests) -> None:
    keys: list[Any] = ["", "k" * 256, "caf\u00e9".encode("latin-1")]
    for key in keys:
        with subtests.test(repr(key)):
            answer = gateway.upload(photo, headers={"Idempotency-Key": key})
            assert (answer.status_code, slug(answer)) == (422, "invalid-field")


def test_an_upload_goes_on_with_its_clients_trace(gateway: Served, engine: Engine, photo: bytes) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "tracestate": "vendor=1"}
    (image,) = gateway.upload(photo, headers=headers).json()["images"]
    assert image["trace_id"] == trace
    with engine.connect() as connection:
        row = connection.execute(select(originals)).one()
    assert row.traceparent.startswith(f"00-{trace}-")
    assert row.traceparent.endswith("-01")
    assert "00f067aa0ba902b7" not in row.traceparent, "our span is a child of the client's"
    assert row.tracestate == "vendor=1"
    (other,) = gateway.accepted(picture(2))
    assert len(other["trace_id"]) == 32
    assert other["trace_id"] != trace


@pytest.fixture
def process(database_url: str, blob_url: str, tmp_path: Path) -> Iterator[tuple[ChildProcess, str]]:
    """The gateway as a process of its own, by its command."""
    nobody, port = reserve_port(), reserve_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")} | {
        "DARKROOM_DATABASE_URL": database_url,
        "DARKROOM_BLOB_URL": blob_url,
        "DARKROOM_BROKER_URL": f"amqp://127.0.0.1:{nobody}//",
        "DARKROOM_RESULT_URL": f"redis://127.0.0.1:{nobody}/0",
        "DARKROOM_HTTP_PORT": str(port),
        "DARKROOM_GRPC_PORT": "0",
    }
    log = tmp_path / "gateway.log"
    child = ChildProcess([str(Path(sys.executable).with_name("darkroom-gateway"))], log=log, env=env)
    child.start()
    yield child, f"http://127.0.0.1:{port}"
    child.stop()
    print(log.read_text()[-5000:])


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("held_up", [False, True], ids=["quick", "held-up"])
def test_a_200_mb_upload_does_not_grow_the_process(
    process: tuple[ChildProcess, str], tmp_path: Path, held_up: bool
) -> None:
    child, url = process
    eventually(lambda: is_up(url), within_s=120)
    pid = child.pid or 0
    size = 200_000_000
    warm = httpx.post(f"{url}/v1/images", files=[("file", ("warm.jpg", picture(1, 1_000_000)))], timeout=60)
    assert warm.status_code == 202
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.write(picture(2))
        file.truncate(size)
    before = reset_peak_bytes(pid)
    with large.open("rb") as file, stop_and_go(pid) if held_up else nullcontext():
        answer = httpx.post(f"{url}/v1/images", files=[("file", ("large.jpg", file))], timeout=120)
    assert answer.status_code == 202, answer.text
    assert answer.json()["images"][0]["bytes"] == size
    grown = peak_bytes(pid) - before
    print(f"peak grew by {grown / 1e6:.1f} MB")
    assert grown < 20_000_000
    # And out again.
    before = peak_bytes(pid)
    received = hashlib.sha256()
    image = answer.json()["images"][0]
    with httpx.stream("GET", f"{url}/v1/images/{image['id']}/original", timeout=120) as download:
        for piece in download.iter_bytes():
            received.update(piece)
    assert received.hexdigest() == image["sha256"]
    assert peak_bytes(pid) - before < 20_000_000


def test_the_command_logs_json_and_ends_on_sigterm(process: tuple[ChildProcess, str], tmp_path: Path) -> None:
    child, url = process
    eventually(lambda: is_up(url), within_s=120)
    assert httpx.post(f"{url}/v1/images", files=[("file", ("a.jpg", picture(1)))], timeout=60).status_code == 202
    child.stop()
    lines = [json.loads(line) for line in (tmp_path / "gateway.log").read_text().splitlines()]
    (request,) = [line for line in lines if line["event"] == "http.request" and line["method"] == "POST"]
    assert (request["service"], request["path"], request["status"]) == ("gateway", "/v1/images", 202)
    assert not child.is_running


def test_the_command_refuses_to_start_without_its_settings() -> None:
    command = str(Path(sys.executable).with_name("darkroom-gateway"))
    done = subprocess.run([command], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "database_url" in done.stderr
