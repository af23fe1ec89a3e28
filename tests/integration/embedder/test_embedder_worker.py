"""The embedder as a process of its own, on both brokers: batches, queues, errors, and every way to be interrupted."""

import base64
import hashlib
import io
import json
import os
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from celery import Celery, chord
from celery.result import AsyncResult
from conftest import eventually, log_records
from cuttable_proxy import CuttableProxy
from kombu import Connection
from PIL import Image
from redis import Redis

from darkroom import topology
from darkroom.celery_app import await_no_results, create_app, declare_topology, request
from darkroom.contracts.base import Lane
from darkroom.contracts.keys import embedding_key
from darkroom.contracts.messages import Embed, EmbedPicture, EmbedText, ModelReference, Probe, ProbeKind
from darkroom.contracts.tasks import EMBED, EMBED_PICTURE, EMBED_TEXT, PROBE, RECORD_FAILURE, REGISTER_MODEL
from darkroom.settings import BrokerSettings, ModelSettings, TaskSettings
from darkroom.storage import BlobStore, open_blob_store
from darkroom_cli.servers import ChildProcess
from embedder.model import load_model

SCRIPT = Path(__file__).with_name("embedder_with_faults.py")
soon = partial(eventually, within_s=100)
"""A deadline for machines that are busy with something else."""

GREEN, RED, MAGENTA = (30, 160, 60), (255, 0, 0), (255, 0, 255)

on_redis = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
on_rabbitmq = pytest.mark.parametrize("broker_url", ["rabbitmq"], indirect=True)
"""For what does not depend on the broker: a process with a model takes seconds to start."""

pytestmark = pytest.mark.timeout(300)  # the rest of the machine may be busy


class Worker:
    """An embedder process, its log, and the switches of embedder_with_faults.py."""

    def __init__(self, start: Callable[[], ChildProcess], log: Path, folder: Path) -> None:
        self._log = log
        self.folder = folder
        self.process = start()

    def events(self, name: str) -> list[dict]:
        """The log records of one name, oldest first."""
        return [record for record in log_records(self._log.read_text()) if record["event"].startswith(name)]

    def received(self, contract) -> int:
        return sum("received" in event["event"] for event in self.events(f"Task {contract.name}["))

    def ready_times(self) -> int:
        return sum(event["event"].endswith(" ready.") for event in self.events("embedder@"))

    def wait_until_ready(self, times: int = 1) -> None:
        soon(lambda: self.ready_times() >= times)

    def switch(self, name: str, *, on: bool) -> None:
        if on:
            (self.folder / name).touch()
        else:
            (self.folder / name).unlink()

    def restart(self) -> None:
        times = self.ready_times()
        self.process.wait()
        self.process.start()
        self.wait_until_ready(times + 1)


@pytest.fixture
def start_worker(spawn, tmp_path):
    def start(**settings: str) -> Worker:
        folder = tmp_path / "switches"
        folder.mkdir()
        # A model that a test has stopped does not hang, however long the machine takes to do the rest.
        patient = {"DARKROOM_TASK_HARD_LIMIT_S": "300"}
        settings = patient | settings | {"EMBEDDER_TEST_FOLDER": str(folder), "DARKROOM_MODEL_THREADS": "1"}
        worker = Worker(lambda: spawn(str(SCRIPT), **settings), tmp_path / "0-embedder_with_faults.log", folder)
        worker.wait_until_ready()
        return worker

    return start


