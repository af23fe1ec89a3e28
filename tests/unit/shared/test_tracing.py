"""Which spans are made, what they say, and which of them are kept."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, StatusCode, get_current_span
from otlp_receiver import receiving_traces
from pydantic import ValidationError

from darkroom.celery_app import create_app, request
from darkroom.contracts.base import Lane
from darkroom.contracts.keys import Recipe
from darkroom.contracts.messages import Prepare
from darkroom.contracts.problems import problem
from darkroom.contracts.tasks import PREPARE
from darkroom.errors import PermanentError
from darkroom.settings import BrokerSettings, TaskSettings, TracingSettings
from darkroom.telemetry import names, processing, tracing
from darkroom.telemetry.export import TREE_SPANS, provider_for
from darkroom.telemetry.publishing import queue_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-01", f"00-{TRACE}-b7ad6b7169203331-00"
SECOND_NS = 1_000_000_000

Exported = Callable[[], dict[str, ReadableSpan]]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Exported]:
    """Turns tracing on; what it returns gives the exported spans by name."""

    def start(**variables: str) -> Exported:
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_{name.upper()}", value)
        exporter = InMemorySpanExporter()
        provider = provider_for(SimpleSpanProcessor(exporter), "test", "test")
        monkeypatch.setattr(tracing._Process, "provider", provider)
        monkeypatch.setattr(tracing._Process, "tracer", provider.get_tracer("test"))
        return lambda: {span.name: span for span in exporter.get_finished_spans()}

    return start


@pytest.fixture
def exported(record: Callable[..., Exported]) -> Exported:
    return record()


# --- On and off -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "is_on"),
    [
        ({}, False),
        ({"exporter_otlp_endpoint": "http://backend:4318"}, True),
        ({"exporter_otlp_traces_endpoint": "http://backend:4318/v1/traces"}, True),
        ({"exporter_otlp_endpoint": "http://backend:4318", "sdk_disabled": "true"}, False),
        ({"exporter_otlp_endpoint": "http://backend:4318", "traces_exporter": "none"}, False),
        ({"exporter_otlp_endpoint": ""}, False),
    ],
)
def test_tracing_is_on_where_an_endpoint_is_named(variables: dict[str, str], is_on: bool, monkeypatch: Any) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name.upper()}", value)
    assert TracingSettings().is_on is is_on


def test_another_protocol_than_http_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValidationError, match="4318"):
        TracingSettings(exporter_otlp_endpoint="http://backend:4317", exporter_otlp_protocol="grpc")


def test_without_an_endpoint_nothing_is_recorded_and_trace_context_is_passed_on() -> None:
    tracing.start("test")
    assert not tracing.is_on()
    with tracing.within(tracing.context_of(SAMPLED, "vendor=1")), tracing.span("work") as span:
        assert not span.is_recording()
        assert tracing.headers() == {"traceparent": SAMPLED, "tracestate": "vendor=1"}


def test_a_step_is_part_of_a_trace_or_is_not_at_all(exported: Exported) -> None:
    with tracing.step("alone"):
        pass
    with tracing.span("call"), tracing.step("part"):
        pass
    assert set(exported()) == {"call", "part"}
    assert exported()["part"].parent.span_id == exported()["call"].context.span_id


def test_a_problem_is_an_error_by_its_slug_and_anything_else_by_its_class(exported: Exported) -> None:
    cause = PermanentError(problem("image-corrupt", "It is damaged", 422, "The file is damaged."))
    for name, error in (("problem", cause), ("bug", KeyError("x"))):
        with pytest.raises(type(error)), tracing.span(name):
            raise error
    spans = exported()
    assert spans["problem"].attributes[names.ERROR_TYPE] == "image-corrupt"
    assert spans["problem"].status.description == "The file is damaged."
    assert spans["bug"].attributes[names.ERROR_TYPE] == "KeyError"
    assert [event.name for event in spans["bug"].events] == ["exception"]
    assert {span.status.status_code for span in spans.values()} == {StatusCode.ERROR}


def test_where_two_clocks_disagree_a_span_has_no_duration(exported: Exported) -> None:
    tracing.record("wait", start_ns=5 * SECOND_NS, end_ns=3 * SECOND_NS)
    assert exported()["wait"].start_time == exported()["wait"].end_time == 3 * SECOND_NS


def test_waits_are_known_by_their_names() -> None:
    waits = ["wait prepare.bulk", "delay embed", "wait dispatch", "wait batch"]
    assert all(map(names.is_wait, waits))
    assert not any(map(names.is_wait, ["process prepare", "waiter", "decode", "publish wait"]))


# --- Sampling -------------------------------------------------------------------------------------------------------


def test_of_an_unsampled_trace_nothing_is_kept(exported: Exported) -> None:
    with tracing.span("process", context=tracing.context_of(UNSAMPLED)) as span, tracing.span("decode"):
        assert span.is_recording()
        assert tracing.traceparent().endswith("-00")
    assert exported() == {}


def test_of_an_unsampled_trace_the_local_tree_of_an_error_is_kept_whole(exported: Exported) -> None:
    with pytest.raises(KeyError), tracing.span("process", context=tracing.context_of(UNSAMPLED)):
        with tracing.span("before"):
            pass
        with tracing.span("encode"):
            raise KeyError("x")
    with tracing.span("another delivery", context=tracing.context_of(UNSAMPLED)):
        pass
    assert set(exported()) == {"process", "before", "encode"}
    assert all(span.context.trace_flags.sampled for span in exported().values())


def test_with_a_failed_delivery_its_waiting_is_kept(exported: Exported) -> None:
    elsewhere = tracing.context_of(UNSAMPLED)
    process = tracing.begin("process", context=elsewhere)
    tracing.record("wait", 1, 2, context=elsewhere)
    tracing.fail(process, KeyError("x"))
    process.end()
    tracing.record("wait of the next delivery", 3, 4, context=elsewhere)
    assert set(exported()) == {"process", "wait"}


def test_what_is_published_because_of_an_error_is_sampled(exported: Exported) -> None:
    with tracing.span("process", context=tracing.context_of(UNSAMPLED)):
        assert tracing.traceparent().endswith("-00")
        with tracing.keeping(), tracing.step("publish record_failure"):
            assert tracing.traceparent().endswith("-01")


def test_an_error_in_a_child_that_its_parent_survived_is_kept_too(exported: Exported) -> None:
    call = tracing.span("call", context=tracing.context_of(UNSAMPLED))
    with call, pytest.raises(KeyError), tracing.span("publish"):
        raise KeyError("x")
    assert set(exported()) == {"call", "publish"}


def test_a_tree_that_never_ends_holds_a_bounded_number_of_spans(exported: Exported) -> None:
    with pytest.raises(KeyError), tracing.span("process", context=tracing.context_of(UNSAMPLED)):
        for number in range(2 * TREE_SPANS):
            with tracing.span(f"step {number}"):
                pass
        raise KeyError("x")
    assert len(exported()) == TREE_SPANS


def test_a_ratio_decides_by_the_trace_id_alike_in_every_process(record: Callable[..., Exported]) -> None:
    exported = record(traces_sampler="parentbased_traceidratio", traces_sampler_arg="0.5")
    roots = 200
    for number in range(roots):
        with tracing.span(f"root {number}"):
            headers = tracing.headers()
        with tracing.span(f"next process {number}", context=tracing.context_of(headers["traceparent"])):
            pass
    kept = set(exported())
    assert 0.3 * roots < sum(name.startswith("root") for name in kept) < 0.7 * roots
    assert {name.replace("root", "next process") for name in kept if name.startswith("root")} <= kept
    assert len(kept) % 2 == 0


@pytest.mark.parametrize(("members", "is_kept"), [([SAMPLED, UNSAMPLED], True), ([UNSAMPLED], False)])
def test_a_batch_is_sampled_when_one_of_its_members_is(
    members: list[str], is_kept: bool, record: Callable[..., Exported]
) -> None:
    exported = record(traces_sampler="traceidratio", traces_sampler_arg="0" if is_kept else "1")
    links: list[Link] = [link for member in members for link in tracing.link_to(member)]
    with tracing.span("batch", links=links), tracing.span("forward"):
        pass
    assert set(exported()) == ({"batch", "forward"} if is_kept else set())


# --- Messages -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The headers of every message that is published; none reaches a broker."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr("kombu.messaging.Producer.publish", lambda self, body, headers, **_: found.append(headers))
    yield found


@pytest.fixture
def app() -> Celery:
    nobody = "redis://127.0.0.1:1/0"
    return create_app("test", BrokerSettings(broker_url=nobody, result_url=nobody), TaskSettings())


PREPARED = Prepare(sha256="a" * 64, generation=2, lane=Lane.BULK, recipe=Recipe.current())


def publish(app: Celery, **options: Any) -> None:
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        signature = request(app, PREPARE, PREPARED, lane=Lane.BULK, task_id="t-1", ignore_result=True, **options)
        signature.apply_async(producer=producer)


def test_every_message_says_when_it_was_published_and_without_a_trace_begins_none(
    app: Celery, sent: list[dict[str, Any]], exported: Exported
) -> None:
    before = tracing.now_ns()
    publish(app)
    assert before <= sent[0][names.PUBLISHED_AT] <= tracing.now_ns()
    assert sent[0][names.TRACEPARENT] is None
    assert exported() == {}


def test_a_published_message_continues_the_trace_and_its_span_says_what_for(
    app: Celery, sent: list[dict[str, Any]], exported: Exported
) -> None:
    with tracing.span("dispatch", context=tracing.context_of(SAMPLED, "vendor=1")):
        publish(app)
    span = exported()["publish prepare.bulk"]
    assert span.kind is SpanKind.PRODUCER
    assert sent[0][names.TRACEPARENT] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert sent[0][names.TRACESTATE] == "vendor=1"
    assert dict(span.attributes) == {
        "messaging.system": "redis",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "prepare.bulk",
        "messaging.rabbitmq.destination.routing_key": "prepare.bulk",
        "messaging.message.id": "t-1",
        "darkroom.task.name": "thumbnailer.prepare",
        "darkroom.image.sha256": "a" * 64,
        "darkroom.generation": 2,
        "darkroom.lane": "bulk",
    }


def test_what_a_message_had_from_the_one_before_it_is_replaced(
    app: Celery, sent: list[dict[str, Any]], exported: Exported
) -> None:
    """Celery hands the headers of a task's message on to its retries."""
    publish(app, headers={names.TRACEPARENT: SAMPLED, names.PUBLISHED_AT: 1, "mine": "kept"})
    assert sent[0][names.TRACEPARENT] is None
    assert sent[0][names.PUBLISHED_AT] > 1
    assert sent[0]["mine"] == "kept"


