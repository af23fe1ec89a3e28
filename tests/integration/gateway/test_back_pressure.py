"""Uploads while something is full: refused before their first byte, or kept until the broker takes work again."""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import grpc
import pytest
from conftest import eventually
from gateway_faces import Face, Refused
from gateway_outcomes import dispatched_hashes
from gateway_pictures import picture
from gateway_serving import Served
from kombu import Connection
from redis import Redis
from sqlalchemy import Engine, text

from darkroom.celery_app import declare_topology
from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomStub
from darkroom_cli.servers import RabbitServer, RedisServer
from gateway import pressure

pytest_plugins = ["gateway_fixtures"]

ENOUGH = 2**62
"""More bytes than any disk has."""


def stored(gateway: Served) -> list[str]:
    return [blob.key for prefix in ("originals", "incoming") for blob in gateway.parts.store.walk(prefix)]


def test_a_disk_that_is_nearly_full_takes_no_upload(serve: Callable[..., Served], face_of: Callable[..., Face]) -> None:
    gateway = serve(min_free_bytes=ENOUGH)
    with pytest.raises(Refused) as refusal:
        face_of(gateway).upload(picture(1))
    assert (refusal.value.slug, refusal.value.code) == ("storage-full", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert (refusal.value.retry_s, refusal.value.told["limit"]) == (60, str(ENOUGH))
    assert stored(gateway) == []
    assert gateway.http.get("/v1/status").json()["uploads"]["refusal"]["type"].endswith("storage-full")


def test_a_backlog_at_its_limit_takes_no_upload_until_it_is_shorter(
    serve: Callable[..., Served], face_of: Callable[..., Face], engine: Engine
) -> None:
    gateway = serve(max_backlog=1)
    face = face_of(gateway)
    image = face.upload(picture(1))["image"]

    numbers = count(2)

    def refused() -> bool:
        """the limit is seen, at the latest after a second"""
        try:
            face.upload(picture(next(numbers)))
        except Refused as refusal:
            assert (refusal.slug, refusal.code) == ("backlog-full", grpc.StatusCode.UNAVAILABLE)
            assert (refusal.retry_s, refusal.told["limit"]) == (10, "1")
            return True
        return False

    eventually(refused)
    in_flight = gateway.http.get("/v1/ledger").json()["in_flight"]
    assert len(stored(gateway)) == in_flight
    for row in gateway.http.get("/v1/images").json()["images"]:
        face.delete(row["id"])
    eventually(lambda: not refused())
    assert gateway.http.get(f"/v1/images/{image['id']}").status_code == 404


def test_the_refusal_comes_before_the_first_byte_is_sent(serve: Callable[..., Served]) -> None:
    gateway = serve(min_free_bytes=ENOUGH)
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/images HTTP/1.1\r\nHost: darkroom\r\nContent-Length: 100000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 507 ")


@contextmanager
def stands_still_over_rest(gateway: Served) -> Iterator[None]:
    """An upload that was let in and sends nothing."""
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/images HTTP/1.1\r\nHost: darkroom\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        yield


@contextmanager
def stands_still_over_grpc(gateway: Served) -> Iterator[None]:
    """The same, with its first message sent."""
    is_over = threading.Event()

    def messages() -> Iterator[pb.UploadImageRequest]:
        yield pb.UploadImageRequest(metadata=pb.UploadMetadata(filename="still.jpg"))
        is_over.wait()

    with grpc.insecure_channel(gateway.grpc_target) as channel:
        upload = DarkroomStub(channel).UploadImage.future(messages())
        eventually(lambda: gateway.parts.pressure._at_once[pressure.Face.GRPC])
        yield
        upload.cancel()
        is_over.set()


def test_no_more_uploads_are_received_at_once_than_a_gateway_has_memory_for(
    serve: Callable[..., Served], face_of: Callable[..., Face]
) -> None:
    gateway = serve(max_uploads_at_once=1, max_grpc_uploads_at_once=1)
    face = face_of(gateway)
    with stands_still_over_rest(gateway), stands_still_over_grpc(gateway):
        with pytest.raises(Refused) as refusal:
            face.upload(picture(1))
        assert (refusal.value.slug, refusal.value.code) == ("too-many-uploads", grpc.StatusCode.UNAVAILABLE)
        assert (refusal.value.retry_s, refusal.value.told["limit"]) == (2, "1")
        assert stored(gateway) == []

    def accepted() -> bool:
        """the gateway has seen that they hung up"""
        try:
            return bool(face.upload(picture(1)))
        except Refused as again:
            assert again.slug == "too-many-uploads"
            return False

    eventually(accepted)


def test_a_database_that_is_away_takes_no_byte(
    serve: Callable[..., Served], face_of: Callable[..., Face], blob_url: str
) -> None:
    gateway = serve(database_url="postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(Refused) as refusal:
        face_of(gateway).upload(picture(1))
    assert (refusal.value.slug, refusal.value.retry_s) == ("database-unavailable", 2)
    assert stored(gateway) == []


@pytest.fixture
def full_redis(tmp_path: Path) -> Iterator[tuple[str, Callable[[bool], None]]]:
    """A Redis of this test as broker: its URL, and a switch that fills it."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    with Redis.from_url(server.url) as redis:
        yield server.url, lambda is_full: redis.config_set("maxmemory", 1 if is_full else 0) and None
    server.stop()


@pytest.fixture
def alarmed_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Callable[[bool], None]]]:
    """A RabbitMQ of this test: its URL, and a switch for its disk alarm, which blocks every publisher."""
    server = RabbitServer(tmp_path_factory.mktemp("rabbit"))
    server.start()

    def switch(is_on: bool) -> None:
        limit = str(ENOUGH) if is_on else "50000000"  # bytes
        command = ["rabbitmqctl", "--node", server.environment["RABBITMQ_NODENAME"], "set_disk_free_limit", limit]
        control = "/usr/lib/rabbitmq/bin/rabbitmqctl"
        command[0] = control if Path(control).exists() else command[0]
        subprocess.run(command, env=server.environment, check=True, capture_output=True)

    yield server.url, switch
    server.stop()


@pytest.mark.parametrize("broker", ["full_redis", "alarmed_rabbit"])
def test_uploads_go_on_while_the_broker_is_full_and_are_dispatched_when_it_is_not(
    impatience: None, serve: Callable[..., Served], engine: Engine, broker: str, request: pytest.FixtureRequest
) -> None:
    url, switch = request.getfixturevalue(broker)
    with Connection(url) as connection:
        declare_topology(connection)
    gateway = serve(broker_url=url, dispatcher_enabled=True)
    eventually(lambda: gateway.parts.broker.is_connected)
    switch(True)
    images = gateway.accepted(*(picture(number) for number in range(3)))
    eventually(lambda: not gateway.parts.broker.is_connected)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM originals WHERE dispatched_at IS NULL")) == 3
    images += gateway.accepted(picture(3))
    switch(False)

    def all_dispatched() -> bool:
        """every original has its stamp"""
        with engine.connect() as connection:
            return connection.scalar(text("SELECT count(*) FROM originals WHERE dispatched_at IS NULL")) == 0

    eventually(all_dispatched, within_s=60)
    assert set(dispatched_hashes(url)) == {image["sha256"] for image in images}
    assert gateway.http.get("/v1/ledger").json()["in_flight"] == 4
