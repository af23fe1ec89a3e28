"""Events: numbered in the order of their commits, published by one relay, and never lost."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually
from gateway_outcomes import fail, finish
from gateway_pictures import picture
from gateway_serving import Served, publish_patiently
from gateway_streams import Stream
from kombu import Connection, Queue
from sqlalchemy import Engine, create_engine, select, text

from darkroom import topology
from darkroom.celery_app import create_app
from darkroom.contracts.events import Event
from darkroom.database import events
from darkroom.database.events import UnpublishedEvent
from darkroom.database.tables import events as table
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom_cli.servers import RabbitServer
from gateway import relay as relaying
from gateway.broker import BrokerLink
from gateway.relay import Relay

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]


class Subscriber:
    """A queue that gets every event, and what came through it."""

    def __init__(self, url: str) -> None:
        self._connection = Connection(url)
        topology.EVENTS(self._connection.default_channel).declare()
        queue = Queue(f"test-{id(self)}", topology.EVENTS, routing_key="#", durable=False, auto_delete=True)
        self.queue = queue(self._connection.default_channel)
        self.queue.declare()
        self.messages: list[Any] = []

    def received(self) -> list[Event]:
        """Every event so far, in the order of arrival."""
        while (message := self.queue.get(no_ack=True)) is not None:
            self.messages.append(message)
        return [Event.from_wire(message.payload) for message in self.messages]

    def close(self) -> None:
        self.queue.delete()
        self._connection.release()


@pytest.fixture
def subscriber(broker_url: str) -> Iterator[Subscriber]:
    """Subscribed before anything happens."""
    one = Subscriber(broker_url)
    yield one
    one.close()


def all_published(engine: Engine) -> bool:
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM events WHERE published_at IS NULL")) == 0


def test_what_happens_is_told_in_order(
    serve: Serve, subscriber: Subscriber, engine: Engine, broker_url: str, redis_url: str
) -> None:
    gateway = serve(broker_url=broker_url, result_url=redis_url, relay_enabled=True)
    ready, failed = gateway.accepted(picture(1), picture(2))
    finish(engine, gateway.parts.store, ready["sha256"], [1.0, 0.0, 0.0])
    fail(engine, failed["sha256"])
    gateway.http.delete(f"/v1/images/{ready['id']}")
    eventually(lambda: all_published(engine))

    told = subscriber.received()
    assert [(str(event.type), str(event.image_id)) for event in told] == [
        ("image.accepted", ready["id"]),
        ("image.accepted", failed["id"]),
        ("image.ready", ready["id"]),
        ("image.failed", failed["id"]),
        ("batch.completed", "None"),
        ("image.deleted", ready["id"]),
    ]
    assert [event.id for event in told] == list(range(1, 7))
    assert {str(event.batch_id) for event in told} == {ready["batch_id"]}
    assert told[3].problem is not None
    assert told[3].problem.slug == "image-corrupt"
    assert told[0].trace_id == ready["trace_id"]
    for message, event in zip(subscriber.messages, told, strict=True):
        assert message.delivery_info["routing_key"] == event.type
        assert message.content_type == "application/json"
        assert message.properties["delivery_mode"] == 2
        assert json.loads(message.body)["version"] == 1


def leaders(engine: Engine) -> int:
    """How many locks of relays are held; nobody who asks for one gets it meanwhile."""
    with engine.connect() as connection:
        database = "(SELECT oid FROM pg_database WHERE datname = current_database())"
        query = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = {database}"
        return int(connection.scalar(text(query)) or 0)


def test_only_one_relay_leads_and_another_takes_over(
    serve: Serve, engine: Engine, redis_url: str, photo: bytes
) -> None:
    first = serve(broker_url=redis_url, result_url=redis_url, relay_enabled=True)
    eventually(lambda: leaders(engine) == 2)
    with engine.connect() as connection:
        assert not events.lead_numbering(connection), "the gateway leads"
    first.accepted(photo)
    eventually(lambda: all_published(engine))
    second = serve(broker_url=redis_url, result_url=redis_url, relay_enabled=True)
    # The leader's connection is cut, and with it its lock: whoever leads next goes on with the numbers.
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"))
    second.accepted(picture(2))
    eventually(lambda: all_published(engine))
    with engine.connect() as connection:
        assert list(connection.scalars(select(table.c.id).order_by(table.c.id))) == [1, 2]


def test_a_notification_wakes_the_relay(
    serve: Serve, engine: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "POLL_S", 3600)
    gateway = serve(broker_url=redis_url, result_url=redis_url, relay_enabled=True)
    (image,) = gateway.accepted(picture(1))
    eventually(lambda: all_published(engine))
    finish(engine, gateway.parts.store, image["sha256"], [1.0, 0.0, 0.0])
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_notify('darkroom_events', '')"))
    eventually(lambda: all_published(engine))


def test_events_wait_for_a_broker_that_is_away(
    serve: Serve, server_folder: Path, engine: Engine, redis_url: str
) -> None:
    rabbit = RabbitServer(server_folder / "relay-rabbitmq")
    gateway = serve(broker_url=rabbit.url, result_url=redis_url, relay_enabled=True)
    gateway.accepted(picture(1), picture(2))
    try:
        rabbit.start()
        eventually(lambda: all_published(engine), within_s=60)
        subscriber = Subscriber(rabbit.url)
        gateway.accepted(picture(3))
        eventually(lambda: all_published(engine))
        assert [event.id for event in subscriber.received()] == [3]
    finally:
        rabbit.stop()


def test_what_was_confirmed_before_a_failure_is_stamped(
    gateway: Served, engine: Engine, amqp_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.accepted(*[picture(n) for n in range(4)])
    app = create_app("test", BrokerSettings(broker_url=amqp_url, result_url=redis_url), TaskSettings())
    publish_patiently(app)
    relay = Relay(engine, BrokerLink(app))
    publish = relaying._publish

    def fail_at_three(producer: Any, unpublished: UnpublishedEvent) -> None:
        if unpublished.event.id == 3:
            raise ConnectionResetError("the broker is gone")
        publish(producer, unpublished)

    monkeypatch.setattr(relaying, "_publish", fail_at_three)
    with engine.connect() as connection:
        assert relay.number_once(connection) == 4
        with pytest.raises(ConnectionResetError):
            relay.publish_once(connection)
        published = select(table.c.id).where(table.c.published_at.is_not(None)).order_by(table.c.id)
        assert list(connection.scalars(published)) == [1, 2]
        monkeypatch.undo()
        assert relay.publish_once(connection) == 2
        assert list(connection.scalars(published)) == [1, 2, 3, 4]


def test_an_event_that_commits_late_gets_a_late_number(gateway: Served, engine: Engine, redis_url: str) -> None:
    app = create_app("test", BrokerSettings(broker_url=redis_url, result_url=redis_url), TaskSettings())
    relay = Relay(engine, BrokerLink(app))
    alone = create_engine(engine.url)
    with alone.connect() as late, engine.connect() as leader:
        late.execute(
            text(
                "INSERT INTO events (type, batch_id) VALUES ('batch.completed', '00000000-0000-7000-8000-000000000000')"
            )
        )
        gateway.accepted(picture(1))  # has a higher row id and commits first
        assert relay.number_once(leader) == 1
        late.commit()
        assert relay.number_once(leader) == 1
        numbered = leader.execute(select(table.c.id, table.c.type).order_by(table.c.id)).all()
    alone.dispose()
    assert [tuple(row) for row in numbered] == [(1, "image.accepted"), (2, "batch.completed")]


def test_the_relay_ends_when_it_is_told_to(engine: Engine, redis_url: str) -> None:
    app = create_app("test", BrokerSettings(broker_url=redis_url, result_url=redis_url), TaskSettings())
    relay, stop = Relay(engine, BrokerLink(app)), threading.Event()
    threads = [threading.Thread(target=run, args=(stop,)) for run in (relay.run_numbering, relay.run_publishing)]
    for thread in threads:
        thread.start()
    stop.set()
    relay.bell.set()
    relay.numbered.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_watchers_are_told_at_once_while_the_broker_hangs(
    serve: Serve, engine: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, is_back = threading.Event(), threading.Event()
    publish = relaying._publish

    def hang(producer: Any, unpublished: UnpublishedEvent) -> None:
        hangs.set()
        assert is_back.wait(120)
        publish(producer, unpublished)

    monkeypatch.setattr(relaying, "_publish", hang)
    gateway = serve(broker_url=redis_url, result_url=redis_url, relay_enabled=True)

    async def watch() -> None:
        stream = await Stream.open(gateway.url, "/v1/events", 0)
        await asyncio.to_thread(gateway.accepted, picture(1))
        assert await asyncio.to_thread(hangs.wait, 60)
        await asyncio.to_thread(gateway.accepted, picture(2))
        assert await stream.take(2) == [1, 2]
        stream.close()

    try:
        asyncio.run(asyncio.wait_for(watch(), 90))
        assert not all_published(engine)
    finally:
        is_back.set()
    eventually(lambda: all_published(engine))
