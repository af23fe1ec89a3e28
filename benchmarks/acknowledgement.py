"""How fast an upload is acknowledged, once its bytes and its row are on stable storage.

    python benchmarks/acknowledgement.py

Ours over REST and gRPC, beside the handler that a first version would have (UploadFile, read, hash, write and sync, an
ORM session, all in the event loop) and one that only streams, hashes and syncs: no form, no database, no answer worth
the name. One server process each, on a disk of this machine, and a few connections that upload one photo after the
other. Our gateway dispatches nothing meanwhile: that is another's work, and may be another process's.

Rates are of a machine on which client, server and PostgreSQL share the cores; CPU time is the server's alone, with and
without what PostgreSQL spent on it.
"""

import argparse
import itertools
import os
import secrets
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import grpc
from rounds import Comparison, Ratio, arguments, cpu_s, interleaved, publish

from darkroom.database.engine import migrate, sync_engine
from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomStub
from darkroom.settings import DatabaseSettings
from darkroom_cli.servers import ChildProcess, PostgresServer, RedisServer, reserve_port

CONNECTIONS = 8
SIZES = {"300 KB": (300_000, 240), "3 MB": (3_000_000, 40)}
"""Bytes of a photo, and uploads in a round."""
TOGETHER = 10
"""Photos in the form that is acknowledged as a whole."""
CHUNK_BYTES = 256 * 1024
BOUNDARY = b"darkroom-benchmark"


class Client(Protocol):
    """One connection."""

    def upload(self, photos: list[bytes]) -> None:
        """Returns when they are acknowledged."""


class HttpClient:
    """As little as can be between the benchmark and the socket: the client shares the machine with what it measures."""

    def __init__(self, port: int, *, is_form: bool) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        # As HTTP clients do: else the last few bytes of a form wait for what TCP acknowledges up to 40 ms late.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._is_form = is_form

    def upload(self, photos: list[bytes]) -> None:
        parts, kind = ([photos[0]], b"image/jpeg") if not self._is_form else _form(photos)
        size = sum(map(len, parts))
        head = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
        request = [head % (kind, size), *parts]
        sent = self._socket.sendmsg(request)
        if sent < sum(map(len, request)):
            self._socket.sendall(b"".join(request)[sent:])
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._socket.recv(65_536)
        headers, _, body = answer.partition(b"\r\n\r\n")
        if b" 202 " not in headers.partition(b"\r\n")[0]:
            raise RuntimeError(answer.decode(errors="replace"))
        length = int(headers.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += self._socket.recv(65_536)


def _form(photos: list[bytes]) -> tuple[list[bytes], bytes]:
    begin = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n\r\n' % BOUNDARY
    parts = [piece for photo in photos for piece in (begin, photo, b"\r\n")]
    return [*parts, b"--%b--\r\n" % BOUNDARY], b"multipart/form-data; boundary=" + BOUNDARY


class GrpcClient:
    """One channel."""

    def __init__(self, port: int) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._stub = DarkroomStub(grpc.insecure_channel(f"127.0.0.1:{port}", options))

    def upload(self, photos: list[bytes]) -> None:
        self._stub.UploadImage(_messages(photos[0]))


def _messages(photo: bytes) -> Iterator[pb.UploadImageRequest]:
    yield pb.UploadImageRequest(metadata=pb.UploadMetadata(filename="photo.jpg"))
    for start in range(0, len(photo), CHUNK_BYTES):
        yield pb.UploadImageRequest(chunk=photo[start : start + CHUNK_BYTES])


@dataclass(frozen=True)
class Way:
    """A server and how to talk to it."""

    connect: Callable[[], Client]
    pid: int
    blobs: Path


def photos(count: int, size: int) -> list[bytes]:
    """That many different bodies that begin as a JPEG does."""
    body = secrets.token_bytes(size - 28)
    return [b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + secrets.token_bytes(16) + body for _ in range(count)]


def measured(way: Way, postgres_pid: int, size: int, uploads: int) -> Mapping[str, float]:
    """Uploads of one round: how many a second, the CPU time of each, and how long it took."""
    waiting = iter(photos(uploads, size))
    lock, took_s = threading.Lock(), list[float]()
    clients = [way.connect() for _ in range(CONNECTIONS)]

    def upload(client: Client) -> None:
        while True:
            with lock:
                photo = next(waiting, None)
            if photo is None:
                return
            begun = time.monotonic()
            client.upload([photo])
            took_s.append(time.monotonic() - begun)

    for client in clients:
        client.upload(photos(1, size))  # connecting is not what is measured
    before, before_postgres, begun = cpu_s([way.pid]), cpu_s([postgres_pid]), time.monotonic()
    threads = [threading.Thread(target=upload, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.monotonic() - begun
    server_s, postgres_s = cpu_s([way.pid]) - before, cpu_s([postgres_pid]) - before_postgres
    _clear(way.blobs)
    if len(took_s) != uploads:
        raise RuntimeError(f"{len(took_s)} of {uploads} uploads were acknowledged")
    cuts = statistics.quantiles(took_s, n=100, method="inclusive")
    return {
        "rate": uploads / wall_s,
        "cpu": 1000 * server_s / uploads,
        "cpu with PostgreSQL": 1000 * (server_s + postgres_s) / uploads,
        "p50": 1000 * cuts[49],
        "p99": 1000 * cuts[98],
    }


def together(way: Way, size: int) -> Mapping[str, float]:
    """How long ten photos in one form take, in milliseconds."""
    client, body = way.connect(), photos(TOGETHER, size)
    client.upload(photos(1, size))
    begun = time.monotonic()
    client.upload(body)
    took_ms = 1000 * (time.monotonic() - begun)
    _clear(way.blobs)
    return {"ms": took_ms}


def _clear(folder: Path) -> None:
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                path.unlink()


def started(folder: Path, ends: ExitStack) -> tuple[dict[str, Way], int]:
    """The servers by way, and the process id of the PostgreSQL that they share."""
    postgres, redis = PostgresServer(folder / "postgres"), RedisServer(folder / "redis")
    for server in (postgres, redis):
        server.start()
        ends.callback(server.stop)
    engine = sync_engine(DatabaseSettings(database_url=postgres.url))
    migrate(engine)
    engine.dispose()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "OTEL_"))}
    ports = {name: reserve_port() for name in ("REST", "gRPC", "naive", "bare")}
    blobs = {name: folder / "blobs" / name for name in ("ours", "naive", "bare")}
    for each in blobs.values():
        each.mkdir(parents=True)
    ours = env | {
        "DARKROOM_DATABASE_URL": postgres.url,
        "DARKROOM_RESULT_URL": redis.url,
        "DARKROOM_BROKER_URL": redis.url,
        "DARKROOM_BLOB_URL": blobs["ours"].as_uri(),
        "DARKROOM_HTTP_PORT": str(ports["REST"]),
        "DARKROOM_GRPC_PORT": str(ports["gRPC"]),
        "DARKROOM_DISPATCHER_ENABLED": "false",
        "DARKROOM_RELAY_ENABLED": "false",
    }
    commands = {"ours": ([str(Path(sys.executable).with_name("darkroom-gateway"))], ours)}
    for name in ("naive", "bare"):
        app = ["--app-dir", str(Path(__file__).parent), f"handlers:{name}", "--port", str(ports[name])]
        about = {"DARKROOM_BENCH_FOLDER": str(blobs[name]), "DARKROOM_BENCH_DATABASE": postgres.url}
        commands[name] = ([sys.executable, "-m", "uvicorn", "--no-access-log", *app], env | about)
    pids = {}
    for name, (command, variables) in commands.items():
        process = ChildProcess(command, log=folder / f"{name}.log", env=variables, grace_s=30)
        process.start()
        ends.callback(process.stop)
        pids[name] = process.pid or 0
    for port in ports.values():
        _wait_for(port)
    ways = {
        "ours, REST": Way(partial(HttpClient, ports["REST"], is_form=True), pids["ours"], blobs["ours"]),
        "ours, gRPC": Way(partial(GrpcClient, ports["gRPC"]), pids["ours"], blobs["ours"]),
        "naive FastAPI": Way(partial(HttpClient, ports["naive"], is_form=True), pids["naive"], blobs["naive"]),
        "bare: stream, hash, sync": Way(partial(HttpClient, ports["bare"], is_form=False), pids["bare"], blobs["bare"]),
    }
    return ways, postgres.pid or 0


