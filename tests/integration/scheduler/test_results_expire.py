"""Results that nobody asks for any more are not what a join waits by: it outlives them, and the backlog with it."""

import hashlib
import io
import os
import signal
import time
from collections.abc import Callable

import pytest
from conftest import eventually
from PIL import Image
from redis import Redis
from scheduler_photos import RECIPE, Photo, new_id, original_of, state_of
from sqlalchemy import Engine

from darkroom.celery_app import await_no_results, create_app
from darkroom.contracts import keys
from darkroom.contracts.base import Lane
from darkroom.database import dispatch, uploads, vectors
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import BlobStore, open_blob_store
from darkroom.workflow import Dispatch, image_workflow, task_ids
from darkroom_cli.servers import ChildProcess

EXPIRE_S = 2
STOP_S = 5


def upload(engine: Engine, store: BlobStore) -> Photo:
    """Uploads a real picture, as the gateway does."""
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "JPEG")
    data = file.getvalue()
    photo = Photo(hashlib.sha256(data).hexdigest(), new_id(), new_id())
    received = uploads.ReceivedFile(photo.image_id, photo.sha256, len(data), "gradient.jpg")
    request = uploads.Upload(photo.batch_id, (received,), Lane.INTERACTIVE)
    with engine.begin() as connection:
        known = uploads.lock_originals(connection, request)
        store.put(keys.original_key(photo.sha256), data)
        uploads.accept(connection, request, known)
    return photo


@pytest.mark.timeout(400)
@pytest.mark.parametrize("broker_url", ["rabbitmq"], indirect=True)
def test_a_join_waits_longer_for_a_stopped_embedder_than_the_other_parts_results_live(
    spawn: Callable[..., ChildProcess], engine: Engine, blob_url: str, broker_url: str, redis_url: str
) -> None:
    expire = {"DARKROOM_RESULT_EXPIRES_S": str(EXPIRE_S)}
    embedder = spawn("darkroom-embedder", DARKROOM_MODEL_THREADS="1", **expire)
    spawn("darkroom-thumbnailer", DARKROOM_WORKER_CONCURRENCY="1", **expire)
    spawn("darkroom-scheduler", "finalize", **expire)

    def has_model() -> bool:
        """the embedder has registered its model"""
        with engine.connect() as connection:
            return vectors.active_model(connection) is not None

    eventually(has_model, within_s=120)
    assert embedder.pid is not None
    os.kill(embedder.pid, signal.SIGSTOP)
    store = open_blob_store(blob_url)
    photo = upload(engine, store)
    app = create_app(
        "test", BrokerSettings(broker_url=broker_url, result_url=redis_url, result_expires_s=EXPIRE_S), TaskSettings()
    )
    await_no_results(app)
    with engine.begin() as connection:
        [leased] = dispatch.lease(connection, 1, 60)
    image_workflow(app, Dispatch(photo.sha256, leased.generation, Lane.INTERACTIVE, RECIPE)).apply_async()
    with engine.begin() as connection:
        dispatch.stamp(connection, [leased])
    eventually(lambda: store.exists(keys.described_key(photo.sha256, RECIPE)), within_s=60)
    rendered_at = time.monotonic()
    results = [f"celery-task-meta-{task_ids(photo.sha256, 1)[step]}" for step in ("prepare", "thumbnails")]

    def is_forgotten() -> bool:
        """the results are gone, and the embedder has stood for five seconds"""
        with Redis.from_url(redis_url) as redis:
            return not redis.exists(*results) and time.monotonic() - rendered_at > STOP_S

    eventually(is_forgotten, within_s=60)
    assert state_of(engine, photo) == "in_flight"
    os.kill(embedder.pid, signal.SIGCONT)
    eventually(lambda: state_of(engine, photo) == "ready", within_s=60)
    original = original_of(engine, photo.sha256)
    assert (original.generation, original.losses) == (1, 0)
