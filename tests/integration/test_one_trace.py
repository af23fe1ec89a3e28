"""One photo is one trace: the spans of real services, as they arrive over OTLP, on both brokers and both faces."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import psutil
import pytest
from celery import Celery
from conftest import eventually
from otlp_receiver import Received, ReceivedSpan, receiving_traces
from PIL import Image

from darkroom import topology
from darkroom.celery_app import await_no_results, create_app, declare_topology, request
from darkroom.contracts.base import Lane
from darkroom.contracts.keys import Recipe, original_key
from darkroom.contracts.messages import Prepare, Thumbnails
from darkroom.contracts.tasks import PREPARE, THUMBNAILS
from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomStub
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import FileStore
from darkroom.telemetry import names, tracing
from darkroom_cli.servers import ChildProcess
from darkroom_cli.servers.ports import reserve_port

pytestmark = pytest.mark.timeout(400)  # a whole stack, on a machine that may be busy with something else
soon = partial(eventually, within_s=120)

CLIENTS_SPAN = "b7ad6b7169203331"

IN_THE_GATEWAY = {
    ("{call}", "gateway: receive upload"),
    ("{call}", "gateway: commit upload"),
    ("gateway: commit upload", "gateway: transaction"),
    ("gateway: commit upload", "gateway: put blob"),
    ("gateway: commit upload", "gateway: publish image.accepted"),
    ("{call}", "gateway: wait dispatch"),
    ("{call}", "gateway: dispatch"),
    ("gateway: dispatch", "gateway: transaction"),
    ("gateway: dispatch", "gateway: publish prepare"),
}
IN_PREPARE = {
    ("gateway: publish prepare", "thumbnailer: wait prepare"),
    ("gateway: publish prepare", "thumbnailer: process prepare"),
    ("thumbnailer: process prepare", "thumbnailer: get blob"),
    ("thumbnailer: process prepare", "thumbnailer: decode"),
}
EDGES = {
    *IN_THE_GATEWAY,
    *IN_PREPARE,
    ("thumbnailer: process prepare", "thumbnailer: encode large"),
    ("thumbnailer: process prepare", "thumbnailer: encode proxy"),
    ("thumbnailer: process prepare", "thumbnailer: put blob"),
    ("thumbnailer: process prepare", "thumbnailer: publish image.prepared"),
    ("thumbnailer: process prepare", "thumbnailer: publish thumbnails"),
    ("thumbnailer: publish thumbnails", "thumbnailer: wait thumbnails"),
    ("thumbnailer: publish thumbnails", "thumbnailer: process thumbnails"),
    ("thumbnailer: process thumbnails", "thumbnailer: get blob"),
    ("thumbnailer: process thumbnails", "thumbnailer: decode"),
    ("thumbnailer: process thumbnails", "thumbnailer: encode medium"),
    ("thumbnailer: process thumbnails", "thumbnailer: encode small"),
    ("thumbnailer: process thumbnails", "thumbnailer: describe"),
    ("thumbnailer: process thumbnails", "thumbnailer: put blob"),
    ("thumbnailer: process prepare", "thumbnailer: publish embed"),
    ("thumbnailer: publish embed", "embedder: wait embed"),
    ("thumbnailer: publish embed", "embedder: process embed"),
    ("embedder: process embed", "embedder: wait batch"),
    ("embedder: process embed", "embedder: compute batch"),
    ("embedder: compute batch", "embedder: get blob"),
    ("embedder: compute batch", "embedder: preprocess"),
    ("embedder: compute batch", "embedder: forward"),
    ("embedder: compute batch", "embedder: put blob"),
    ("embedder: process embed", "embedder: wait turn"),
    ("{last branch}", "{join}"),
    ("{join}", "scheduler: wait finalize"),
    ("{join}", "scheduler: process finalize"),
    ("scheduler: process finalize", "scheduler: get blob"),
    ("scheduler: process finalize", "scheduler: transaction"),
    ("scheduler: process finalize", "gateway: publish image.ready"),
    ("scheduler: process finalize", "gateway: publish batch.completed"),
}
"""Parent and child, of a photo that becomes ready."""

LINKS = {
    ("embedder: compute batch", "embedder: batch"),
    ("embedder: forward", "embedder: forward"),
    ("scheduler: process finalize", "thumbnailer: process thumbnails"),
    ("scheduler: process finalize", "embedder: process embed"),
}
"""From a span of the photo's trace to what it was linked to."""

