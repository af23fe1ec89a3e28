"""What a worker says of itself, and what it costs it."""

from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from celery import Celery
from celery.worker.request import Request
from redis.exceptions import ConnectionError as RedisConnectionError

from darkroom.contracts.messages import WorkerPresence
from darkroom.presence import Handled, PresenceWriter, announce_presence, counting
from darkroom.topology import Node

PRESENCE = WorkerPresence(name="embedder@host", node="embedder", pool="solo", concurrency=1, queues={})


def test_a_rate_is_of_the_last_minute() -> None:
    handled = Handled(0)
    for second in range(0, 200, 2):
        for _ in range(4):
            handled.add("embed")
        told = handled.mark(second + 2)
    assert told == {"embed": (400, 2.0)}
    for second in range(202, 264, 2):
        told = handled.mark(second)
    assert told == {"embed": (400, 0.0)}


def test_the_first_seconds_are_not_extrapolated() -> None:
    handled = Handled(10)
    handled.add("embed")
    assert handled.mark(10.001) == {"embed": (1, 0.5)}


@pytest.mark.parametrize(
    ("routing_key", "counted"), [("embed.bulk", "embed.bulk"), ("1." * 28 + "embed", "embed"), ("pidbox", None)]
)
def test_a_message_is_counted_once_and_when_it_is_off_the_queue_for_good(
    routing_key: str, counted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(request: Any, *_: Any) -> None:
        request.acknowledged = True

    monkeypatch.setattr(Request, "acknowledge", off)
    monkeypatch.setattr(Request, "reject", off)
    monkeypatch.setattr(Request, "delivery_info", {"routing_key": routing_key})
    handled = Handled(0)
    kind = counting(Request, handled)
    done, given_back = kind.__new__(kind), kind.__new__(kind)
    done.acknowledge()
    done.acknowledge()
    given_back.reject()
    assert handled.mark(2) == ({counted: (1, 0.5)} if counted else {})


def test_every_task_is_counted_whatever_its_kind_of_request() -> None:
    class OwnRequest(Request):
        pass

    def nothing() -> None:
        pass

    app = Celery("test", set_as_current=False)
    app.conf.result_backend = "redis://127.0.0.1:1/0"
    plain = app.task(name="plain", shared=False)(nothing)
    own = app.task(name="own", shared=False, Request=OwnRequest)(nothing)
    announce_presence(app, Node.FINALIZE, "threads")
    assert issubclass(own.Request, OwnRequest)
    assert {kind.__name__ for kind in (own.Request, plain.Request)} == {"CountingRequest"}


def test_a_result_store_that_is_away_is_asked_ever_more_seldom() -> None:
    pipeline = Mock(execute=Mock(side_effect=RedisConnectionError))
    redis = MagicMock()
    redis.pipeline.return_value.__enter__.return_value = pipeline
    writer = PresenceWriter(redis)
    for second in range(0, 200, 2):
        writer.write(PRESENCE, second)
    assert pipeline.execute.call_count == 9  # at 0, 4, 12, 28, then every 30 s
    writer.remove(PRESENCE.name)
    assert not redis.delete.called
    pipeline.execute.side_effect = None
    writer.write(PRESENCE, 300)
    writer.write(PRESENCE, 302)
    assert pipeline.execute.call_count == 11
    writer.remove(PRESENCE.name)
    assert redis.delete.call_args.args == ("workers:embedder@host",)