def test_a_failed_publish_is_an_error(app: Celery, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr("kombu.messaging.Producer.publish", refuse)
    with pytest.raises(OperationalError), tracing.span("dispatch"):
        publish(app)
    assert exported()["publish prepare.bulk"].attributes[names.ERROR_TYPE] == "ConnectionRefusedError"


def test_the_delay_before_a_routing_key_is_no_part_of_the_queue() -> None:
    assert queue_of("0." * 26 + "1.0.prepare.bulk") == "prepare.bulk"
    assert queue_of("1.0.prepare") == "1.0.prepare"


# --- Deliveries -----------------------------------------------------------------------------------------------------


def delivery(**changes: Any) -> SimpleNamespace:
    """A request as a worker has it."""
    given: dict[str, Any] = {
        "id": "t-1",
        "retries": 0,
        "eta": None,
        "delivery_info": {"routing_key": "prepare", "redelivered": False},
        names.TRACEPARENT: SAMPLED,
        names.PUBLISHED_AT: 10 * SECOND_NS,
    }
    return SimpleNamespace(**given | changes)


def begin(app: Celery, request: SimpleNamespace, at_s: float) -> None:
    keywords = {"message": PREPARED.to_wire()}
    processing.begin_delivery(app, PREPARE.name, request, keywords, int(at_s * SECOND_NS)).end()


def times(span: ReadableSpan) -> tuple[float, float]:
    return span.start_time / SECOND_NS, span.end_time / SECOND_NS


def test_a_delivery_has_waited_since_it_was_published(app: Celery, exported: Exported) -> None:
    begin(app, delivery(), at_s=12.5)
    wait, process = exported()["wait prepare"], exported()["process prepare"]
    assert times(wait) == (10, 12.5)
    assert process.start_time / SECOND_NS == 12.5
    assert process.kind is SpanKind.CONSUMER
    assert f"{wait.parent.span_id:016x}" == f"{process.parent.span_id:016x}" == SAMPLED[36:52]
    assert process.attributes[names.IMAGE_SHA256] == wait.attributes[names.IMAGE_SHA256] == "a" * 64
    assert names.IS_REDELIVERED not in process.attributes


def test_a_countdown_is_a_delay_and_not_a_wait(app: Celery, exported: Exported) -> None:
    eta = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=14)).isoformat()
    begin(app, delivery(eta=eta, retries=2, delivery_info={"routing_key": "0." * 28 + "prepare"}), at_s=15)
    assert times(exported()["delay prepare"]) == (10, 14)
    assert times(exported()["wait prepare"]) == (14, 15)
    assert exported()["process prepare"].attributes[names.RETRY_NUMBER] == 2


