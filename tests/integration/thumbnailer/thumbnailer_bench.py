"""Running thumbnailers, the pictures that they get, and a reader that stands in for the services behind them."""

import hashlib
import io
import os
import signal
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from celery import Celery
from celery.app.task import Context
from conftest import eventually
from kombu import Connection
from PIL import Image
from redis import Redis

from darkroom import topology
from darkroom.celery_app import create_app, declare_topology, request
from darkroom.contracts.base import Lane, Message
from darkroom.contracts.keys import Recipe, original_key
from darkroom.contracts.messages import Prepare, RecordFailure, RecordLoss, Thumbnails
from darkroom.contracts.tasks import PREPARE, RECORD_FAILURE, RECORD_LOSS, THUMBNAILS
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import FileStore
from darkroom.workflow import Dispatch, image_workflow, task_ids
from darkroom_cli.servers import ChildProcess

RECIPE = Recipe.current()

PATIENT = {"DARKROOM_TASK_SOFT_LIMIT_S": "290", "DARKROOM_TASK_HARD_LIMIT_S": "300"}
"""For a worker of which a test stops a child and lets it go on: no limit ends it meanwhile."""


@dataclass(frozen=True)
class Received:
    """One message as it came off a queue."""

    name: str
    task_id: str
    previous: list[Any]
    message: dict[str, Any]
    context: Context