EDGES_OF_A_FAILURE = {
    *IN_THE_GATEWAY,
    *IN_PREPARE,
    ("thumbnailer: process prepare", "thumbnailer: publish finalize"),
    ("thumbnailer: publish finalize", "scheduler: wait finalize"),
    ("thumbnailer: publish finalize", "scheduler: process finalize"),
    ("scheduler: process finalize", "scheduler: transaction"),
    ("scheduler: process finalize", "gateway: publish image.failed"),
    ("scheduler: process finalize", "gateway: publish batch.completed"),
}

KINDS = {"publish": "PRODUCER", "process": "CONSUMER", "transaction": "CLIENT", "get": "CLIENT", "put": "CLIENT"}
"""By the first word of a name; everything else is INTERNAL."""

ABOUT_THE_PHOTO = ("publish image", "publish prepare", "wait prepare", "process", "wait dispatch", "dispatch")


@pytest.fixture
def backend() -> Iterator[Received]:
    with receiving_traces() as received:
        yield received


@pytest.fixture
def traced(backend: Received) -> dict[str, str]:
    """The variables that send traces there, and settings of small processes."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": backend.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "DARKROOM_WORKER_CONCURRENCY": "1",
        "DARKROOM_MODEL_THREADS": "1",
    }


class Stack:
    """A gateway with the workers behind it."""

    def __init__(self, spawn: Callable[..., ChildProcess], settings: dict[str, str], *commands: str) -> None:
        self.http_port, self.grpc_port = reserve_port(), reserve_port()
        settings |= {"DARKROOM_HTTP_PORT": str(self.http_port), "DARKROOM_GRPC_PORT": str(self.grpc_port)}
        self.processes = [spawn(*command.split(), **settings) for command in ("darkroom-gateway", *commands)]
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", timeout=60)
        self.stub = DarkroomStub(grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}"))
        soon(self._answers)

    def upload(self, face: str, trace_id: str | None, *contents: bytes) -> list[dict[str, Any]]:
        """The images of an upload over `rest` or `grpc`, as a part of the client's trace if it has one."""
        trace = {"traceparent": f"00-{trace_id}-{CLIENTS_SPAN}-01"} if trace_id else {}
        if face == "rest":
            files = [("file", (f"{number}.jpg", content)) for number, content in enumerate(contents)]
            answer = self.http.post("/v1/images", files=files, headers=trace)
            assert answer.status_code == 202, answer.text
            return list(answer.json()["images"])
        [content] = contents
        requests = [pb.UploadImageRequest(metadata=pb.UploadMetadata()), pb.UploadImageRequest(chunk=content)]
        answered = self.stub.UploadImage(iter(requests), metadata=list(trace.items()), timeout=60).image
        return [{"id": answered.id, "sha256": answered.sha256, "trace_id": answered.trace_id}]

    def status(self, image: dict[str, Any]) -> str:
        return str(self.http.get(f"/v1/images/{image['id']}").json()["status"])

    def _answers(self) -> bool:
        try:
            return self.http.get("/healthz").is_success
        except httpx.TransportError:
            assert all(process.is_running for process in self.processes), self.processes[0].log_tail()
            return False


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (900, 700), (seed * 40 % 256, 90, 200)).save(file, "JPEG")
    return file.getvalue()


def broken_picture() -> bytes:
    return picture(0)[:400]


NOW_AND_THEN = {("{call}", "gateway: transaction")}
"""Whether there is room is asked at most once a second: some uploads find it known."""

LAST_BRANCH = ("process thumbnails", "process embed")
"""Whichever part of the join ends last publishes what comes after it."""


def edges(backend: Received, trace_id: str) -> set[tuple[str, str]]:
    """Parent and child of every span of a trace but the call, which is under the client's, and what is NOW_AND_THEN."""

    def word(span: ReceivedSpan) -> str:
        parent = backend.parent_of(span)
        if span.name == "publish finalize" and parent is not None and parent.name in LAST_BRANCH:
            return "{join}"
        return "{call}" if span.kind == "SERVER" else span.label

    found = set()
    for span in backend.of_trace(trace_id):
        if span.kind != "SERVER":
            parent = backend.parent_of(span)
            above = word(parent) if parent is not None else f"nothing that has arrived ({span.parent_id})"
            found.add(("{last branch}" if word(span) == "{join}" else above, word(span)))
    return found - NOW_AND_THEN


