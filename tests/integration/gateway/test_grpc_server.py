"""What only gRPC has: streams that are cut, deadlines, message limits, health, reflection, a server that drains."""

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path

import grpc
import pytest
from conftest import eventually
from gateway_faces import CHUNK_BYTES, GrpcFace, refused, upload_requests
from gateway_pictures import picture
from gateway_serving import Served, peak_bytes, reset_peak_bytes, stop_and_go
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from grpc_status import rpc_status

from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomStub
from darkroom_cli.servers import ChildProcess
from darkroom_cli.servers.ports import reserve_port

pytest_plugins = ["gateway_fixtures"]

SERVICE = "darkroom.v1.Darkroom"


@pytest.fixture
def channel(gateway: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gateway.grpc_target) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> DarkroomStub:
    return DarkroomStub(channel)


def files(gateway: Served, folder: str = "") -> list[Path]:
    root: Path = gateway.parts.store.root  # type: ignore[attr-defined]
    return [path for path in (root / folder).rglob("*") if path.is_file()]


class HeldUpload:
    """The messages of an upload that stop after half the picture until they are let go on."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.go_on = threading.Event()

    def __iter__(self) -> Iterator[pb.UploadImageRequest]:
        half = len(self._content) // 2
        yield from upload_requests(pb.UploadMetadata(filename="held.jpg"), self._content[:half])
        self.go_on.wait(60)
        yield from list(upload_requests(pb.UploadMetadata(), self._content[half:]))[1:]


def test_a_cancelled_upload_leaves_nothing(gateway: Served, stub: DarkroomStub) -> None:
    held = HeldUpload(picture(1, 2_000_000))
    call = stub.UploadImage.future(iter(held))
    eventually(lambda: files(gateway, "incoming"))
    call.cancel()
    eventually(lambda: not files(gateway))
    held.go_on.set()
    assert call.cancelled()
    assert stub.GetLedger(pb.GetLedgerRequest()).accepted == 0


def test_uploads_cancelled_while_they_are_written_leave_nothing(gateway: Served, stub: DarkroomStub) -> None:
    """A cancellation that meets a thread in the middle of a write waits for it."""
    for seed in range(20):
        begun = threading.Event()

        def requests(seed: int = seed, begun: threading.Event = begun) -> Iterator[pb.UploadImageRequest]:
            for number, request in enumerate(upload_requests(pb.UploadMetadata(), picture(seed, 20_000_000))):
                if number == 2 + seed:
                    begun.set()
                yield request

        call = stub.UploadImage.future(requests())
        assert begun.wait(60)
        call.cancel()
    eventually(lambda: not files(gateway))
    assert stub.GetLedger(pb.GetLedgerRequest()).accepted == 0
    assert not files(gateway)


def test_an_upload_whose_deadline_passes_leaves_nothing(gateway: Served, stub: DarkroomStub) -> None:
    held = HeldUpload(picture(1, 2_000_000))
    with pytest.raises(grpc.RpcError) as late:
        stub.UploadImage(iter(held), timeout=1)
    held.go_on.set()
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: not files(gateway))
    assert stub.GetLedger(pb.GetLedgerRequest()).accepted == 0


def test_a_client_that_breaks_its_connection_leaves_nothing(gateway: Served) -> None:
    held = HeldUpload(picture(1, 2_000_000))
    with grpc.insecure_channel(gateway.grpc_target) as channel:
        call = DarkroomStub(channel).UploadImage.future(iter(held))
        eventually(lambda: files(gateway, "incoming"))
    eventually(lambda: not files(gateway))
    held.go_on.set()
    assert call.done()
    assert gateway.http.get("/v1/ledger").json()["accepted"] == 0


MALFORMED: dict[str, list[pb.UploadImageRequest]] = {
    "nothing": [],
    "a chunk first": [pb.UploadImageRequest(chunk=picture(1))],
    "an empty message first": [pb.UploadImageRequest()],
    "metadata twice": [
        pb.UploadImageRequest(metadata=pb.UploadMetadata()),
        pb.UploadImageRequest(chunk=picture(1)),
        pb.UploadImageRequest(metadata=pb.UploadMetadata()),
    ],
}


def test_a_stream_that_is_not_as_agreed_is_refused(
    gateway: Served, stub: DarkroomStub, subtests: pytest.Subtests
) -> None:
    for case, requests in MALFORMED.items():
        with subtests.test(case):
            with pytest.raises(grpc.RpcError) as error:
                stub.UploadImage(iter(requests))
            refusal = refused(error.value)
            assert (refusal.slug, refusal.code) == ("malformed-stream", grpc.StatusCode.INVALID_ARGUMENT)
            assert not files(gateway)


def test_a_chunk_may_have_any_size_up_to_the_limit_of_a_message(gateway: Served, stub: DarkroomStub) -> None:
    content = picture(1, 5_000_000)
    sizes = [0, 1, 3, 255, 4_000_000, 0, 70_000]
    requests, start = [pb.UploadImageRequest(metadata=pb.UploadMetadata())], 0
    for size in [*sizes, len(content) - sum(sizes)]:
        requests.append(pb.UploadImageRequest(chunk=content[start : start + size]))
        start += size
    image = stub.UploadImage(iter(requests)).image
    assert (image.bytes, image.sha256) == (len(content), hashlib.sha256(content).hexdigest())

    too_large = [requests[0], pb.UploadImageRequest(chunk=bytes(4 * 2**20))]
    with pytest.raises(grpc.RpcError) as error:
        stub.UploadImage(iter(too_large))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    eventually(lambda: not files(gateway, "incoming"))


def test_fields_at_fault_are_named(stub: DarkroomStub) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub.Search(pb.SearchRequest(text="a", limit=0, filter=pb.SearchFilter(tags=["a", ""])))
    assert "limit: " in refused(error.value).detail
    assert "filter.tags.1: " in refused(error.value).detail


def test_reflection_tells_the_whole_interface(channel: grpc.Channel) -> None:
    stub = ServerReflectionStub(channel)
    listing, file = stub.ServerReflectionInfo(
        iter(
            [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
            ]
        )
    )
    services = {service.name for service in listing.list_services_response.service}
    assert services == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    described = FileDescriptorProto.FromString(file.file_descriptor_response.file_descriptor_proto[0])
    calls = {method.name for method in described.service[0].method}
    assert calls == {method.name for method in pb.DESCRIPTOR.services_by_name["Darkroom"].methods}


def test_every_call_of_the_proto_is_served(channel: grpc.Channel) -> None:
    for method in pb.DESCRIPTOR.services_by_name["Darkroom"].methods:
        call = channel.stream_stream(f"/{SERVICE}/{method.name}")(iter([b""]), timeout=60)
        with suppress(grpc.RpcError):
            next(call, None)
        call.cancel()  # one would never end
        assert call.code() is not grpc.StatusCode.UNIMPLEMENTED, method.name


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_is_serving(channel: grpc.Channel, service: str) -> None:
    answer = HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_knows_no_other_service(channel: grpc.Channel) -> None:
    stub, request = HealthStub(channel), health_pb2.HealthCheckRequest(service="other")
    with pytest.raises(grpc.RpcError) as error:
        stub.Check(request)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(request)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


Process = tuple[ChildProcess, str]


@pytest.fixture
def process(database_url: str, blob_url: str, tmp_path: Path) -> Iterator[Process]:
    """The gateway as a process of its own, and its gRPC target."""
    child, port, log = start_gateway(database_url, blob_url, tmp_path / "gateway.log")
    target = f"127.0.0.1:{port}"
    try:
        with grpc.insecure_channel(target) as channel:
            grpc.channel_ready_future(channel).result(60)
        yield child, target
    finally:
        child.stop()
        print(log.read_text()[-5000:])


def start_gateway(
    database_url: str, blob_url: str, log: Path, port: int | None = None
) -> tuple[ChildProcess, int, Path]:
    nobody, http_port, port = reserve_port(), reserve_port(), port or reserve_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")} | {
        "DARKROOM_DATABASE_URL": database_url,
        "DARKROOM_BLOB_URL": blob_url,
        "DARKROOM_BROKER_URL": f"amqp://127.0.0.1:{nobody}//",
        "DARKROOM_RESULT_URL": f"redis://127.0.0.1:{nobody}/0",
        "DARKROOM_HTTP_PORT": str(http_port),
        "DARKROOM_GRPC_PORT": str(port),
    }
    command = [str(Path(sys.executable).with_name("darkroom-gateway"))]
    child = ChildProcess(command, log=log, env=env, grace_s=40)
    child.start()
    return child, port, log


def test_calls_in_flight_end_well_while_the_server_drains(process: Process, tmp_path: Path) -> None:
    child, target = process
    held = HeldUpload(picture(1, 2_000_000))
    with grpc.insecure_channel(target) as channel:
        watch = HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        call = DarkroomStub(channel).UploadImage.future(iter(held))
        eventually(lambda: list((tmp_path / "blobs" / "incoming").iterdir()))
        os.kill(child.pid or 0, 15)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert list(watch) == []
        with grpc.insecure_channel(target) as other, pytest.raises(grpc.RpcError) as error:
            DarkroomStub(other).GetLedger(pb.GetLedgerRequest())
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert child.is_running
        held.go_on.set()
        assert call.result(30).image.status == pb.IMAGE_STATUS_ACCEPTED
    eventually(lambda: not child.is_running)


def test_a_call_to_a_server_that_drains_is_sent_elsewhere(gateway: Served, stub: DarkroomStub) -> None:
    gateway.app.state.rpc._answers.refuse()
    calls = (lambda: stub.GetLedger(pb.GetLedgerRequest()), lambda: next(stub.WatchEvents(pb.WatchEventsRequest())))
    for call in calls:
        with pytest.raises(grpc.RpcError) as error:
            call()
        refusal = refused(error.value)
        assert (refusal.slug, refusal.code) == ("gateway-stopping", grpc.StatusCode.UNAVAILABLE)


def test_clients_that_call_all_the_time_are_sent_away_before_the_server_ends(process: Process) -> None:
    """gRPC's own stop would end a call that arrives in that moment as CANCELLED, for about every second client."""
    child, target = process
    clients = 8
    calling = threading.Barrier(clients + 1)

    def call_until_sent_away(_: int) -> grpc.RpcError:
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = DarkroomStub(channel)
            stub.GetLedger(pb.GetLedgerRequest())
            calling.wait(60)
            with pytest.raises(grpc.RpcError) as error:
                while True:
                    stub.GetLedger(pb.GetLedgerRequest(), timeout=60)
            return error.value

    with ThreadPoolExecutor(clients) as pool:
        calls = pool.map(call_until_sent_away, range(clients))
        calling.wait(60)
        os.kill(child.pid or 0, signal.SIGTERM)
        ends = list(calls)
    assert {end.code() for end in ends} == {grpc.StatusCode.UNAVAILABLE}
    # Who was held up for longer than the server waits finds nobody who could say more.
    assert {refused(end).slug for end in ends if rpc_status.from_call(end)} <= {"gateway-stopping"}
    eventually(lambda: not child.is_running)
    assert child.exit_status == 0


