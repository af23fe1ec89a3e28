"""Where the time of one photo goes: by its spans, and by what every process was seen computing (`docs/profile.md`).

    .venv/bin/python benchmarks/where_time_goes.py [--photos 100] [--stacks FOLDER]

Starts `darkroom up`, warms it, and uploads a stream of 12 MP photos while py-spy looks at each process and its children
50 times a second. A sample counts for its innermost frame that belongs to one of `KINDS`, unless its thread waits. On a
busy machine py-spy also sees what waits for a core; so its samples only divide the CPU time that the system counted.
`--stacks` keeps py-spy's own files, for a flame graph. py-spy must be allowed to trace: run it as root.
"""

import argparse
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from guide_stage import photos, variant
from idle import House, running, wait_until
from rounds import Comparison, arguments, cpu_s, publish

from darkroom_cli.local import SERVICES

RATE = 50
CLIENTS = 4

KINDS: dict[str, str] = {
    "pixels": r"thumbnailer/(decoding|rendering|describing|containers)\.py",
    "model": r"embedder/(model|preprocessing)\.py",
    # Nothing else in these processes uses requests: it is the exporter's.
    "traces": r"opentelemetry/|darkroom/telemetry/|gateway/(otlp|trace_store)\.py|requests/|urllib3/|http/client",
    "metrics": r"prometheus_client/",
    "logs": r"logging/__init__\.py|darkroom/logs\.py",
    "database": r"sqlalchemy/|psycopg|darkroom/database/",
    "blobs": r"darkroom/storage\.py|obstore/",
    "Redis": r"redis/|celery/backends/|darkroom/(presence|tries)\.py",
    "broker": r"kombu/|amqp/|vine/",
    "Celery": r"celery/|billiard/",
    "HTTP": r"uvicorn/|starlette/|fastapi/|anyio/|asyncio/|gateway/(rest|receiving|multipart|uploads)",
    "messages": r"pydantic|darkroom/contracts/",
    "imports": r"importlib",
}
"""What the first of these finds in a frame's file is what the sample is counted as."""


WAITING = re.compile(
    r"poll |select \(|\.wait |readinto|_read_from_socket|Watchdog\._watch|Runner\.run|queue\.py|futures/thread|^process"
)
"""Innermost frames of threads that wait, and of loops that do."""


def kind_of(stack: str) -> str | None:
    """The kind of a sample, None for one that waits. `stack`: `outer (file:line);inner (file:line)`."""
    frames = stack.split(";")
    if WAITING.search(frames[-1]):
        return None
    for frame in reversed(frames):
        for kind, files in KINDS.items():
            if re.search(files, frame):
                return kind
    return "other"


class Watch:
    """py-spy on each of these processes and its children, inside the block; `found` then has its samples by kind."""

    def __init__(self, pids: dict[str, int], folder: Path) -> None:
        self._files = {name: folder / f"{name}.txt" for name in pids}
        self._pids = pids

    def __enter__(self) -> "Watch":
        spy = str(Path(sys.executable).with_name("py-spy"))
        options = ["--subprocesses", "--nonblocking", f"--rate={RATE}", "--duration=unlimited", "--format=raw"]
        self._spies = [
            subprocess.Popen(
                [spy, "record", f"--pid={pid}", f"--output={self._files[name]}", *options],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for name, pid in self._pids.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for spy in self._spies:
            spy.send_signal(signal.SIGINT)  # it writes what it has
        for spy in self._spies:
            spy.wait()
        self.found = {name: samples(file.read_text().splitlines()) for name, file in self._files.items()}


def samples(lines: Iterable[str]) -> Counter[str]:
    """Samples by kind out of py-spy's raw format."""
    found: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if kind := kind_of(stack):
            found[kind] += int(count)
    return found


def upload(house: House, bodies: Iterable[bytes]) -> list[str]:
    """Ids of photos that were uploaded one by one, from a few clients at once."""

    def one(body: bytes) -> str:
        answer = httpx.post(f"{house.options.url}/v1/images", files={"file": ("photo.jpg", body)}, timeout=120)
        return str(answer.raise_for_status().json()["images"][0]["id"])

    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(one, bodies))


def all_ready(house: House) -> bool:
    """Whether nothing is in flight."""
    return bool(httpx.get(f"{house.options.url}/v1/ledger", timeout=10).json()["in_flight"] == 0)


def spans(house: House, ids: Iterable[str]) -> dict[str, list[float]]:
    """Milliseconds of every kind of span, one value for each photo that has it."""
    found: dict[str, list[float]] = defaultdict(list)
    for image_id in ids:
        trace = httpx.get(f"{house.options.url}/v1/images/{image_id}/trace", timeout=30).json()["traces"][0]
        of_photo: Counter[str] = Counter()
        for span in trace["spans"]:
            of_photo[f"{span['service']}: {span['name']}"] += span["duration_ms"]
        for name, duration_ms in of_photo.items():
            found[name].append(duration_ms)
        found["from upload to ready"].append(trace["summary"]["total_ms"])
    return found


def main() -> None:
    """Prints both views."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--alone", type=int, default=10, help="photos that go through one after the other, for spans")
    parser.add_argument("--stacks", type=Path, help="folder for py-spy's files")
    options = arguments(__doc__, parser)
    with tempfile.TemporaryDirectory() as name, running(Path(sys.executable).parent) as house:
        folder = Path(name)
        photo = Path(photos(folder, 1, 4000, 3000)[0]).read_bytes()
        upload(house, [variant(photo, f"warm {number}") for number in range(12)])
        wait_until("warm", lambda: all_ready(house))
        alone = []
        for number in range(options.alone):
            alone += upload(house, [variant(photo, f"alone {number}")])
            wait_until("ready", lambda: all_ready(house))
        pids = {service.name: house.pids[service.name] for service in SERVICES}
        with Watch(pids, folder) as watch:
            before = {name: cpu_s([pid]) for name, pid in pids.items()}
            begun = time.monotonic()
            upload(house, (variant(photo, f"stream {number}") for number in range(options.photos)))
            wait_until("all ready", lambda: all_ready(house))
            seconds = time.monotonic() - begun
            cpu = {name: cpu_s([pid]) - before[name] for name, pid in pids.items()}
        time.sleep(3)  # what was recorded is sent every second
        durations = spans(house, alone)
        if options.stacks is not None:
            shutil.copytree(folder, options.stacks, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.jpg"))
    seen = watch.found
    kinds = [kind for kind in (*KINDS, "other") if any(one[kind] for one in seen.values())]
    per_photo = {
        name: {kind: 1000 * cpu[name] * one[kind] / max(one.total(), 1) / options.photos for kind in kinds}
        for name, one in seen.items()
    }
    longest = sorted(durations, key=lambda span: -statistics.median(durations[span]))
    publish(
        "where-time-goes",
        [
            Comparison("One photo after the other: its spans", "ms", {one: durations[one] for one in longest[:30]}),
            Comparison(
                f"A stream of {options.photos} photos: CPU of one by kind",
                "ms",
                {kind: [sum(one[kind] for one in per_photo.values())] for kind in kinds},
            ),
            Comparison(
                "The same without pixels and model, by process",
                "ms",
                {
                    name: [sum(v for k, v in one.items() if k not in ("pixels", "model"))]
                    for name, one in per_photo.items()
                },
            ),
        ],
        options.results,
        {
            f"{name}, ms of CPU for a photo": {k: round(v, 2) for k, v in one.items() if v}
            for name, one in per_photo.items()
        }
        | {"photos/s": round(options.photos / seconds, 2)},
    )


if __name__ == "__main__":
    main()
