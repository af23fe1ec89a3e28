"""Callbacks through the real worker: delivered, tried again, never lost, and in nobody's way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from callback_receivers import HANG, SECRET, Received, Receiver, hanging_hosts, receiving
from celery import Celery
from conftest import eventually
from kombu import Connection
from redis import Redis
from scheduler_photos import (
    Photo,
    dispatch_all,
    fail,
    finalize_message,
    leave_everything,
    register_model,
    run_sql,
    state_of,
    upload,
)
from sqlalchemy import Engine, text
from standardwebhooks import WebhookVerificationError

from darkroom.celery_app import create_app, declare_topology, request
from darkroom.contracts.messages import Nothing
from darkroom.contracts.tasks import BACK_UP, FINALIZE, HINT_CALLBACKS
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import BlobStore, open_blob_store
from darkroom.workflow import callback_hint
from darkroom_cli.servers import ChildProcess, reserve_port
from scheduler.worker import CALLBACK_THREADS

ROOT = Path(__file__).parents[3]
Spawn = Callable[..., ChildProcess]
ResultT = TypeVar("ResultT")

on_redis = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
on_rabbitmq = pytest.mark.parametrize("broker_url", ["rabbitmq"], indirect=True)


@pytest.fixture
def store(blob_url: str) -> BlobStore:
    return open_blob_store(blob_url)


@pytest.fixture
def app(broker_url: str, redis_url: str) -> Celery:
    """Sends what beat and the relay send."""
    app = create_app("test", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    with app.connection_for_write() as connection:
        declare_topology(connection)
    return app


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def start(spawn: Spawn) -> Callable[..., ChildProcess]:
    """Starts the callbacks worker."""

    def start(**settings: str) -> ChildProcess:
        given = {"DARKROOM_WEBHOOK_SECRET": SECRET, "DARKROOM_CALLBACK_ALLOWED_NETWORKS": "127.0.0.0/8"}
        return spawn("darkroom-scheduler", "callbacks", **(given | settings))

    return start


def failed_photo(engine: Engine, store: BlobStore, name: str, url: str) -> Photo:
    """An upload that ends at once and leaves two callbacks."""
    photo = upload(engine, store, name, callback_url=url)
    dispatch_all(engine)
    assert fail(engine, photo.sha256)
    return photo


def callbacks(engine: Engine) -> Sequence[Any]:
    with engine.connect() as connection:
        return connection.execute(text("SELECT * FROM callbacks ORDER BY type, created_at")).all()


def states(engine: Engine) -> list[str]:
    return [row.state for row in callbacks(engine)]


def hint_until(app: Celery, check: Callable[[], ResultT]) -> ResultT:
    """The first true answer of `check`, with hints for what is due now and then, as beat has them: one may be lost."""
    deadline = time.monotonic() + 90
    while True:
        request(app, HINT_CALLBACKS, Nothing(), ignore_result=True).apply_async()
        try:
            return eventually(check, within_s=10)
        except AssertionError:
            if time.monotonic() > deadline:
                raise


def make_due(engine: Engine) -> None:
    """Has all waits be over."""
    run_sql(engine, "UPDATE callbacks SET next_attempt_at = now() WHERE state = 'pending'")
    run_sql(engine, "UPDATE callbacks SET lease_until = now() WHERE lease_until IS NOT NULL")
    run_sql(engine, "UPDATE callback_hosts SET not_before = now()")


def test_callbacks_arrive_signed_and_once(
    start: Callable[..., ChildProcess], app: Celery, engine: Engine, store: BlobStore, receiver: Receiver
) -> None:
    photo = failed_photo(engine, store, "a", receiver.url)
    start()
    for _ in range(3):
        callback_hint(app, "127.0.0.1").apply_async()
    eventually(lambda: states(engine) == ["delivered"] * 2, within_s=60)
    told = {one.id: one.verified() for one in receiver.received}
    assert len(told) == len(receiver.received) == 2
    assert {row.id.hex for row in callbacks(engine)} == {webhook_id.replace("-", "") for webhook_id in told}
    by_type = {one["type"]: one["data"] for one in told.values()}
    assert by_type["image.failed"]["image_id"] == str(photo.image_id)
    assert by_type["image.failed"]["problem"]["type"].endswith("/image-truncated")
    assert by_type["batch.completed"]["batch"]["failed"] == 1
    assert receiver.received[0].headers["content-type"] == "application/json"


def test_what_fails_is_tried_again_with_the_same_id_until_it_succeeds(
    start: Callable[..., ChildProcess], app: Celery, engine: Engine, store: BlobStore, receiver: Receiver
) -> None:
    failed_photo(engine, store, "a", receiver.url)
    run_sql(engine, "DELETE FROM callbacks WHERE type = 'batch.completed'")
    receiver.answers = [500, HANG, 302]
    start(DARKROOM_CALLBACK_TIMEOUT_S="5")  # enough for a receiver on a busy machine
    for attempt, error in ((1, "answered 500"), (2, "no answer within 5 s"), (3, "redirects are not followed")):
        (row,) = hint_until(
            app,
            lambda attempt=attempt, error=error: [
                one for one in callbacks(engine) if one.attempts == attempt and error in (one.last_error or "")
            ],
        )
        assert row.state == "pending"
        make_due(engine)
    hint_until(app, lambda: states(engine) == ["delivered"])
    (row,) = callbacks(engine)
    assert (row.attempts, row.last_status, row.last_error) == (4, 200, None)
    assert {one.id for one in receiver.received} == {str(row.id)}
    assert len({one.body for one in receiver.received}) == 1
    for one in receiver.received:
        one.verified()


@on_redis
def test_attempts_end_and_their_cause_stays(
    start: Callable[..., ChildProcess], app: Celery, engine: Engine, store: BlobStore, receiver: Receiver
) -> None:
    failed_photo(engine, store, "a", receiver.url)
    failed_photo(engine, store, "b", "https://10.0.0.1/hook")
    receiver.answers = [404, 410]
    start(DARKROOM_CALLBACK_ATTEMPTS="1", DARKROOM_CALLBACK_HOST_LIMIT="1")
    hint_until(app, lambda: states(engine).count("failed") >= 3)
    run_sql(engine, "UPDATE callback_hosts SET not_before = now()")
    hint_until(app, lambda: states(engine) == ["failed"] * 4)
    causes = [row.last_error for row in callbacks(engine)]
    assert sorted(causes)[-1].startswith("the receiver answered 410")
    assert sum("10.0.0.1, which is not on the public internet" in cause for cause in causes) == 2
    assert len(receiver.received) == 2


def test_a_callback_whose_worker_is_killed_comes_again(
    start: Callable[..., ChildProcess], app: Celery, engine: Engine, store: BlobStore, receiver: Receiver
) -> None:
    failed_photo(engine, store, "a", receiver.url)
    run_sql(engine, "DELETE FROM callbacks WHERE type = 'batch.completed'")
    receiver.answers = [HANG]
    first = start()
    hint_until(app, lambda: receiver.received)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: not first.is_running)
    assert states(engine) == ["pending"]
    start()
    make_due(engine)  # its lease, which would last a minute more
    hint_until(app, lambda: states(engine) == ["delivered"])
    assert [one.id for one in receiver.received] == [str(callbacks(engine)[0].id)] * 2


@on_redis
def test_a_stop_ends_the_attempt_under_way_and_leaves_the_rest_as_rows(
    start: Callable[..., ChildProcess], app: Celery, engine: Engine, store: BlobStore, receiver: Receiver
) -> None:
    for name in "abc":
        failed_photo(engine, store, name, receiver.url)
    receiver.answers = [HANG]
    worker = start(DARKROOM_CALLBACK_HOST_LIMIT="1", DARKROOM_CALLBACK_TIMEOUT_S="3")
    hint_until(app, lambda: receiver.received)
    os.kill(worker.pid or 0, signal.SIGTERM)
    eventually(lambda: not worker.is_running, within_s=85)  # the grace period of docker-compose.yml
    assert worker.exit_status == 0
    assert {row.lease_until for row in callbacks(engine)} == {None}
    tried = [row for row in callbacks(engine) if row.attempts]
    assert len(tried) == len(receiver.received)
    assert sum(row.state == "pending" for row in tried) == 1
    assert {row.attempts for row in callbacks(engine)} <= {0, 1}


@on_redis
def test_callbacks_outlive_a_flushed_redis(
    start: Callable[..., ChildProcess],
    spawn: Spawn,
    engine: Engine,
    store: BlobStore,
    receiver: Receiver,
    app: Celery,
    redis_url: str,
) -> None:
    """Hints, bindings and all are gone; beat's next hints find the rows."""
    start()
    failed_photo(engine, store, "a", receiver.url)
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
    spawn("darkroom-scheduler", "beat")
    eventually(lambda: states(engine) == ["delivered"] * 2, within_s=60)


