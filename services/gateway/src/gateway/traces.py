"""W3C trace context: an upload goes on with its client's trace, or begins one."""

import re
from collections.abc import Callable
from dataclasses import dataclass

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
