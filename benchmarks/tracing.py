"""What tracing costs: CPU time of every service for a photo, with and without, interleaved in one run.

    .venv/bin/python benchmarks/tracing.py

Three whole stacks (gateway, thumbnailer, embedder, finalize), each on a Redis, a database and a blob store of its own,
take turns with equal photos: one without tracing, one that exports everything, one that records everything and exports
errors alone (sampled at 0). The backend only reads what it is sent, and its time is not counted.

On a busy machine these differ by more than tracing costs. So first, in this process alone: a photo's spans, made, and
exported to the same backend.
"""

import io
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import psutil
import psycopg
from PIL import Image

from darkroom.database.engine import migrate, sync_engine
from darkroom.settings import DatabaseSettings
from darkroom.telemetry import names, tracing
from darkroom.telemetry.tracing import Attributes
from darkroom_cli.servers import ChildProcess, PostgresServer, RedisServer, reserve_port

ROUNDS, PHOTOS = 5, 8
SPANS = 55
"""Of one photo."""
AT_ONCE = 30
"""Photos whose spans the exporter holds before it drops some."""
SERVICES = ("darkroom-gateway", "darkroom-thumbnailer", "darkroom-embedder", "darkroom-scheduler finalize")
VARIANTS = {
    "without tracing": {},
    "with tracing": {"OTEL_TRACES_SAMPLER": "parentbased_always_on"},
    "sampled at 0": {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
}


class Sink(BaseHTTPRequestHandler):
    """Reads and forgets."""

    protocol_version = "HTTP/1.1"
    requests = bytes_received = 0

    def do_POST(self) -> None:
        Sink.bytes_received += len(self.rfile.read(int(self.headers["Content-Length"])))
        Sink.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Stack:
    """The services of one variant, on servers of their own."""

    def __init__(self, folder: Path, postgres: PostgresServer, variables: dict[str, str], ends: ExitStack) -> None:
        folder.mkdir()
        redis = RedisServer(folder / "redis")
        redis.start()
        ends.callback(redis.stop)
        name = f"bench_{folder.name}"
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        url = postgres.url.replace("/darkroom?", f"/{name}?")
        engine = sync_engine(DatabaseSettings(database_url=url))
        migrate(engine)
        engine.dispose()
        port = reserve_port()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "OTEL_"))}
        env |= variables | {
            "DARKROOM_DATABASE_URL": url,
            "DARKROOM_RESULT_URL": redis.url,
            "DARKROOM_BROKER_URL": redis.url,
            "DARKROOM_BLOB_URL": (folder / "blobs").as_uri(),
            "DARKROOM_HTTP_PORT": str(port),
            "DARKROOM_GRPC_PORT": "0",
            "DARKROOM_WORKER_CONCURRENCY": "1",
            "DARKROOM_MODEL_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self._processes = []
        for number, command in enumerate(SERVICES):
            program, *arguments = command.split()
            argv = [str(Path(sys.executable).with_name(program)), *arguments]
            process = ChildProcess(argv, log=folder / f"{number}.log", env=env, grace_s=40)
            process.start()
            ends.callback(process.stop)
            self._processes.append(process)

    def take_through(self, photos: list[bytes]) -> None:
        """Uploads each by itself and returns when all are ready."""
        already = self._ready()
        for photo in photos:
            self._http.post("/v1/images", files=[("file", ("photo.jpg", photo))]).raise_for_status()
        while self._ready() < already + len(photos):
            time.sleep(0.25)

    def cpu_s(self) -> float:
        """CPU time of all services so far, in seconds, that of ended children included."""
        processes = [psutil.Process(process.pid) for process in self._processes]
        everyone = [*processes, *(child for process in processes for child in process.children(recursive=True))]
        return sum(sum(process.cpu_times()[:4]) for process in everyone)

    def wait_until_up(self) -> None:
        """Returns when it answers."""
        while True:
            try:
                self._ready()
            except httpx.TransportError:
                time.sleep(0.2)
            else:
                return

    def _ready(self) -> int:
        return int(self._http.get("/v1/ledger").json()["ready"])


def spans_alone(endpoint: dict[str, str]) -> None:
    """Prints the CPU time of a photo's spans for each variant, interleaved, in this process."""
    cpu_ms: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        for name, variables in VARIANTS.items():
            chosen = variables and variables | endpoint
            os.environ.update(chosen)
            tracing.start("benchmark")
            begun = time.process_time()
            for _ in range(AT_ONCE):
                with tracing.span("process prepare", {names.IMAGE_SHA256: "a" * 64}):
                    for number in range(SPANS - 1):
                        attributes: Attributes = {names.BLOB_KEY: "derived/aa/large.webp", names.BLOB_BYTES: number}
                        with tracing.step("put blob", attributes):
                            pass
            tracing.stop()
            cpu_ms[name].append(1000 * (time.process_time() - begun) / AT_ONCE)
            for variable in chosen:
                del os.environ[variable]
    print(f"{SPANS} spans in one process, with their export")
    for name, each in cpu_ms.items():
        print(f"  {name:16} {statistics.median(each):7.2f} ms")


def photos(round_number: int) -> list[bytes]:
    """Pictures of 3 megapixels that are new in each round."""
    made = []
    for number in range(PHOTOS):
        random = np.random.default_rng(1000 * round_number + number)
        coarse = Image.fromarray(random.integers(0, 255, (75, 100, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((2000, 1500), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def main() -> None:
    """Prints the CPU time of a photo for each variant, and what it is beside the first."""
    backend = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{backend.server_port}"}
    spans_alone(endpoint)
    Sink.requests = Sink.bytes_received = 0
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as folder, ExitStack() as ends:
        postgres = PostgresServer(Path(folder) / "postgres")
        postgres.start()
        ends.callback(postgres.stop)
        stacks = {
            name: Stack(Path(folder) / str(number), postgres, variables and variables | endpoint, ends)
            for number, (name, variables) in enumerate(VARIANTS.items())
        }
        costs: dict[str, list[float]] = {name: [] for name in VARIANTS}
        order = list(stacks.items())
        for stack in stacks.values():
            stack.wait_until_up()
            stack.take_through(photos(0))  # imports, connections and the model's first batch are not what is measured
        for number in range(1, ROUNDS + 1):
            pictures = photos(number)
            for name, stack in order:
                before = stack.cpu_s()
                stack.take_through(pictures)
                time.sleep(1.5)  # what is exported later belongs to these photos, too
                costs[name].append(1000 * (stack.cpu_s() - before) / PHOTOS)
            order.append(order.pop(0))
    print(f"{PHOTOS} photos of 3 MP, {ROUNDS} rounds, CPU time of all services for a photo")
    base = costs["without tracing"]
    for name, each in costs.items():
        ratio = statistics.median(mine / bare for mine, bare in zip(each, base, strict=True))
        more = statistics.median(mine - bare for mine, bare in zip(each, base, strict=True))
        print(f"  {name:16} {statistics.median(each):7.1f} ms   x {ratio:.3f}   {more:+6.1f} ms")
    taken = (ROUNDS + 1) * PHOTOS
    print(f"  exported: {Sink.bytes_received / taken / 1024:.1f} KiB and {Sink.requests / taken:.1f} requests a photo")


if __name__ == "__main__":
    main()
