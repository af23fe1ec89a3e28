"""A photo's spans as the services would send them, made by OpenTelemetry's SDK with times of our own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, set_span_in_context

from darkroom.telemetry import names
from gateway.otlp import rows_of, spans_of

MS = 1_000_000
KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}


@dataclass
class Recorder:
    """Spans of several services. Times are given in milliseconds after `start_ns`."""

    start_ns: int = 1_780_000_000_000_000_000
    services: dict[str, tuple[TracerProvider, InMemorySpanExporter]] = field(default_factory=dict)

    def add(
        self,
        service: str,
        name: str,
        start_ms: float,
        end_ms: float,
        parent: Span | SpanContext | None = None,
        *,
        kind: str = "internal",
        links: Sequence[Span] = (),
        error: str | None = None,
        **attributes: Any,
    ) -> Span:
        """One span; attributes by the names of their constants in lower case, such as `image_sha256`."""
        if service not in self.services:
            provider, exporter = TracerProvider(resource=Resource({"service.name": service})), InMemorySpanExporter()
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            self.services[service] = provider, exporter
        above = NonRecordingSpan(parent) if isinstance(parent, SpanContext) else parent
        span = (
            self.services[service][0]
            .get_tracer("darkroom")
            .start_span(
                name,
                context=set_span_in_context(above) if above else None,
                kind=KINDS[kind],
                start_time=self.start_ns + round(start_ms * MS),
                links=[Link(linked.get_span_context()) for linked in links],
                attributes={getattr(names, name.upper()): value for name, value in attributes.items()},
            )
        )
        if error:
            span.set_status(StatusCode.ERROR, error)
        span.end(self.start_ns + round(end_ms * MS))
        return span

    def exports(self) -> list[bytes]:
        """One OTLP export for each service."""
        return [
            encode_spans(exporter.get_finished_spans()).SerializeToString() for _, exporter in self.services.values()
        ]

    def spans(self) -> list[Any]:
        """What the gateway reads after it has kept these exports."""
        spans, _ = spans_of(row.payload for export in self.exports() for row in rows_of(export)[0])
        return spans


def call(spans: Recorder, end_ms: float = 20, parent: SpanContext | None = None) -> Span:
    """An upload's own span, in which nothing names a photo."""
    server = spans.add("gateway", "POST /v1/images", 0, end_ms, parent, kind="server", files=1)
    spans.add("gateway", names.RECEIVE_UPLOAD, 1, end_ms - 8, server)
    spans.add("gateway", names.COMMIT_UPLOAD, end_ms - 8, end_ms - 1, server)
    return server


def work(spans: Recorder, server: Span, sha256: str, at_ms: float = 20) -> dict[str, Span]:
    """What one dispatch does for a photo: 300 ms, of which the queues prepare and embed take 40 and 60."""

    def add(service: str, name: str, start_ms: float, end_ms: float, parent: Span, **more: Any) -> Span:
        return spans.add(service, name, at_ms + start_ms, at_ms + end_ms, parent, image_sha256=sha256, **more)

    def publish(service: str, queue: str, at: float, parent: Span) -> Span:
        return add(service, f"publish {queue}", at, at + 4, parent, kind="producer", messaging_destination=queue)

    def deliver(service: str, queue: str, sent: Span, waited: tuple[float, float], end: float, **more: Any) -> Span:
        add(service, f"wait {queue}", *waited, sent)
        return add(
            service, f"process {queue}", waited[1], end, sent, kind="consumer", messaging_destination=queue, **more
        )

    made: dict[str, Span] = {}
    add("gateway", names.WAIT_DISPATCH, 0, 6, server)
    dispatch = made["dispatch"] = add("gateway", names.DISPATCH, 6, 14, server, generation=1)
    made["publish prepare"] = publish("gateway", "prepare", 8, dispatch)
    prepare = made["prepare"] = deliver("thumbnailer", "prepare", made["publish prepare"], (10, 50), 130)
    add("thumbnailer", names.DECODE, 52, 90, prepare)
    add("thumbnailer", "encode large", 90, 110, prepare)
    made["publish thumbnails"] = publish("thumbnailer", "thumbnails", 112, prepare)
    made["publish embed"] = publish("thumbnailer", "embed", 118, prepare)
    thumbnails = made["thumbnails"] = deliver("thumbnailer", "thumbnails", made["publish thumbnails"], (114, 131), 170)
    add("thumbnailer", "encode small", 135, 150, thumbnails)
    batch = made["batch"] = spans.add("embedder", names.BATCH, at_ms + 200, at_ms + 230, messaging_batch_count=8)
    spans.add("embedder", names.PREPROCESS, at_ms + 200, at_ms + 203, batch, image_sha256=sha256)
    spans.add("embedder", names.PREPROCESS, at_ms + 203, at_ms + 206, batch, image_sha256="f" * 64)
    spans.add("embedder", names.FORWARD, at_ms + 206, at_ms + 230, batch)
    embed = made["embed"] = deliver("embedder", "embed", made["publish embed"], (120, 180), 245)
    add("embedder", names.WAIT_BATCH, 180, 200, embed)
    made["compute batch"] = add("embedder", names.COMPUTE_BATCH, 200, 230, embed, links=[batch])
    made["publish finalize"] = publish("embedder", "finalize", 238, embed)
    finalize = made["finalize"] = deliver(
        "scheduler", "finalize", made["publish finalize"], (240, 250), 290, links=[thumbnails, embed]
    )
    add("scheduler", names.TRANSACTION, 260, 285, finalize, kind="client")
    made["publish image.ready"] = add(
        "gateway", "publish image.ready", 296, 300, finalize, kind="producer", messaging_destination="image.ready"
    )
    return made


def trace_id(span: Span) -> str:
    """As rows and answers have it."""
    return f"{span.get_span_context().trace_id:032x}"


def span_id(span: Span) -> str:
    """As answers have it."""
    return f"{span.get_span_context().span_id:016x}"
