"""Spans of this process: recorded and sent over OTLP where OpenTelemetry's variables say so, else nothing.

The provider is ours and not the global one, so that no library starts spans behind our back. Trace context is passed on
whether or not this process records anything.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context, attach, create_key, detach, get_value, set_value
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NoOpTracer,
    Span,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
    get_current_span,
    set_span_in_context,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from darkroom.errors import PermanentError
from darkroom.settings import TracingSettings
from darkroom.telemetry import names

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

Attributes = Mapping[str, AttributeValue]

STOP_S = 5.0
"""Longest that the end of a process, or of a recycled child, is held up by a backend that does not answer."""

_W3C = TraceContextTextMapPropagator()
_KEEPING = create_key("darkroom.keeping")


class _Process:
    """What this process records with; replaced as a whole by `start`."""

    identity = ("darkroom", "darkroom")
    tracer: Tracer = NoOpTracer()
    provider: Any = None


def prepare(service: str, node: str) -> None:
    """For a parent process that records nothing itself, once before it forks children that `start`."""
    _Process.identity = (service, node)
    if TracingSettings().is_on:
        from darkroom.telemetry.export import load

        load()


def start(service: str, node: str | None = None, exporter: "SpanExporter | None" = None) -> None:
    """Records from now on, if the variables say where to send it. In a prefork worker: in each child, after the fork.

    `service` is the folder's name; `node` tells its processes apart. An `exporter` takes the spans instead of OTLP.
    """
    settings = TracingSettings()
    if not settings.is_on:
        return
    from darkroom.telemetry.export import new_provider  # the SDK takes 0.1 s to import, for nothing when it is off

    _Process.identity = (service, node or service)
    _Process.provider = new_provider(settings, *_Process.identity, exporter=exporter)
    _Process.tracer = _Process.provider.get_tracer("darkroom")


def stop() -> None:
    """Sends what has been recorded, for at most `STOP_S` seconds, and records nothing more."""
    provider, _Process.provider, _Process.tracer = _Process.provider, None, NoOpTracer()
    if provider is not None:
        # In a thread, because the SDK itself would wait for as long as its exporter tries again.
        ending = threading.Thread(target=provider.shutdown, name="tracing-end", daemon=True)
        ending.start()
        ending.join(STOP_S)


def is_on() -> bool:
    """Whether this process records spans."""
    return _Process.provider is not None


def is_recording() -> bool:
    """Whether what happens now is part of a trace that this process records."""
    return _Process.provider is not None and get_current_span().is_recording()


class CurrentProvider(TracerProvider):
    """For a library that makes spans by itself: records whenever this process does, also when it begins to later."""

    def get_tracer(self, *_: Any, **__: Any) -> Tracer:
        return _CurrentTracer()


class _CurrentTracer(Tracer):
    def start_span(self, *arguments: Any, **options: Any) -> Span:
        return _Process.tracer.start_span(*arguments, **options)

    def start_as_current_span(self, *arguments: Any, **options: Any) -> Any:
        return _Process.tracer.start_as_current_span(*arguments, **options)


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    context: Context | None = None,
    links: Sequence[Link] = (),
    start_ns: int | None = None,
) -> Iterator[Span]:
    """A span around the block, under the current one or that of `context`; an error that leaves it is recorded."""
    if _Process.provider is None:
        yield INVALID_SPAN
        return
    started = _Process.tracer.start_span(name, context, kind, attributes, links, start_ns)
    with use_span(started, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield started
        except Exception as error:
            fail(started, error)
            raise


@contextmanager
def step(name: str, attributes: Attributes | None = None, *, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[Span]:
    """`span`, but only as a part of something that is traced: it never begins a trace."""
    if not is_recording():
        yield INVALID_SPAN
        return
    with span(name, attributes, kind=kind) as started:
        yield started


def begin(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    context: Context | None = None,
    links: Sequence[Link] = (),
    start_ns: int | None = None,
) -> Span:
    """A span that the caller ends; it is not made the current one."""
    return _Process.tracer.start_span(name, context, kind, attributes, links, start_ns)


def begin_under(parent: Span, name: str, attributes: Attributes | None = None, *, links: Sequence[Link] = ()) -> Span:
    """A child of this span, which need not be the current one; nothing where the parent is not recorded."""
    if not parent.is_recording():
        return INVALID_SPAN
    return begin(name, attributes, context=under(parent), links=links)


def record_under(
    parent: Span,
    name: str,
    start_ns: int,
    end_ns: int,
    attributes: Attributes | None = None,
    *,
    links: Sequence[Link] = (),
    kind: SpanKind = SpanKind.INTERNAL,
) -> None:
    """A child of this span of something that is over; nothing where the parent is not recorded."""
    if parent.is_recording():
        record(name, start_ns, end_ns, attributes, context=under(parent), links=links, kind=kind)


def record(
    name: str,
    start_ns: int,
    end_ns: int,
    attributes: Attributes | None = None,
    *,
    context: Context | None = None,
    links: Sequence[Link] = (),
    kind: SpanKind = SpanKind.INTERNAL,
) -> None:
    """A span of something that is over. Where two clocks disagree, it has no duration instead of a negative one."""
    begin(name, attributes, kind=kind, context=context, links=links, start_ns=min(start_ns, end_ns)).end(end_ns)


def record_aside(
    name: str, start_ns: int, end_ns: int, attributes: Attributes, error: str, *, context: Context, kind: SpanKind
) -> None:
    """The failure of another process, whose own spans ended with it, sent at once in a thread of its own.

    For a parent process, which records nothing else: what it had, its children would be forked with.
    """
    settings = TracingSettings()
    if not settings.is_on or not has_trace(context):
        return

    def send() -> None:
        from darkroom.telemetry.export import new_provider

        provider = new_provider(settings, *_Process.identity, at_once=True)
        span = provider.get_tracer("darkroom").start_span(name, context, kind, attributes, start_time=start_ns)
        span.set_status(StatusCode.ERROR, error)
        span.end(end_ns)
        provider.shutdown()

    threading.Thread(target=send, name="tracing-aside", daemon=True).start()


def fail(failed: Span, error: BaseException) -> None:
    """Marks a span as ended in an error: a problem by its slug and detail, anything else with its traceback."""
    if not failed.is_recording():
        return
    failed.set_status(StatusCode.ERROR, str(error)[:500])
    if isinstance(error, PermanentError):
        failed.set_attribute(names.ERROR_TYPE, error.problem.slug)
    else:
        failed.set_attribute(names.ERROR_TYPE, type(error).__name__)
        failed.record_exception(error)


@contextmanager
def keeping() -> Iterator[None]:
    """What is published in the block is sampled, with all that follows from it: something has gone wrong."""
    with within(set_value(_KEEPING, True)):
        yield


def headers() -> dict[str, str]:
    """The current span's context as message headers; empty outside of any trace."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    if carrier and get_value(_KEEPING):
        before, _, flags = carrier[names.TRACEPARENT].rpartition("-")
        carrier[names.TRACEPARENT] = f"{before}-{int(flags, 16) | TraceFlags.SAMPLED:02x}"
    return carrier


