"""A part of the hostile corpus over REST, through the real gateway, thumbnailer, embedder and finalize on RabbitMQ."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from conftest import eventually
from hostile_child import levels_apart
from hostile_corpus import CORPUS, MEMORY_BYTES, READY, Hostile
from PIL import Image

from darkroom_cli.servers import ChildProcess, reserve_port

pytestmark = [
    pytest.mark.parametrize("broker_url", ["rabbitmq"], indirect=True),
    pytest.mark.timeout(600),  # of a machine that may be busy with something else
]

LOSSY_LEVELS = 12
"""The mean of 8 x 8 pixels in a WebP of quality 83 is nearer than that; in rows that are missing, it is not."""


def chosen() -> list[Hostile]:
    """One cut of each kind of file, and every third of all others."""
    cuts = {name.partition(" cut at ")[0]: hostile for name, hostile in CORPUS.items() if " cut at " in name}
    others = [hostile for name, hostile in CORPUS.items() if " cut at " not in name]
    return [*cuts.values(), *others[::3]]


@dataclass(frozen=True)
class Stack:
    """A gateway with every process behind it that one photo needs. Nothing starts one again that has ended."""

    url: str
    processes: dict[str, ChildProcess]

    def check(self) -> None:
        """Fails with the name and the last words of a process that has ended."""
        for name, process in self.processes.items():
            if not process.is_running:
                pytest.fail(f"the {name} ended with {process.exit_status}:\n{process.log_tail(60)}")

    def eventually(self, check: Callable[[], bool], within_s: float) -> None:
        """Waits for the check, as long as every process runs."""

        def check_all() -> bool:
            self.check()
            return check()

        eventually(check_all, within_s=within_s, every_s=0.2)


@pytest.fixture
def stack(spawn: Callable[..., ChildProcess]) -> Iterator[Stack]:
    port = reserve_port()
    bounds = {"DARKROOM_DECODE_MEMORY_BYTES": str(MEMORY_BYTES), "DARKROOM_MAX_FRAMES": "1000"}
    stack = Stack(
        f"http://127.0.0.1:{port}",
        {
            "gateway": spawn("darkroom-gateway", DARKROOM_HTTP_PORT=str(port)),
            "thumbnailer": spawn("darkroom-thumbnailer", DARKROOM_WORKER_CONCURRENCY="2", **bounds),
            "embedder": spawn("darkroom-embedder"),
            "finalize": spawn("darkroom-scheduler", "finalize"),
        },
    )

    def is_ready() -> bool:
        try:
            return bool(httpx.get(f"{stack.url}/readyz").raise_for_status().json()["photo_ready"])
        except httpx.HTTPError:
            return False

    stack.eventually(is_ready, within_s=180)
    yield stack
    stack.check()


def test_every_hostile_upload_is_refused_or_fails_with_its_cause_or_shows_the_right_pixels(stack: Stack) -> None:
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        accepted: dict[str, Hostile] = {}
        for hostile in chosen():
            answer = http.post("/v1/images", files={"file": (hostile.name[:200], hostile.make())})
            if hostile.refused or answer.status_code != 202:
                assert slug(answer.json()) in (hostile.refused, *hostile.ends), (hostile.name, answer.text)
                assert 400 <= answer.status_code < 500
            else:
                accepted[answer.json()["images"][0]["id"]] = hostile
        assert len(accepted) > 50

        stack.eventually(lambda: http.get("/v1/ledger").json()["in_flight"] == 0, within_s=300)

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
