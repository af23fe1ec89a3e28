"""W3C trace context: an upload goes on with its client's trace, or begins one."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode

from darkroom.database.dispatch import Leased
from darkroom.telemetry import names, tracing
from darkroom.telemetry.tracing import Attributes

_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})"
    r"(?P<rest>-.*)?"
)

MAX_TRACESTATE_CHARACTERS = 512
"""What the specification asks everyone to pass on."""


@dataclass(frozen=True)
class TraceContext:
    """One request's place in a trace: what to hand on to whoever works for it."""

    trace_id: str
    traceparent: str
    tracestate: str | None = None


def continue_trace(traceparent: str | None, tracestate: str | None, random_bits: Callable[[int], int]) -> TraceContext:
    """The context of a new span under the client's, or of a new sampled trace when the header is missing or invalid."""
    span_id = f"{random_bits(64) or 1:016x}"  # all zeros are invalid
    found = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
    if found is None or (found["version"] == "00" and found["rest"]):  # only later versions may say more
        trace_id = f"{random_bits(128) or 1:032x}"
        return TraceContext(trace_id, f"00-{trace_id}-{span_id}-01")
    if tracestate is not None and len(tracestate) > MAX_TRACESTATE_CHARACTERS:
        tracestate = None  # cut anywhere, it would say something else
    return TraceContext(found["trace"], f"00-{found['trace']}-{span_id}-{found['flags']}", tracestate or None)


def trace_of_call(traceparent: str | None, tracestate: str | None, random_bits: Callable[[int], int]) -> TraceContext:
    """The context of the span of the call that is being answered; without one, `continue_trace` makes do."""
    headers = tracing.headers() if tracing.is_on() else {}
    if (current := headers.get(names.TRACEPARENT)) is None:
        return continue_trace(traceparent, tracestate, random_bits)
    return TraceContext(current.split("-")[1], current, headers.get(names.TRACESTATE))


def server_span(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Span:
    """The span of a gRPC call, under the client's if its metadata have one. `method` is `/package.Service/Method`.

    Calls that set nothing off are traced only for clients that trace, as over REST.
    """
    headers = {name: value for name, value in metadata if isinstance(value, str)}
    context = tracing.context_of(headers.get(names.TRACEPARENT), headers.get(names.TRACESTATE))
    name = method.removeprefix("/")
    if name.rpartition("/")[2].startswith(_READING) and not tracing.has_trace(context):
        return INVALID_SPAN
    attributes = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: name}
    return tracing.begin(name, attributes, kind=SpanKind.SERVER, context=context)


_READING = ("Get", "List", "Watch")


def end_server_span(span: Span, code: str, *, is_error: bool) -> None:
    """Ends it with the call's status code."""
    span.set_attribute(names.RPC_STATUS, code)
    if is_error:
        span.set_attribute(names.ERROR_TYPE, code)
        span.set_status(StatusCode.ERROR)
    span.end()


class DispatchSpans:
    """The spans of originals that are dispatched together: each in the trace of the upload that brought it.

    They begin with the lease and end with the stamp, two transactions that all of them share.
    """

    def __init__(self, leased: Sequence[Leased], begun_ns: int) -> None:
        leased_ns = tracing.now_ns()
        self._contexts = {one.sha256: tracing.context_of(one.traceparent, one.tracestate) for one in leased}
        self._spans = {one.sha256: self._begin(one, begun_ns, leased_ns) for one in leased if self._is_traced(one)}
        self.traceparents = {sha256: tracing.traceparent_of(span) for sha256, span in self._spans.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        for span in self._spans.values():
            if error is not None:
                tracing.fail(span, error)
            span.end()

    @contextmanager
    def of(self, one: Leased) -> Iterator[None]:
        """In the block, this one's dispatch is the current span, or its upload's, if this process records none."""
        span = self._spans.get(one.sha256)
        with tracing.within(tracing.under(span) if span is not None else self._contexts[one.sha256]):
            yield

    @contextmanager
    def shared_transaction(self, dispatched: Sequence[Leased]) -> Iterator[None]:
        """Shows the block as a transaction in the trace of each that was published; with it, its dispatch ends."""
        begun_ns = tracing.now_ns()
        yield
        for one in dispatched:
            if (span := self._spans.pop(one.sha256, None)) is not None:
                ended_ns = tracing.now_ns()
                tracing.record_under(span, names.TRANSACTION, begun_ns, ended_ns, _SHARED, kind=SpanKind.CLIENT)
                span.end()

    def _is_traced(self, one: Leased) -> bool:
        return tracing.is_on() and tracing.has_trace(self._contexts[one.sha256])

    def _begin(self, one: Leased, begun_ns: int, leased_ns: int) -> Span:
        about: Attributes = {
            names.IMAGE_SHA256: one.sha256,
            names.GENERATION: one.generation,
            names.LANE: one.lane.value,
        }
        context = self._contexts[one.sha256]
        due_ns = int(one.due_at.timestamp() * 1e9)
        links = tracing.link_to(one.last_dispatch)
        span = tracing.begin(names.DISPATCH, about, context=context, links=links, start_ns=begun_ns)
        tracing.record(names.WAIT_DISPATCH, due_ns, begun_ns, about, context=context)
        tracing.record_under(span, names.TRANSACTION, begun_ns, leased_ns, _SHARED, kind=SpanKind.CLIENT)
        return span


class CommitSpans:
    """The spans of uploads that are committed together, each under its call's, in one transaction that they share."""

    def __init__(self, calls: Sequence[Span]) -> None:
        self._begun_ns = tracing.now_ns()
        self.each = [tracing.begin_under(call, names.COMMIT_UPLOAD) for call in calls]
        """As many; of calls that this process does not record, the empty span."""
        self.traceparents = [
            tracing.traceparent_of(span if span.is_recording() else call)
            for span, call in zip(self.each, calls, strict=True)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        ended_ns = tracing.now_ns()
        for span in self.each:
            tracing.record_under(span, names.TRANSACTION, self._begun_ns, ended_ns, _SHARED, kind=SpanKind.CLIENT)
            if error is not None:
                tracing.fail(span, error)
            span.end()


_SHARED: Attributes = {names.DB_SYSTEM: "postgresql", names.IS_SHARED: True}
