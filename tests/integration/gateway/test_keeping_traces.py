"""Spans in over OTLP, kept in the database, and read again as a photo's trace."""

import gzip
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import eventually
from gateway_outcomes import finish
from gateway_serving import Served
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags
from photo_spans import Recorder, call, work
from sqlalchemy import Engine, select, text

from darkroom.database import traces
from darkroom.database.tables import trace_rows
from gateway.trace_store import StoreExporter, TraceStore

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]


@pytest.fixture
def keeper(serve: Serve) -> Served:
    """A gateway that keeps traces."""
    return serve(trace_store_enabled=True)


@pytest.fixture
def uploaded(keeper: Served, photo: bytes) -> dict[str, Any]:
    """An image, in flight."""
    return keeper.accepted(photo)[0]


def export(gateway: Served, body: bytes, **headers: str) -> httpx.Response:
    headers = {"content-type": "application/x-protobuf"} | headers
    return gateway.http.post("/otlp/v1/traces", content=body, headers=headers)


def spans_under(image: dict[str, Any]) -> Recorder:
    """A photo's spans in the trace that the gateway gave its upload."""
    spans = Recorder()
    parent = SpanContext(int(image["trace_id"], 16), 0xABC, is_remote=True, trace_flags=TraceFlags(1))
    work(spans, call(spans, parent=parent), image["sha256"])
    return spans


def send(gateway: Served, spans: Recorder) -> None:
    """Exports spans and waits until they are written."""
    for body in spans.exports():
        assert export(gateway, body).status_code == 200
    eventually(lambda: (c := gateway.http.get("/v1/status").json()["traces"])["stored"] == c["received"] > 0)


