"""The local mode: every service of Darkroom as processes of this machine, on servers of its own.

The services are started as commands and configured by their environment alone: nothing of them is imported here.
"""

import base64
import errno
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from darkroom_cli.servers import (
    Nursery,
    PostgresServer,
    RabbitServer,
    RedisServer,
    ServerError,
    can_fork,
    child_process,
)
from darkroom_cli.servers.ports import LOOPBACK, is_free, reserve_port
from darkroom_cli.servers.server import write_private
from darkroom_cli.supervisor import Supervisor, read_states

DEFAULT_DATA_DIR = Path(".darkroom")

# A full model is downloaded at the first start, which takes minutes.
START_TIMEOUT_S = 900.0
POLL_S = 0.1
# A process that cannot start is seen ending again and again; the first pauses between its starts are 1, 2 and 4 s.
HOPELESS_RESTARTS = 3


@dataclass(frozen=True)
class LocalOptions:
    """What `darkroom up` was asked for. `broker`: `embedded`, `rabbitmq` or the URL of one that runs."""

    data_dir: Path = DEFAULT_DATA_DIR
    http_port: int = 8000
    grpc_port: int = 50_051
    broker: str = "embedded"
    workers: int | None = None
    """Slots of each lane's thumbnailer; None: one for each core."""

    @property
    def url(self) -> str:
        """Where the gateway will listen."""
        return f"http://{LOOPBACK}:{self.http_port}"


COMMON_CODE = ("darkroom.worker", "darkroom.telemetry.export", "requests")
"""Modules that every service imports sooner or later, with Celery, kombu, pydantic and OpenTelemetry."""

THUMBNAILER_CODE = ("thumbnailer.worker",)
SCHEDULER_CODE = ("scheduler.worker", "psycopg")


@dataclass(frozen=True)
class Service:
    """One process of Darkroom: its command, whether it may reach the database, whether it is a Celery worker.

    It is killed `grace_s` seconds after SIGTERM; what it had in hand is then delivered again at the next start. Those
    that others need to the end are stopped after them. Where processes can be forked, those with the same `code`,
    names of modules, share the memory that it takes once imported.
    """

    name: str
    command: tuple[str, ...]
    has_database: bool = False
    is_worker: bool = True
    grace_s: float = 40.0
    is_needed_to_the_end: bool = False
    code: tuple[str, ...] = COMMON_CODE


# More than a task's hard limit of 30 s for workers: SIGTERM lets them finish what they have in hand.
SERVICES = (
    # The others send it their last spans.
    Service(
        "gateway",
        ("darkroom-gateway",),
        has_database=True,
        is_worker=False,
        grace_s=35.0,  # 20 s for requests in flight, the rest for its threads
        is_needed_to_the_end=True,
    ),
    Service("thumbnailer", ("darkroom-thumbnailer", "--lane", "interactive"), code=THUMBNAILER_CODE),
    Service("thumbnailer-bulk", ("darkroom-thumbnailer", "--lane", "bulk"), code=THUMBNAILER_CODE),
    Service("embedder", ("darkroom-embedder",)),
    Service("finalize", ("darkroom-scheduler", "finalize"), has_database=True, code=SCHEDULER_CODE),
    Service("maintenance", ("darkroom-scheduler", "maintenance"), has_database=True, code=SCHEDULER_CODE),
    Service("callbacks", ("darkroom-scheduler", "callbacks"), has_database=True, code=SCHEDULER_CODE),
    Service(
        "beat",
        ("darkroom-scheduler", "beat"),
        has_database=True,
        is_worker=False,
        grace_s=10.0,
        code=SCHEDULER_CODE,
    ),
)

# Only with these may a process touch what users own: workers decode untrusted bytes and get none of them.
DATABASE_SETTINGS = ("DARKROOM_DATABASE_URL", "DARKROOM_DATABASE_POOL_SIZE", "DARKROOM_PG_BIN_DIR")

# Whoever sets one of these has decided where spans go, or that there are none.
OTHER_TRACES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
    "OTEL_SDK_DISABLED",
)


WEBHOOK_SECRET = "DARKROOM_WEBHOOK_SECRET"  # noqa: S105 (the name of a setting)


