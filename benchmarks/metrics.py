"""What measuring a task costs: the CPU of a worker's main process for each task, with and without, in one run.

    .venv/bin/python benchmarks/metrics.py

A thumbnailer with one child runs tasks that fail at once, for there is no picture: nearly all of the time is Celery's.
Rounds with and without alternate on one embedded Redis. On a busy machine they differ from each other by more than the
measuring costs; so its own code is timed alone as well.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil

from darkroom.celery_app import create_app, declare_topology, request
from darkroom.contracts.messages import PrepareQuery
from darkroom.contracts.tasks import PREPARE_QUERY
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.telemetry import names
from darkroom.telemetry.measuring import measured
from darkroom_cli.servers import ChildProcess, RedisServer

ROUNDS, TASKS, WARM_UP = 5, 500, 100


def cpu_s(process: psutil.Process) -> float:
    """User and system seconds of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(redis: RedisServer, folder: Path, metrics_port: str) -> float:
    """Seconds of the main process's CPU for one task."""
    app = create_app("bench", BrokerSettings(broker_url=redis.url, result_url=redis.url), TaskSettings())
    with app.connection_for_write() as connection:
        declare_topology(connection)
    environment = os.environ | {
        "DARKROOM_BROKER_URL": redis.url,
        "DARKROOM_RESULT_URL": redis.url,
        "DARKROOM_BLOB_URL": folder.as_uri(),
        "DARKROOM_WORKER_CONCURRENCY": "1",
        "DARKROOM_TASK_MAX_RETRIES": "0",
        "DARKROOM_LOG_LEVEL": "error",
        "DARKROOM_METRICS_PORT": metrics_port,
    }
    command = [str(Path(sys.executable).with_name("darkroom-thumbnailer"))]
    worker = ChildProcess(command, log=folder / "worker.log", env=environment, grace_s=20)
    worker.start()
    try:
        run(app, WARM_UP)
        process = psutil.Process(worker.pid)
        before = cpu_s(process)
        run(app, TASKS)
        return (cpu_s(process) - before) / TASKS
    finally:
        worker.stop()
        app.close()


def run(app: object, count: int) -> None:
    """Sends that many tasks and returns when the last has ended."""
    message = PrepareQuery(source="queries/none/source", proxy="queries/none/proxy.jpg")
    results = [request(app, PREPARE_QUERY, message).apply_async() for _ in range(count)]
    while not all(result.ready() for result in results[-20:]):
        time.sleep(0.05)


class BareRequest:
    """As much of Celery's request as measuring asks."""

    task = SimpleNamespace(name="bench")
    delivery_info: ClassVar[dict[str, Any]] = {"routing_key": "prepare", "redelivered": False}
    request_dict: ClassVar[dict[str, Any]] = {names.PUBLISHED_AT: time.time_ns()}

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Nothing."""

    def acknowledge(self) -> None:
        """Nothing."""


def measuring_s(count: int = 20_000) -> float:
    """Seconds of CPU that measuring one task takes, without anything else."""
    kind = measured(BareRequest)
    before = time.process_time()
    for _ in range(count):
        one = kind()
        one.on_accepted(1, time.monotonic())
        one.acknowledge()
    return (time.process_time() - before) / count


def main() -> None:
    """Prints the medians and their difference."""
    found: dict[str, list[float]] = {"": [], "0": []}
    with tempfile.TemporaryDirectory(prefix="dr-") as name:
        redis = RedisServer(Path(name) / "redis")
        redis.start()
        try:
            for _ in range(ROUNDS):
                for port, seconds in found.items():
                    seconds.append(measure(redis, Path(name), port))
        finally:
            redis.stop()
    without, measured = (statistics.median(seconds) * 1e6 for seconds in found.values())
    print(f"measuring alone: {measuring_s() * 1e6:.0f} µs of CPU for each task")
    print(f"without {without:.0f} µs of CPU for each task, with {measured:.0f} µs: {measured - without:+.0f} µs")
    for port, seconds in found.items():
        print("with   " if port else "without", *(f"{each * 1e6:.0f}" for each in sorted(seconds)))


if __name__ == "__main__":
    main()
