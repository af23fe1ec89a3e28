"""The gateway and the whole system with their blobs in an object store."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import eventually
from gateway_outcomes import finish
from gateway_pictures import picture
from gateway_serving import Served
from sqlalchemy import Engine

from darkroom.contracts.keys import original_key
from darkroom.storage import INCOMING, open_blob_store
from darkroom_cli.samples import SAMPLES, write_samples
from darkroom_cli.servers import ChildProcess, reserve_port

pytest_plugins = ["gateway_fixtures"]

VECTOR = [1.0, 0.0, 0.0]


def test_an_answered_upload_lies_in_the_bucket(serve: Callable[..., Served], s3_url: str) -> None:
    gateway, store = serve(blob_url=s3_url), open_blob_store(s3_url)
    contents = [picture(number) for number in range(3)]

    images = gateway.accepted(*contents)

    assert [store.get(original_key(image["sha256"])) for image in images] == contents
    assert not list(store.walk(INCOMING))
    again = gateway.http.get(f"/v1/images/{images[0]['id']}/original", headers={"Range": "bytes=2-9"})
    assert (again.status_code, again.content) == (206, contents[0][2:10])
    assert gateway.http.get("/readyz").json()["storage"] is True


def test_nothing_is_accepted_while_the_bucket_is_away(
    serve: Callable[..., Served], s3_url: str, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.object_storage.RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    gateway = serve(blob_url=s3_url)

    answer = gateway.upload(photo)

    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (503, "storage-unavailable")
    assert gateway.http.get("/v1/ledger").json()["accepted"] == 0
    assert gateway.http.get("/readyz").status_code == 503


def test_downloads_go_straight_to_the_bucket_where_that_is_set(
    serve: Callable[..., Served], s3_url: str, engine: Engine
) -> None:
    gateway = serve(blob_url=s3_url, direct_download_s=60)
    [image] = gateway.accepted(picture(1))
    finish(engine, gateway.parts.store, image["sha256"], VECTOR)
    path = f"/v1/images/{image['id']}/thumbnails/small"

    answer = gateway.http.get(path)

    assert (answer.status_code, answer.headers["cache-control"]) == (307, "private, max-age=30")
    direct = httpx.get(answer.headers["location"], timeout=60)
    assert (direct.status_code, direct.headers["content-type"]) == (200, "image/webp")
    assert gateway.http.head(path).status_code == 200
    original = httpx.get(gateway.http.get(f"/v1/images/{image['id']}/original").headers["location"], timeout=60)
    assert original.content == picture(1)


def test_a_folder_serves_through_the_gateway_whatever_is_set(serve: Callable[..., Served], photo: bytes) -> None:
    gateway = serve(direct_download_s=60)
    [image] = gateway.accepted(photo)

    assert gateway.http.get(f"/v1/images/{image['id']}/original").content == photo


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_photo_goes_all_the_way_through_a_bucket(
    s3_env: dict[str, str], tmp_path: Path, spawn: Callable[..., ChildProcess]
) -> None:
    port = reserve_port()
    settings = s3_env | {
        "DARKROOM_HTTP_PORT": str(port),
        "DARKROOM_WORKER_CONCURRENCY": "1",
        "DARKROOM_SEARCH_TIMEOUT_MS": "60000",
    }
    for command, *arguments in (
        ("darkroom-gateway",),
        ("darkroom-thumbnailer",),
        ("darkroom-embedder",),
        ("darkroom-scheduler", "finalize"),
    ):
        spawn(command, *arguments, **settings)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90) as client:

        def is_ready() -> bool:
            """a photo could be taken through"""
            try:
                return bool(client.get("/readyz").json().get("photo_ready"))
            except httpx.TransportError:
                return False

        eventually(is_ready, within_s=120)
        [sample] = write_samples(tmp_path / "samples", SAMPLES[:1])
        accepted = client.post("/v1/images", files={"file": (sample.name, sample.read_bytes())}).json()
        path = f"/v1/images/{accepted['images'][0]['id']}"
        eventually(lambda: client.get(path).json()["status"] == "ready", within_s=60)
        assert client.get(f"{path}/thumbnails/medium").headers["content-type"] == "image/webp"
        found = client.post("/v1/search", json={"text": "a red circle"}).json()["results"]
        assert [result["image"]["id"] for result in found] == [path.rpartition("/")[2]]
