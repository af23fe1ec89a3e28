"""Every service restarted, one after the other, while photos are uploaded over REST and gRPC: nobody notices."""

import io
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from conftest import eventually
from kombu import Connection
from PIL import Image
from redis import Redis
from sqlalchemy import Engine, text

from darkroom import topology
from darkroom.contracts import keys
from darkroom.contracts.tasks import FENCE, RETURN_FENCE
from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomStub
from darkroom.storage import open_blob_store
from darkroom_cli.local import SERVICES
from darkroom_cli.servers import ChildProcess, reserve_port

UNDER_WAY = 8
"""Photos that clients keep in flight: enough that every process has some in hand."""

PAUSE_S = 0.5
"""Of each client between two uploads: a restart takes seconds, and each photo is work."""

TRIES = 200
"""Of one upload, a quarter of a second apart, before its client gives up."""


@dataclass(frozen=True)
class Gateway:
    """One of two gateways behind the clients."""

    process: ChildProcess
    http: httpx.Client
    channel: grpc.Channel


@dataclass
class Clients:
    """Uploads that stream in through two gateways, and somebody who watches the events."""

    gateways: list[Gateway]
    stop: threading.Event = field(default_factory=threading.Event)
    is_over: threading.Event = field(default_factory=threading.Event)
    """For those who watch: the last event was heard."""
    accepted: dict[str, str] = field(default_factory=dict)
    """The image's id by the upload's key."""
    heard: list[tuple[int, str, str]] = field(default_factory=list)
    """Number, type and image of each event."""
    turned_away: Counter[str] = field(default_factory=Counter)

    def upload(self, number: int) -> None:
        """One photo, sent again under its key, to the other gateway, until it is accepted."""
        content, key = photo(number), f"rolling-{number}"
        send = self._over_grpc if number % 3 == 0 else self._over_rest
        for attempt in range(TRIES):
            try:
                self.accepted[key] = send(self.gateways[(number + attempt) % 2], content, key, number)
                return
            except httpx.TransportError as error:
                self.turned_away[type(error).__name__] += 1
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                self.turned_away["UNAVAILABLE"] += 1
            threading.Event().wait(0.25)
        raise AssertionError(f"{key} was not accepted in {TRIES} tries")

    def _over_rest(self, gateway: Gateway, content: bytes, key: str, number: int) -> str:
        form = {"file": (f"{number}.png", content)}
        lane = {"lane": "bulk" if number % 2 else "interactive"}
        answer = gateway.http.post("/v1/images", files=form, data=lane, headers={"Idempotency-Key": key})
        if answer.status_code == 503:
            raise httpx.ReadError(answer.text)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["images"][0]["id"])

    def _over_grpc(self, gateway: Gateway, content: bytes, key: str, number: int) -> str:
        metadata = pb.UploadMetadata(filename=f"{number}.png", idempotency_key=key)
        messages = [pb.UploadImageRequest(metadata=metadata), pb.UploadImageRequest(chunk=content)]
        return str(DarkroomStub(gateway.channel).UploadImage(iter(messages), timeout=120).image.id)

    def in_flight(self) -> int:
        """Photos that were accepted and are not finished, as a gateway that answers says."""
        for gateway in itertools.cycle(self.gateways):
            try:
                return int(gateway.http.get("/v1/ledger").json()["in_flight"])
            except (httpx.TransportError, KeyError):
                threading.Event().wait(0.1)
        raise AssertionError("there is always another gateway")

    def keep_uploading(self, numbers: Iterator[int]) -> None:
        """Uploads one photo after the other until it is told to stop."""
        while not self.stop.is_set():
            if self.in_flight() < UNDER_WAY:
                self.upload(next(numbers))
            self.stop.wait(PAUSE_S)

    def keep_watching(self) -> None:
        """Follows the events from the first one, on one gateway after the other."""
        position = 0
        for gateway in itertools.cycle(self.gateways):
            if self.is_over.is_set():
                return
            try:
                request = pb.WatchEventsRequest(last_event_id=position)
                for message in DarkroomStub(gateway.channel).WatchEvents(request, timeout=60):
                    position = message.position
                    if message.HasField("event"):
                        self.heard.append((message.event.id, message.event.type, message.event.image_id))
            except grpc.RpcError as error:
                is_over = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                assert is_over or error.code() is grpc.StatusCode.UNAVAILABLE, error
                threading.Event().wait(0.1)


