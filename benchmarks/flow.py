"""From the upload to `ready`: photos a second, the CPU that is neither pixels nor model, and memory over many photos.

    python benchmarks/flow.py [--photos 10000]

A whole `darkroom up` with default limits, tracing included, is sent 12 MP photos. In turns with it, the pure functions
alone do the same to one photo in this process: decode, render and describe, and the bundled model on a batch. What the
processes need beyond that is orchestration: HTTP, hashing, disk, messages, the chord, Redis, rows, traces. What Celery
needs for the same chord of empty tasks is measured beside it: less than that no orchestration by it can need. With
`--photos`, that many small photos in a row follow, and the memory of each process is read ten times on the way.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import torch
import transformers
from rounds import Comparison, Ratio, arguments, cpu_s, interleaved, memory_bytes, own_cpu_s, publish
from thumbnails import encoded, ours, pixels

from darkroom.settings import ModelSettings
from darkroom_cli.servers import ChildProcess, RedisServer, reserve_port
from embedder.model import BUNDLED, ClipModel, load_model
from thumbnailer.decoding import Limits, decode
from thumbnailer.rendering import render_proxy

AT_ONCE, UPLOADERS = 24, 4
"""Photos of a round, and connections that bring them."""
BATCH = 16
SAMPLES = 10

WORKERS = {
    "thumbnailer": ["--pool=prefork", f"--concurrency={os.cpu_count() or 1}"],
    "embedder": ["--pool=solo"],
    "finalize": ["--pool=threads", "--concurrency=4"],
}
"""Of the empty chord, by queue: as the services run."""


@dataclass(frozen=True)
class House:
    """A running `darkroom up`: how to talk to it, and its processes by name."""

    http: httpx.Client
    pids: Mapping[str, int]

    def take_through(self, photos: Sequence[bytes]) -> None:
        """Uploads each by itself and returns when all are ready."""
        before = self._ledger()
        with ThreadPoolExecutor(UPLOADERS) as pool:
            list(pool.map(self._upload, photos))
        while (now := self._ledger())["ready"] < before["ready"] + len(photos):
            if now["failed"] > before["failed"]:
                raise RuntimeError("a photo failed")
            time.sleep(0.1)

    def _upload(self, photo: bytes) -> None:
        files = [("file", ("photo.jpg", photo))]
        self.http.post("/v1/images", files=files, data={"lane": "bulk"}).raise_for_status()

    def _ledger(self) -> dict[str, int]:
        return dict(self.http.get("/v1/ledger").json())


@contextmanager
def running() -> Iterator[House]:
    """`darkroom up`, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name) / "data", reserve_port()
        command = [str(Path(sys.executable).with_name("darkroom")), "up", "--data-dir", str(folder)]
        command += ["--http-port", str(port), "--grpc-port", str(reserve_port())]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("DARKROOM_", "OTEL_"))}
        up = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            if up.stdout is None or not up.stdout.readline().startswith("ready"):
                raise RuntimeError("darkroom up did not start")
            states = json.loads((folder / "processes.json").read_text())["processes"]
            pids = {process: state["pid"] for process, state in states.items()}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
                yield House(http, pids)
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()


def unique(photo: bytes) -> bytes:
    """The same JPEG with other bytes: a comment behind its first marker."""
    return photo[:2] + b"\xff\xfe\x00\x12" + secrets.token_bytes(16) + photo[2:]


def whole(house: House, photo: bytes) -> Mapping[str, float]:
    """A round through everything: photos a second, and milliseconds of CPU a photo by process."""
    photos = [unique(photo) for _ in range(AT_ONCE)]
    before = {name: cpu_s([pid]) for name, pid in house.pids.items()}
    begun = time.monotonic()
    house.take_through(photos)
    took_s = time.monotonic() - begun
    spent = {name: 1000 * (cpu_s([pid]) - before[name]) / AT_ONCE for name, pid in house.pids.items()}
    return {"rate": AT_ONCE / took_s, "cpu": sum(spent.values())} | spent


def pure(model: ClipModel, photo: bytes, proxy: bytes) -> Mapping[str, float]:
    """A round of the functions alone."""
    begun = own_cpu_s()
    for _ in range(4):
        ours(photo)
    drawn_ms = 1000 * (own_cpu_s() - begun) / 4
    begun = own_cpu_s()
    model.embed_pictures([model.preprocessing.pixels(proxy) for _ in range(BATCH)])
    embedded_ms = 1000 * (own_cpu_s() - begun) / BATCH
    cpu_ms = drawn_ms + embedded_ms
    return {"rate": 1000 * (os.cpu_count() or 1) / cpu_ms, "cpu": cpu_ms, "pixels": drawn_ms, "model": embedded_ms}


