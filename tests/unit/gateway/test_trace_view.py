"""One photo's part of a trace: what is its, in which tree, and where the time went."""

import pytest
from opentelemetry.trace import SpanContext, TraceFlags
from photo_spans import MS, Recorder, call, span_id, trace_id, work

from darkroom.telemetry import names
from gateway.otlp import Span
from gateway.trace_models import Trace, TraceSpan
from gateway.trace_view import links_of, view

SHA, OTHER = "a" * 64, "b" * 64

WHOLE = """
POST /v1/images
  receive upload
  commit upload
  wait dispatch
  dispatch
    publish prepare
      wait prepare
      process prepare
        decode
        encode large
        publish thumbnails
          wait thumbnails
          process thumbnails
            encode small
        publish embed
          wait embed
          process embed
            wait batch
            compute batch
              batch
                preprocess
                forward
            publish finalize
              wait finalize
              process finalize
                transaction
                publish image.ready
"""


def viewed(spans: Recorder, of: str, sha256: str = SHA, now_ms: float | None = None) -> Trace:
    """What is shown of one of the recorded traces."""
    own = [span for span in spans.spans() if span.trace_id == of]
    linked_ids = links_of(own, sha256)
    linked = [span for span in spans.spans() if span.trace_id in linked_ids]
    now_ns = None if now_ms is None else spans.start_ns + round(now_ms * MS)
    found = view(of, "upload", own, linked, sha256, now_ns)
    assert found is not None
    return found


def drawn(trace: Trace) -> str:
    return "\n" + "".join(f"{'  ' * span.depth}{span.name}\n" for span in trace.spans)


def the(trace: Trace, name: str) -> TraceSpan:
    (found,) = (span for span in trace.spans if span.name == name)
    return found


def test_a_photos_spans_are_a_tree_with_its_waits_and_the_batch_that_it_shared() -> None:
    spans = Recorder()
    server = call(spans)
    made = work(spans, server, SHA)
    trace = viewed(spans, trace_id(server))
    assert drawn(trace) == WHOLE
    assert {span.name for span in trace.spans if span.category == "wait"} == {
        "wait dispatch",
        "wait prepare",
        "wait thumbnails",
        "wait embed",
        "wait batch",
        "wait finalize",
    }
    batch = the(trace, "batch")
    assert (batch.category, batch.members, batch.trace_id) == ("batch", 8, trace_id(made["batch"]))
    assert [span.span_id for span in the(trace, "process finalize").links] == [
        span_id(made["thumbnails"]),
        span_id(made["embed"]),
    ]
    assert (the(trace, "decode").start_ms, the(trace, "decode").duration_ms) == (72, 38)
    assert the(trace, "POST /v1/images").parent_id is None
    assert not any(span.is_orphan or span.is_open or span.clock_shift_ms for span in trace.spans)


def test_the_summary_tells_waiting_from_work() -> None:
    spans = Recorder()
    server = call(spans)
    work(spans, server, SHA)
    summary = viewed(spans, trace_id(server)).summary
    assert summary.total_ms == 320
    assert summary.waited_ms == {
        "dispatch": 6,
        "prepare": 40,
        "thumbnails": 17,
        "embed": 60,
        "batch": 20,
        "finalize": 10,
    }
    assert summary.worked_ms == {"gateway": 32, "thumbnailer": 119, "embedder": 45, "scheduler": 40}
    assert (summary.dispatches, summary.retries, summary.redeliveries, summary.errors) == (1, 0, 0, 0)


def test_the_parts_cover_the_total_without_overlap() -> None:
    spans = Recorder()
    server = call(spans)
    work(spans, server, SHA)
    summary = viewed(spans, trace_id(server)).summary
    at = 0.0
    for part in summary.parts:
        assert part.start_ms == at
        at += part.duration_ms
    assert at == summary.total_ms
    assert [(part.category, part.name, part.duration_ms) for part in summary.parts][3:7] == [
        ("wait", "wait prepare", 36),
        ("work", "thumbnailer", 80),
        ("wait", "wait embed", 1),
        ("work", "thumbnailer", 39),
    ]


