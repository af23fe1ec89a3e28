"""A bulk backlog before every step of the real services, and interactive photos that pass it: by order, not by time."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import eventually, log_records
from kombu import Connection
from PIL import Image
from sqlalchemy import Engine, text

from darkroom import topology
from darkroom.contracts import keys
from darkroom.storage import BlobStore, open_blob_store
from darkroom_cli.servers import ChildProcess, reserve_port

BULK, INTERACTIVE = 120, 3
BATCH = 16

soon = partial(eventually, within_s=120)
"""A deadline for machines that are busy with something else."""


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (96, 64), (number % 256, number // 256, 200)).save(file, "PNG")
    return file.getvalue()


@contextmanager
def stopped(process: ChildProcess) -> Iterator[None]:
    """The process stands still inside the block, with what it has taken from its queues."""
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def upload(http: httpx.Client, lane: str, numbers: range) -> list[dict[str, Any]]:
    parts = [("file", (f"{number}.png", picture(number))) for number in numbers]
    answer = http.post("/v1/images", files=parts, data={"lane": lane})
    assert answer.status_code == 202, answer.text
    return list(answer.json()["images"])


def depth(broker_url: str, queue: str) -> int:
    with Connection(broker_url) as connection, connection.channel() as channel:
        return int(topology.task_queue(queue)(channel).queue_declare(passive=True).message_count)


def all_described(store: BlobStore, images: list[dict[str, Any]]) -> bool:
    recipe = keys.Recipe.current()
    return all(store.exists(keys.described_key(image["sha256"], recipe)) for image in images)


def batches(log: Path) -> list[dict[str, Any]]:
    return [record for record in log_records(log.read_text()) if record["event"] == "embedder.batch"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("broker_url", ["rabbitmq"], indirect=True)
def test_interactive_photos_pass_a_bulk_backlog_at_every_step(
    spawn: Callable[..., ChildProcess], engine: Engine, broker_url: str, blob_url: str, tmp_path: Path
) -> None:
    port, store = reserve_port(), open_blob_store(blob_url)
    settings = {"DARKROOM_WORKER_CONCURRENCY": "1", "DARKROOM_MODEL_THREADS": "1", "DARKROOM_HTTP_PORT": str(port)}
    settings["DARKROOM_TASK_HARD_LIMIT_S"] = "300"  # no watchdog takes one that we stop for one that hangs
    spawn("darkroom-gateway", **settings)
    spawn("darkroom-thumbnailer", "--lane=interactive", **settings)
    spawn("darkroom-thumbnailer", "--lane=bulk", **settings)
    embedder = spawn("darkroom-embedder", **settings)
    finalize = spawn("darkroom-scheduler", "finalize", **settings | {"DARKROOM_WORKER_CONCURRENCY": "4"})
    log = tmp_path / "3-darkroom-embedder.log"
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def state(image: dict[str, Any]) -> str:
        return str(http.get(f"/v1/images/{image['id']}").json()["status"])

    def answers() -> bool:
        try:
            return http.get("/healthz").is_success
        except httpx.TransportError:
            return False

    soon(answers)
    [first] = upload(http, "bulk", range(1))  # the model is known, and everyone has done everything once
    soon(lambda: state(first) == "ready")

    with stopped(finalize):
        with stopped(embedder):
            before = len(batches(log))
            waiting = [image for start in (100, 160) for image in upload(http, "bulk", range(start, start + BULK // 2))]
            soon(lambda: all_described(store, waiting))
            passing = upload(http, "interactive", range(1000, 1000 + INTERACTIVE))
            soon(lambda: all_described(store, passing))
            soon(lambda: depth(broker_url, "embed.bulk") >= BULK // 2)  # a busy RabbitMQ answers 0 at times
        soon(lambda: depth(broker_url, "finalize.bulk") >= BULK // 2)
    soon(lambda: all(state(image) == "ready" for image in passing))

    computed = batches(log)[before:]
    last = max(number for number, batch in enumerate(computed) if batch["interactive"])
    assert sum(batch["interactive"] for batch in computed) == INTERACTIVE
    # Of bulk no more than was there first, and while interactive photos are in a batch, its share of it.
    assert sum(batch["bulk"] for batch in computed[:last]) <= 3 * BATCH
    assert all(batch["bulk"] <= BATCH // 4 for batch in computed if batch["interactive"])
    assert max(batch["bulk"] for batch in computed) == BATCH
    with engine.connect() as connection:
        overtaken = connection.scalar(
            text(
                "SELECT count(*) FROM images b WHERE lane = 'bulk' AND id <> :first AND ready_at <= "
                "(SELECT max(ready_at) FROM images WHERE lane = 'interactive')"
            ),
            {"first": first["id"]},
        )
    assert overtaken <= BATCH  # of 120
    soon(lambda: all(state(image) == "ready" for image in waiting[-BATCH:]))