@pytest.fixture
def client(broker_url: str, redis_url: str) -> Celery:
    app = create_app("client", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    await_no_results(app)  # states are asked for, so that no subscription outlives the test's Redis
    with Connection(broker_url) as connection:
        declare_topology(connection)
    return app


@pytest.fixture
def redis(redis_url: str):
    with Redis.from_url(redis_url) as redis:
        yield redis


@pytest.fixture(scope="module")
def bundled() -> ModelReference:
    return load_model("bundled", ModelSettings(model_device="cpu", model_dtype="float32")).reference


@pytest.fixture
def store(blob_url: str) -> BlobStore:
    return open_blob_store(blob_url)


def sha(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def proxy_of(number: int) -> str:
    return f"derived/{sha(number)}/proxy.jpg"


def put_proxy(store: BlobStore, number: int, colour: tuple[int, int, int] = GREEN) -> None:
    file = io.BytesIO()
    Image.new("RGB", (96, 64), colour).save(file, "JPEG", quality=95)
    store.put(proxy_of(number), file.getvalue())


def embed(app: Celery, number: int, lane: Lane = Lane.BULK, **options):
    message = Embed(sha256=sha(number), generation=1, lane=lane, proxy=proxy_of(number))
    return request(app, EMBED, message, lane=lane, **options)


def publish_photos(
    app: Celery, store: BlobStore, numbers: range | list[int], lane: Lane = Lane.BULK
) -> list[AsyncResult]:
    for number in numbers:
        put_proxy(store, number)
    return [embed(app, number, lane).apply_async() for number in numbers]


def all_succeed(results: list[AsyncResult], within_s: float = 120) -> None:
    def states() -> bool:
        return {result.state for result in results} == {"SUCCESS"}

    soon(states, within_s=within_s, every_s=0.3)


def tasks_in(broker_url: str, queue: str) -> list[tuple[str, dict]]:
    """Takes all messages off a queue: their task's name and its message."""
    found = []
    with Connection(broker_url) as connection, connection.channel() as channel:
        while message := topology.task_queue(queue)(channel).get():
            found.append((message.headers["task"], message.payload[1]["message"]))
            message.ack()
    return found


def hand_out_again(broker_url: str) -> None:
    """On Redis, gives back at once what a worker that is gone held, as other workers do when its time is over."""
    if broker_url.startswith("amqp"):
        return
    options = {"visibility_timeout": 0, "unacked_mutex_expire": 1}
    with Connection(broker_url, transport_options=options) as connection, connection.channel() as channel:

        def is_done() -> bool:
            channel.qos.restore_visible(num=1000, interval=1)
            return not channel.client.exists(channel.unacked_key)

        soon(is_done)


def send_again(app: Celery, broker_url: str, photos: dict[int, AsyncResult]) -> None:
    """Does what the reconciler would: on Redis, a message on its way to a process that just ended is gone."""
    if broker_url.startswith("amqp"):
        return
    with Redis.from_url(broker_url) as broker:
        lists = [broker.lrange(key, 0, -1) for key in broker.scan_iter("embed.bulk*")]
    kept = {json.loads(message)["headers"]["id"] for messages in lists for message in messages}
    for number, result in photos.items():
        if result.state == "PENDING" and result.id not in kept:
            embed(app, number).apply_async(task_id=result.id)


def tries(redis: Redis) -> int:
    return sum(1 for _ in redis.scan_iter("tries:*"))


def fill_model(worker: Worker, app: Celery, store: BlobStore, redis: Redis, numbers: range) -> list[AsyncResult]:
    """Publishes photos and returns when a batch of them is being computed, and stands still."""
    worker.switch("closed", on=True)
    results = publish_photos(app, store, numbers)
    soon(lambda: tries(redis))
    return results


def test_chords_are_all_joined_and_photos_computed_together(start_worker, client, store, broker_url, bundled):
    worker = start_worker()
    soon(lambda: worker.events("embedder.model_registered"))
    assert tasks_in(broker_url, "finalize") == [
        (REGISTER_MODEL.name, {"model": {"id": bundled.id, "source": "bundled"}, "dim": 192})
    ]
    worker.switch("closed", on=True)  # a backlog comes into being
    for number in range(600):
        put_proxy(store, number)
    joins = [
        chord(
            [embed(client, 2 * number, Lane.INTERACTIVE), embed(client, 2 * number + 1, Lane.BULK)],
            request(client, PROBE, Probe(kind=ProbeKind.ADD, queue="embed"), queue="embed", takes_result=True),
            app=client,
        ).apply_async()
        for number in range(300)
    ]
    worker.switch("closed", on=False)
    all_succeed(joins, within_s=200)
    assert all(store.exists(embedding_key(bundled.id, sha(number))) for number in range(600))
    batches = worker.events("embedder.batch")
    assert sum(batch["size"] for batch in batches) == 600
    assert max(batch["size"] for batch in batches) == 16
    assert any(batch["interactive"] and batch["bulk"] for batch in batches)
    # Fewer passes through the model than a quarter of one for each photo.
    assert len(batches) < 150


def test_a_search_waits_only_for_the_batch_being_computed(start_worker, client, store, redis, bundled):
    worker = start_worker(DARKROOM_BATCH_SIZE="4")
    results = fill_model(worker, client, store, redis, range(50))
    soon(lambda: worker.received(EMBED) == 8)  # the window of bulk: two batches
    results += publish_photos(client, store, range(50, 100), Lane.INTERACTIVE)
    soon(lambda: worker.received(EMBED) == 16)  # and that of the interactive lane
    put_proxy(store, 1000)
    by_text = request(client, EMBED_TEXT, EmbedText(text="green", model=bundled))
    by_picture = request(client, EMBED_PICTURE, EmbedPicture(proxy=proxy_of(1000), model=bundled))
    searches = [search.clone().apply_async() for search in (by_text, by_picture) * 3]
    soon(lambda: worker.received(EMBED_TEXT) + worker.received(EMBED_PICTURE) == 4)
    assert worker.received(EMBED) == 16
    worker.switch("closed", on=False)
    all_succeed([*results, *searches])
    for search in searches:
        answer = search.result
        vector = np.frombuffer(base64.b64decode(answer["vector"]), "<f2")
        assert answer["model"] == bundled.id
        assert np.linalg.norm(vector.astype(np.float32)) == pytest.approx(1, abs=1e-2)
    first, second = worker.events("embedder.batch")[:2]
    assert first["query"] == 0  # it was being computed when the searches came
    assert (second["query"], second["size"]) == (4, 4)


def test_an_error_fails_only_its_own_photo(start_worker, client, store, broker_url):
    worker = start_worker()
    worker.switch("closed", on=True)
    innocent = publish_photos(client, store, range(10))
    store.put(proxy_of(100), b"no picture")
    damaged = embed(client, 100).apply_async()
    put_proxy(store, 101, RED)
    red = embed(client, 101).apply_async()
    late = embed(client, 102).apply_async()
    invalid = client.signature(
        EMBED.name, kwargs={"message": {"sha256": "?"}}, exchange=topology.TASKS.name, routing_key="embed.bulk"
    ).apply_async()
    nothing = client.signature(EMBED.name, exchange=topology.TASKS.name, routing_key="embed.bulk").apply_async()
    worker.switch("closed", on=False)
    soon(lambda: late.state == "RETRY")
    put_proxy(store, 102)
    all_succeed([*innocent, late])
    soon(lambda: {each.state for each in (damaged, red, invalid, nothing)} == {"FAILURE"})
    # The proxy is our own copy: no photo fails for it.
    assert not [message for name, message in tasks_in(broker_url, "finalize.bulk") if name == RECORD_FAILURE.name]
    assert not store.exists(proxy_of(100))


@on_rabbitmq
def test_it_answers_and_pauses_a_lane_while_a_batch_is_computed(start_worker, client, store, redis):
    worker = start_worker(DARKROOM_BATCH_SIZE="4")
    results = fill_model(worker, client, store, redis, range(4))
    node = [f"embedder@{socket.gethostname()}"]
    inspect = client.control.inspect(node, timeout=60)
    assert inspect.ping() == {node[0]: {"ok": "pong"}}
    assert {each["id"] for each in inspect.reserved()[node[0]]} == {result.id for result in results}
    client.control.cancel_consumer("embed.bulk", node)
    soon(lambda: len(inspect.active_queues()[node[0]]) == 2)
    paused = publish_photos(client, store, range(10, 13))
    results += publish_photos(client, store, range(20, 23), Lane.INTERACTIVE)
    worker.switch("closed", on=False)
    all_succeed(results)
    assert {result.state for result in paused} == {"PENDING"}
    assert worker.received(EMBED) == 7
    client.control.add_consumer("embed.bulk", destination=node)
    all_succeed(paused)


def test_a_rate_limit_holds_photos_back_and_the_next_one_forgets_it(start_worker, client, store):
    worker = start_worker()
    node = [f"embedder@{socket.gethostname()}"]

    def limit(rate: str) -> None:
        [answer] = client.control.rate_limit(EMBED.name, rate, node, reply=True, timeout=60)
        assert "ok" in answer[node[0]]

    limit("50/s")
    all_succeed(publish_photos(client, store, range(20)))
    limit("1/h")
    held = publish_photos(client, store, range(20, 25))
    soon(lambda: any(result.state == "SUCCESS" for result in held) and worker.received(EMBED) == 25)
    assert sum(result.state == "SUCCESS" for result in held) == 1
    limit("0")
    all_succeed(held)
    # Each once, and by way of the buffer, not one by one in the task's body.
    assert sum(batch["size"] for batch in worker.events("embedder.batch")) == 25


@on_redis
def test_what_is_revoked_or_expires_in_the_buffer_is_not_computed(start_worker, client, store, redis, bundled):
    worker = start_worker(DARKROOM_BATCH_SIZE="4")
    results = fill_model(worker, client, store, redis, range(1))
    put_proxy(store, 1)
    put_proxy(store, 2)
    expires = datetime.now(UTC) + timedelta(seconds=5)
    revoked, expired = embed(client, 1).apply_async(), embed(client, 2).apply_async(expires=expires)
    soon(lambda: worker.received(EMBED) == 3)
    client.control.revoke(revoked.id)
    soon(lambda: worker.events(f"Tasks flagged as revoked: {revoked.id}"))
    soon(lambda: datetime.now(UTC) > expires)
    worker.switch("closed", on=False)
    soon(lambda: revoked.state == expired.state == "REVOKED")
    all_succeed(results)
    assert [batch["size"] for batch in worker.events("embedder.batch")] == [1]
    assert not store.exists(embedding_key(bundled.id, sha(1)))
    assert not store.exists(embedding_key(bundled.id, sha(2)))


@on_rabbitmq
def test_after_a_kill_everything_is_computed_and_what_was_computing_runs_alone(
    start_worker, client, store, redis, broker_url
):
    worker = start_worker(DARKROOM_BATCH_SIZE="4")
    results = fill_model(worker, client, store, redis, range(20))
    begun = tries(redis)
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.switch("closed", on=False)
    worker.restart()
    all_succeed(results)
    assert len(worker.events("embedder.alone")) == begun
    assert tries(redis) == 0
    assert [name for name, _ in tasks_in(broker_url, "finalize.bulk") if name == RECORD_FAILURE.name] == []


def test_a_stop_in_mid_batch_hands_everything_back_and_leaves_no_suspicion(
    start_worker, client, store, redis, broker_url
):
    worker = start_worker(DARKROOM_BATCH_SIZE="4")
    results = fill_model(worker, client, store, redis, range(20))
    soon(lambda: worker.received(EMBED) >= 8)  # one batch is computed, and another one waits
    os.kill(worker.process.pid, signal.SIGTERM)
    soon(lambda: "Warm shutdown" in worker.process.log_tail(1000))
    worker.switch("closed", on=False)
    worker.process.wait()
    assert worker.process.exit_status == 0
    assert tries(redis) == 0
    with Connection(broker_url) as connection, connection.channel() as channel:
        waiting = topology.task_queue("embed.bulk")(channel)
        soon(lambda: waiting.queue_declare(passive=True).message_count >= 16)  # visible to other workers at once
    hand_out_again(broker_url)
    worker.restart()
    all_succeed(results)
    assert worker.events("embedder.alone") == []
    assert tries(redis) == 0


def test_a_connection_cut_in_mid_batch_loses_nothing(start_worker, client, store, redis, broker_url):
    parts = urlsplit(broker_url)
    proxy = CuttableProxy(parts.hostname, parts.port)
    through_proxy = broker_url.replace(f":{parts.port}/", f":{proxy.port}/")
    worker = start_worker(DARKROOM_BATCH_SIZE="4", DARKROOM_BROKER_URL=through_proxy)
    results = fill_model(worker, client, store, redis, range(20))
    soon(lambda: worker.received(EMBED) == 8)  # all that it takes: what Redis sent to nobody any more would be gone
    assert proxy.cut()
    soon(lambda: len(worker.events("Connected to ")) == 2)
    hand_out_again(broker_url)
    worker.switch("closed", on=False)
    all_succeed(results)
    assert worker.ready_times() == 1  # the same process
    assert worker.events("embedder.alone") == []
    proxy.close()


def test_poison_takes_nobody_along_and_is_recorded_once(start_worker, client, store, redis, broker_url, bundled):
    worker = start_worker(DARKROOM_BATCH_SIZE="64")  # and as many messages of bulk in hand
    worker.switch("closed", on=True)
    innocent = publish_photos(client, store, range(32))
    put_proxy(store, 100, MAGENTA)
    poison = embed(client, 100).apply_async()
    innocent += publish_photos(client, store, range(32, 63))
    worker.switch("closed", on=False)

    numbers, restarts = [*range(63), 100], 0

    def is_settled() -> bool:
        nonlocal restarts
        if not worker.process.is_running:  # what a supervisor does
            hand_out_again(broker_url)
            send_again(client, broker_url, dict(zip(numbers, [*innocent, poison], strict=True)))
            worker.process.start()
            restarts += 1
        return poison.state == "FAILURE" and all(result.state == "SUCCESS" for result in innocent)

    soon(is_settled, within_s=170, every_s=0.5)
    all_succeed(innocent)
    failures = [message for name, message in tasks_in(broker_url, "finalize.bulk") if name == RECORD_FAILURE.name]
    blamed = [(each["sha256"], each["problem"]["type"].rpartition("/")[2]) for each in failures]
    assert blamed == [(sha(100), "killed-worker")]
    assert not store.exists(embedding_key(bundled.id, sha(100)))
    assert restarts == 2  # it killed two processes: once among others, once alone


@on_redis
def test_a_model_that_broke_ends_its_process_and_blames_nobody(start_worker, client, store, redis, broker_url):
    worker = start_worker(DARKROOM_BATCH_SIZE="4")
    worker.switch("broken", on=True)
    results = publish_photos(client, store, range(10))
    soon(lambda: not worker.process.is_running)
    worker.switch("broken", on=False)
    hand_out_again(broker_url)
    send_again(client, broker_url, dict(enumerate(results)))
    worker.restart()
    all_succeed(results)
    assert worker.events("embedder.alone") == []
    assert [name for name, _ in tasks_in(broker_url, "finalize.bulk") if name == RECORD_FAILURE.name] == []


@on_redis
def test_a_model_that_cannot_be_loaded_ends_the_process_before_any_message(client, store, spawn, tmp_path):
    result = publish_photos(client, store, range(1))[0]
    process = spawn("darkroom-embedder", DARKROOM_MODEL=str(tmp_path / "nothing"))
    process.wait()
    assert "there is no such folder" in process.log_tail()
    assert result.state == "PENDING"
