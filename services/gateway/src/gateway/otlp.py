"""OTLP exports as rows to keep, and rows as spans to show. Pure: bytes in, bytes out."""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal
from uuid import UUID

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2 as pb

from darkroom.database.traces import TraceRow

TRACE_ID_BYTES, SPAN_ID_BYTES = 16, 8

COMPRESSION_LEVEL = 6
"""A photo's spans, 10 KB, become 3.46 KB in 0.16 ms; at level 1 3.51 KB in 0.14 ms. See benchmarks/traces.py."""

COPIED_BYTES = 16 * 2**20
"""Of what the spans of an export share, which goes along with each of its traces: a batch of the SDK copies 0.3 MB."""

SHOWN_SPANS, SHOWN_BYTES = 50_000, 32 * 2**20
"""What one answer is made from, decompressed: 4 MiB may unpack to 4 GB, and a span in hand takes 1 to 3 KB."""

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, Any]

_KINDS: dict[int, Kind] = {
    pb.Span.SPAN_KIND_SERVER: "server",
    pb.Span.SPAN_KIND_CLIENT: "client",
    pb.Span.SPAN_KIND_PRODUCER: "producer",
    pb.Span.SPAN_KIND_CONSUMER: "consumer",
}
_STATUSES: dict[int, Literal["ok", "error"]] = {pb.Status.STATUS_CODE_OK: "ok", pb.Status.STATUS_CODE_ERROR: "error"}


class MalformedExportError(Exception):
    """The bytes are no ExportTraceServiceRequest."""


class TooLargeError(Exception):
    """The export has more bytes than it may, once decompressed or taken apart."""


@dataclass(frozen=True)
class Link:
    """Another span that a span refers to, in its own or another trace; ids are hexadecimal."""

    trace_id: str
    span_id: str


@dataclass(frozen=True)
class SpanEvent:
    """Something that happened at one moment of a span."""

    name: str
    time_ns: int
    attributes: Attributes


@dataclass(frozen=True)
class Span:
    """One span as its service recorded it. Times are nanoseconds since 1970, ids hexadecimal."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: Kind
    service: str
    start_ns: int
    end_ns: int
    status: Literal["unset", "ok", "error"] = "unset"
    message: str = ""
    attributes: Attributes = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    links: tuple[Link, ...] = ()


def inflate(body: bytes | bytearray, limit: int) -> bytes:
    """A gzipped body as it was; raises TooLargeError beyond `limit` bytes and MalformedExportError for other bytes."""
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedExportError(f"it is not gzip: {error}") from error
    if len(plain) > limit:
        raise TooLargeError
    if not unpacker.eof:
        raise MalformedExportError("its gzip stream ends too early")
    return plain


def rows_of(export: bytes) -> tuple[list[TraceRow], int]:
    """One row for each trace of an export, and how many spans had no valid ids and are in none.

    Raises MalformedExportError, and TooLargeError where taking it apart would copy more than `COPIED_BYTES`.
    """
    try:
        request = ExportTraceServiceRequest.FromString(export)
    except DecodeError as error:
        raise MalformedExportError("it is no protobuf message of the type ExportTraceServiceRequest") from error
    traces: dict[bytes, pb.TracesData] = {}
    counts: dict[bytes, int] = {}
    rejected = copied = 0
    for resource in request.resource_spans:
        resource_bytes = resource.resource.ByteSize() + len(resource.schema_url)
        for scope in resource.scope_spans:
            shared_bytes = resource_bytes + scope.scope.ByteSize() + len(scope.schema_url)
            places: dict[bytes, pb.ScopeSpans] = {}
            for span in scope.spans:
                trace_id = span.trace_id
                if not (_is_id(trace_id, TRACE_ID_BYTES) and _is_id(span.span_id, SPAN_ID_BYTES)):
                    rejected += 1
                    continue
                if trace_id not in places:
                    copied += shared_bytes
                    if copied > COPIED_BYTES:
                        raise TooLargeError
                    places[trace_id] = _place(traces.setdefault(trace_id, pb.TracesData()), resource, scope)
                places[trace_id].spans.append(span)
                counts[trace_id] = counts.get(trace_id, 0) + 1
    rows = [
        TraceRow(UUID(bytes=trace_id), counts[trace_id], zlib.compress(data.SerializeToString(), COMPRESSION_LEVEL))
        for trace_id, data in traces.items()
    ]
    return rows, rejected


def _place(data: pb.TracesData, resource: pb.ResourceSpans, scope: pb.ScopeSpans) -> pb.ScopeSpans:
    """A place for the spans of one trace, under the resource and scope that they came with."""
    last = data.resource_spans[-1] if data.resource_spans else None
    if last is None or last.resource != resource.resource:
        last = data.resource_spans.add(resource=resource.resource, schema_url=resource.schema_url)
    return last.scope_spans.add(scope=scope.scope, schema_url=scope.schema_url)


def _is_id(value: bytes, size: int) -> bool:
    return len(value) == size and any(value)


def spans_of(payloads: Iterable[bytes]) -> tuple[list[Span], bool]:
    """The spans in the payloads of rows, in order of start, and whether that is all of them.

    A span that was sent twice is there once. The first that come are taken, up to `SHOWN_SPANS` and `SHOWN_BYTES`.
    """
    spans: dict[tuple[str, str], Span] = {}
    plain, is_whole = _inflated(payloads, SHOWN_BYTES)
    for span in chain.from_iterable(_spans_in(pb.TracesData.FromString(data)) for data in plain):
        spans.setdefault((span.trace_id, span.span_id), span)
        if len(spans) > SHOWN_SPANS:
            spans.popitem()
            is_whole = False
            break
    return sorted(spans.values(), key=lambda span: (span.start_ns, span.end_ns)), is_whole


def _inflated(payloads: Iterable[bytes], limit: int) -> tuple[list[bytes], bool]:
    """The payloads as they were, up to so many bytes in all, and whether that is all of them."""
    plain: list[bytes] = []
    for payload in payloads:
        data = zlib.decompressobj().decompress(payload, limit + 1)
        limit -= len(data)
        if limit < 0:
            return plain, False
        plain.append(data)
    return plain, True


def _spans_in(data: pb.TracesData) -> Iterator[Span]:
    for resource in data.resource_spans:
        service = str(_attributes(resource.resource.attributes).get("service.name", "unknown"))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex() or None,
                    name=span.name,
                    kind=_KINDS.get(span.kind, "internal"),
                    service=service,
                    start_ns=span.start_time_unix_nano,
                    end_ns=max(span.start_time_unix_nano, span.end_time_unix_nano),
                    status=_STATUSES.get(span.status.code, "unset"),
                    message=span.status.message,
                    attributes=_attributes(span.attributes),
                    events=tuple(
                        SpanEvent(event.name, event.time_unix_nano, _attributes(event.attributes))
                        for event in span.events
                    ),
                    links=tuple(Link(link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [_value(one) for one in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case "double_value" if not math.isfinite(value.double_value):
            return str(value.double_value)  # JSON has no such numbers
        case None:
            return None
        case name:
            return getattr(value, name)