def test_of_an_upload_of_several_photos_each_shows_its_own() -> None:
    spans = Recorder()
    server = call(spans)
    work(spans, server, OTHER, 25)
    work(spans, server, SHA, 20)
    trace = viewed(spans, trace_id(server))
    assert drawn(trace) == WHOLE
    assert trace.summary.total_ms == 320
    assert viewed(spans, trace_id(server), OTHER).summary.total_ms == 325


def test_another_upload_in_the_clients_trace_is_not_shown() -> None:
    spans = Recorder()
    client = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))
    mine, other = call(spans, parent=client), call(spans, parent=client)
    work(spans, mine, SHA)
    work(spans, other, OTHER)
    trace = viewed(spans, trace_id(mine))
    assert drawn(trace) == WHOLE
    assert (trace.spans[0].parent_id, trace.spans[0].is_orphan) == (f"{0xDEF:016x}", False)


def test_a_duplicate_among_new_photos_shows_its_call() -> None:
    spans = Recorder()
    server = call(spans)
    work(spans, server, OTHER)
    assert drawn(viewed(spans, trace_id(server))) == "\nPOST /v1/images\n  receive upload\n  commit upload\n"


def test_nothing_is_shown_of_a_trace_in_which_the_photo_is_not() -> None:
    spans = Recorder()
    spans.add("gateway", "dispatch", 0, 10, image_sha256=OTHER)
    assert view("0" * 32, "upload", spans.spans(), [], SHA) is None
    assert view("0" * 32, "upload", [], [], SHA) is None


def test_spans_whose_parents_are_missing_are_shown_beside_the_others() -> None:
    spans = Recorder()
    server = call(spans)
    work(spans, server, SHA)
    left = [span for span in spans.spans() if span.name not in ("process prepare", "POST /v1/images", "batch")]
    trace = view(trace_id(server), "upload", [s for s in left if s.trace_id == trace_id(server)], [], SHA)
    assert trace is not None
    assert {span.name for span in trace.spans if span.is_orphan} == {
        *("receive upload", "commit upload", "wait dispatch", "dispatch"),
        *("decode", "encode large", "publish thumbnails", "publish embed"),
    }
    assert [span.start_ms for span in trace.spans if not span.depth] == sorted(
        span.start_ms for span in trace.spans if not span.depth
    )


def test_a_clock_that_is_behind_moves_its_spans_to_their_parents_start() -> None:
    spans = Recorder()
    server = call(spans)
    sent = spans.add("gateway", "publish prepare", 20, 24, server, kind="producer", image_sha256=SHA)
    late = spans.add("thumbnailer", "process prepare", -500, -400, sent, kind="consumer", image_sha256=SHA)
    spans.add("thumbnailer", "decode", -480, -410, late, image_sha256=SHA)
    trace = viewed(spans, trace_id(server))
    assert (the(trace, "process prepare").start_ms, the(trace, "process prepare").duration_ms) == (20, 100)
    assert (the(trace, "decode").start_ms, the(trace, "decode").clock_shift_ms) == (40, 520)
    assert trace.summary.total_ms == 120


def test_within_one_service_nothing_is_moved() -> None:
    spans = Recorder()
    server = call(spans)
    spans.add("gateway", names.WAIT_DISPATCH, -1, 25, server, image_sha256=SHA)
    assert the(viewed(spans, trace_id(server)), names.WAIT_DISPATCH).clock_shift_ms == 0


