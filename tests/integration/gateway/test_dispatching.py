"""Rows become messages: the canvas that is published, and every way in which publishing can be hindered."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually
from gateway_outcomes import dispatched_hashes, finish, waiting_messages
from gateway_pictures import MODEL_ID, picture
from gateway_serving import Served, Workers, publish_patiently
from redis import Redis
from sqlalchemy import Engine, select, text

from darkroom.celery_app import create_app
from darkroom.contracts.base import Lane
from darkroom.contracts.keys import Recipe, proxy_key
from darkroom.contracts.messages import ModelReference, RegisterModel
from darkroom.contracts.tasks import EMBED, FINALIZE, PREPARE, RECORD_EMBEDDING, THUMBNAILS
from darkroom.database import dispatch
from darkroom.database.tables import originals, tasks
from darkroom.database.vectors import plan_backfill, register_model
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.workflow import task_ids
from darkroom_cli.servers import PostgresServer, RabbitServer
from gateway import dispatcher as dispatching
from gateway.broker import BrokerLink
from gateway.dispatcher import Dispatcher

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]


def original(engine: Engine, sha256: str):
    with engine.connect() as connection:
        return connection.execute(select(originals).where(originals.c.sha256 == sha256)).one()


def all_dispatched(engine: Engine, count: int) -> Callable[[], bool]:
    def check() -> bool:
        with engine.connect() as connection:
            statement = text("SELECT count(*) FROM originals WHERE dispatched_at IS NOT NULL")
            return connection.scalar(statement) == count

    return check


def new_dispatcher(engine: Engine, broker_url: str, redis_url: str, lane: Lane | None = None) -> Dispatcher:
    """A dispatcher that runs no thread: tests call `dispatch_once`."""
    app = create_app("test", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    publish_patiently(app)
    return Dispatcher(engine, app, BrokerLink(app), Recipe.current(), batch=50, lease_s=60, lane=lane)


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_a_photo_travels_the_whole_canvas(
    serve: Serve, start_workers: Callable[..., Workers], broker_url: str, redis_url: str, photo: bytes, lane: str
) -> None:
    workers = start_workers(broker_url, redis_url)
    gateway = serve(broker_url=broker_url, result_url=redis_url, dispatcher_enabled=True)
    (image,) = gateway.accepted(photo, lane=lane)
    sha256 = image["sha256"]
    (finalize,) = eventually(lambda: workers.calls(FINALIZE))

    ids = task_ids(sha256, 1)
    (prepare,), (thumbnails,), (embed,) = (workers.calls(task) for task in (PREPARE, THUMBNAILS, EMBED))
    steps = {"prepare": prepare, "thumbnails": thumbnails, "embed": embed, "finalize": finalize}
    assert {step: call.task_id for step, call in steps.items()} == ids
    suffix = ".bulk" if lane == "bulk" else ""
    assert {step: call.routing_key for step, call in steps.items()} == {
        "prepare": f"prepare{suffix}",
        "thumbnails": f"thumbnails{suffix}",
        "embed": f"embed{suffix}",
        "finalize": f"finalize{suffix}",
    }
    for call in steps.values():
        assert (call.message["sha256"], call.message["generation"], call.message["lane"]) == (sha256, 1, lane)
    assert {"model": MODEL_ID, "dim": 3, "vector": f"embeddings/{MODEL_ID}/{sha256}.npy"} in finalize.previous
    assert embed.message["proxy"] == proxy_key(sha256, Recipe.current())


def test_a_dispatch_is_stamped_and_its_tasks_can_be_asked_for(
    serve: Serve, amqp_url: str, redis_url: str, engine: Engine, photo: bytes
) -> None:
    gateway = serve(broker_url=amqp_url, result_url=redis_url, dispatcher_enabled=True)
    (image,) = gateway.accepted(photo)
    eventually(all_dispatched(engine, 1))

    shown = gateway.http.get(f"/v1/images/{image['id']}").json()
    assert shown["status"] == "processing"
    assert shown["tasks"] == task_ids(image["sha256"], 1)
    with engine.connect() as connection:
        recorded = set(connection.scalars(select(tasks.c.id)))
    assert {str(one) for one in recorded} == set(shown["tasks"].values())
    answers = {step: gateway.http.get(f"/v1/tasks/{one}").json() for step, one in shown["tasks"].items()}
    assert {step: (answer["name"], answer["state"]) for step, answer in answers.items()} == {
        "prepare": (PREPARE.name, "PENDING"),
        "thumbnails": (THUMBNAILS.name, "PENDING"),
        "embed": (EMBED.name, "PENDING"),
        "finalize": (FINALIZE.name, "PENDING"),
    }
    assert dispatched_hashes(amqp_url) == [image["sha256"]]


def test_publishing_needs_no_result_store(serve: Serve, amqp_url: str, engine: Engine, photo: bytes) -> None:
    gateway = serve(broker_url=amqp_url, dispatcher_enabled=True)
    (image,) = gateway.accepted(photo)
    eventually(all_dispatched(engine, 1))
    assert dispatched_hashes(amqp_url) == [image["sha256"]]


def test_interactive_photos_are_dispatched_before_bulk_ones(
    gateway: Served, amqp_url: str, redis_url: str, engine: Engine
) -> None:
    gateway.accepted(picture(1), lane="bulk")
    (second,) = gateway.accepted(picture(2))
    with engine.begin() as connection:
        leased = dispatch.lease(connection, 1, 60)
    assert [one.sha256 for one in leased] == [second["sha256"]]


def test_an_interactive_photo_does_not_wait_while_a_batch_of_bulk_is_published(
    gateway: Served, amqp_url: str, redis_url: str, engine: Engine
) -> None:
    gateway.accepted(*[picture(n) for n in range(10)], lane="bulk")
    of_everything = new_dispatcher(engine, amqp_url, redis_url)
    of_interactive = new_dispatcher(engine, amqp_url, redis_url, Lane.INTERACTIVE)
    (interactive,) = gateway.accepted(picture(99))
    with engine.begin() as connection:
        leased = dispatch.lease(connection, 50, 60, Lane.BULK)
    assert len(leased) == 10, "somebody is publishing these"

    assert of_interactive.dispatch_once() == 1
    assert dispatched_hashes(amqp_url) == [interactive["sha256"]]
    assert of_interactive.dispatch_once() == of_everything.dispatch_once() == 0


def test_two_dispatchers_share_the_work(gateway: Served, amqp_url: str, redis_url: str, engine: Engine) -> None:
    gateway.accepted(*[picture(n) for n in range(30)])
    starting = threading.Barrier(2)

    def dispatch_all() -> None:
        one = new_dispatcher(engine, amqp_url, redis_url)
        one._batch = 7
        starting.wait()
        while one.dispatch_once():
            pass

    threads = [threading.Thread(target=dispatch_all) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hashes = dispatched_hashes(amqp_url)
    assert len(hashes) == len(set(hashes)) == 30


def test_a_dispatcher_that_died_before_stamping_costs_one_duplicate(
    gateway: Served, amqp_url: str, redis_url: str, engine: Engine, photo: bytes
) -> None:
    (image,) = gateway.accepted(photo)
    one = new_dispatcher(engine, amqp_url, redis_url)
    with engine.begin() as connection:
        leased = dispatch.lease(connection, 10, 60)
    one._publish(leased, one._workflow, float("inf"))  # and here it dies
    assert one.dispatch_once() == 0, "its lease still holds"
    with engine.begin() as connection:
        connection.execute(text("UPDATE originals SET lease_until = now() - interval '1 second'"))
    assert one.dispatch_once() == 1
    messages = waiting_messages(amqp_url, "prepare")
    assert [message.payload[1]["message"]["generation"] for message in messages] == [1, 2]
    assert original(engine, image["sha256"]).generation == 2


def test_a_dispatcher_that_stops_in_mid_batch_gives_the_rest_to_another(
    gateway: Served, amqp_url: str, redis_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.accepted(*[picture(n) for n in range(5)])
    stopping, another = (new_dispatcher(engine, amqp_url, redis_url) for _ in range(2))
    stop, workflow = threading.Event(), dispatching.image_workflow

    def second_to_last(*arguments: Any) -> Any:
        if len(published) == 1:
            stop.set()
        published.append(arguments)
        return workflow(*arguments)

    published: list[Any] = []
    monkeypatch.setattr(dispatching, "image_workflow", second_to_last)
    stopping.run(stop)
    assert len(published) == 2
    assert another.dispatch_once() == 3
    assert len(set(dispatched_hashes(amqp_url))) == 5


def test_an_old_dispatch_does_not_stamp_over_a_newer_request(
    gateway: Served, amqp_url: str, redis_url: str, engine: Engine, photo: bytes
) -> None:
    (image,) = gateway.accepted(photo, lane="bulk")
    with engine.begin() as connection:
        leased = dispatch.lease(connection, 10, 60)
    gateway.accepted(photo, lane="interactive")  # between publishing and stamping
    with engine.begin() as connection:
        dispatch.stamp(connection, leased)
    assert original(engine, image["sha256"]).dispatched_at is None
    assert new_dispatcher(engine, amqp_url, redis_url).dispatch_once() == 1
    (message,) = waiting_messages(amqp_url, "prepare")
    assert message.payload[1]["message"]["lane"] == Lane.INTERACTIVE


def test_a_notification_wakes_the_dispatcher(
    serve: Serve, amqp_url: str, redis_url: str, engine: Engine, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "POLL_S", 3600)
    gateway = serve(broker_url=amqp_url, result_url=redis_url, dispatcher_enabled=True)
    (image,) = gateway.accepted(photo)
    eventually(all_dispatched(engine, 1))
    with engine.begin() as connection:
        connection.execute(text("UPDATE originals SET dispatched_at = NULL, lease_until = NULL"))
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_notify('darkroom_dispatch', '')"))
    eventually(all_dispatched(engine, 1))
    assert original(engine, image["sha256"]).generation == 2


def test_backfills_go_out_when_no_photo_waits(gateway: Served, amqp_url: str, redis_url: str, engine: Engine) -> None:
    first, second = gateway.accepted(picture(1), picture(2))
    new_model = "newer@0123456789ab"
    with engine.begin() as connection:
        connection.execute(text("UPDATE originals SET dispatched_at = now() WHERE sha256 = :s"), {"s": first["sha256"]})
    finish(engine, gateway.parts.store, first["sha256"], [1.0, 0.0, 0.0])
    with engine.begin() as connection:
        register_model(connection, RegisterModel(model=ModelReference(id=new_model, source="hub"), dim=3))
        assert plan_backfill(connection, new_model, 10) == 1
    one = new_dispatcher(engine, amqp_url, redis_url)
    assert [one.dispatch_once() for _ in range(3)] == [1, 1, 0]
    assert dispatched_hashes(amqp_url, "prepare") == [second["sha256"]]
    (backfill,) = waiting_messages(amqp_url, "embed.bulk")
    assert backfill.headers["task"] == EMBED.name
    assert backfill.payload[1]["message"]["proxy"] == proxy_key(first["sha256"], Recipe.current())
    (then,) = backfill.payload[2]["chain"]
    assert then["task"] == RECORD_EMBEDDING.name
    assert then["options"]["routing_key"] == "finalize.bulk"


def test_a_flushed_redis_gets_its_bindings_back(serve: Serve, redis_url: str, engine: Engine, photo: bytes) -> None:
    gateway = serve(broker_url=redis_url, result_url=redis_url, dispatcher_enabled=True)
    gateway.accepted(photo)
    eventually(all_dispatched(engine, 1))
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
    (image,) = gateway.accepted(picture(7))
    eventually(all_dispatched(engine, 2))
    assert dispatched_hashes(redis_url) == [image["sha256"]]


@pytest.fixture(scope="module")
def rabbit(server_folder: Path) -> Iterator[RabbitServer]:
    """A RabbitMQ of these tests alone, to be stopped and started."""
    server = RabbitServer(server_folder / "gateway-rabbitmq")
    yield server
    server.stop()


def test_uploads_go_on_while_the_broker_is_down_hung_or_restarted(
    impatience: None, serve: Serve, rabbit: RabbitServer, redis_url: str, engine: Engine
) -> None:
    gateway = serve(broker_url=rabbit.url, result_url=redis_url, dispatcher_enabled=True)
    accepted: list[str] = []

    def upload(*seeds: int) -> None:
        accepted.extend(image["sha256"] for image in gateway.accepted(*[picture(seed) for seed in seeds]))

    def is_dispatched() -> None:
        eventually(all_dispatched(engine, len(accepted)), within_s=60)

    upload(0, 1)  # while it is down
    eventually(lambda: gateway.http.get("/v1/status").json()["dispatcher"]["connected"] is False)
    with engine.connect() as connection:
        assert connection.scalar(select(originals.c.generation).limit(1)) == 0, "nothing is leased without a broker"
    rabbit.start()
    is_dispatched()

    os.kill(rabbit.pid or 0, signal.SIGSTOP)
    try:
        upload(2, 3)  # while it hangs
        eventually(lambda: gateway.http.get("/v1/status").json()["dispatcher"]["connected"] is False)
        assert gateway.http.get("/readyz").json()["broker"] is False
        upload(4)
    finally:
        os.kill(rabbit.pid or 0, signal.SIGCONT)
    is_dispatched()

    rabbit.stop()
    upload(5, 6)
    rabbit.start()
    upload(7)
    is_dispatched()
    # Twice is harmless, as after a confirm that did not arrive in time; never is not.
    assert set(dispatched_hashes(rabbit.url)) == set(accepted)


def test_the_gateway_outlives_a_restart_of_postgresql(
    serve: Serve, server_folder: Path, amqp_url: str, redis_url: str, photo: bytes
) -> None:
    from darkroom.database.engine import migrate, sync_engine
    from darkroom.settings import DatabaseSettings

    server = PostgresServer(server_folder / "gateway-postgres")
    server.start()
    try:
        engine = sync_engine(DatabaseSettings(database_url=server.url))
        migrate(engine)
        gateway = serve(broker_url=amqp_url, result_url=redis_url, dispatcher_enabled=True, database_url=server.url)
        gateway.accepted(photo)
        eventually(all_dispatched(engine, 1))
        server.stop()
        refused = gateway.upload(picture(1))
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert refused.json()["type"].endswith("/database-unavailable")
        assert gateway.http.get("/readyz").status_code == 503
        assert gateway.http.get("/healthz").status_code == 200
        server.start()
        # That it was away is held against uploads for a second.
        eventually(lambda: gateway.upload(picture(1)).status_code == 202)
        eventually(all_dispatched(engine, 2))
        engine.dispose()
    finally:
        server.stop()