def traceparent() -> str | None:
    """The current span's context as a W3C `traceparent`; None outside of any trace."""
    return headers().get(names.TRACEPARENT)


def traceparent_of(span: Span) -> str | None:
    """The same of another span."""
    with within(under(span)):
        return traceparent()


def context_of(traceparent: str | None, tracestate: str | None = None) -> Context:
    """The context to start a span in that goes on with this trace; one without a span when there is none."""
    carrier = {names.TRACEPARENT: traceparent, names.TRACESTATE: tracestate}
    return _W3C.extract({name: value for name, value in carrier.items() if value}, Context())


def link_to(traceparent: str | None) -> list[Link]:
    """A link to the span that a `traceparent` names; none when there is none."""
    return link(get_current_span(context_of(traceparent)))


def has_trace(context: Context | None = None) -> bool:
    """Whether there is a trace to go on with, in `context` or now."""
    return get_current_span(context).get_span_context().is_valid


def under(parent: Span) -> Context:
    """The context to start a child of this span in."""
    return set_span_in_context(parent, Context())


def link(linked: Span) -> list[Link]:
    """A link to this span; none where it is not part of a trace."""
    context = linked.get_span_context()
    return [Link(context)] if context.is_valid else []


@contextmanager
def within(context: Context) -> Iterator[None]:
    """Makes a context the current one in the block."""
    token = attach(context)
    try:
        yield
    finally:
        detach(token)


def now_ns() -> int:
    """The clock of all spans: nanoseconds since 1970."""
    return time.time_ns()
