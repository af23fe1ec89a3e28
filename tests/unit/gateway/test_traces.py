"""W3C trace context."""

import secrets

import pytest

from gateway.traces import continue_trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-00"


def test_a_valid_header_is_gone_on_with() -> None:
    context = continue_trace(VALID, "vendor=1", secrets.randbits)
    assert context.trace_id == TRACE
    version, trace_id, span_id, flags = context.traceparent.split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "00"), "a client that does not sample is not sampled"
    assert span_id not in (SPAN, "0" * 16)
    assert len(span_id) == 16
    assert context.tracestate == "vendor=1"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        f"{VALID}\n{VALID}",
    ],
)
def test_any_other_header_begins_a_new_sampled_trace(header: str | None) -> None:
    context = continue_trace(header, "vendor=1", secrets.randbits)
    assert context.trace_id not in (TRACE, "0" * 32)
    assert context.traceparent.split("-")[1] == context.trace_id
    assert context.traceparent.endswith("-01")
    assert context.tracestate is None, "it belongs to the trace that was not understood"


def test_a_later_version_may_say_more() -> None:
    assert continue_trace(f"01-{TRACE}-{SPAN}-01-more", None, secrets.randbits).trace_id == TRACE


def test_a_long_state_is_left_out_whole() -> None:
    assert continue_trace(VALID, "x" * 512, secrets.randbits).tracestate == "x" * 512
    assert continue_trace(VALID, "x" * 513, secrets.randbits).tracestate is None


def test_an_all_zero_id_is_never_made() -> None:
    context = continue_trace(None, None, lambda bits: 0)
    assert context.traceparent == f"00-{'0' * 31}1-{'0' * 15}1-01"