def test_a_publisher_whose_clock_is_ahead_makes_no_negative_wait(app: Celery, exported: Exported) -> None:
    begin(app, delivery(), at_s=9)
    assert times(exported()["wait prepare"]) == (9, 9)


def test_a_redelivery_shows(app: Celery, exported: Exported) -> None:
    again = {"routing_key": "prepare", "redelivered": True}
    begin(app, delivery(delivery_info=again, **{"x-delivery-count": 2}), at_s=11)
    process = exported()["process prepare"]
    assert process.attributes[names.IS_REDELIVERED] is True
    assert process.attributes[names.DELIVERY_COUNT] == 2


def test_a_delivery_that_no_call_asked_for_is_not_traced(app: Celery, exported: Exported) -> None:
    begin(app, delivery(traceparent=None), at_s=11)
    assert exported() == {}
    assert not get_current_span().get_span_context().is_valid


SENDS_ASIDE = """
import sys, threading
from opentelemetry.trace import SpanKind
from darkroom.telemetry import tracing

tracing.prepare("thumbnailer", "thumbnailer")
prepared = set(sys.modules)
context = tracing.context_of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)
tracing.record_aside("process prepare", 1, 2, {}, "it died", context=context, kind=SpanKind.CONSUMER)
for thread in threading.enumerate():
    if thread.name == "tracing-aside":
        thread.join()
print(*sorted(set(sys.modules) - prepared))
"""


def test_what_a_parent_sends_aside_imports_nothing_that_a_child_forked_just_then_would_wait_for_for_ever() -> None:
    with receiving_traces() as backend:
        done = subprocess.run(
            [sys.executable, "-c", SENDS_ASIDE],
            env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.endpoint},
            capture_output=True,
            text=True,
            check=True,
        )
    assert [span.name for span in backend.spans] == ["process prepare"]
    assert done.stdout.split() == []