@pytest.mark.parametrize("held_up", [False, True], ids=["quick", "held-up"])
def test_a_200_mb_upload_does_not_grow_the_process(process: Process, held_up: bool) -> None:
    """Also when it runs only now and then, as on a busy machine: what it cannot write yet must wait at the client."""
    child, target = process
    pid = child.pid or 0
    size = 200_000_000
    with grpc.insecure_channel(target) as channel, stop_and_go(pid) if held_up else nullcontext():
        GrpcFace(channel).upload(picture(1, 20_000_000))  # fills buffers and pools
        before = reset_peak_bytes(pid)
        received = hashlib.sha256()

        def requests() -> Iterator[pb.UploadImageRequest]:
            yield pb.UploadImageRequest(metadata=pb.UploadMetadata(filename="large.jpg"))
            chunk = picture(2, CHUNK_BYTES)
            for start in range(0, size, CHUNK_BYTES):
                piece = chunk[: min(CHUNK_BYTES, size - start)]
                received.update(piece)
                yield pb.UploadImageRequest(chunk=piece)

        image = DarkroomStub(channel).UploadImage(requests(), timeout=120).image
    assert (image.bytes, image.sha256) == (size, received.hexdigest())
    grown = peak_bytes(pid) - before
    print(f"peak grew by {grown / 1e6:.1f} MB")
    assert grown < 40_000_000


def test_a_port_that_is_taken_refuses_the_start(
    process: Process, database_url: str, blob_url: str, tmp_path: Path
) -> None:
    _, target = process
    second, _, log = start_gateway(database_url, blob_url, tmp_path / "second.log", int(target.rpartition(":")[2]))
    try:
        eventually(lambda: not second.is_running, within_s=60)
    finally:
        second.stop()
    assert "DARKROOM_GRPC_PORT" in log.read_text()
