"""Private servers for the tests: a PostgreSQL, a Redis and a RabbitMQ of this run, on free loopback ports.

A server that is missing fails the run with the command that installs it. `DARKROOM_TEST_BROKER_URL` names a RabbitMQ
that runs already; its darkroom queues are emptied.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from kombu import Connection
from redis import Redis
from sqlalchemy import Engine

from darkroom import topology
from darkroom.celery_app import declare_topology
from darkroom.database.engine import migrate, sync_engine
from darkroom.settings import DatabaseSettings
from darkroom_cli.servers import ChildProcess, ForkedProcess, Nursery, PostgresServer, RabbitServer, RedisServer

ResultT = TypeVar("ResultT")

# An example takes as long as the machine lets it.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def eventually(check: Callable[[], ResultT], *, within_s: float = 60, every_s: float = 0.05) -> ResultT:
    """The first true answer of `check`; fails when there is none before the deadline."""
    deadline = time.monotonic() + within_s
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"still {answer!r} after {within_s} s: {check.__doc__ or check}")
        time.sleep(every_s)


def log_records(text: str) -> list[dict[str, Any]]:
    """The JSON lines of a log, but not the one that is just being written: a file may show half of it."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            with suppress(json.JSONDecodeError):
                found.append(json.loads(line))
    return found


SHORTEST_LAST = ("architecture", "integration", "contracts", "unit")
"""Folders by how long one of their files takes, after all others: none of the workers ends alone with a long one."""


FORKED = {"darkroom-scheduler": "scheduler.worker", "darkroom-embedder": "embedder.worker"}
"""Commands that are started often, and where the code of each is."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the folders; within each, the order stays."""
    places = {Path(__file__).parent / folder: place for place, folder in enumerate(SHORTEST_LAST)}
    items.sort(key=lambda item: max(places.get(parent, -1) for parent in item.path.parents))


@pytest.fixture(scope="session", autouse=True)
def patient_connections() -> Iterator[None]:
    """PostgreSQL, which may stand still on a busy machine, has a minute to take a connection of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("darkroom.database.engine.CONNECT_S", 60)
        yield


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder with a short path: PostgreSQL's socket path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[PostgresServer]:
    """The run's PostgreSQL, with a migrated template database."""
    server = PostgresServer(server_folder / "postgres")
    server.start()
    _create_database(server.url, "darkroom_template")
    engine = sync_engine(DatabaseSettings(database_url=_database_url(server.url, "darkroom_template")))
    migrate(engine)
    engine.dispose()
    yield server
    server.stop()