@pytest.mark.parametrize(
    ("last", "name", "category", "start_ms"),
    [
        ("POST /v1/images", "wait dispatch", "wait", 20),
        ("publish prepare", "wait prepare", "wait", 32),
        ("wait prepare", "process prepare", "work", 70),
        ("publish embed", "wait embed", "wait", 142),
        ("wait embed", "process embed", "work", 200),
        ("publish finalize", "wait finalize", "wait", 262),
    ],
)
def test_of_a_photo_in_flight_what_must_be_going_on_is_open(
    last: str, name: str, category: str, start_ms: float
) -> None:
    whole = Recorder()
    server = call(whole)
    work(whole, server, SHA)
    own = [span for span in whole.spans() if span.trace_id == trace_id(server)]
    reached = next(span for span in own if span.name == last)
    # What has ended by then; a publish within a task ends before the task does.
    arrived = [span for span in own if span.end_ns <= reached.end_ns]
    trace = view(trace_id(server), "upload", arrived, [], SHA, whole.start_ns + 1000 * MS)
    assert trace is not None
    found = next(span for span in trace.spans if span.is_open and span.name == name)
    assert (found.category, found.start_ms, found.start_ms + found.duration_ms) == (category, start_ms, 1000)
    assert trace.summary.total_ms == 1000


def test_of_a_finished_photo_nothing_is_open() -> None:
    spans = Recorder()
    server = call(spans)
    spans.add(
        "gateway", "publish prepare", 20, 24, server, kind="producer", image_sha256=SHA, messaging_destination="prepare"
    )
    assert not any(span.is_open for span in viewed(spans, trace_id(server)).spans)


def test_a_dispatch_that_was_lost_is_not_taken_for_one_that_goes_on() -> None:
    spans = Recorder()
    server = call(spans)
    for generation in (1, 2):
        dispatch = spans.add("gateway", "dispatch", 20 * generation, 30 * generation, server, generation=generation)
        spans.add(
            *("gateway", "publish prepare", 21 * generation, 25 * generation, dispatch),
            kind="producer",
            image_sha256=SHA,
            generation=generation,
            messaging_destination="prepare",
        )
    trace = viewed(spans, trace_id(server), now_ms=500)
    assert [span.start_ms for span in trace.spans if span.is_open] == [50]
    assert trace.summary.dispatches == 2


def test_retries_are_counted_and_what_holds_them_back_is_no_queue() -> None:
    spans = Recorder()
    server = call(spans)
    sent = spans.add("thumbnailer", "publish prepare", 20, 24, server, kind="producer", image_sha256=SHA)
    spans.add("thumbnailer", "delay prepare", 24, 1024, sent, image_sha256=SHA)
    spans.add("thumbnailer", "wait prepare", 1024, 1030, sent, image_sha256=SHA)
    again = spans.add(
        *("thumbnailer", "process prepare", 1030, 1050, sent),
        kind="consumer",
        image_sha256=SHA,
        retry_number=1,
        is_redelivered=True,
        error="out of reach",
    )
    spans.add("thumbnailer", "get blob", 1032, 1040, again, kind="client", image_sha256=SHA, error="out of reach")
    trace = viewed(spans, trace_id(server))
    assert (trace.summary.retries, trace.summary.redeliveries) == (1, 1)
    assert trace.summary.errors == 1, "the span around an error fails with it"
    assert (trace.summary.held_back_ms, trace.summary.waited_ms) == (1000, {"prepare": 6})
    assert (the(trace, "process prepare").retry, the(trace, "process prepare").message) == (1, "out of reach")


def test_circles_of_parents_do_not_hang_it() -> None:
    def span(own: str, parent: str) -> Span:
        return Span("t", own, parent, own, "internal", "gateway", 0, 1, attributes={names.IMAGE_SHA256: SHA})

    spans = [span("a", "b"), span("b", "a"), span("c", "b"), span("d", "d")]
    trace = view("t", "upload", spans, [], SHA)
    assert trace is not None
    assert sorted(each.name for each in trace.spans) == ["a", "b", "c", "d"]


def test_a_chain_of_thousands_is_no_problem() -> None:
    spans = [
        Span("t", str(n), str(n - 1), "step", "internal", "gateway", n, n + 1, attributes={names.IMAGE_SHA256: SHA})
        for n in range(5000)
    ]
    trace = view("t", "upload", spans, [], SHA)
    assert trace is not None
    assert trace.spans[-1].depth == 4999
