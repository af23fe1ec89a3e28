"""What becomes of dead letters, on a real RabbitMQ."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from conftest import eventually
from kombu import Connection, Producer
from redis import Redis
from scheduler_photos import RECIPE, Photo, dispatch_all, original_of, state_of, upload
from sqlalchemy import Engine, select

from darkroom import topology
from darkroom.celery_app import create_app, request
from darkroom.contracts.messages import Fence, Prepare
from darkroom.contracts.tasks import FENCE, PREPARE
from darkroom.database.tables import periodic_jobs
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import BlobStore, open_blob_store
from darkroom.tries import TriesMarkers
from darkroom.workflow import task_ids
from darkroom_cli.servers import ChildProcess

pytestmark = pytest.mark.parametrize("broker_url", ["rabbitmq"], indirect=True)


@pytest.fixture
def store(blob_url: str) -> BlobStore:
    return open_blob_store(blob_url)


@pytest.fixture
def app(broker_url: str, redis_url: str) -> Celery:
    return create_app("test", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())


def prepare(app: Celery, photo: Photo, generation: int = 1) -> None:
    """Publishes the first step of a photo's workflow."""
    message = Prepare(sha256=photo.sha256, generation=generation, lane="interactive", recipe=RECIPE)
    request(app, PREPARE, message, task_id=task_ids(photo.sha256, generation)["prepare"]).apply_async()


def reject_all(broker_url: str, queue: str, count: int) -> None:
    """Takes messages off a queue as a worker would, and rejects them."""
    with Connection(broker_url) as connection, connection.channel() as channel:
        taken = 0
        while taken < count:
            message = eventually(lambda: channel.basic_get(queue))
            channel.basic_reject(message.delivery_tag, requeue=False)
            taken += 1


def summary(engine: Engine) -> Any:
    """What the row of the dead letters says."""
    with engine.connect() as connection:
        return connection.execute(select(periodic_jobs).where(periodic_jobs.c.name == "dead_letters")).one_or_none()


def dead_letters_left(broker_url: str) -> int:
    with Connection(broker_url) as connection, connection.channel() as channel:
        return int(channel.queue_declare(topology.DEAD_LETTERS, passive=True).message_count)


def test_each_dead_letter_is_settled(
    spawn: Callable[..., ChildProcess], engine: Engine, store: BlobStore, app: Celery, broker_url: str, redis_url: str
) -> None:
    poison, innocent, older = (upload(engine, store, name) for name in ("poison", "innocent", "older"))
    dispatch_all(engine)
    tries = TriesMarkers(Redis.from_url(redis_url))
    for _ in range(3):
        tries.begin(task_ids(poison.sha256, 1)["prepare"])
    for photo, generation in ((poison, 1), (innocent, 1), (older, 9)):
        prepare(app, photo, generation)
    request(app, FENCE, Fence(number=1, queue="prepare"), queue="prepare").apply_async()
    reject_all(broker_url, "prepare", 4)
    with Connection(broker_url) as connection:
        producer = Producer(connection, exchange=topology.DEAD, routing_key="prepare")
        producer.publish(b"\xff not JSON", content_type="application/json", content_encoding="utf-8")
        producer.publish({"hello": "world"}, headers={"task": PREPARE.name, "id": "1"})
        producer.publish(b"x", content_type="application/x-python-serialize", content_encoding="binary")

    spawn("darkroom-scheduler", "maintenance")
    eventually(lambda: state_of(engine, poison) == "failed", within_s=60)
    eventually(lambda: original_of(engine, innocent.sha256).dispatched_at is None)
    found = eventually(lambda: (row := summary(engine)) and "3 unreadable" in row.summary and row)
    assert found.summary == "1 failed, 1 sent again, 2 dropped, 3 unreadable since the start"
    assert found.alarm == "3 dead letters could not be read; the log has them"
    error = original_of(engine, poison.sha256).error
    assert error["type"].endswith("/killed-worker")
    assert original_of(engine, innocent.sha256).losses == 1
    assert original_of(engine, older.sha256).dispatched_at is not None  # another dispatch than the letter's
    eventually(lambda: dead_letters_left(broker_url) == 0)
