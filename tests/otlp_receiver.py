"""An OTLP backend for tests: a real HTTP server that takes what services export and keeps it as plain values."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it arrived. Ids are hex; times are nanoseconds since 1970."""

    service: str
    node: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    links: tuple[str, ...]
    """Ids of the linked spans."""
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: dict[str, Any]

    @property
    def label(self) -> str:
        """Where it came from and what it is."""
        return f"{self.service}: {self.name}"


@dataclass
class Received:
    """Everything that has arrived."""

    endpoint: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    requests: int = 0

    def of_trace(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of one trace, in the order of their beginning."""
        return sorted((span for span in list(self.spans) if span.trace_id == trace_id), key=lambda span: span.start_ns)

    def named(self, name: str) -> list[ReceivedSpan]:
        """The spans of one name, in the order of their beginning."""
        return sorted((span for span in list(self.spans) if span.name == name), key=lambda span: span.start_ns)

    def parent_of(self, span: ReceivedSpan) -> ReceivedSpan | None:
        """The parent, if it has arrived."""
        return next((other for other in list(self.spans) if other.span_id == span.parent_id), None)


@contextmanager
def receiving_traces() -> Iterator[Received]:
    """A backend that listens inside the block; its `endpoint` is what OTEL_EXPORTER_OTLP_ENDPOINT wants."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                received.requests += 1
                received.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()


def _spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for of_resource in request.resource_spans:
        resource = _values(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield ReceivedSpan(
                    service=resource["service.name"],
                    node=resource.get("service.instance.id", ""),
                    name=span.name,
                    kind=WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    links=tuple(link.span_id.hex() for link in span.links),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    is_error=span.status.code == Status.STATUS_CODE_ERROR,
                    attributes=_values(span.attributes),
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each) for each in attributes}


def _value(attribute: KeyValue) -> Any:
    return getattr(attribute.value, attribute.value.WhichOneof("value") or "string_value")
