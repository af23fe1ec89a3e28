"""What the brokers do with the declared topology: the traps that were found before the first line, kept shut."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from amqp.exceptions import PreconditionFailed
from celery import Celery
from celery.app.task import Context
from celery.states import FAILURE, STARTED, SUCCESS
from conftest import eventually
from kombu import Connection, Queue
from kombu.exceptions import OperationalError

from darkroom import topology
from darkroom.celery_app import (
    PUBLISH_OPTIONS,
    await_no_results,
    bound_publishing,
    create_app,
    declare_topology,
    request,
)
from darkroom.contracts.base import Lane
from darkroom.contracts.keys import Recipe
from darkroom.contracts.messages import Embedded, Fence
from darkroom.contracts.tasks import FENCE
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.workflow import Dispatch, image_workflow, task_ids
from darkroom_cli.servers.ports import reserve_port

SHA256 = "ab" * 32


@contextmanager
def publisher(broker_url: str, result_url: str) -> Iterator[Celery]:
    """Waits for its broker, however busy that is."""
    settings = BrokerSettings(broker_url=broker_url, result_url=result_url)
    with create_app("publisher", settings, TaskSettings()) as app:
        await_no_results(app)
        yield app


def take(connection: Connection, queue: str) -> Any:
    """The next message of a queue, or None."""
    with connection.channel() as channel:
        return topology.task_queue(queue).bind(channel).get(no_ack=True)


def send_fence(app: Celery, queue: str, **options: Any) -> None:
    request(app, FENCE, Fence(number=1, queue=queue), queue=queue).apply_async(**options)


def test_every_queue_takes_a_message_under_its_own_name_and_no_other_gets_it(broker_url: str, redis_url: str) -> None:
    with publisher(broker_url, redis_url) as app, Connection(broker_url) as connection:
        declare_topology(connection)
        for queue in topology.CONSUMED_BY:
            send_fence(app, queue)
        for queue in topology.CONSUMED_BY:
            message = eventually(lambda queue=queue: take(connection, queue))
            assert message.payload[1]["message"]["queue"] == queue
            assert take(connection, queue) is None


def test_the_whole_canvas_is_one_message(broker_url: str, redis_url: str) -> None:
    with publisher(broker_url, redis_url) as app, Connection(broker_url) as connection:
        declare_topology(connection)
        image_workflow(app, Dispatch(SHA256, 1, Lane.BULK, Recipe.current())).apply_async()

        message = eventually(lambda: take(connection, "prepare.bulk"))
        assert message.headers["id"] == task_ids(SHA256, 1)["prepare"]
        assert all(take(connection, queue) is None for queue in topology.CONSUMED_BY)


def test_a_flushed_redis_is_healed_by_declaring_over_a_fresh_connection(redis_url: str) -> None:
    with publisher(redis_url, redis_url) as app, Connection(redis_url) as connection:
        declare_topology(connection)
        send_fence(app, "prepare")
        assert eventually(lambda: take(connection, "prepare"))
        # The bindings go too; the publisher stays connected and is told nothing.
        app.backend.client.flushall()
        with Connection(redis_url) as fresh:
            declare_topology(fresh)

        for queue in topology.CONSUMED_BY:
            send_fence(app, queue)
        for queue in topology.CONSUMED_BY:
            assert eventually(lambda queue=queue: take(connection, queue)), queue


def test_a_task_finds_its_queue_on_a_redis_that_was_flushed(redis_url: str) -> None:
    with publisher(redis_url, redis_url) as app, Connection(redis_url) as connection:
        declare_topology(connection)
        app.backend.client.flushall()

        for queue in topology.CONSUMED_BY:
            send_fence(app, queue)
        for queue in topology.CONSUMED_BY:
            assert eventually(lambda queue=queue: take(connection, queue)), queue


def test_queues_on_rabbitmq_are_quorum_queues_with_a_limit_and_dead_letters(amqp_url: str) -> None:
    # A broker refuses to declare what is there with other arguments: only the very same ones pass.
    for name in topology.CONSUMED_BY:
        with Connection(amqp_url) as connection, connection.channel() as channel:
            declared = topology.task_queue(name)
            assert declared(channel).declare() == name
            other = Queue(name, topology.TASKS, routing_key=name, durable=True)
            with pytest.raises(PreconditionFailed):
                other(connection.channel()).declare()
            assert {"x-delivery-limit", "x-dead-letter-exchange"} <= set(declared.queue_arguments)


def test_what_a_consumer_refuses_is_a_dead_letter_of_its_queue(amqp_url: str) -> None:
    with Connection(amqp_url) as connection, connection.channel() as channel:
        connection.Producer().publish({"n": 1}, exchange=topology.TASKS, routing_key="prepare.bulk")
        queue = topology.task_queue("prepare.bulk").bind(channel)
        eventually(lambda: (message := queue.get()) and (message.reject() or True))

        dead = eventually(lambda: topology.dead_letter_queue().bind(channel).get(no_ack=True))
        assert dead.payload == {"n": 1}
        assert dead.headers["x-death"][0]["queue"] == "prepare.bulk"
        assert dead.headers["x-death"][0]["reason"] == "rejected"


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_publishing_to_a_broker_that_hangs_fails_instead_of_waiting(redis_url: str, scheme: str) -> None:
    port = reserve_port()
    with socket.create_server(("127.0.0.1", port)):
        # It takes the connection and never says a word.
        url = f"amqp://guest:guest@127.0.0.1:{port}//" if scheme == "amqp" else f"redis://127.0.0.1:{port}/0"
        with publisher(url, redis_url) as app, pytest.raises((OperationalError, OSError)):
            bound_publishing(app)
            send_fence(app, "prepare", **PUBLISH_OPTIONS)


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_publishing_without_a_broker_fails(redis_url: str, scheme: str) -> None:
    url = "amqp://guest:guest@127.0.0.1:1//" if scheme == "amqp" else "redis://127.0.0.1:1/0"
    with publisher(url, redis_url) as app, pytest.raises((OperationalError, OSError)):
        bound_publishing(app)
        send_fence(app, "prepare", **PUBLISH_OPTIONS)


def test_publishing_needs_no_result_store(broker_url: str, redis_url: str) -> None:
    nowhere = "redis://127.0.0.1:1/0"
    with publisher(broker_url, nowhere) as app, Connection(broker_url) as connection:
        declare_topology(connection)
        send_fence(app, "embed")

        assert eventually(lambda: take(connection, "embed"))


def test_a_success_is_told_and_never_written_over(redis_url: str) -> None:
    settings = BrokerSettings(broker_url=redis_url, result_url=redis_url)
    with create_app("storing", settings, TaskSettings()) as app:
        await_no_results(app)
        key = app.backend.get_key_for_task("task")
        with app.backend.client.pubsub() as heard:
            heard.subscribe(key)
            assert eventually(lambda: heard.get_message(timeout=1))["type"] == "subscribe"
            app.backend.store_result("task", {"pid": 7}, STARTED)
            app.backend.store_result("task", {"answer": 42}, SUCCESS)
            app.backend.store_result("task", {"pid": 8}, STARTED)
            app.backend.store_result("task", ValueError("late"), FAILURE)
            told = [eventually(lambda: heard.get_message(timeout=1))["data"] for _ in range(2)]
            assert heard.get_message(timeout=0.2) is None

        assert [json.loads(each)["status"] for each in told] == [STARTED, SUCCESS]
        assert app.backend.client.get(key) == told[1]
        assert app.backend.get_task_meta("task")["result"] == {"answer": 42}
        assert 0 < app.backend.client.ttl(key) <= 3600


def test_a_join_is_kept_for_the_longest_backlog(redis_url: str) -> None:
    settings = BrokerSettings(broker_url=redis_url, result_url=redis_url)
    with create_app("joining", settings, TaskSettings()) as app, Connection(redis_url) as connection:
        declare_topology(connection)
        _, chord = image_workflow(app, Dispatch(SHA256, 1, Lane.INTERACTIVE, Recipe.current())).tasks
        chord.apply_async()
        message = eventually(lambda: take(connection, "embed"))
        app.backend.mark_as_done(
            message.headers["id"],
            Embedded(model="tiny@0123456789ab", dim=1, vector="embeddings/x").to_wire(),
            request=Context(message.headers | message.payload[2]),
        )
        ttls = [app.backend.client.ttl(key) for key in app.backend.client.keys("celery-taskset-meta-*.*")]
        app.backend.result_consumer.subscribed_to.clear()

    assert ttls
    # Not the hour after which results go: everything that waits longer would never be joined.
    assert min(ttls) > 6 * 86_400
