"""Exports as rows, and rows as spans."""

import gzip
import json
import zlib
from collections.abc import Iterator
from uuid import UUID

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from photo_spans import Recorder, call, span_id, trace_id, work

from gateway.otlp import SHOWN_BYTES, SHOWN_SPANS, MalformedExportError, TooLargeError, inflate, rows_of, spans_of

SHA = "a" * 64


def test_an_export_becomes_one_row_for_each_trace() -> None:
    spans = Recorder()
    first, second = call(spans), call(spans)
    (export,) = spans.exports()
    rows, rejected = rows_of(export)
    assert {row.trace_id: row.spans for row in rows} == {UUID(trace_id(first)): 3, UUID(trace_id(second)): 3}
    assert rejected == 0


def test_rows_hold_everything_that_was_sent() -> None:
    spans = Recorder()
    server = call(spans)
    linked = spans.add("embedder", "batch", 40, 50)
    sent = spans.add(
        "embedder", "forward", 30.5, 40, server, kind="client", links=[linked], error="too hot", image_sha256=SHA
    )
    found = next(span for span in spans.spans() if span.span_id == span_id(sent))
    assert (found.trace_id, found.parent_id) == (trace_id(server), span_id(server))
    assert (found.name, found.kind, found.service) == ("forward", "client", "embedder")
    assert (found.start_ns, found.end_ns) == (spans.start_ns + 30_500_000, spans.start_ns + 40_000_000)
    assert (found.status, found.message) == ("error", "too hot")
    assert dict(found.attributes) == {"darkroom.image.sha256": SHA}
    assert [(link.trace_id, link.span_id) for link in found.links] == [(trace_id(linked), span_id(linked))]


def test_a_span_that_was_sent_twice_is_there_once() -> None:
    spans = Recorder()
    call(spans)
    payloads = [row.payload for export in spans.exports() * 2 for row in rows_of(export)[0]]
    spans_in_them, is_whole = spans_of(payloads)
    assert (len(spans_in_them), is_whole) == (3, True)


def test_spans_without_valid_ids_are_counted_and_left_out() -> None:
    spans = Recorder()
    call(spans)
    request = ExportTraceServiceRequest.FromString(spans.exports()[0])
    sent = request.resource_spans[0].scope_spans[0].spans
    sent[0].trace_id = bytes(16)
    sent[1].span_id = b"short"
    rows, rejected = rows_of(request.SerializeToString())
    assert ([row.spans for row in rows], rejected) == ([1], 2)


def test_what_many_traces_share_is_not_copied_without_end() -> None:
    """1 MB of attributes and 2,000 spans, each of a trace of its own, took 2 GB."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="padding").value.string_value = "x" * 100_000
    scope = resource.scope_spans.add()
    for number in range(1, 201):
        scope.spans.add(trace_id=number.to_bytes(16, "big"), span_id=bytes([1] * 8))
    with pytest.raises(TooLargeError):
        rows_of(request.SerializeToString())
    del scope.spans[100:]
    assert len(rows_of(request.SerializeToString())[0]) == 100


def test_what_unpacks_to_more_than_an_answer_may_hold_is_cut() -> None:
    """4 MiB of such rows took 4 GB."""
    data = TracesData()
    spans = data.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=bytes([1] * 16), span_id=bytes([1] * 8), name="x" * (SHOWN_BYTES // 3))
    payload = zlib.compress(data.SerializeToString())
    assert len(payload) < 50_000
    taken = []

    def payloads() -> Iterator[bytes]:
        for number in range(100):
            taken.append(number)
            yield payload

    found, is_whole = spans_of(payloads())
    assert (len(found), len(taken), is_whole) == (1, 3, False)
    assert spans_of([payload])[1]


def test_no_more_spans_are_shown_than_may_be() -> None:
    data = TracesData()
    spans = data.resource_spans.add().scope_spans.add().spans
    for number in range(1, SHOWN_SPANS + 2):
        spans.add(trace_id=bytes([1] * 16), span_id=number.to_bytes(8, "big"))
    for more in (True, False):
        found, is_whole = spans_of([zlib.compress(data.SerializeToString())])
        assert (len(found), is_whole) == (SHOWN_SPANS, not more)
        del spans[SHOWN_SPANS:]


@pytest.mark.parametrize("junk", [b"junk", b'{"resourceSpans": []}', b"\xff" * 100])
def test_other_bytes_are_refused(junk: bytes) -> None:
    with pytest.raises(MalformedExportError):
        rows_of(junk)


def test_every_kind_of_attribute_can_be_shown_as_json() -> None:
    spans = Recorder()
    call(spans)
    request = ExportTraceServiceRequest.FromString(spans.exports()[0])
    attributes = request.resource_spans[0].scope_spans[0].spans[0].attributes
    del attributes[:]
    values = {
        "text": {"string_value": "ü"},
        "truth": {"bool_value": True},
        "number": {"int_value": -5},
        "share": {"double_value": 0.5},
        "nothing": {},
        "no number": {"double_value": float("nan")},
        "bytes": {"bytes_value": b"\x01\xff"},
        "list": {"array_value": {"values": [{"int_value": 1}, {"string_value": "b"}]}},
        "map": {"kvlist_value": {"values": [{"key": "inner", "value": {"bool_value": False}}]}},
    }
    for key, value in values.items():
        attributes.add(key=key, value=value)
    payloads = [row.payload for row in rows_of(request.SerializeToString())[0]]
    shown = next(span.attributes for span in spans_of(payloads)[0] if span.attributes)
    assert json.loads(json.dumps(shown, allow_nan=False)) == {
        "text": "ü",
        "truth": True,
        "number": -5,
        "share": 0.5,
        "nothing": None,
        "no number": "nan",
        "bytes": "01ff",
        "list": [1, "b"],
        "map": {"inner": False},
    }


def test_a_gzipped_body_is_unpacked_up_to_its_limit() -> None:
    body = gzip.compress(b"x" * 1000)
    assert inflate(body, 1000) == b"x" * 1000
    with pytest.raises(TooLargeError):
        inflate(body, 999)


def test_a_bomb_is_not_unpacked() -> None:
    with pytest.raises(TooLargeError):
        inflate(gzip.compress(bytes(50_000_000)), 1000)


@pytest.mark.parametrize("body", [b"", b"junk", gzip.compress(b"x" * 1000)[:-6]], ids=["empty", "junk", "cut"])
def test_a_body_that_is_no_whole_gzip_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedExportError):
        inflate(body, 10_000)


def test_a_photo_takes_a_few_kilobytes() -> None:
    spans = Recorder()
    work(spans, call(spans), SHA)
    rows = [row for export in spans.exports() for row in rows_of(export)[0]]
    assert sum(len(row.payload) for row in rows) < sum(map(len, spans.exports())) / 2
