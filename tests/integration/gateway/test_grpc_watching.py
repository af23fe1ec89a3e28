"""Events over gRPC: the same as the table has, resumed without a gap or a repeat, over with the image or the server."""

import uuid
from collections.abc import Iterator

import grpc
import pytest
from conftest import eventually
from gateway_faces import refused
from gateway_outcomes import fail, finish
from gateway_pictures import picture
from gateway_serving import Served
from sqlalchemy import Engine

from darkroom.database import events as table
from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomStub

pytest_plugins = ["gateway_fixtures"]


@pytest.fixture
def stub(gateway: Served) -> Iterator[DarkroomStub]:
    with grpc.insecure_channel(gateway.grpc_target) as channel:
        yield DarkroomStub(channel)


def number(engine: Engine) -> None:
    """Does the relay's part that readers need."""
    with engine.begin() as connection:
        table.number_events(connection, 1000)


def types(stream: Iterator[pb.WatchResponse], count: int) -> list[str]:
    """The types of the next events, whose numbers are their positions."""
    found: list[str] = []
    while len(found) < count:
        message = next(stream)
        if message.HasField("event"):
            assert message.position == message.event.id
            found.append(message.event.type)
    return found


def test_an_image_is_watched_until_it_is_ready(gateway: Served, stub: DarkroomStub, engine: Engine) -> None:
    (image,), (other,) = gateway.accepted(picture(1)), gateway.accepted(picture(2))
    number(engine)
    stream = stub.WatchImage(pb.WatchImageRequest(image_id=image["id"]), timeout=60)
    assert not next(stream).HasField("event"), "the first message tells where to resume"
    accepted = next(stream)
    shown = accepted.event
    assert (shown.type, shown.image_id, shown.batch_id) == ("image.accepted", image["id"], image["batch_id"])
    assert (shown.sha256, shown.trace_id) == (image["sha256"], image["trace_id"])
    fail(engine, other["sha256"])
    finish(engine, gateway.parts.store, image["sha256"])
    number(engine)
    assert [message.event.type for message in stream if message.HasField("event")] == ["image.ready"]

    resumed = list(stub.WatchImage(pb.WatchImageRequest(image_id=image["id"], last_event_id=accepted.position)))
    assert [message.event.type for message in resumed if message.HasField("event")] == ["image.ready"]
    seen_all = stub.WatchImage(pb.WatchImageRequest(image_id=image["id"], last_event_id=resumed[-1].position))
    assert [message.HasField("event") for message in seen_all] == [False]


def test_a_failure_is_told_with_its_problem_and_can_be_followed(
    gateway: Served, stub: DarkroomStub, engine: Engine
) -> None:
    (image,) = gateway.accepted(picture(1))
    fail(engine, image["sha256"])
    number(engine)
    stream = stub.WatchImage(pb.WatchImageRequest(image_id=image["id"], follow=True), timeout=60)
    next(stream)
    assert next(stream).event.type == "image.accepted"
    failed = next(stream).event
    assert (failed.type, failed.problem.remedy) == ("image.failed", "Send another.")
    gateway.http.delete(f"/v1/images/{image['id']}")
    number(engine)
    assert types(stream, 1) == ["image.deleted"]
    stream.cancel()


def test_everything_is_watched_and_resumed_without_a_gap_or_a_repeat(
    gateway: Served, stub: DarkroomStub, engine: Engine
) -> None:
    first = stub.WatchEvents(pb.WatchEventsRequest(last_event_id=0), timeout=60)
    position = next(first).position
    uploaded = [gateway.accepted(picture(seed))[0]["id"] for seed in range(3)]
    number(engine)
    seen = []
    for message in first:
        if message.HasField("event"):
            seen.append(message.event.image_id)
            position = message.position
        if len(seen) == 2:
            break
    first.cancel()
    uploaded += [gateway.accepted(picture(seed))[0]["id"] for seed in range(3, 6)]
    number(engine)
    again = stub.WatchEvents(pb.WatchEventsRequest(last_event_id=position), timeout=60)
    for message in again:
        if message.HasField("event"):
            seen.append(message.event.image_id)
        if len(seen) == 6:
            break
    assert seen == uploaded
    again.cancel()


def test_what_cannot_be_watched_is_refused(stub: DarkroomStub, subtests: pytest.Subtests) -> None:
    cases = {
        "image-not-found": (stub.WatchImage, pb.WatchImageRequest(image_id=str(uuid.uuid4()))),
        "invalid-request": (stub.WatchImage, pb.WatchImageRequest(image_id="7")),
        "events-expired": (stub.WatchEvents, pb.WatchEventsRequest(last_event_id=10**9)),
    }
    for slug, (call, request) in cases.items():
        with subtests.test(slug):
            with pytest.raises(grpc.RpcError) as error:
                list(call(request, timeout=30))
            assert refused(error.value).slug == slug
    with pytest.raises(grpc.RpcError) as error:
        list(stub.WatchEvents(pb.WatchEventsRequest(last_event_id=-1), timeout=30))
    assert refused(error.value).slug == "invalid-request"


def test_watches_end_with_the_gateway_and_do_not_hold_it_up(gateway: Served, stub: DarkroomStub) -> None:
    streams = [stub.WatchEvents(pb.WatchEventsRequest()) for _ in range(20)]
    for stream in streams:
        next(stream)
    events = gateway.parts.events
    events._loop.call_soon_threadsafe(events.close)
    for stream in streams:
        with pytest.raises(grpc.RpcError) as error:
            list(stream)
        assert refused(error.value).slug == "gateway-stopping"
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    eventually(lambda: not events._waiting)