@pytest.fixture
def database_url(postgres: PostgresServer) -> Iterator[str]:
    """A fresh migrated database of this test."""
    name = f"test_{uuid4().hex}"
    _create_database(postgres.url, name, template="darkroom_template")
    yield _database_url(postgres.url, name)
    with psycopg.connect(_psycopg_url(postgres.url), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A pool on this test's database."""
    engine = sync_engine(DatabaseSettings(database_url=database_url))
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def redis_server(server_folder: Path) -> Iterator[RedisServer]:
    """The run's Redis."""
    server = RedisServer(server_folder / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The run's Redis, empty."""
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def rabbit_server(server_folder: Path) -> Iterator[RabbitServer]:
    """A RabbitMQ of this run."""
    server = RabbitServer(server_folder / "rabbitmq")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rabbit_url(request: pytest.FixtureRequest) -> str:
    """The run's RabbitMQ, or the one that was asked for."""
    return os.environ.get("DARKROOM_TEST_BROKER_URL") or str(request.getfixturevalue("rabbit_server").url)


@pytest.fixture
def amqp_url(rabbit_url: str) -> str:
    """The run's RabbitMQ, with the topology declared and every queue empty."""
    with Connection(rabbit_url) as connection:
        declare_topology(connection)
        with connection.channel() as channel:
            for queue in (*topology.CONSUMED_BY, topology.DEAD_LETTERS):
                channel.queue_purge(queue)
    return rabbit_url


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """Each of the two brokers in turn."""
    name = "redis_url" if request.param == "redis" else "amqp_url"
    return str(request.getfixturevalue(name))


@pytest.fixture
def blob_url(tmp_path: Path) -> str:
    """An empty blob store of this test."""
    return (tmp_path / "blobs").as_uri()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server in this process that speaks S3."""
    from moto.server import ThreadedMotoServer  # half a second, which most runs need not wait for

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_env(s3_endpoint: str) -> dict[str, str]:
    """The environment of a service whose blobs go into a new bucket."""
    bucket = f"test-{uuid4().hex}"
    httpx.put(f"{s3_endpoint}/{bucket}", timeout=60).raise_for_status()  # the first request imports for a second
    return {
        "DARKROOM_BLOB_URL": f"s3://{bucket}/below",
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }


@pytest.fixture
def s3_url(s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, for stores that are opened in this process."""
    for name, value in s3_env.items():
        monkeypatch.setenv(name, value)
    return s3_env["DARKROOM_BLOB_URL"]


@pytest.fixture
def service_env(database_url: str, redis_url: str, blob_url: str, broker_url: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a service on this test's servers: all settings that have no default, and small pools."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "OTEL_"))},
        "DARKROOM_DATABASE_URL": database_url,
        "DARKROOM_DATABASE_POOL_SIZE": "5",
        "DARKROOM_RESULT_URL": redis_url,
        "DARKROOM_BROKER_URL": broker_url,
        "DARKROOM_BLOB_URL": blob_url,
        "DARKROOM_GRPC_PORT": "0",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="session")
def nurseries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Nursery]]:
    """Processes that have imported a module and fork its commands; each is made when it is first asked for."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "OTEL_"))}
    made: dict[str, Nursery] = {}

    def nursery_of(module: str) -> Nursery:
        if module not in made:
            log = tmp_path_factory.mktemp("nursery") / "log"
            made[module] = Nursery([module], log=log, env=env | {"HF_HUB_OFFLINE": "1"})
        return made[module]

    yield nursery_of
    for nursery in made.values():
        nursery.close()


@pytest.fixture
def spawn(
    service_env: dict[str, str], tmp_path: Path, nurseries: Callable[[str], Nursery]
) -> Iterator[Callable[..., ChildProcess]]:
    """Starts a service's command as a child process: `spawn("darkroom-embedder", DARKROOM_BATCH_SIZE="4")`.

    Its output is in `<tmp_path>/<name>.log` and is shown when the test fails. A script by its absolute path is run as
    an embedder's.
    """
    started: list[tuple[ChildProcess, Path]] = []

    def start(command: str, *arguments: str, **settings: str) -> ChildProcess:
        log = tmp_path / f"{len(started)}-{Path(command).stem}.log"
        env = service_env | settings
        module = FORKED.get(command) or ("embedder.worker" if Path(command).is_absolute() else None)
        argv = [str(Path(sys.executable).parent / command), *arguments]
        child = (
            ForkedProcess(nurseries(module), argv, log=log, env=env, grace_s=40)
            if module
            else ChildProcess(argv, log=log, env=env, grace_s=40)
        )
        ending.callback(child.stop)
        child.start()
        started.append((child, log))
        return child

    with ExitStack() as ending:  # when one does not end in time, the others are ended all the same
        yield start
    for _, log in reversed(started):
        with suppress(FileNotFoundError):
            print(f"--- {log.name}\n{log.read_text()[-20_000:]}")


def _create_database(server_url: str, name: str, template: str = "template1") -> None:
    with psycopg.connect(_psycopg_url(server_url), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')


def _psycopg_url(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def _database_url(server_url: str, name: str) -> str:
    """The server's URL with another database's name in place of its own."""
    before, _, query = server_url.partition("?")
    base = before.rpartition("/")[0]
    return f"{base}/{name}" + (f"?{query}" if query else "")
