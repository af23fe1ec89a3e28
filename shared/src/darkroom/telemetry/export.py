"""How spans leave the process: which are kept, then OTLP over HTTP. Imported only where tracing is on."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from darkroom.settings import TracingSettings
from darkroom.telemetry import names

TREE_SPANS = 512
"""Of an unsampled local tree that are held until it is known whether one of them failed; later ones are dropped."""


def load() -> None:
    """Imports all that exporting needs, for children forked afterwards to share: 6 MB less in each of them.

    And for a thread that exports to import nothing: a child forked just then would wait for that import for ever.
    """
    OTLPSpanExporter()  # it imports its HTTP client only when it is made
    for used_late in ("concurrent.futures.thread", "netrc"):  # by the first provider, and by the first request
        import_module(used_late)


def new_provider(
    settings: TracingSettings,
    service: str,
    node: str,
    *,
    exporter: SpanExporter | None = None,
    at_once: bool = False,
) -> TracerProvider:
    """A provider that exports to where the OTEL_* variables say, sampled as they say, with errors always kept.

    In the background, or `at_once`: then a span's end returns when it was sent.
    """
    exporter = exporter or OTLPSpanExporter()
    exported = (
        SimpleSpanProcessor(exporter)
        if at_once
        else BatchSpanProcessor(exporter, schedule_delay_millis=settings.bsp_schedule_delay)
    )
    return provider_for(exported, settings.service_name or service, node)


def provider_for(exported: SpanProcessor, service: str, node: str) -> TracerProvider:
    """A provider that hands the spans which are kept to `exported`."""
    resource = Resource.create(
        {
            "service.namespace": "darkroom",
            "service.name": service,
            names.SERVICE_NODE: f"{node}:{os.getpid()}",
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.sampler = RecordAll(provider.sampler)
    provider.add_span_processor(KeepErrors(exported))
    return provider


class RecordAll(Sampler):
    """Decides as another sampler does, but what that would drop is recorded, unsampled, in case it ends in an error.

    It is asked for the first span of a process only; what is under that goes with it. A span without a parent that
    links to others, such as a batch, is sampled when one of those is.
    """

    def __init__(self, inner: Sampler) -> None:
        self._inner = inner

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = get_current_span(parent_context).get_span_context()
        deciding = [parent] if parent.is_valid and not parent.is_remote else []
        if links and not parent.is_valid:
            deciding = [link.context for link in links]
        if deciding:
            is_sampled = any(context.trace_flags.sampled for context in deciding)
            decision = Decision.RECORD_AND_SAMPLE if is_sampled else Decision.RECORD_ONLY
            return SamplingResult(decision, attributes, parent.trace_state)
        result = self._inner.should_sample(parent_context, trace_id, name, kind, attributes, links)
        if result.decision is not Decision.DROP:
            return result
        return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)

    def get_description(self) -> str:
        return f"RecordAll({self._inner.get_description()})"


@dataclass
class _Tree:
    """The spans of one unsampled trace under one root in this process."""

    key: int | None
    """The id of the span that its root is under, in another process; None when it is under none."""
    open: int = 0
    has_failed: bool = False
    ended: list[ReadableSpan] = field(default_factory=list)


class KeepErrors(SpanProcessor):
    """Passes sampled spans on at once; unsampled ones only with their local tree, and only if a span in it failed.

    A local tree is what is open under one span of another process, or under none, and everything under that here.
    """

    def __init__(self, exported: SpanProcessor) -> None:
        self._exported = exported
        self._trees: dict[int, _Tree] = {}
        """By the id of every open unsampled span, and of the span elsewhere that it is under."""
        self._lock = threading.Lock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        context = span.get_span_context()
        if context is None or context.trace_flags.sampled:
            return
        key = span.parent.span_id if span.parent is not None else None
        with self._lock:
            tree = self._trees.get(key) if key is not None else None
            if tree is None:
                tree = _Tree(key)
                if key is not None:
                    self._trees[key] = tree
            tree.open += 1
            self._trees[context.span_id] = tree

    def on_end(self, span: ReadableSpan) -> None:
        if span.context.trace_flags.sampled:
            self._exported.on_end(span)
            return
        with self._lock:
            tree = self._trees.pop(span.context.span_id, None)
            if tree is None:
                return
            tree.open -= 1
            tree.has_failed |= span.status.status_code is StatusCode.ERROR
            if len(tree.ended) < TREE_SPANS:
                tree.ended.append(span)
            if tree.open:
                return
            if tree.key is not None:
                self._trees.pop(tree.key, None)
        if tree.has_failed:
            for each in tree.ended:
                self._exported.on_end(_as_sampled(each))

    def shutdown(self) -> None:
        self._exported.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exported.force_flush(timeout_millis)


def _as_sampled(span: ReadableSpan) -> ReadableSpan:
    context = span.context
    flags = TraceFlags(context.trace_flags | TraceFlags.SAMPLED)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(context.trace_id, context.span_id, context.is_remote, flags, context.trace_state),
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        instrumentation_scope=span.instrumentation_scope,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
    )