def photo(number: int) -> bytes:
    """A picture of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((160, 120)).save(buffer, "PNG")
    return buffer.getvalue()


def numbered_events(engine: Engine) -> list[tuple[int, str, str]] | None:
    """Every event, once the relay has numbered the last of them."""
    with engine.connect() as connection:
        told = connection.execute(text("SELECT id, type, coalesce(image_id::text, '') FROM events ORDER BY id"))
        rows = [tuple(row) for row in told]
    return None if any(number is None for number, *_ in rows) else rows


@pytest.mark.timeout(600)
def test_a_rolling_restart_under_load_loses_nothing_and_counts_nothing_against_a_photo(
    spawn: Callable[..., ChildProcess],
    engine: Engine,
    redis_url: str,
    broker_url: str,
    blob_url: str,
    tmp_path: Path,
) -> None:
    heartbeats = {service.name: tmp_path / f"{service.name}.heartbeat" for service in SERVICES if service.is_worker}
    limits = {service.name: service.grace_s for service in SERVICES}

    def start(name: str, command: tuple[str, ...]) -> ChildProcess:
        quiet = {"DARKROOM_WORKER_CONCURRENCY": "2", "DARKROOM_MODEL_THREADS": "1", "DARKROOM_WEBHOOK_SECRET": ""}
        if name == "callbacks":
            quiet["DARKROOM_WEBHOOK_SECRET"] = "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
        if name in heartbeats:
            quiet["DARKROOM_HEARTBEAT_FILE"] = str(heartbeats[name])
        return spawn(*command, **quiet)

    gateways = []
    for _ in range(2):
        http_port, grpc_port = reserve_port(), reserve_port()
        ports = {"DARKROOM_HTTP_PORT": str(http_port), "DARKROOM_GRPC_PORT": str(grpc_port)}
        process = spawn("darkroom-gateway", **ports)
        http = httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=30)
        gateways.append(Gateway(process, http, grpc.insecure_channel(f"127.0.0.1:{grpc_port}")))
    workers = {service.name: start(service.name, service.command) for service in SERVICES if service.name != "gateway"}

    def is_up(name: str) -> bool:
        if name in heartbeats:
            return heartbeats[name].exists()
        return name == "beat" or _answers(gateways[int(name[-1])].http)

    turn = {"gateway-0": gateways[0].process, "gateway-1": gateways[1].process} | workers
    for name in turn:
        eventually(lambda name=name: is_up(name), within_s=120)
    clients, numbers, under_way = Clients(gateways), itertools.count(), dict[str, int]()
    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(clients.keep_uploading, numbers) for _ in range(3)]
        watching = pool.submit(clients.keep_watching)
        try:
            for name, process in turn.items():
                under_way[name] = eventually(clients.in_flight, within_s=60)
                if name in heartbeats:
                    heartbeats[name].unlink()
                process.stop(grace_s=limits[name.partition("-")[0] if name.startswith("gateway") else name])
                assert process.exit_status == 0, name
                process.start()
                eventually(lambda name=name: is_up(name), within_s=120)
            clients.stop.set()
            for each in running:
                each.result(120)
            eventually(lambda: clients.in_flight() == 0, within_s=120)
            rows = eventually(lambda: numbered_events(engine))
            eventually(lambda: len(clients.heard) >= len(rows))
        finally:
            clients.stop.set()
            clients.is_over.set()
            for gateway in gateways:
                gateway.channel.close()
                gateway.http.close()
        watching.exception(60)
    print(f"{len(clients.accepted)} photos; in flight at each stop: {under_way}; {dict(clients.turned_away)}")

    with engine.connect() as connection:
        images = connection.execute(text("SELECT id::text, sha256, state FROM images")).all()
        counted = connection.execute(text("SELECT status, attempts, losses, generation FROM originals")).all()
        letters = connection.execute(text("SELECT count(*) FROM dead_letters")).scalar_one()
    print("generations:", Counter(row.generation for row in counted))
    assert sorted(row.id for row in images) == sorted(clients.accepted.values()), "each upload was accepted once"
    assert {row.state for row in images} == {"ready"}
    assert {(row.status, row.attempts, row.losses) for row in counted} == {("ready", 0, 0)}
    assert letters == 0
    logs = tmp_path.glob("*-darkroom-scheduler.log")
    assert not any("reconciler.sent_again" in log.read_text() for log in logs), "nothing had to be found again"
    assert clients.heard == rows, "who watched heard everything, once and in order"
    assert Counter(image for _, kind, image in rows if kind == "image.ready") == Counter(row.id for row in images)
    with Redis.from_url(redis_url) as redis:
        eventually(lambda: not redis.keys("tries:*"))  # a fence that is just answered has one, too
    store = open_blob_store(blob_url)
    for row in images:
        assert len(list(store.walk(keys.derived_prefix(row.sha256)))) == 6
    assert len(list(store.walk("embeddings/"))) == len(images)
    assert list(store.walk("incoming/")) == []
    with Connection(broker_url) as connection, connection.channel() as channel:
        for queue in topology.CONSUMED_BY.keys() - {"maintenance", "callbacks"}:
            left = topology.task_queue(queue)(channel).get()
            assert left is None or left.headers["task"] in (FENCE.name, RETURN_FENCE.name), queue


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