@dataclass
class Bench:
    """A broker, a result store and a blob store with thumbnailers on them."""

    broker_url: str
    redis_url: str
    folder: Path
    received: dict[str, list[Received]] = field(default_factory=dict)
    workers: list[ChildProcess] = field(default_factory=list)
    seeds: Iterator[int] = field(default_factory=lambda: count(100))
    """Of pictures that no test has chosen."""

    def __post_init__(self) -> None:
        settings = BrokerSettings(broker_url=self.broker_url, result_url=self.redis_url)
        self.app: Celery = create_app("bench", settings, TaskSettings())
        # As in `bound_publishing`: results are looked up here, so nothing must stay subscribed to a server that ends.
        self.app.backend.on_task_call = lambda producer, task_id: {}
        self.store = FileStore(self.folder / "blobs")
        self.redis = Redis.from_url(self.redis_url)

    def clear(self) -> None:
        """Empties what earlier tests left on the servers."""
        self.redis.flushall()
        with Connection(self.broker_url) as connection:
            declare_topology(connection)
            with connection.channel() as channel:
                for queue in (*topology.CONSUMED_BY, topology.DEAD_LETTERS):
                    channel.queue_purge(queue)

    def start(self, lane: Lane = Lane.INTERACTIVE, **settings: str) -> ChildProcess:
        """Starts a thumbnailer; it consumes when `ready` has returned."""
        number = len(self.workers)
        heartbeat = self.heartbeat(number)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "OTEL_"))}
        environment |= {
            "DARKROOM_BROKER_URL": self.broker_url,
            "DARKROOM_RESULT_URL": self.redis_url,
            "DARKROOM_BLOB_URL": (self.folder / "blobs").as_uri(),
            "DARKROOM_HEARTBEAT_FILE": str(heartbeat),
            "DARKROOM_WORKER_CONCURRENCY": "2",
        }
        worker = ChildProcess(
            [str(Path(sys.executable).with_name("darkroom-thumbnailer")), f"--lane={lane.value}"],
            log=self.folder / f"{number}-{lane.value}.log",
            env=environment | settings,
            grace_s=10,
        )
        worker.start()
        self.workers.append(worker)
        return worker

    def heartbeat(self, number: int) -> Path:
        """The heartbeat file of the worker that was started as this one, from 0."""
        return self.folder / f"heartbeat-{number}"

    def ready(self) -> None:
        """Returns when every thumbnailer that was started consumes."""
        for number, worker in enumerate(self.workers):
            heartbeat = self.heartbeat(number)
            eventually(
                lambda heartbeat=heartbeat, worker=worker: heartbeat.exists() or not worker.is_running, within_s=120
            )
            assert self.heartbeat(number).exists(), worker.log_tail()

    def stop(self) -> None:
        """Stops the thumbnailers, all at once, and shows what they wrote."""
        stopping = [threading.Thread(target=worker.stop) for worker in self.workers]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        # A join looks its parts up by subscriptions, which must not be ended after the server.
        self.app.backend.result_consumer.subscribed_to.clear()
        for log in sorted(self.folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text()[-10_000:]}")
        self.app.close()
        self.redis.close()

    def keep(self, data: bytes) -> str:
        """Stores an original and returns its hash."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.store.put(original_key(sha256), data)
        return sha256

    def prepare(self, sha256: str, generation: int = 1, lane: Lane = Lane.INTERACTIVE) -> str:
        """Sends the step alone; returns its task's id."""
        message = Prepare(sha256=sha256, generation=generation, lane=lane, recipe=RECIPE)
        return self.send(PREPARE, message, lane, task_ids(sha256, generation)["prepare"])

    def thumbnails(self, sha256: str, generation: int = 1, lane: Lane = Lane.INTERACTIVE) -> str:
        """Sends the step alone; returns its task's id."""
        message = Thumbnails(sha256=sha256, generation=generation, lane=lane, recipe=RECIPE)
        return self.send(THUMBNAILS, message, lane, task_ids(sha256, generation)["thumbnails"])

    def send(self, contract: Any, message: Message, lane: Lane = Lane.INTERACTIVE, task_id: str | None = None) -> str:
        """Sends any task; returns its id."""
        return str(request(self.app, contract, message, lane=lane, task_id=task_id).apply_async().id)

    def dispatch(self, sha256: str, generation: int = 1, lane: Lane = Lane.INTERACTIVE) -> dict[str, str]:
        """Sends a photo through the whole canvas, as the gateway does; returns its tasks' ids."""
        image_workflow(self.app, Dispatch(sha256, generation, lane, RECIPE)).apply_async()
        return task_ids(sha256, generation)

    def meta(self, task_id: str) -> dict[str, Any]:
        """What the result store knows of a task: `status`, and in `result` the answer, the error or the child's pid."""
        found: dict[str, Any] = self.app.backend.get_task_meta(task_id, cache=False)
        return found

    def state(self, task_id: str) -> str:
        return str(self.meta(task_id)["status"])

    def answer(self, task_id: str, within_s: float = 90) -> Any:
        """What a task returned; fails if it did not."""
        eventually(lambda: self.state(task_id) in ("SUCCESS", "FAILURE"), within_s=within_s)
        meta = self.meta(task_id)
        assert meta["status"] == "SUCCESS", meta
        return meta["result"]

    def ends_as(self, task_id: str, within_s: float = 90) -> tuple[str, str]:
        """How a task ended, and the name of its error's class."""
        eventually(lambda: self.state(task_id) in ("SUCCESS", "FAILURE"), within_s=within_s)
        meta = self.meta(task_id)
        return meta["status"], type(meta["result"]).__name__

    def messages(self, queue: str) -> list[Received]:
        """Everything that ever came off a queue that no worker of the test consumes."""
        seen = self.received.setdefault(queue, [])
        with Connection(self.broker_url) as connection, connection.channel() as channel:
            bound = topology.task_queue(queue).bind(channel)
            while (raw := bound.get()) is not None:
                args, kwargs, embed = raw.payload
                headers = {**raw.headers, **raw.properties, **{name: embed[name] for name in embed if embed[name]}}
                seen.append(
                    Received(raw.headers["task"], raw.headers["id"], args, kwargs["message"], Context(**headers))
                )
                raw.ack()
        return seen

    def dead_letters(self) -> list[dict[str, Any]]:
        """The headers of what was refused or delivered too often."""
        found = []
        with Connection(self.broker_url) as connection, connection.channel() as channel:
            bound = topology.dead_letter_queue().bind(channel)
            while (raw := bound.get(no_ack=True)) is not None:
                found.append(raw.headers)
        return found

    def take(self, queue: str, task_id: str) -> Received:
        """The message of this task, when it comes."""
        [found, *_] = eventually(lambda: [each for each in self.messages(queue) if each.task_id == task_id])
        return found

    def failures(self, sha256: str) -> list[RecordFailure]:
        """The failures that were published for an original so far."""
        return [
            RecordFailure.from_wire(each.message)
            for each in self.messages("finalize")
            if each.name == RECORD_FAILURE.name and each.message["sha256"] == sha256
        ]

    def losses(self, sha256: str) -> list[RecordLoss]:
        """The losses that were published for an original so far."""
        return [
            RecordLoss.from_wire(each.message)
            for each in self.messages("finalize")
            if each.name == RECORD_LOSS.name and each.message["sha256"] == sha256
        ]

    def answer_as_worker(self, received: Received, result: Message) -> None:
        """Ends a task that the reader took, as its worker would: the result is stored, and a join counted."""
        self.app.backend.mark_as_done(received.task_id, result.to_wire(), request=received.context)

    def child_working_on(self, task_id: str, besides: tuple[int, ...] = ()) -> int:
        """The process id of the child that has begun the risky part of a task; `besides`: those that are dead."""

        def find() -> int | None:
            # The other way round, a new child's try would be seen beside the id of the one before.
            tries = int(self.redis.get(f"tries:{task_id}") or 0)
            meta = self.meta(task_id)
            pid = meta["result"].get("pid") if meta["status"] == "STARTED" else None
            return pid if pid and pid not in besides and tries > len(besides) else None

        return int(eventually(find) or 0)

    def stop_in_the_middle(self, generation: int = 1) -> tuple[str, str, int]:
        """Stops a child in the middle of a good photo: the photo's hash, its task's id and the child's process id.

        The middle is a tenth of a second: a photo that was through it before we came is followed by another.
        """
        while True:
            sha256 = self.keep(picture(width=6000, height=6000, seed=next(self.seeds)))
            task_id = self.prepare(sha256, generation)
            pid = self._stop_child(task_id)
            if pid is not None:
                return sha256, task_id, pid

    def _stop_child(self, task_id: str) -> int | None:
        marker = f"tries:{task_id}"
        eventually(lambda: self.redis.exists(marker) or self.state(task_id) not in ("PENDING", "STARTED"), every_s=0.01)
        meta = self.meta(task_id)
        if meta["status"] == "STARTED":
            pid = int(meta["result"]["pid"])
            os.kill(pid, signal.SIGSTOP)
            if self.redis.exists(marker):
                return pid
            os.kill(pid, signal.SIGCONT)
        return None


