"""A part of the hostile corpus over REST, through the real gateway, thumbnailer, embedder and finalize on RabbitMQ."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import eventually
from hostile_child import levels_apart
from hostile_corpus import CORPUS, MEMORY_BYTES, READY, Hostile
from PIL import Image

from darkroom_cli.servers import ChildProcess, reserve_port

pytestmark = pytest.mark.parametrize("broker_url", ["rabbitmq"], indirect=True)

LOSSY_LEVELS = 12
"""The mean of 8 x 8 pixels in a WebP of quality 83 is nearer than that; in rows that are missing, it is not."""


def chosen() -> list[Hostile]:
    """One cut of each kind of file, and every third of all others."""
    cuts = {name.partition(" cut at ")[0]: hostile for name, hostile in CORPUS.items() if " cut at " in name}
    others = [hostile for name, hostile in CORPUS.items() if " cut at " not in name]
    return [*cuts.values(), *others[::3]]


@pytest.fixture
def url(spawn: Callable[..., ChildProcess], tmp_path: Path) -> Iterator[str]:
    """The address of a gateway, with every process behind it that one photo needs."""
    port = reserve_port()
    running = [
        spawn("darkroom-gateway", DARKROOM_HTTP_PORT=str(port)),
        spawn(
            "darkroom-thumbnailer",
            DARKROOM_WORKER_CONCURRENCY="2",
            DARKROOM_DECODE_MEMORY_BYTES=str(MEMORY_BYTES),
            DARKROOM_MAX_FRAMES="1000",
        ),
        spawn("darkroom-embedder"),
        spawn("darkroom-scheduler", "finalize"),
    ]
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return bool(httpx.get(f"{url}/readyz").raise_for_status().json()["photo_ready"])
        except httpx.HTTPError:
            return False

    eventually(is_ready, within_s=90)
    yield url
    assert all(process.is_running for process in running)


def test_every_hostile_upload_is_refused_or_fails_with_its_cause_or_shows_the_right_pixels(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as http:
        accepted: dict[str, Hostile] = {}
        for hostile in chosen():
            answer = http.post("/v1/images", files={"file": (hostile.name[:200], hostile.make())})
            if hostile.refused or answer.status_code != 202:
                assert slug(answer.json()) in (hostile.refused, *hostile.ends), (hostile.name, answer.text)
                assert 400 <= answer.status_code < 500
            else:
                accepted[answer.json()["images"][0]["id"]] = hostile
        assert len(accepted) > 50

        eventually(lambda: http.get("/v1/ledger").json()["in_flight"] == 0, within_s=150)

        for image_id, hostile in accepted.items():
            image = http.get(f"/v1/images/{image_id}").raise_for_status().json()
            end = READY if image["status"] == "ready" else slug(image["error"])
            assert end in hostile.ends, (hostile.name, image)
            if end == READY:
                assert hostile.shown is not None
                large = http.get(f"/v1/images/{image_id}/thumbnails/large").raise_for_status()
                assert shows(large.content, hostile.shown()), hostile.name
        ledger = http.get("/v1/ledger").json()
        assert ledger["accepted"] == ledger["ready"] + ledger["failed"] == len(accepted)


def slug(problem: dict[str, Any]) -> str:
    return str(problem["type"]).rpartition("/")[2]


def shows(thumbnail: bytes, whole: Image.Image) -> bool:
    with Image.open(io.BytesIO(thumbnail)) as image:
        pair = (image, whole.resize(image.size))
        return levels_apart(*(one.convert("RGB").reduce(8) for one in pair)) <= LOSSY_LEVELS
