"""500 mixed uploads on a real RabbitMQ while every process of the local mode is killed -9 once."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import eventually
from PIL import Image

from darkroom_cli.servers import reserve_port

UPLOADS = 500
SEED = 20261121
EXPECTED = {"ready", "failed"}


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`darkroom up --broker rabbitmq`: its address and data folder."""
    data_dir = tmp_path_factory.mktemp("up")
    port = reserve_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")} | {
        # A tenth of the usual limits, so that the reconciler's three deadlines pass within this test.
        "DARKROOM_TASK_SOFT_LIMIT_S": "8",
        "DARKROOM_TASK_HARD_LIMIT_S": "10",
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        Path(sys.executable).with_name("darkroom"),
        "up",
        "--broker",
        "rabbitmq",
        "--http-port",
        str(port),
        "--grpc-port",
        str(reserve_port()),
    ]
    log = (data_dir / "up.log").open("wb")
    up = subprocess.Popen([*command, "--data-dir", data_dir], env=env, stdout=log, stderr=subprocess.STDOUT)
    try:

        def is_ready() -> bool:
            """darkroom up says that it is ready"""
            assert up.poll() is None, (data_dir / "up.log").read_text()
            return "ready: http" in (data_dir / "up.log").read_text()

        eventually(is_ready, within_s=120)
        yield f"http://127.0.0.1:{port}", data_dir
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(120)


def mixed_files(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Photos of several formats and sizes, among them duplicates, and one in ten broken on purpose."""
    noise, choice = np.random.default_rng(seed), random.Random(seed)
    files: list[tuple[str, bytes]] = []
    for number in range(count):
        if number % 25 == 24:
            files.append(files[-3])  # known bytes
            continue
        side = choice.choice([64, 200, 640])
        pixels = noise.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        kind = choice.choice(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
        buffer = io.BytesIO()
        image.save(buffer, kind)
        data = buffer.getvalue()
        if number % 10 == 9:
            data = data[: len(data) // 2]  # truncated
        files.append((f"{number}.{kind.lower()}", data))
    return files


def upload(url: str, name: str, data: bytes, key: str) -> dict[str, Any]:
    """Uploads until a 202: a gateway that is away or says 503 is asked again under the same idempotency key."""
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = httpx.post(
                f"{url}/v1/images", files={"file": (name, data)}, headers={"Idempotency-Key": key}, timeout=20
            )
            if answer.status_code == 202:
                return dict(answer.json()["images"][0])
            assert answer.status_code in (500, 503), answer.text
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, f"{name} was not accepted within two minutes"
        time.sleep(0.3)


def in_flight(url: str) -> int:
    try:
        return int(httpx.get(f"{url}/v1/ledger", timeout=5).json()["in_flight"])
    except (httpx.TransportError, KeyError, ValueError):
        return 0


def kill_each_once(url: str, data_dir: Path, gate: threading.Semaphore) -> dict[str, int]:
    """Kills every process once, each after letting its share of the uploads in and while work is in flight.

    Returns how much was in flight at each kill, by process.
    """
    killed: dict[str, int] = {}
    names = list(processes(data_dir))
    for name in names:
        gate.release(UPLOADS // len(names))

        def busy() -> int:
            """photos are in flight"""
            return in_flight(url)

        killed[name] = eventually(busy, within_s=60)
        pid = processes(data_dir)[name]["pid"]
        os.kill(pid, signal.SIGKILL)

        def is_back(name: str = name, pid: int = pid) -> bool:
            """the killed process runs again"""
            return processes(data_dir)[name]["pid"] not in (None, pid)

        eventually(is_back, within_s=60)
    gate.release(UPLOADS % len(names) + 1)
    return killed


def processes(data_dir: Path) -> dict[str, Any]:
    """What the supervisor says of its processes, by name."""
    return dict(json.loads((data_dir / "processes.json").read_text())["processes"])


@pytest.mark.timeout(900)
def test_every_accepted_photo_ends_ready_or_failed_with_a_cause(stack: tuple[str, Path]) -> None:
    url, data_dir = stack
    files = mixed_files(UPLOADS, SEED)
    gate = threading.Semaphore(0)
    with ThreadPoolExecutor(5) as pool:
        killer = pool.submit(kill_each_once, url, data_dir, gate)

        def gated(numbered: tuple[int, tuple[str, bytes]]) -> dict[str, Any]:
            number, (name, data) = numbered
            while not gate.acquire(timeout=1):
                if killer.done():
                    killer.result()
            return upload(url, name, data, f"storm-{number}")

        accepted = list(pool.map(gated, enumerate(files)))
        killed = killer.result()
    print("in flight when killed:", killed)

    def is_over() -> bool:
        """nothing is in flight any more"""
        return bool(httpx.get(f"{url}/v1/ledger", timeout=5).json()["in_flight"] == 0)

    begun = time.monotonic()
    eventually(is_over, within_s=400, every_s=1)
    print(f"recovered {time.monotonic() - begun:.0f} s after the last upload")

    ledger = httpx.get(f"{url}/v1/ledger").json()
    assert ledger["accepted"] == len(accepted) == UPLOADS
    assert ledger["accepted"] == sum(ledger[state] for state in ("ready", "failed", "deleted", "in_flight"))
    assert len({image["id"] for image in accepted}) == UPLOADS

    ends: Counter[str] = Counter()
    for image, (name, data) in zip(accepted, files, strict=True):
        found = httpx.get(f"{url}/v1/images/{image['id']}").json()
        ends[found["status"]] += 1
        assert found["sha256"] == hashlib.sha256(data).hexdigest()
        assert found["status"] in EXPECTED
        try:
            Image.open(io.BytesIO(data)).load()
            is_good = True
        except (OSError, SyntaxError):
            is_good = False
        if found["status"] == "ready":
            assert set(found["thumbnails"]) == {"small", "medium", "large"}
            assert len(found["embeddings"]) == 1
        else:
            assert not is_good, f"{name} is a good photo and failed: {found['error']}"
            assert found["error"]["type"] and found["error"]["detail"]
    assert ledger["ready"] == ends["ready"]
    assert ledger["failed"] == ends["failed"]
    print(dict(ends))
