"""What becomes of dead letters, on a real RabbitMQ. Redis has none."""

import json
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from conftest import eventually
from kombu import Connection, Producer
from redis import Redis
from scheduler_photos import RECIPE, Photo, dispatch_all, original_of, state_of, upload
from sqlalchemy import Engine, select

from darkroom import topology
from darkroom.celery_app import create_app, request
from darkroom.contracts.messages import Fence, ModelReference, Nothing, Prepare, RegisterModel
from darkroom.contracts.tasks import FENCE, PREPARE, RECONCILE, REGISTER_MODEL
from darkroom.database import dead_letters as rows
from darkroom.database.dead_letters import Outcome
from darkroom.database.tables import dead_letters, periodic_jobs
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import BlobStore, open_blob_store
from darkroom.tries import TriesMarkers
from darkroom.workflow import task_ids
from darkroom_cli.servers import ChildProcess
from scheduler.dead_letters import DeadLetters, letter_of


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


def letters_of(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(dead_letters).order_by(dead_letters.c.id)))


def dead_letters_left(broker_url: str) -> int:
    with Connection(broker_url) as connection, connection.channel() as channel:
        return int(channel.queue_declare(topology.DEAD_LETTERS, passive=True).message_count)


@pytest.mark.parametrize("broker_url", ["rabbitmq"], indirect=True)
def test_each_dead_letter_is_settled_and_told(
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
    model = ModelReference(id="tiny@0123456789ab", source="bundled")
    request(app, REGISTER_MODEL, RegisterModel(model=model, dim=4)).apply_async()
    reject_all(broker_url, "finalize", 1)
    request(app, RECONCILE, Nothing(), expires=1).apply_async()
    eventually(lambda: dead_letters_left(broker_url) == 9)

    spawn("darkroom-scheduler", "maintenance")
    eventually(lambda: len(letters_of(engine)) == 8, within_s=60)
    found = eventually(lambda: (row := summary(engine)) and "4 kept" in row.summary and row)
    assert found.summary == "4 kept, 1 dispatched again, 1 failed image, 2 obsolete"
    assert found.alarm == "4 dead letters wait for a person: `darkroom dead-letters list`"
    eventually(lambda: dead_letters_left(broker_url) == 0)

    assert state_of(engine, poison) == "failed"
    assert original_of(engine, poison.sha256).error["type"].endswith("/killed-worker")
    assert original_of(engine, innocent.sha256).losses == 1
    assert original_of(engine, older.sha256).dispatched_at is not None  # another dispatch than the letter's
    letters = letters_of(engine)
    of_photos = {letter.sha256: letter for letter in letters if letter.sha256}
    assert {sha256: letter.outcome for sha256, letter in of_photos.items()} == {
        poison.sha256: "failed_image",
        innocent.sha256: "dispatched_again",
        older.sha256: "obsolete",
    }
    killer = of_photos[poison.sha256]
    assert (killer.queue, killer.task, killer.reason, killer.deaths) == ("prepare", PREPARE.name, "rejected", 1)
    assert (killer.task_id, killer.generation) == (task_ids(poison.sha256, 1)["prepare"], 1)
    others = {(letter.task, letter.outcome): letter.cause for letter in letters if not letter.sha256}
    assert others[FENCE.name, "obsolete"] == "the reconciler sends another fence"
    assert others[REGISTER_MODEL.name, "kept"] == "nothing sends it again by itself"
    assert (RECONCILE.name, "obsolete") not in others, "a job that outlived its use leaves no row"
    assert others[None, "kept"] == "it is no task of Darkroom"
    assert others[PREPARE.name, "kept"].startswith("it cannot be read")


def test_a_letter_that_is_delivered_twice_is_settled_once(engine: Engine, store: BlobStore, redis_url: str) -> None:
    photo = upload(engine, store, "photo")
    dispatch_all(engine)
    message = Prepare(sha256=photo.sha256, generation=1, lane="interactive", recipe=RECIPE)
    body = [[], {"message": message.to_wire()}, {}]
    letter = letter_of({"task": PREPARE.name, "id": "1"}, "prepare", json.dumps(body).encode(), {})
    reader = DeadLetters(engine, TriesMarkers(Redis.from_url(redis_url)))
    assert reader.settle(letter, lambda: body) is Outcome.DISPATCHED_AGAIN
    dispatch_all(engine)
    assert reader.settle(letter, lambda: body) is None
    reader.keep(letter, "too late")
    assert original_of(engine, photo.sha256).losses == 1
    assert [one.outcome for one in letters_of(engine)] == ["dispatched_again"]


def test_a_letter_whose_row_is_not_committed_is_not_settled(
    engine: Engine, store: BlobStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = upload(engine, store, "photo")
    dispatch_all(engine)
    message = Prepare(sha256=photo.sha256, generation=1, lane="interactive", recipe=RECIPE)
    body = [[], {"message": message.to_wire()}, {}]
    letter = letter_of({"task": PREPARE.name, "id": "1"}, "prepare", b"", {})
    reader = DeadLetters(engine, TriesMarkers(Redis.from_url(redis_url)))
    monkeypatch.setattr(rows, "show_counts", Mock(side_effect=RuntimeError("just before the commit")))
    with pytest.raises(RuntimeError):
        reader.settle(letter, lambda: body)
    assert (letters_of(engine), original_of(engine, photo.sha256).losses) == ([], 0)