def slug(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, str(answer.json()["type"]).rpartition("/")[2]


def refusal(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/x-protobuf"
    return Status.FromString(answer.content).message


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_what_opentelemetrys_exporter_sends_is_shown(
    keeper: Served, uploaded: dict[str, Any], compression: Compression
) -> None:
    spans = spans_under(uploaded)
    exporter = OTLPSpanExporter(f"{keeper.url}/otlp/v1/traces", compression=compression)
    sent = [span for _, recorded in spans.services.values() for span in recorded.get_finished_spans()]
    assert exporter.export(sent) is SpanExportResult.SUCCESS
    eventually(lambda: keeper.http.get("/v1/status").json()["traces"]["stored"] == len(sent))
    shown = keeper.http.get(f"/v1/images/{uploaded['id']}/trace").json()
    assert (shown["image_id"], shown["sha256"], shown["status"]) == (uploaded["id"], uploaded["sha256"], "accepted")
    assert (shown["is_growing"], shown["is_cut"]) == (True, False)
    (trace,) = shown["traces"]
    assert (trace["trace_id"], trace["role"]) == (uploaded["trace_id"], "upload")
    names = [span["name"] for span in trace["spans"] if not span["is_open"]]
    assert names[0] == "POST /v1/images"
    assert {"batch", "forward", "publish image.ready"} <= set(names), "the batch is in a trace of its own"
    assert trace["summary"]["waited_ms"]["embed"] == 60


def test_the_store_takes_spans_of_its_own_process_without_the_network(keeper: Served, uploaded: dict[str, Any]) -> None:
    assert keeper.parts.traces is not None
    spans = spans_under(uploaded)
    for _, recorded in spans.services.values():
        assert StoreExporter(keeper.parts.traces).export(recorded.get_finished_spans()) is SpanExportResult.SUCCESS
    eventually(lambda: keeper.http.get(f"/v1/images/{uploaded['id']}/trace").status_code == 200)


def test_a_duplicate_shows_its_call_and_the_work_that_it_shares(
    keeper: Served, uploaded: dict[str, Any], photo: bytes, engine: Engine
) -> None:
    send(keeper, spans_under(uploaded))
    finish(engine, keeper.parts.store, uploaded["sha256"])
    again = keeper.accepted(photo)[0]
    own = Recorder()
    call(own, parent=SpanContext(int(again["trace_id"], 16), 0xABC, is_remote=True, trace_flags=TraceFlags(1)))
    send(keeper, own)
    upload, original = keeper.http.get(f"/v1/images/{again['id']}/trace").json()["traces"]
    assert (upload["role"], upload["trace_id"]) == ("upload", again["trace_id"])
    assert [span["name"] for span in upload["spans"]] == ["POST /v1/images", "receive upload", "commit upload"]
    assert (original["role"], original["trace_id"]) == ("original", uploaded["trace_id"])
    assert "decode" in [span["name"] for span in original["spans"]]


def test_where_no_trace_is_the_answer_says_why(
    keeper: Served, serve: Serve, uploaded: dict[str, Any], photo: bytes, engine: Engine
) -> None:
    path = f"/v1/images/{uploaded['id']}/trace"
    assert slug(keeper.http.get(f"/v1/images/{uploaded['batch_id']}/trace")) == (404, "image-not-found")
    assert slug(serve().http.get(path)) == (404, "traces-not-kept")

    answer = keeper.http.get(path)
    assert slug(answer) == (404, "trace-not-recorded")
    assert "in flight" in answer.json()["detail"]
    finish(engine, keeper.parts.store, uploaded["sha256"])
    answer = keeper.http.get(path)
    assert slug(answer) == (404, "trace-not-recorded")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in answer.json()["remedy"]

    with engine.begin() as connection:
        connection.execute(text("UPDATE originals SET traceparent = regexp_replace(traceparent, '01$', '00')"))
    assert slug(keeper.http.get(path)) == (404, "trace-not-sampled")
    with engine.begin() as connection:
        connection.execute(text("UPDATE images SET created_at = now() - interval '25 hours'"))
    answer = keeper.http.get(path)
    assert slug(answer) == (410, "trace-expired")
    assert answer.json()["limit"] == 24


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"junk", {}, 400, "ExportTraceServiceRequest"),
        (b"junk", {"content-encoding": "gzip"}, 400, "not gzip"),
        (b"", {"content-encoding": "br"}, 415, "OTEL_EXPORTER_OTLP_COMPRESSION"),
        (bytes(70_000), {}, 413, "65536"),
        (gzip.compress(bytes(70_000)), {"content-encoding": "gzip"}, 413, "65536"),
    ],
)
def test_a_bad_export_is_refused_in_otlps_words(
    serve: Serve, body: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    answer = export(serve(trace_store_enabled=True, trace_export_bytes=65_536), body, **headers)
    assert answer.status_code == status
    assert said in refusal(answer)


def test_other_senders_are_told_what_otlp_wants(keeper: Served) -> None:
    answer = export(keeper, b"{}", **{"content-type": "application/json"})
    assert slug(answer) == (415, "wrong-content-type")
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in answer.json()["remedy"]


def test_a_gateway_without_a_store_refuses_spans(gateway: Served) -> None:
    answer = export(gateway, b"")
    assert answer.status_code == 404
    assert "DARKROOM_TRACE_STORE_ENABLED" in refusal(answer)
    assert gateway.http.get("/v1/status").json()["traces"] is None


def test_an_empty_export_is_a_success(keeper: Served) -> None:
    answer = export(keeper, b"")
    assert (answer.status_code, answer.content) == (200, b"")


def test_spans_without_ids_are_a_partial_success(keeper: Served) -> None:
    spans = Recorder()
    call(spans)
    request = ExportTraceServiceRequest.FromString(spans.exports()[0])
    request.resource_spans[0].scope_spans[0].spans[0].trace_id = b""
    answer = ExportTraceServiceResponse.FromString(export(keeper, request.SerializeToString()).content)
    assert answer.partial_success.rejected_spans == 1
    assert "no valid trace id" in answer.partial_success.error_message


def test_what_finds_no_room_is_dropped_counted_and_told(engine: Engine) -> None:
    store = TraceStore(engine, queue_bytes=900)
    spans = Recorder()
    for _ in range(5):
        call(spans)
    kept = store.keep(spans.exports()[0])
    assert 0 < kept.spans < 15
    assert kept.spans + kept.refused == 15
    assert "DARKROOM_TRACE_QUEUE_BYTES" in (kept.reason or "")
    assert store.counters().dropped == kept.refused
    stop = threading.Event()
    stop.set()
    store.run(stop)
    assert store.counters().stored == kept.spans, "what was queued is written at the end"


def test_spans_wait_while_the_database_is_away(keeper: Served, uploaded: dict[str, Any], engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE trace_rows RENAME TO away"))
    for body in spans_under(uploaded).exports():
        assert export(keeper, body).status_code == 200
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO trace_rows"))
    eventually(lambda: (c := keeper.http.get("/v1/status").json()["traces"])["stored"] == c["received"] > 0)
    assert keeper.http.get(f"/v1/images/{uploaded['id']}/trace").status_code == 200


def test_a_store_that_is_stopped_without_its_database_drops_and_ends(engine: Engine) -> None:
    store = TraceStore(engine, queue_bytes=100_000)
    spans = Recorder()
    call(spans)
    store.keep(spans.exports()[0])
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE trace_rows"))
    stop = threading.Event()
    stop.set()
    store.run(stop)
    assert (store.counters().stored, store.counters().dropped) == (0, 3)


def test_more_than_an_answer_holds_is_cut(engine: Engine) -> None:
    spans = Recorder()
    server = call(spans)
    work(spans, server, "a" * 64)
    store = TraceStore(engine, queue_bytes=100_000)
    for body in spans.exports():
        store.keep(body)
    stop = threading.Event()
    stop.set()
    store.run(stop)
    with engine.connect() as connection:
        ids = list(connection.scalars(select(trace_rows.c.trace_id).distinct()))
        whole, is_whole = traces.read_rows(connection, ids, 100_000)
        some, is_some_whole = traces.read_rows(connection, ids, sum(map(len, whole)) - 1)
        none, is_none_whole = traces.read_rows(connection, ids, 1)
        assert traces.read_rows(connection, [], 1) == ([], True)
    assert (len(whole), is_whole) == (5, True)
    assert (some, is_some_whole) == (whole[:-1], False)
    assert (none, is_none_whole) == ([], False)