class Steps(Protocol):
    """How the start is shown."""

    def step(self, doing: str, done: str) -> AbstractContextManager[Callable[[str], None]]:
        """Shows `doing` while the block runs, and whatever the block says instead, then `done`."""


@dataclass(frozen=True)
class Endpoints:
    """Where the servers of one local mode are."""

    database_url: str
    result_url: str
    broker_url: str
    blob_url: str
    database_programs: Path
    """Folder of the pg_dump that fits the database."""
    webhook_secret: str
    """What signs callbacks, unless the environment says another."""


def service_environment(
    service: Service, options: LocalOptions, endpoints: Endpoints, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of one process: ours with its endpoints, without the database for those that must not."""
    environment = dict(inherited)
    environment |= {
        "DARKROOM_BROKER_URL": endpoints.broker_url,
        "DARKROOM_RESULT_URL": endpoints.result_url,
        "DARKROOM_BLOB_URL": endpoints.blob_url,
        "DARKROOM_HEARTBEAT_FILE": str(heartbeat_file(options, service)),
    }
    if service.has_database:
        environment["DARKROOM_DATABASE_URL"] = endpoints.database_url
        environment["DARKROOM_PG_BIN_DIR"] = str(endpoints.database_programs)
    else:
        for name in DATABASE_SETTINGS:
            environment.pop(name, None)
    if service.name == "callbacks":
        environment[WEBHOOK_SECRET] = inherited.get(WEBHOOK_SECRET) or endpoints.webhook_secret
    else:
        environment.pop(WEBHOOK_SECRET, None)
    if service.name == "gateway":
        environment |= {
            "DARKROOM_HTTP_HOST": LOOPBACK,
            "DARKROOM_HTTP_PORT": str(options.http_port),
            "DARKROOM_GRPC_HOST": LOOPBACK,
            "DARKROOM_GRPC_PORT": str(options.grpc_port),
        }
    if not any(inherited.get(name) for name in OTHER_TRACES):
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"{options.url}/otlp"
        if service.name == "gateway":
            environment.setdefault("DARKROOM_TRACE_STORE_ENABLED", "true")
    if service.name.startswith("thumbnailer") and options.workers is not None:
        environment["DARKROOM_WORKER_CONCURRENCY"] = str(options.workers)
    return environment


def nursery_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What code is imported with: nothing of ours, each service is told that for itself."""
    return {name: value for name, value in inherited.items() if not name.startswith("DARKROOM_")}


def heartbeat_file(options: LocalOptions, service: Service) -> Path:
    """The file that a worker touches while it consumes."""
    return options.data_dir.absolute() / "run" / f"{service.name}.heartbeat"


def environment_file(options: LocalOptions) -> Path:
    """The file that a shell reads to find the broker and the results, with Celery's own tools for one."""
    return options.data_dir.absolute() / "run" / "environment"


def shell_environment(endpoints: Endpoints) -> str:
    """Lines for a shell that export what Celery's own tools are given."""
    values = {"DARKROOM_BROKER_URL": endpoints.broker_url, "DARKROOM_RESULT_URL": endpoints.result_url}
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def targets_file(options: LocalOptions) -> Path:
    """The file from which Prometheus finds every service (`file_sd_configs`), and a person each `/metrics`."""
    return options.data_dir.absolute() / "run" / "prometheus-targets.json"


def scrape_targets(options: LocalOptions, metrics_ports: Mapping[str, int]) -> str:
    """Where each service answers to a scrape, as Prometheus reads it."""
    ports = {"gateway": options.http_port, **metrics_ports}
    targets = [{"targets": [f"{LOOPBACK}:{port}"], "labels": {"service": name}} for name, port in ports.items()]
    return json.dumps(targets, indent=1) + "\n"


@contextmanager
def running(options: LocalOptions, steps: Steps) -> Iterator[Supervisor]:
    """Everything runs inside the block, ready to take a photo through; nothing is left of it afterwards.

    SIGTERM and SIGINT raise StopRequested in the block. Raises ServerError when something cannot start.
    """
    with _nurseries(options) as nurseries, Supervisor(options.data_dir) as supervisor:
        _require_free(options.http_port, "--http-port")
        _require_free(options.grpc_port, "--grpc-port")
        if is_url(options.broker):
            _require_answer(options.broker)
        if COMMON_CODE in nurseries:
            nurseries[COMMON_CODE].start()
        endpoints = _start_servers(options, supervisor, steps)
        for nursery in nurseries.values():
            nursery.start()
        with steps.step("preparing the database", "database is up to date"):
            _migrate(options, endpoints, supervisor.log_path("migrate"), nurseries)
        write_private(environment_file(options), shell_environment(endpoints))
        metrics_ports = {service.name: reserve_port() for service in SERVICES if service.name != "gateway"}
        write_private(targets_file(options), scrape_targets(options, metrics_ports))
        with steps.step("starting the services", f"{len(SERVICES)} services started"):
            for service in SERVICES:
                heartbeat_file(options, service).unlink(missing_ok=True)
                environment = service_environment(service, options, endpoints, os.environ)
                if service.name in metrics_ports:
                    port = str(metrics_ports[service.name])
                    environment |= {"DARKROOM_METRICS_HOST": LOOPBACK, "DARKROOM_METRICS_PORT": port}
                supervisor.run(
                    service.name,
                    _argv(service.command),
                    env=environment,
                    grace_s=service.grace_s,
                    is_server=service.is_needed_to_the_end,
                    nursery=nurseries.get(service.code),
                )
        with steps.step("waiting for the workers and the model", "a photo can be taken through") as say:
            _wait_until_ready(options, supervisor, say)
        yield supervisor


@contextmanager
def _nurseries(options: LocalOptions) -> Iterator[Mapping[tuple[str, ...], Nursery]]:
    """By what they have imported, none of them started; to no one is told what only some of the services may know."""
    if not can_fork():
        yield {}
        return
    log, env = options.data_dir.absolute() / "logs" / "nurseries.log", nursery_environment(os.environ)
    with ExitStack() as stack:
        common = stack.enter_context(Nursery(COMMON_CODE, log=log, env=env))
        further = dict.fromkeys(service.code for service in SERVICES if service.code != COMMON_CODE)
        yield {COMMON_CODE: common} | {
            code: stack.enter_context(Nursery(code, log=log, env=env, within=common)) for code in further
        }


def is_url(broker: str) -> bool:
    """Whether `--broker` names a running broker."""
    return urlsplit(broker).scheme in ("amqp", "amqps", "redis", "rediss")


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    return re.sub(r"(?<=:)[^:@/]*(?=@)", "***", url)


def _start_servers(options: LocalOptions, supervisor: Supervisor, steps: Steps) -> Endpoints:
    folder = options.data_dir.absolute()
    postgres = PostgresServer(folder / "postgres", log=supervisor.log_path("postgres"))
    redis = RedisServer(folder / "redis", log=supervisor.log_path("redis"))
    with steps.step("starting PostgreSQL", "PostgreSQL"):
        supervisor.start("postgres", postgres)
    with steps.step("starting Redis", "Redis"):
        supervisor.start("redis", redis)
    broker_url = redis.url
    if options.broker == "rabbitmq":
        rabbit = RabbitServer(folder / "rabbitmq", log=supervisor.log_path("rabbitmq"))
        with steps.step("starting RabbitMQ", "RabbitMQ"):
            supervisor.start("rabbitmq", rabbit)
        broker_url = rabbit.url
    elif is_url(options.broker):
        broker_url = options.broker
    return Endpoints(postgres.url, redis.url, broker_url, _blob_url(folder), postgres.bin_dir, webhook_secret(folder))


def _blob_url(folder: Path) -> str:
    blobs = folder / "blobs"
    blobs.mkdir(mode=0o700, exist_ok=True)
    return blobs.as_uri()


def operate(data_dir: Path, arguments: Sequence[str], *, may_run: bool) -> int:
    """Runs `darkroom-scheduler` with these arguments on a data folder; returns its exit status.

    PostgreSQL is started for it, unless Darkroom runs on the folder already, which must be allowed. Raises ServerError.
    """
    folder = data_dir.absolute()
    if may_run and read_states(data_dir):
        return _operate(folder, PostgresServer(folder / "postgres"), arguments)
    with Supervisor(data_dir) as supervisor:
        postgres = PostgresServer(folder / "postgres", log=supervisor.log_path("postgres"))
        supervisor.start("postgres", postgres)
        return _operate(folder, postgres, arguments)


def _operate(folder: Path, postgres: PostgresServer, arguments: Sequence[str]) -> int:
    environment = os.environ | {
        "DARKROOM_DATABASE_URL": postgres.url,
        "DARKROOM_PG_BIN_DIR": str(postgres.bin_dir),
        "DARKROOM_BLOB_URL": _blob_url(folder),
    }
    try:
        return subprocess.run(_argv(("darkroom-scheduler", *arguments)), env=environment, check=False).returncode
    except OSError as exc:
        raise _not_installed("darkroom-scheduler", exc) from exc


def _not_installed(command: str, error: OSError) -> ServerError:
    return ServerError(f"cannot run {command} ({error.strerror}): run `pip install 'darkroom-cli[local]'`")


def webhook_secret(folder: Path) -> str:
    """The secret that signs callbacks, kept in `webhook-secret` and made at the first call."""
    path = folder / "webhook-secret"
    if not path.exists():
        write_private(path, "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
    return path.read_text().strip()


def _argv(command: tuple[str, ...]) -> list[str]:
    # Installed beside the interpreter that runs us, which need not be on PATH.
    return [str(Path(sys.executable).with_name(command[0])), *command[1:]]


def _migrate(
    options: LocalOptions, endpoints: Endpoints, log: Path, nurseries: Mapping[tuple[str, ...], Nursery]
) -> None:
    service = Service("migrate", ("darkroom-scheduler", "migrate"), has_database=True, code=SCHEDULER_CODE)
    argv, env = _argv(service.command), service_environment(service, options, endpoints, os.environ)
    if not Path(argv[0]).exists():
        raise _not_installed(service.command[0], FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    child = child_process(argv, log=log, env=env, nursery=nurseries.get(service.code))
    try:
        child.start()
        child.wait()
    finally:
        child.stop()
    if child.exit_status != 0:
        raise ServerError(f"the database could not be brought up to date; the end of {log}:\n{child.log_tail()}")


def _wait_until_ready(options: LocalOptions, supervisor: Supervisor, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while missing := not_ready(options):
        for name, state in supervisor.states().items():
            if state.restarts >= HOPELESS_RESTARTS:
                log = supervisor.log_path(name)
                raise ServerError(f"{name} does not stay up; the end of {log}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise ServerError(
                f"not ready after {START_TIMEOUT_S:g} s: {', '.join(missing)}; see {supervisor.log_path('*').parent}"
            )
        say(f"waiting for {', '.join(missing)}")
        time.sleep(POLL_S)


def not_ready(options: LocalOptions) -> list[str]:
    """What is still missing before a photo could be taken through; empty when it could."""
    missing = [s.name for s in SERVICES if s.is_worker and not heartbeat_file(options, s).exists()]
    # Asked last: it is the dearest, and the workers take longest.
    if not missing and not _takes_photos(options.url):
        missing = ["gateway"]
    return missing


def _takes_photos(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False)
        return bool(answer.json().get("photo_ready"))
    except (httpx.TransportError, ValueError):
        return False


def _require_free(port: int, option: str) -> None:
    if not is_free(port):
        raise ServerError(
            f"port {port} of {LOOPBACK} is in use: stop what listens there or choose another with {option}"
        )


def _require_answer(broker: str) -> None:
    parts = urlsplit(broker)
    default = {"amqp": 5672, "amqps": 5671}.get(parts.scheme, 6379)
    host, port = parts.hostname or "localhost", parts.port or default
    try:
        socket.create_connection((host, port), timeout=5.0).close()
    except OSError as exc:
        raise ServerError(
            f"no broker answers at {host}:{port} ({exc.strerror or exc}): start it, or leave out --broker for "
            f"an embedded one"
        ) from exc


def _tail(log: Path, lines: int = 15) -> str:
    if not log.exists():
        return "(empty)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