@dataclass(frozen=True)
class EmptyChords:
    """Workers of the empty chord, and the Redis that is all they know."""

    redis: RedisServer
    workers: Sequence[ChildProcess]

    def measure(self, rate: float) -> Mapping[str, float]:
        """A round of as many chords as photos, so many a second: CPU of one, without that of who sends it."""
        import empty_chord  # connects to where the environment says

        client, message = empty_chord.app.backend.client, {"sha256": "a" * 64, "generation": 1, "recipe": "r1-webp"}
        pids = [pid for pid in (self.redis.pid, *(worker.pid for worker in self.workers)) if pid is not None]
        done, before = int(client.get(empty_chord.DONE) or 0), cpu_s(pids)
        for _ in range(AT_ONCE):
            empty_chord.prepare.delay(message)
            time.sleep(1 / rate)
        while int(client.get(empty_chord.DONE) or 0) < done + AT_ONCE:
            time.sleep(0.1)
        return {"cpu": 1000 * (cpu_s(pids) - before) / AT_ONCE}


@contextmanager
def empty_chords() -> Iterator[EmptyChords]:
    """Celery's own workers for `empty_chord.py`, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as name, ExitStack() as ends:
        redis = RedisServer(Path(name) / "redis")
        redis.start()
        ends.callback(redis.stop)
        os.environ["DARKROOM_BENCH_REDIS"] = redis.url
        workers = []
        for queue, options in WORKERS.items():
            command = [sys.executable, "-m", "celery", "--app", "empty_chord", "worker", "--queues", queue, *options]
            command += ["--hostname", f"{queue}@empty", "--without-gossip", "--without-mingle", "--loglevel", "ERROR"]
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
            worker = ChildProcess(command, log=Path(name) / f"{queue}.log", env=environment)
            worker.start()
            ends.callback(worker.stop)
            workers.append(worker)
        yield EmptyChords(redis, workers)


def memory_on_the_way(house: House, photos: int) -> dict[str, list[float]]:
    """Megabytes of each process when a tenth of the photos is through, two tenths, and so on."""
    photo, measured = encoded(pixels(800, 600), "JPEG", quality=85), dict[str, list[float]]()
    for _ in range(SAMPLES):
        for start in range(0, photos // SAMPLES, 100):
            house.take_through([unique(photo) for _ in range(min(100, photos // SAMPLES - start))])
        for name, pid in house.pids.items():
            measured.setdefault(name, []).append(memory_bytes([pid]) / 1e6)
    return measured


def main() -> None:
    """Prints rates, CPU by process, what share is orchestration, and memory on the way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=300, help="in a row, small ones, to see memory stay flat")
    chosen = arguments(__doc__, parser)
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    model = load_model(BUNDLED, ModelSettings(model_device="cpu"))
    photo = encoded(pixels(4000, 3000), "JPEG", quality=90)
    proxy = render_proxy(decode(photo, Limits())).data
    through, alone, empty = "ours: upload to ready", "limit: pixels and model alone", "Celery alone: empty tasks"
    with running() as house, empty_chords() as chords:
        ways: dict[str, Callable[[], Mapping[str, float]]]
        ways = {through: partial(whole, house, photo), alone: partial(pure, model, photo, proxy)}
        rate = interleaved(ways, 1)[through]["rate"][0]
        ways[empty] = partial(chords.measure, rate)
        interleaved({empty: ways[empty]}, 1)
        rounds = interleaved(ways, chosen.rounds)
        memory = memory_on_the_way(house, chosen.photos)
    beside = {
        "ours, everything": rounds[through]["cpu"],
        "what is neither pixels nor model": [
            whole_ms - pure_ms for whole_ms, pure_ms in zip(rounds[through]["cpu"], rounds[alone]["cpu"], strict=True)
        ],
        empty: rounds[empty]["cpu"],
    }
    work = {name: rounds[alone][name] for name in ("pixels", "model")}
    processes = {name: rounds[through][name] for name in house.pids}
    comparisons = [
        Comparison.of(
            "12 MP photos on all cores", "a second", rounds, "rate", (Ratio("ours / limit", through, alone),)
        ),
        Comparison(
            "CPU of a 12 MP photo",
            "ms",
            beside,
            (
                Ratio(
                    "orchestration / everything", "what is neither pixels nor model", "ours, everything", at_most=0.2
                ),
                Ratio("orchestration / Celery alone", "what is neither pixels nor model", empty),
            ),
        ),
        Comparison("CPU of a 12 MP photo by process; pixels and model as measured alone", "ms", work | processes),
        Comparison(f"Memory of each process at tenths of {chosen.photos} photos", "MB", memory),
    ]
    growth = {name: f"{values[1]:.0f} to {values[-1]:.0f}" for name, values in memory.items()}
    facts = {"memory from the second tenth to the last, MB": growth, "photos in a row": chosen.photos}
    publish("flow", comparisons, chosen.results, facts)


if __name__ == "__main__":
    main()
