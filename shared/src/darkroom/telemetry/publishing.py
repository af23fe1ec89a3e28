"""Published messages: each has its trace context and its time in its headers, and within a trace a span."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from kombu import Producer
from opentelemetry.trace import Span, SpanKind

from darkroom.telemetry import names, tracing
from darkroom.telemetry.tracing import Attributes

_DELAY = re.compile(r"^(?:[01]\.){28}")
"""What Celery's delayed delivery puts before a routing key: the delay in seconds, bit by bit."""


class TracedAMQP(AMQP):  # type: ignore[misc]
    """Celery's publisher of tasks, whoever calls it: an application, a chain or chord that goes on, a retry."""

    def _create_task_sender(self) -> Callable[..., Any]:
        send = super()._create_task_sender()
        system = system_of(self.app)

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            with self._span(system, name, message, options):
                # Over those that Celery took from the message before: a retry's, for one.
                options["headers"] = (options.get("headers") or {}) | message_headers()
                return send(producer, name, message, **options)

        return send_task_message

    def _span(
        self, system: str, name: str, message: Any, options: Mapping[str, Any]
    ) -> AbstractContextManager[Span | None]:
        if not tracing.is_recording():
            return nullcontext()
        routing_key = str(options.get("routing_key") or "")
        queue = options.get("queue") or queue_of(routing_key)
        attributes = {
            **publish_attributes(system, str(getattr(queue, "name", queue)), routing_key),
            names.MESSAGING_MESSAGE_ID: message.headers["id"],
            **task_attributes(name, message.headers.get("retries"), message.body[1]),
        }
        destination = attributes[names.MESSAGING_DESTINATION]
        return tracing.step(f"{names.PUBLISH} {destination}", attributes, kind=SpanKind.PRODUCER)


def publish_event(
    producer: Producer, payload: Mapping[str, Any], event_type: str, about: Attributes, **options: Any
) -> None:
    """Publishes an event under its type as routing key; within a trace, in a span that also says what it is `about`.

    `options` are those of kombu's `publish`.
    """
    span: AbstractContextManager[Any] = nullcontext()
    if tracing.is_on() and tracing.has_trace():
        driver = producer.connection.transport.driver_type
        attributes = publish_attributes("rabbitmq" if driver == "amqp" else driver, event_type, event_type)
        span = tracing.span(f"{names.PUBLISH} {event_type}", {**attributes, **about}, kind=SpanKind.PRODUCER)
    with span:
        producer.publish(
            payload, routing_key=event_type, type=event_type, serializer="json", headers=message_headers(), **options
        )


def message_headers() -> dict[str, str | int | None]:
    """What every message carries, of a task or an event: its trace, which may be none, and its time."""
    trace = {names.TRACEPARENT: None, names.TRACESTATE: None} | tracing.headers()
    return trace | {names.PUBLISHED_AT: tracing.now_ns()}


def system_of(app: Celery) -> str:
    """The broker's name in OpenTelemetry's words: `rabbitmq` or `redis`."""
    return "rabbitmq" if str(app.conf.broker_url).startswith("amqp") else "redis"


def queue_of(routing_key: str) -> str:
    """The queue that a routing key leads to; a delayed message has its delay in front."""
    return _DELAY.sub("", routing_key)


def publish_attributes(system: str, destination: str, routing_key: str) -> dict[str, str]:
    """What a PRODUCER span says about where its message goes."""
    return {
        names.MESSAGING_SYSTEM: system,
        names.MESSAGING_OPERATION_NAME: names.PUBLISH,
        names.MESSAGING_OPERATION_TYPE: "send",
        names.MESSAGING_DESTINATION: destination,
        names.MESSAGING_ROUTING_KEY: routing_key or destination,
    }


def task_attributes(name: str, retries: int | None, keywords: Mapping[str, Any]) -> Attributes:
    """Which task a message is for, which try of it, and which photo it works for as far as it says."""
    found: dict[str, str | int] = {names.TASK_NAME: name}
    if retries:
        found[names.RETRY_NUMBER] = retries
    message = keywords.get("message")
    if isinstance(message, Mapping):
        for attribute, key in _OF_WORK.items():
            if isinstance(value := message.get(key), str | int):
                found[attribute] = value
    return found


_OF_WORK = {names.IMAGE_SHA256: "sha256", names.GENERATION: "generation", names.LANE: "lane"}
