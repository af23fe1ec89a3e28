"""How long losses take to mend on real servers: `python benchmarks/losses.py [--broker rabbitmq] [--photos 40]`.

Starts `darkroom up` with default limits in a temporary folder. For each kind of loss it stops a worker, uploads
photos, waits until they are where the loss hits them, causes it, lets the worker go on, and counts the seconds until
every photo is ready. Ten minutes in all; a row for each on standard output.
"""

import argparse
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from kombu import Connection
from PIL import Image
from redis import Redis

from darkroom.contracts import keys
from darkroom.storage import BlobStore, open_blob_store
from darkroom_cli.servers import reserve_port

RECIPE = keys.Recipe.current()
DEADLINE_S = 300


@dataclass(frozen=True)
class House:
    """A running local mode and its servers."""

    url: str
    folder: Path
    broker_url: str
    redis: Redis
    store: BlobStore

    def ledger(self) -> dict[str, int]:
        """The five counters."""
        return dict(httpx.get(f"{self.url}/v1/ledger", timeout=10).json())

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """The whole process group of a service stands still inside the block."""
        pid = json.loads((self.folder / "processes.json").read_text())["processes"][name]["pid"]
        children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
        pids = [pid, *map(int, children)]
        for each in pids:
            os.kill(each, signal.SIGSTOP)
        try:
            yield
        finally:
            for each in pids:
                os.kill(each, signal.SIGCONT)


def wait_until(what: str, check: Callable[[], bool]) -> None:
    """Returns when `check` is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {DEADLINE_S} s: {what}")
        time.sleep(0.2)


def photo(number: int) -> bytes:
    """A JPEG that no other run has."""
    noise = np.random.default_rng([number, time.time_ns()])
    file = io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize((1200, 800)).save(file, "JPEG")
    return file.getvalue()


def upload(house: House, count: int) -> list[str]:
    """Uploads that many photos; their hashes."""
    images = []
    for number in range(count):
        answer = httpx.post(f"{house.url}/v1/images", files={"file": ("photo.jpg", photo(number))}, timeout=30)
        images.append(answer.raise_for_status().json()["images"][0]["sha256"])
    return images


def wait_for(house: House, shas: list[str], key: Callable[[str, keys.Recipe], str]) -> None:
    """Returns when this artefact of every photo is in the store."""
    wait_until("artefacts", lambda: all(house.store.exists(key(sha256, RECIPE)) for sha256 in shas))


def purged_queue(house: House, count: int) -> None:
    """Every message of a queue dropped."""
    with house.stopped("thumbnailer"):
        upload(house, count)
        waiting = f"{house.url}/v1/status"
        wait_until("dispatch", lambda: httpx.get(waiting, timeout=10).json()["dispatcher"]["waiting"] == 0)
        with Connection(house.broker_url) as connection, connection.channel() as channel:
            channel.queue_purge("prepare")


def flushed_redis(house: House, count: int) -> None:
    """FLUSHALL between the two halves of every join."""
    with house.stopped("embedder"):
        wait_for(house, upload(house, count), keys.described_key)
        house.redis.flushall()


def lost_chord(house: House, count: int) -> None:
    """The joins' keys gone, everything else there."""
    with house.stopped("embedder"):
        wait_for(house, upload(house, count), keys.described_key)
        for pattern in ("*.j", "*.t", "*.s"):
            for key in house.redis.scan_iter(pattern):
                house.redis.delete(key)


def dropped_blob(house: House, count: int) -> None:
    """The proxies gone before the embedder has read them."""
    with house.stopped("embedder"):
        shas = upload(house, count)
        wait_for(house, shas, keys.described_key)
        for sha256 in shas:
            house.store.delete(keys.proxy_key(sha256, RECIPE))


LOSSES = (purged_queue, flushed_redis, lost_chord, dropped_blob)


@contextmanager
def running(broker: str) -> Iterator[House]:
    """`darkroom up` with default limits."""
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name) / "data", reserve_port()
        command = [
            *(str(Path(sys.executable).with_name("darkroom")), "up", "--broker", broker, "--data-dir", str(folder)),
            *("--http-port", str(port), "--grpc-port", str(reserve_port())),
        ]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DARKROOM_")}
        up = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            if up.stdout is None or not up.stdout.readline().startswith("ready"):
                raise RuntimeError("darkroom up did not start")
            lines = (folder / "run" / "environment").read_text().splitlines()
            settings = dict(shlex.split(line)[1].split("=", 1) for line in lines)
            yield House(
                f"http://127.0.0.1:{port}",
                folder,
                settings["DARKROOM_BROKER_URL"],
                Redis.from_url(settings["DARKROOM_RESULT_URL"]),
                open_blob_store((folder / "blobs").as_uri()),
            )
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()


def main() -> None:
    """Prints a row for each kind of loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", default="embedded", choices=["embedded", "rabbitmq"])
    parser.add_argument("--photos", type=int, default=40)
    arguments = parser.parse_args()
    sys.stdout.write(f"{arguments.broker}, {arguments.photos} photos each, default limits\n")
    with running(arguments.broker) as house:
        for cause in LOSSES:
            cause(house, arguments.photos)
            begun = time.monotonic()
            wait_until("all ready", lambda: house.ledger()["in_flight"] == 0)
            ledger = house.ledger()
            sys.stdout.write(f"{cause.__name__:15} {time.monotonic() - begun:6.1f} s  {ledger}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