def labels(backend: Received) -> set[str]:
    return {span.label for span in list(backend.spans)}


def links(backend: Received, trace_id: str) -> set[tuple[str, str]]:
    by_id = {span.span_id: span for span in list(backend.spans)}
    return {(span.label, by_id[link].label) for span in backend.of_trace(trace_id) for link in span.links}


def check_what_spans_say(backend: Received, trace_id: str, system: str, sha256: str) -> None:
    spans = backend.of_trace(trace_id)
    for span in spans:
        if span.kind != "SERVER":
            assert span.kind == KINDS.get(span.name.partition(" ")[0], "INTERNAL"), span
        if span.name.startswith(ABOUT_THE_PHOTO):
            assert span.attributes[names.IMAGE_SHA256] == sha256, span
        if span.name.startswith(("publish", "process")):
            operation, _, destination = span.name.partition(" ")
            assert span.attributes[names.MESSAGING_SYSTEM] == system
            assert span.attributes[names.MESSAGING_OPERATION_NAME] == operation
            assert span.attributes[names.MESSAGING_DESTINATION] == destination
    for wait in [span for span in spans if span.name.startswith("wait ") and span.parent_id]:
        queue = wait.name.removeprefix("wait ")
        for begun in [span for span in spans if span.name in (f"process {queue}", queue)]:
            if begun.parent_id == wait.parent_id:
                assert wait.end_ns == begun.start_ns, "a wait ends where its work begins"


@pytest.mark.parametrize("broker_url", ["redis", "rabbitmq"], indirect=True)
def test_a_photo_is_one_trace_from_the_call_to_its_event(
    spawn: Callable[..., ChildProcess], traced: dict[str, str], backend: Received, broker_url: str
) -> None:
    workers = ("darkroom-thumbnailer", "darkroom-embedder", "darkroom-scheduler finalize")
    stack = Stack(spawn, traced, *workers)
    system = "rabbitmq" if broker_url.startswith("amqp") else "redis"
    calls = {"rest": "gateway: POST /v1/images", "grpc": "gateway: darkroom.v1.Darkroom/UploadImage"}

    for seed, face in enumerate(calls):
        trace_id = uuid4().hex
        [image] = stack.upload(face, trace_id, picture(seed))
        assert image["trace_id"] == trace_id
        soon(lambda image=image: stack.status(image) == "ready")
        soon(lambda trace_id=trace_id: edges(backend, trace_id) >= EDGES)
        assert edges(backend, trace_id) == EDGES
        assert links(backend, trace_id) == LINKS
        [call] = [span for span in backend.of_trace(trace_id) if span.kind == "SERVER"]
        assert (call.label, call.parent_id) == (calls[face], CLIENTS_SPAN)
        assert not any(span.is_error for span in backend.of_trace(trace_id))
        check_what_spans_say(backend, trace_id, system, image["sha256"])

    # Without a client's trace, the call begins one, and the image names it.
    first, second = stack.upload("rest", None, picture(2), picture(3))
    soon(lambda: stack.status(first) == stack.status(second) == "ready")
    trace_id = first["trace_id"]
    assert second["trace_id"] == trace_id

    def ended_twice(name: str) -> bool:
        """Each process sends its spans in its own time."""
        return len([span for span in backend.of_trace(trace_id) if span.name == name]) == 2

    soon(lambda: all(ended_twice(name) for name in ("publish image.ready", "process embed", "process thumbnails")))
    assert backend.of_trace(trace_id)[0].parent_id == ""
    for one in (first, second):
        own = [span for span in backend.of_trace(trace_id) if span.attributes.get(names.IMAGE_SHA256) == one["sha256"]]
        assert [span.name for span in own if span.name.startswith("process")].count("process embed") == 1

    # A batch is a trace of its own; it links to the span of each member, and each member links to it.
    batches = backend.named("batch")
    assert {batch.parent_id for batch in batches} == {""}
    members = {span.span_id for span in backend.named("process embed")}
    assert sorted(link for batch in batches for link in batch.links) == sorted(members)
    by_batch = {batch.span_id: batch.attributes[names.MESSAGING_BATCH_COUNT] for batch in batches}
    for compute in backend.named("compute batch"):
        assert compute.attributes[names.BATCH_SIZE] == by_batch[compute.links[0]]

    check_failure_and_retry(stack, backend)
    for process in stack.processes:
        process.stop()
    assert {span.service for span in backend.spans} == {"gateway", "thumbnailer", "embedder", "scheduler"}