@on_rabbitmq
def test_callbacks_outlive_a_purged_queue(
    start: Callable[..., ChildProcess],
    spawn: Spawn,
    engine: Engine,
    store: BlobStore,
    receiver: Receiver,
    app: Celery,
    amqp_url: str,
) -> None:
    failed_photo(engine, store, "a", receiver.url)
    callback_hint(app, "127.0.0.1").apply_async()
    with Connection(amqp_url) as connection, connection.channel() as channel:
        eventually(lambda: channel.queue_purge("callbacks"))
    start()
    spawn("darkroom-scheduler", "beat")
    eventually(lambda: states(engine) == ["delivered"] * 2, within_s=60)


@on_rabbitmq
def test_a_hundred_hanging_receivers_and_a_running_backup_delay_no_photo(
    start: Callable[..., ChildProcess],
    spawn: Spawn,
    app: Celery,
    engine: Engine,
    store: BlobStore,
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    programs, gate = tmp_path / "bin", tmp_path / "gate"
    programs.mkdir()
    os.mkfifo(gate)
    (programs / "pg_dump").write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\ncat {gate}\n")
    (programs / "pg_restore").write_text("#!/bin/sh\ncat > /dev/null\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    register_model(engine)
    with hanging_hosts(100) as urls:
        spawn("darkroom-scheduler", "maintenance", DARKROOM_PG_BIN_DIR=str(programs))
        spawn("darkroom-scheduler", "finalize")
        start(DARKROOM_CALLBACK_TIMEOUT_S="60")
        request(app, BACK_UP, Nothing()).apply_async()
        for number, url in enumerate(urls):
            failed_photo(engine, store, f"hanging {number}", url)
        hint_until(app, lambda: sum(row.lease_until is not None for row in callbacks(engine)) == CALLBACK_THREADS)
        eventually(lambda: (tmp_path / "begun").exists(), within_s=60)

        photos = [upload(engine, store, f"photo {number}", callback_url=receiver.url) for number in range(20)]
        dispatch_all(engine)
        for photo in photos:
            results = leave_everything(store, photo.sha256)
            request(app, FINALIZE, finalize_message(photo.sha256), takes_result=True).apply_async(args=[results])
        eventually(lambda: all(state_of(engine, photo) == "ready" for photo in photos), within_s=60)
        # They all were ready while nothing of the rest had ended.
        assert {row.state for row in callbacks(engine)} == {"pending"}
        assert all(row.last_error is None for row in callbacks(engine))
        gate.write_text("a dump")


@on_redis
def test_a_receiver_gets_its_callbacks_while_another_hangs(
    start: Callable[..., ChildProcess], app: Celery, engine: Engine, store: BlobStore, receiver: Receiver
) -> None:
    """More callbacks for one host that hangs than the worker has threads: it may hold only some of them."""
    with hanging_hosts(1) as [url]:
        for number in range(8):
            failed_photo(engine, store, f"hanging {number}", url)
        failed_photo(engine, store, "a", receiver.url)
        for _ in range(8):
            callback_hint(app, "127.0.1.1").apply_async()
        start(DARKROOM_CALLBACK_TIMEOUT_S="60", DARKROOM_CALLBACK_HOST_LIMIT="2", DARKROOM_WORKER_CONCURRENCY="4")
        callback_hint(app, "127.0.0.1").apply_async()
        eventually(lambda: states(engine).count("delivered") == 2, within_s=50)
        assert len(receiver.received) == 2
        assert states(engine).count("pending") == 16


@on_redis
def test_the_worker_does_not_start_without_a_secret_and_does_not_show_it(spawn: Spawn) -> None:
    for secret in ("", "whsec_too-short"):
        worker = spawn("darkroom-scheduler", "callbacks", DARKROOM_WEBHOOK_SECRET=secret)
        eventually(lambda worker=worker: not worker.is_running, within_s=60)
        assert "webhook_secret" in worker.log_tail(50).lower()
        assert "too-short" not in worker.log_tail(50)


@on_redis
def test_the_example_receives_and_verifies(
    start: Callable[..., ChildProcess], app: Celery, engine: Engine, store: BlobStore, tmp_path: Path
) -> None:
    port, printed = reserve_port(), tmp_path / "printed"
    command = [sys.executable, str(ROOT / "examples/receive_callbacks.py"), str(port), SECRET]
    with printed.open("w") as output, subprocess.Popen(command, stdout=output) as example:
        try:
            photo = failed_photo(engine, store, "a", f"http://127.0.0.1:{port}/")
            start()
            while "delivered" not in states(engine):
                make_due(engine)  # the example may not listen yet
                hint_until(app, lambda: all(row.attempts and not row.lease_until for row in callbacks(engine)))
            make_due(engine)
            hint_until(app, lambda: states(engine) == ["delivered"] * 2)
            assert sorted(printed.read_text().splitlines()) == [
                f"batch.completed {photo.batch_id}",
                f"image.failed {photo.image_id}",
            ]
        finally:
            example.kill()


def test_the_receiver_of_these_tests_notices_a_wrong_signature() -> None:
    headers = {"webhook-id": "7", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,"}
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Received("/", headers, b"{}").verified()
