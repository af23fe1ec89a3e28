"""The stage for `guides.py`: a private RabbitMQ and Redis, workers under given options, and tasks sent to them."""

import io
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from guide_worker import EXCHANGE, create_app, queue
from kombu import Connection
from PIL import Image
from redis import Redis

from darkroom_cli.servers import ChildProcess, RabbitServer, RedisServer

DEADLINE_S = 120


@dataclass(frozen=True)
class Worker:
    """One worker process: its queues, and options of `guide_worker.py` by name."""

    name: str
    queues: Sequence[str]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """A task that has ended, with times in seconds on the machine's monotonic clock."""

    number: int
    begun_s: float
    ended_s: float


class Stage:
    """Servers, workers and queues of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rabbit = RabbitServer(folder / "rabbitmq")
        self._redis_server = RedisServer(folder / "redis")
        self._runs = 0

    @property
    def redis_url(self) -> str:
        """Where the ends of tasks are told."""
        return self._redis_server.url

    def __enter__(self) -> "Stage":
        self.rabbit.start()
        self._redis_server.start()
        self._redis = Redis.from_url(self.redis_url, socket_timeout=None)  # each call says how long it waits
        self._apps = {confirm: create_app(self.rabbit.url, confirm=confirm) for confirm in (True, False)}
        return self

    def __exit__(self, *_: object) -> None:
        self._redis_server.stop()
        self.rabbit.stop()

    @contextmanager
    def working(self, *workers: Worker, purged: bool = True) -> Iterator[list[ChildProcess]]:
        """All of these consume inside the block, from queues that are empty at first unless told otherwise."""
        if purged:
            self.declare(*{name for worker in workers for name in worker.queues})
        running = [self._start(worker) for worker in workers]
        try:
            for worker in workers:
                if self._redis.blpop(worker.name, timeout=DEADLINE_S) is None:
                    raise TimeoutError(f"{worker.name} does not start; see {self._log(worker)}")
            yield running
        finally:
            for child in running:
                child.stop(grace_s=0)  # what it has in hand is of no use to anyone

    def _start(self, worker: Worker) -> ChildProcess:
        options = {"queues": ",".join(worker.queues), "broker": self.rabbit.url, "redis": self.redis_url}
        arguments = [f"--{name}={value}" for name, value in (options | worker.options).items()]
        script = str(Path(__file__).with_name("guide_worker.py"))
        env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(worker.options.get("threads", 1))}
        child = ChildProcess([sys.executable, script, worker.name, *arguments], log=self._log(worker), env=env)
        self._redis.delete(worker.name)
        child.start()
        return child

    def pause(self, worker: Worker) -> None:
        """The worker takes nothing more from its queues."""
        for name in worker.queues:
            self._apps[True].control.cancel_consumer(name, destination=[_node(worker)], reply=True)

    def resume(self, worker: Worker) -> None:
        """It takes from them again."""
        for name in worker.queues:
            self._apps[True].control.add_consumer(name, destination=[_node(worker)], reply=True)

    def _log(self, worker: Worker) -> Path:
        return self.folder / f"{worker.name}.log"

    def declare(self, *names: str) -> None:
        """These queues are there, and empty."""
        with Connection(self.rabbit.url) as connection, connection.channel() as channel:
            for name in names:
                queue(name)(channel).declare()
                channel.queue_purge(name)

    def waiting(self, name: str) -> int:
        """Messages in a queue that nobody has taken."""
        with Connection(self.rabbit.url) as connection, connection.channel() as channel:
            return int(queue(name)(channel).queue_declare(passive=True).message_count)

    def new_run(self) -> str:
        """The name of a list of ends that nobody has used."""
        self._runs += 1
        return f"run-{self._runs}"

    def send(
        self, run: str, name: str, task: str, arguments: Sequence[dict[str, Any]], *, confirm: bool = True
    ) -> None:
        """Sends a task for each of these to a queue, numbered from 0."""
        app = self._apps[confirm]
        with app.producer_or_acquire() as producer:
            for number, each in enumerate(arguments):
                app.send_task(
                    task,
                    kwargs={"run_id": run, "number": number, **each},
                    exchange=EXCHANGE.name,
                    routing_key=name,
                    producer=producer,
                    retry=False,
                )

    def do(self, name: str, task: str, arguments: Sequence[dict[str, Any]]) -> float:
        """Seconds until all of these, sent to a queue at once, have ended."""
        run, begun = self.new_run(), time.monotonic()
        self.send(run, name, task, arguments, confirm=False)
        return max(end.ended_s for end in self.ends(run, len(arguments))) - begun

    def ends(self, run: str, count: int, *, within_s: float = DEADLINE_S) -> list[End]:
        """The next that end of a run, in that order; fewer when the time is over."""
        deadline, found = time.monotonic() + within_s, list[End]()
        while len(found) < count and (rest_s := deadline - time.monotonic()) > 0:
            if (entry := self._redis.blpop(run, timeout=rest_s)) is not None:
                found.append(End(*json.loads(entry[1])))
        return found


def _node(worker: Worker) -> str:
    return f"{worker.name}@{socket.gethostname()}"


def photos(folder: Path, count: int, width: int, height: int) -> list[str]:
    """Paths of JPEGs with structure at several scales, as photos have: one picture under different hashes."""
    random = np.random.default_rng(width)
    pixels = np.zeros((height, width, 3), np.float32)
    for side, weight in ((8, 60), (64, 30), (512, 12)):
        coarse = Image.fromarray(random.integers(0, 255, (side * 3 // 4, side, 3), np.uint8))
        pixels += (np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 127.5 - 1) * weight
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    paths = [folder / f"{width}x{height}-{number}.jpg" for number in range(count)]
    for path in paths:
        path.write_bytes(variant(file.getvalue(), path.name))
    return [str(path) for path in paths]


def variant(jpeg: bytes, text: str) -> bytes:
    """The same picture under another hash: with a comment behind its first marker."""
    comment = text.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