def check_failure_and_retry(stack: Stack, backend: Received) -> None:
    """A photo that cannot be read: its cause is on the spans, and a second dispatch links to the first."""
    trace_id = uuid4().hex
    [image] = stack.upload("rest", trace_id, broken_picture())
    soon(lambda: edges(backend, trace_id) >= EDGES_OF_A_FAILURE)
    assert edges(backend, trace_id) == EDGES_OF_A_FAILURE
    failed = {span.name: span for span in backend.of_trace(trace_id) if span.is_error}
    assert set(failed) == {"process prepare", "decode"}
    problem = stack.http.get(f"/v1/images/{image['id']}").json()["error"]
    assert problem["type"].endswith(failed["process prepare"].attributes[names.ERROR_TYPE])

    assert stack.http.post(f"/v1/images/{image['id']}:retry").status_code == 202
    soon(lambda: len([span for span in backend.of_trace(trace_id) if span.name == "dispatch"]) == 2)
    before, again = [span for span in backend.of_trace(trace_id) if span.name == "dispatch"]
    assert (before.links, again.links) == ((), (before.span_id,))
    assert again.parent_id == before.parent_id
    assert again.attributes[names.GENERATION] > before.attributes[names.GENERATION]


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_of_a_trace_that_is_not_sampled_only_what_went_wrong_is_kept(
    spawn: Callable[..., ChildProcess], traced: dict[str, str], backend: Received, broker_url: str
) -> None:
    traced |= {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    stack = Stack(spawn, traced, "darkroom-thumbnailer", "darkroom-scheduler finalize")
    [good] = stack.upload("rest", None, picture(0))
    [bad] = stack.upload("rest", None, broken_picture())
    soon(lambda: stack.status(bad) == "failed")
    soon(lambda: any(span.name == "publish batch.completed" for span in list(backend.spans)))
    for process in stack.processes:
        process.stop()
    assert good["trace_id"] != bad["trace_id"]
    assert {span.trace_id for span in backend.spans} == {bad["trace_id"]}
    assert labels(backend) == {
        # The local tree of the error, from the wait before it.
        *("thumbnailer: wait prepare", "thumbnailer: process prepare", "thumbnailer: get blob", "thumbnailer: decode"),
        "thumbnailer: publish finalize",
        # Everything that follows from it.
        *("scheduler: wait finalize", "scheduler: process finalize", "scheduler: transaction"),
        *("gateway: publish image.failed", "gateway: publish batch.completed"),
    }


# --- One thumbnailer alone ------------------------------------------------------------------------------------------

SHA = "5" * 64
WORK = {"sha256": SHA, "generation": 1, "lane": Lane.INTERACTIVE, "recipe": Recipe.current()}


@pytest.fixture
def client(broker_url: str, redis_url: str) -> Iterator[Celery]:
    app = create_app("client", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    await_no_results(app)
    with app.connection_for_write() as connection:
        declare_topology(connection)
    yield app
    app.close()


def send(client: Celery, contract: Any, message: Any) -> str:
    """Publishes a task as a part of a new trace; returns the trace's id."""
    trace_id = uuid4().hex
    with tracing.within(tracing.context_of(f"00-{trace_id}-{CLIENTS_SPAN}-01")):
        request(client, contract, message, task_id=trace_id).apply_async()
    return trace_id


def deliveries(backend: Received, trace_id: str) -> list[ReceivedSpan]:
    return [span for span in backend.of_trace(trace_id) if span.kind == "CONSUMER"]


@pytest.mark.parametrize("broker_url", ["redis", "rabbitmq"], indirect=True)
def test_a_retry_and_a_redelivery_show_as_what_they_are(
    spawn: Callable[..., ChildProcess],
    traced: dict[str, str],
    backend: Received,
    client: Celery,
    blob_url: str,
    tmp_path: Path,
) -> None:
    heartbeat = tmp_path / "heartbeat"
    settings = {"DARKROOM_HEARTBEAT_FILE": str(heartbeat), "DARKROOM_TASK_MAX_RETRIES": "1"}
    worker = spawn("darkroom-thumbnailer", **traced | settings)
    soon(heartbeat.exists)

    # What `thumbnails` needs is not there: it is tried once more after a second or two, and given up.
    trace_id = send(client, THUMBNAILS, Thumbnails(**WORK))
    first, second = soon(lambda: len(found := deliveries(backend, trace_id)) == 2 and found)
    assert (first.attributes[names.TASK_STATE], second.attributes[names.TASK_STATE]) == ("RETRY", "FAILURE")
    assert first.attributes[names.RETRY_DELAY] in (1, 2)
    assert second.attributes[names.RETRY_NUMBER] == 1
    assert first.attributes[names.ERROR_TYPE] == second.attributes[names.ERROR_TYPE] == "BlobMissingError"
    again = backend.parent_of(second)
    assert again is not None
    assert (again.name, again.parent_id) == ("publish thumbnails", first.span_id)
    [delay] = [span for span in backend.of_trace(trace_id) if span.name == "delay thumbnails"]
    assert delay.parent_id == again.span_id
    assert delay.end_ns - first.start_ns >= first.attributes[names.RETRY_DELAY] * 0.999e9
    assert 0 <= delay.end_ns - delay.start_ns <= 2e9

    # The child dies while it reads the original, which is a pipe that nobody writes to.
    store = FileStore(Path(blob_url.removeprefix("file://")))
    original = store.path(original_key(SHA))
    original.parent.mkdir(parents=True)
    os.mkfifo(original)
    trace_id = send(client, PREPARE, Prepare(**WORK))
    pipe = soon(lambda: open_to_write(original))
    original.unlink()
    original.write_bytes(picture(1))
    [child] = psutil.Process(worker.pid).children()
    child.send_signal(signal.SIGKILL)
    os.close(pipe)

    died, survived = soon(lambda: len(found := deliveries(backend, trace_id)) == 2 and found)
    assert (died.attributes[names.TASK_STATE], died.attributes[names.ERROR_TYPE]) == ("LOST", "worker-lost")
    assert died.is_error
    assert died.end_ns > died.start_ns
    assert survived.attributes[names.TASK_STATE] == "SUCCESS"
    assert survived.attributes[names.IS_REDELIVERED] is True
    assert not survived.is_error
    assert died.parent_id == survived.parent_id == CLIENTS_SPAN


def open_to_write(pipe: Path) -> int | None:
    """The descriptor of a pipe that somebody reads; None while nobody does."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


# --- Nothing is lost when processes end ----------------------------------------------------------------------------

ENDLESS_MS = "86400000"
"""Nothing is sent because of its age: only what is flushed at the end arrives."""


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_no_span_is_lost_when_children_are_recycled_and_workers_are_stopped(
    pool: str,
    spawn: Callable[..., ChildProcess],
    traced: dict[str, str],
    backend: Received,
    client: Celery,
    tmp_path: Path,
) -> None:
    """Prefork with one task for each child: each flushes what it has before it goes."""
    heartbeat = tmp_path / "heartbeat"
    script = str(Path(__file__).with_name("traced_worker.py"))
    settings = {"OTEL_BSP_SCHEDULE_DELAY": ENDLESS_MS, "DARKROOM_HEARTBEAT_FILE": str(heartbeat)}
    worker = spawn("python", script, pool, **traced | settings)
    soon(heartbeat.exists)
    sent = [send(client, PREPARE, Prepare(**WORK)) for _ in range(8)]
    soon(lambda: all(client.AsyncResult(task_id).state == "SUCCESS" for task_id in sent[:4]))
    worker.stop()
    finished = {task_id for task_id in sent if client.AsyncResult(task_id).state == "SUCCESS"}
    assert {span.attributes[names.MESSAGING_MESSAGE_ID] for span in backend.named("process prepare")} == finished
    assert len(backend.named("process prepare")) == len(backend.named("wait prepare")) == len(finished) >= 4
    if pool == "prefork":
        assert len({span.node for span in backend.named("process prepare")}) == len(finished)


def test_every_queue_has_a_short_span_name() -> None:
    assert all(names.is_wait(f"wait {queue}") and not names.is_wait(queue) for queue in topology.CONSUMED_BY)
