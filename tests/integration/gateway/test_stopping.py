"""What a SIGTERM does to the calls that a gateway has in hand: finished, or handed back with a clear word."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import grpc
import httpx
import pytest
from conftest import eventually
from gateway_faces import CHUNK_BYTES, refused, upload_requests
from gateway_pictures import picture
from sqlalchemy import Engine, func, select

from darkroom.database.tables import images
from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomStub
from darkroom_cli.servers import ChildProcess, reserve_port

GRACE_S = 10
HALF, WHOLE = 4 * CHUNK_BYTES, 8 * CHUNK_BYTES

on_redis = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


class SlowUpload:
    """A REST upload of which the client sends a first half, and the rest when it is told to."""

    def __init__(self, port: int, seed: int) -> None:
        content = picture(seed, WHOLE)
        form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
        self._rest = content[HALF:] + b"\r\n--x--\r\n"
        head = (
            "POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            f"Content-Length: {len(form) + HALF + len(self._rest)}\r\n\r\n"
        )
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._connection.sendall(head.encode() + form + content[:HALF])

    def go_on(self) -> None:
        self._connection.sendall(self._rest)

    def answer(self) -> tuple[int, dict[str, str], dict[str, object]]:
        """Status, headers and JSON; the server closes the connection after it."""
        received = b"".join(iter(lambda: self._connection.recv(65_536), b""))
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(first.split()[1]), headers, json.loads(body)


class SlowStream:
    """The same over gRPC."""

    def __init__(self, stub: DarkroomStub, seed: int) -> None:
        self._go_on = threading.Event()
        self.call = stub.UploadImage.future(self._messages(picture(seed, WHOLE)), timeout=60)

    def _messages(self, content: bytes) -> Iterator[pb.UploadImageRequest]:
        yield from upload_requests(pb.UploadMetadata(filename="b.jpg"), content[:HALF])
        self._go_on.wait(60)
        yield from list(upload_requests(pb.UploadMetadata(), content[HALF:]))[1:]

    def go_on(self) -> None:
        self._go_on.set()


@on_redis
def test_calls_in_hand_are_finished_or_told_to_come_back(
    spawn: Callable[..., ChildProcess], engine: Engine, tmp_path: Path
) -> None:
    http_port, grpc_port = reserve_port(), reserve_port()
    gateway = spawn(
        "darkroom-gateway",
        DARKROOM_HTTP_PORT=str(http_port),
        DARKROOM_GRPC_PORT=str(grpc_port),
        DARKROOM_SHUTDOWN_GRACE_S=str(GRACE_S),
    )
    url, target = f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}"
    with grpc.insecure_channel(target) as channel, httpx.Client(base_url=url) as idle:
        grpc.channel_ready_future(channel).result(60)
        stub = DarkroomStub(channel)
        assert idle.get("/healthz").status_code == 200  # leaves a connection that is kept open
        watches = [stub.WatchEvents(pb.WatchEventsRequest(), timeout=60) for _ in range(3)]
        positions = [next(watch).position for watch in watches]
        uploads = [SlowUpload(http_port, 1), SlowUpload(http_port, 2)]
        streams = [SlowStream(stub, 3), SlowStream(stub, 4)]
        incoming = tmp_path / "blobs" / "incoming"
        eventually(lambda: len(list(incoming.iterdir())) == 4)

        os.kill(gateway.pid or 0, signal.SIGTERM)

        for watch in watches:
            with pytest.raises(grpc.RpcError) as cut:
                list(watch)
            assert refused(cut.value).slug == "gateway-stopping"
        # Two clients are done in time, two are not.
        uploads[0].go_on()
        streams[0].go_on()
        with pytest.raises(httpx.ConnectError):
            eventually(lambda: httpx.get(f"{url}/healthz") and False)
        assert gateway.is_running
        status, headers, _ = uploads[0].answer()
        assert (status, headers["connection"]) == (202, "close")
        assert streams[0].call.result().image.status == pb.IMAGE_STATUS_ACCEPTED
        status, headers, problem = uploads[1].answer()
        assert (status, headers["retry-after"]) == (503, "2")
        assert str(problem["type"]).endswith("/gateway-stopping")
        with pytest.raises(grpc.RpcError) as late:
            streams[1].call.result()
        assert (refused(late.value).slug, late.value.code()) == ("gateway-stopping", grpc.StatusCode.UNAVAILABLE)
        streams[1].go_on()
    eventually(lambda: not gateway.is_running)
    assert gateway.exit_status == 0
    assert list(incoming.iterdir()) == []
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(images)) == 2

    # Who watched goes on where it was.
    spawn("darkroom-gateway", DARKROOM_HTTP_PORT=str(http_port), DARKROOM_GRPC_PORT=str(grpc_port))
    with grpc.insecure_channel(target) as channel:
        grpc.channel_ready_future(channel).result(60)
        request = pb.WatchEventsRequest(last_event_id=positions[0])
        heard = [message.event.type for message in islice(DarkroomStub(channel).WatchEvents(request), 3)]
    assert heard == ["", "image.accepted", "image.accepted"]  # the first has only a position
