"""RabbitMQ's users on a real node: what each may not do, and that all works although they may not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from amqp.exceptions import AccessRefused
from celery import Celery
from conftest import eventually
from kombu import Connection, Producer

from darkroom import topology
from darkroom.celery_app import create_app, request
from darkroom.contracts import keys
from darkroom.contracts.messages import Fence, PrepareQuery
from darkroom.contracts.tasks import FENCE, PREPARE_QUERY
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import open_blob_store
from darkroom.topology import Node, queues_of
from darkroom_cli.samples import SAMPLES, write_samples
from darkroom_cli.servers import ChildProcess, RabbitServer, reserve_port
from scheduler.broker_users import DELAYED, USERS, definitions

VHOST = "users"
WORKERS = {
    "thumbnailer": (*queues_of(Node.THUMBNAILER), *queues_of(Node.THUMBNAILER_BULK)),
    "embedder": queues_of(Node.EMBEDDER),
    "scheduler": (*queues_of(Node.FINALIZE), *queues_of(Node.MAINTENANCE)),
    "callbacks": queues_of(Node.CALLBACKS),
}
EVERY_QUEUE = (*topology.CONSUMED_BY, topology.DEAD_LETTERS)


@pytest.fixture(scope="module")
def url_of(
    rabbit_server: RabbitServer, redis_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], str]]:
    """The address of the node for each user, on a virtual host whose topology its owner has declared."""
    folder = tmp_path_factory.mktemp("users")
    file = folder / "definitions.json"
    file.write_text(definitions({user: f"of-{user}" for user in USERS}, b"salt", VHOST))

    def rabbitmqctl(*arguments: str) -> None:
        command = ["/usr/lib/rabbitmq/bin/rabbitmqctl", "--quiet", *arguments]
        subprocess.run(command, env=rabbit_server.environment, check=True, capture_output=True)

    def url(user: str) -> str:
        return f"amqp://{user}:of-{user}@127.0.0.1:{rabbit_server.port}/{VHOST}"

    rabbitmqctl("import_definitions", str(file))
    try:
        owner = [Path(sys.executable).with_name("darkroom-scheduler"), "topology"]
        env = {"DARKROOM_BROKER_URL": url("topology"), "DARKROOM_RESULT_URL": redis_server.url}
        subprocess.run(owner, env=os.environ | env, check=True)
        yield url
    finally:
        rabbitmqctl("delete_vhost", VHOST)
        for user in USERS:
            rabbitmqctl("delete_user", user)


@pytest.fixture
def as_user(url_of: Callable[[str], str]) -> Iterator[Callable[[str], Any]]:
    """A channel of a user."""
    connections: list[Connection] = []

    def channel(user: str) -> Any:
        connections.append(Connection(url_of(user), transport_options={"confirm_publish": True}))
        return connections[-1].channel()

    yield channel
    for connection in connections:
        connection.release()


def application(user: str, url: str, redis_url: str) -> Celery:
    broker = BrokerSettings(broker_url=url, result_url=redis_url, broker_declare=False)
    return create_app(user, broker, TaskSettings())


@pytest.mark.parametrize("user", sorted(USERS.keys() - {"topology"}))
def test_a_user_reads_the_queues_of_its_own_workers_only(user: str, as_user: Callable[[str], Any]) -> None:
    may_read = set(WORKERS.get(user, ())) | ({topology.DEAD_LETTERS} if user == "scheduler" else set())
    for queue in EVERY_QUEUE:
        if queue in may_read:
            as_user(user).basic_get(queue)
        else:
            with pytest.raises(AccessRefused):
                as_user(user).basic_get(queue)


@pytest.mark.parametrize("user", sorted(USERS.keys() - {"topology"}))
def test_a_user_neither_makes_nor_removes_anything_of_the_topology(user: str, as_user: Callable[[str], Any]) -> None:
    changes: list[Callable[[Any], object]] = [
        lambda channel: channel.queue_delete("embed"),
        lambda channel: channel.queue_purge("prepare.bulk" if user != "thumbnailer" else "embed"),
        lambda channel: channel.queue_declare("mine", durable=True),
        lambda channel: channel.queue_bind("embed", topology.TASKS.name, "prepare"),
        lambda channel: channel.exchange_delete(topology.TASKS.name),
        lambda channel: channel.exchange_declare(DELAYED, "topic", durable=True, auto_delete=False),
    ]
    for change in changes:
        with pytest.raises(AccessRefused):
            change(as_user(user))


@pytest.mark.parametrize(
    ("user", "exchange", "key"),
    [
        ("thumbnailer", topology.TASKS.name, "maintenance"),
        ("thumbnailer", DELAYED, "0." * 28 + "maintenance"),
        ("thumbnailer", topology.EVENTS.name, "image.ready"),
        ("thumbnailer", topology.DEAD.name, "prepare"),
        ("embedder", topology.TASKS.name, "prepare"),
        ("embedder", topology.EVENTS.name, "image.prepared"),
        ("scheduler", topology.EVENTS.name, "image.ready"),
        ("callbacks", topology.TASKS.name, "maintenance"),
        ("callbacks", topology.TASKS.name, "prepare"),
        ("gateway", topology.DEAD.name, "prepare"),
        ("flower", topology.TASKS.name, "finalize"),
        ("monitor", topology.TASKS.name, "finalize"),
    ],
)
def test_a_user_publishes_only_what_its_service_sends(
    user: str, exchange: str, key: str, as_user: Callable[[str], Any]
) -> None:
    with pytest.raises(AccessRefused):
        Producer(as_user(user)).publish({}, exchange=exchange, routing_key=key)


@pytest.mark.parametrize(("user", "queue"), [(user, queue) for user, queues in WORKERS.items() for queue in queues])
def test_a_message_with_a_countdown_comes_back_to_its_queue(
    user: str, queue: str, url_of: Callable[[str], str], redis_url: str, as_user: Callable[[str], Any]
) -> None:
    app = application(user, url_of(user), redis_url)
    fence = Fence(number=7, queue=queue)
    with app.connection_for_write() as connection:
        call = request(app, FENCE, fence, queue=queue, ignore_result=True)
        call.apply_async(countdown=1, connection=connection)

    channel = as_user(user)
    message = eventually(lambda: channel.basic_get(queue, no_ack=True), within_s=60)
    assert message.headers["task"] == FENCE.name


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)  # every service is given another
def test_a_picture_that_is_not_there_yet_is_tried_again_by_a_worker_that_may_declare_nothing(
    url_of: Callable[[str], str], redis_url: str, blob_url: str, tmp_path: Path, spawn: Callable[..., ChildProcess]
) -> None:
    picture = write_samples(tmp_path / "samples", SAMPLES[2:3])[0].read_bytes()
    store = open_blob_store(blob_url)
    settings = {
        "DARKROOM_BROKER_DECLARE": "false",
        "DARKROOM_WORKER_CONCURRENCY": "1",
        "DARKROOM_TASK_MAX_RETRIES": "6",  # until we have seen that it is tried again
    }
    spawn("darkroom-thumbnailer", **settings, DARKROOM_BROKER_URL=url_of("thumbnailer"))
    app = application("gateway", url_of("gateway"), redis_url)
    query = PrepareQuery(source=keys.query_key("1", "source"), proxy=keys.query_key("1", "proxy.jpg"))
    tried = request(app, PREPARE_QUERY, query).apply_async()
    eventually(lambda: tried.state == "RETRY", within_s=90)

    store.put(query.source, picture)

    eventually(lambda: tried.state == "SUCCESS", within_s=60)
    assert store.exists(query.proxy)


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_photo_goes_all_the_way_through_services_that_may_declare_nothing(
    url_of: Callable[[str], str], tmp_path: Path, spawn: Callable[..., ChildProcess]
) -> None:
    port, undeclaring = reserve_port(), {"DARKROOM_BROKER_DECLARE": "false", "DARKROOM_WORKER_CONCURRENCY": "1"}
    heartbeats, children = [], []
    for user, command, *arguments in (
        ("gateway", "darkroom-gateway"),
        ("thumbnailer", "darkroom-thumbnailer"),
        ("embedder", "darkroom-embedder"),
        ("scheduler", "darkroom-scheduler", "finalize"),
        ("scheduler", "darkroom-scheduler", "maintenance"),
    ):
        settings = undeclaring | {"DARKROOM_BROKER_URL": url_of(user), "DARKROOM_HTTP_PORT": str(port)}
        if user != "gateway":
            heartbeats.append(tmp_path / f"{user}-{''.join(arguments)}.heartbeat")
            settings["DARKROOM_HEARTBEAT_FILE"] = str(heartbeats[-1])
        children.append(spawn(command, *arguments, **settings))

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

        def is_ready() -> bool:
            """a photo could be taken through"""
            try:
                return bool(client.get("/readyz").json().get("photo_ready"))
            except httpx.TransportError:
                return False

        eventually(is_ready, within_s=120)
        [sample] = write_samples(tmp_path / "samples", SAMPLES[2:3])
        accepted = client.post("/v1/images", files={"file": (sample.name, sample.read_bytes())}).json()
        path = f"/v1/images/{accepted['images'][0]['id']}"
        eventually(lambda: client.get(path).json()["status"] == "ready", within_s=60)
    eventually(lambda: all(heartbeat.exists() for heartbeat in heartbeats), within_s=60)
    for child in children:
        os.kill(child.pid, signal.SIGTERM)  # all at once: each takes seconds to end in order