def _wait_for(port: int) -> None:
    for _ in itertools.repeat(None, 600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens on port {port}")


def main() -> None:
    """Prints rates, CPU times and latencies of both sizes, and how long ten photos at once take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1, help="of the number of uploads in a round")
    chosen = arguments(__doc__, parser)
    comparisons = []
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as name, ExitStack() as ends:
        folder = Path(name)
        ways, postgres_pid = started(folder, ends)
        for label, (size, uploads) in SIZES.items():
            count = max(CONNECTIONS, round(uploads * chosen.scale))
            measure = {way: partial(measured, at, postgres_pid, size, count) for way, at in ways.items()}
            interleaved(measure, 1)  # imports, connections, and PostgreSQL's first pages are not what is measured
            rounds = interleaved(measure, chosen.rounds)
            rest, rpc, naive, bare = ways
            comparisons += [
                Comparison.of(
                    f"Durable uploads of {label}",
                    "a second",
                    rounds,
                    "rate",
                    (
                        Ratio("REST / naive", rest, naive, at_least=2),
                        Ratio("REST / bare", rest, bare, at_least=0.8),
                        Ratio("gRPC / REST", rpc, rest, at_least=0.8),
                    ),
                ),
                Comparison.of(
                    f"CPU of the server for an upload of {label}",
                    "ms",
                    rounds,
                    "cpu",
                    (
                        Ratio("naive / REST", naive, rest),
                        Ratio("bare / REST", bare, rest),
                        Ratio("REST / gRPC", rest, rpc),
                    ),
                ),
                Comparison.of(f"The same with PostgreSQL's, {label}", "ms", rounds, "cpu with PostgreSQL"),
                Comparison(
                    f"Time until an upload of {label} is acknowledged, {CONNECTIONS} at once",
                    "ms",
                    {f"{way}, {cut}": rounds[way][cut] for way in ways for cut in ("p50", "p99")},
                    (Ratio("REST, p99 / p50", f"{rest}, p99", f"{rest}, p50", at_most=3),),
                ),
            ]
        ten = {label: partial(together, ways["ours, REST"], size) for label, (size, _) in SIZES.items()}
        interleaved(ten, 1)
        at_once = interleaved(ten, 2 * chosen.rounds)
        comparisons.append(Comparison.of(f"{TOGETHER} photos in one form, wanted below 100", "ms", at_once, "ms"))
        shutil.rmtree(folder / "blobs")
    publish("acknowledgement", comparisons, chosen.results)


if __name__ == "__main__":
    main()