def children(worker: ChildProcess) -> set[int]:
    """The process ids of a worker's children."""
    return {int(pid) for pid in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()}


@contextmanager
def running(bench: Bench) -> Iterator[Bench]:
    """Clears the servers, and stops everything at the end."""
    bench.clear()
    try:
        yield bench
    finally:
        bench.stop()


def picture(name: str = "JPEG", width: int = 640, height: int = 480, seed: int = 0) -> bytes:
    """A small picture, another one for each seed."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.paste((seed * 37 % 256, seed * 59 % 256, seed * 83 % 256), (0, 0, width // 2, height // 2))
    buffer = io.BytesIO()
    image.save(buffer, name)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a hundred bytes whose header promises 3.6 thousand million pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))
        for kind, payload in chunks
    )


def slow_picture(seed: int, padding: int = 0, height: int = 3_000) -> bytes:
    """A JPEG within every limit that keeps libjpeg busy for 8 s and more, in one call that nothing interrupts.

    Its last scan is repeated: each is 100 bytes, and one more pass over all of the picture. With `padding`, a comment
    of so many bytes stands before each, so that Pillow has to hand over the file in pieces.
    """
    buffer = io.BytesIO()
    Image.new("L", (20_000, height), 10 + seed).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    comment = b"\xff\xfe" + struct.pack(">H", padding + 2) + bytes(padding) if padding else b""
    return data[:-2] + (comment + scan) * 480 + data[-2:]
