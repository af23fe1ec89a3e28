"""A Darkroom to be harmed: `darkroom up` as a process, and a hand on everything that runs and lies in it."""

import errno
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Self, TypeVar

import psutil
import psycopg
from kombu import Connection
from redis import Redis
from redis.exceptions import RedisError

from darkroom.contracts import keys
from darkroom.contracts.base import Sha256
from darkroom.contracts.keys import Recipe
from darkroom.storage import FileStore
from darkroom.topology import task_queue
from darkroom_cli.local import SERVICES
from darkroom_cli.servers import PostgresServer, reserve_port
from darkroom_cli.supervisor import read_states

ValueT = TypeVar("ValueT")

SETTINGS = {
    # A fifth of the usual limits, so that the reconciler's deadlines pass within a minute.
    "DARKROOM_TASK_SOFT_LIMIT_S": "5",
    "DARKROOM_TASK_HARD_LIMIT_S": "6",
    "DARKROOM_TASK_MAX_RETRIES": "2",
    # A full disk is met in the middle of a write, not before it.
    "DARKROOM_MIN_FREE_BYTES": "0",
    # Every photo at every turn of the check.
    "DARKROOM_BLOB_CHECKS_PER_S": "20000",
    "HF_HUB_OFFLINE": "1",
}

BACK_WITHIN_S = 180.0
"""A killed process is started again after 1 to 10 s; RabbitMQ then needs up to a minute on a busy machine."""


class OverdueError(Exception):
    """What was waited for did not come."""


def wait_for(check: Callable[[], ValueT], what: str, *, within_s: float, every_s: float = 0.05) -> ValueT:
    """The first true answer of `check`. Raises `OverdueError` that names `what`."""
    deadline = time.monotonic() + within_s
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise OverdueError(f"{what}: not within {within_s:g} s")
        time.sleep(every_s)
    return answer


class Stage(StrEnum):
    """How far a photo in flight is, by its dispatch stamp and by what lies in the blob store."""

    WAITING = "waiting"
    """The dispatcher has not stamped it."""
    DISPATCHED = "dispatched"
    """Not decoded yet."""
    PREPARED = "prepared"
    """Thumbnails, vector or both are missing: its join is open."""
    MADE = "made"
    """Everything is there; `finalize` has not said so."""


@dataclass(frozen=True)
class InFlight:
    """One photo that is neither ready nor failed."""

    sha256: Sha256
    lane: str
    stage: Stage


class SmallDisk:
    """A tmpfs of its own, which is filled by taking away all of its room that is not in use."""

    how = "the store's own tmpfs shrunk to what it held: ENOSPC"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True)
        _run("mount", "-t", "tmpfs", "-o", "mode=0700,size=75%", "darkroom-chaos", str(folder))

    @contextmanager
    def full(self) -> Iterator[None]:
        """Nothing more can be written until the block ends."""
        wait_for(self._shrink, "shrinking the disk", within_s=10)
        try:
            yield
        finally:
            self._resize("75%")

    def unmount(self) -> None:
        """Gives its memory back; call it when nothing uses it any more."""
        _run("umount", str(self._folder))

    def _shrink(self) -> bool:
        found = os.statvfs(self._folder)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        try:
            self._resize(str(used + found.f_frsize))
        except subprocess.CalledProcessError:
            return False  # more was written meanwhile than it was to hold
        return True

    def _resize(self, size: str) -> None:
        _run("mount", "-o", f"remount,size={size}", str(self._folder))


class LimitedFiles:
    """Where nothing may be mounted: no process may write to a file beyond its first byte."""

    how = "RLIMIT_FSIZE of every process at 0: EFBIG, because nothing may be mounted here"

    def __init__(self, house: "House") -> None:
        self._house = house

    @contextmanager
    def full(self) -> Iterator[None]:
        """Nothing more can be written until the block ends."""
        self._limit(0)
        try:
            yield
        finally:
            self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        for service in SERVICES:
            if (pid := self._house.pid_now(service.name)) is None:
                continue
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                # Parents first: a child that is forked meanwhile has its parent's limit.
                for one in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))):
                    with suppress(ProcessLookupError):
                        resource.prlimit(one, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class House:
    """One `darkroom up`. Use it as a context manager; everything is gone at the end but what lies in `folder`."""

    def __init__(self, broker: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.broker_name = broker
        self.data_dir = folder / "data"
        self.log = folder / "up.log"
        self._ports = reserve_port(), reserve_port()
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self.database_url = PostgresServer(self.data_dir / "postgres").url
        self._dsn = PostgresServer(self.data_dir / "postgres").dsn
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._up: subprocess.Popen[bytes] | None = None
        self._mounted: SmallDisk | None = None
        self.disk: SmallDisk | LimitedFiles = LimitedFiles(self)

    def __enter__(self) -> Self:
        with suppress(OSError, subprocess.CalledProcessError):  # not root, or root of a container that may not mount
            self.disk = self._mounted = SmallDisk(self.data_dir / "blobs")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        self.store = FileStore(self.data_dir / "blobs")
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._up is not None and self._up.poll() is None:
            self._up.send_signal(signal.SIGTERM)
            try:
                self._up.wait(120)
            except subprocess.TimeoutExpired:
                self._up.kill()  # its guard kills all that it started
                self._up.wait()
        if self._mounted is not None:
            wait_for(self._unmount, "unmounting the disk", within_s=30)

    def _start(self) -> None:
        command = [str(Path(sys.executable).with_name("darkroom")), "up", "--data-dir", str(self.data_dir)]
        command += ["--http-port", str(self._ports[0]), "--grpc-port", str(self._ports[1]), "--workers", "2"]
        command += ["--broker", "rabbitmq"] if self.broker_name == "rabbitmq" else []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
        with self.log.open("wb") as log:
            self._up = subprocess.Popen(command, env=environment | SETTINGS, stdout=log, stderr=subprocess.STDOUT)

        def is_ready() -> bool:
            if self._up is not None and self._up.poll() is not None:
                raise RuntimeError(self.log.read_text())
            return "ready: http" in self.log.read_text()

        wait_for(is_ready, "darkroom up", within_s=300)
        exported = (self.data_dir / "run" / "environment").read_text().splitlines()
        values = dict(shlex.split(line)[1].split("=", 1) for line in exported)
        self.broker_url, self.result_url = values["DARKROOM_BROKER_URL"], values["DARKROOM_RESULT_URL"]

    def _unmount(self) -> bool:
        try:
            if self._mounted is not None:
                self._mounted.unmount()
        except subprocess.CalledProcessError:
            return False
        return True

    @property
    def broker_process(self) -> str:
        """The name of the process that is the broker."""
        return "rabbitmq" if self.broker_name == "rabbitmq" else "redis"

    def pid_now(self, process: str) -> int | None:
        """The process id, None while it is down."""
        with suppress(json.JSONDecodeError, KeyError):
            return read_states(self.data_dir)[process].pid
        return None

    def pid(self, process: str) -> int:
        """The process id, when it runs."""
        return wait_for(lambda: self.pid_now(process), f"{process} runs", within_s=BACK_WITHIN_S)

    def await_another(self, process: str, pid: int) -> None:
        """Returns when the process has been started again after this one."""

        def is_back() -> bool:
            return self.pid_now(process) not in (None, pid)

        wait_for(is_back, f"{process} runs again", within_s=BACK_WITHIN_S)

    def await_all(self) -> None:
        """Returns when every process runs."""
        wait_for(
            lambda: all(state.pid is not None for state in read_states(self.data_dir).values()),
            "every process runs",
            within_s=BACK_WITHIN_S,
        )

    @contextmanager
    def stopped(self, pid: int, *, is_group: bool = False) -> Iterator[None]:
        """A process, or all of the group that it leads, stands still until the block ends."""
        send = os.killpg if is_group else os.kill
        with suppress(ProcessLookupError):
            send(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                send(pid, signal.SIGCONT)

    def child(self, process: str) -> int | None:
        """A process of the pool: one that works just now, if there is one; None while there is no pool."""
        children = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid(process)).children()
        at_work = []
        for child in children:
            with suppress(psutil.NoSuchProcess):
                if child.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP):
                    at_work.append(child)
        return next((child.pid for child in (*at_work, *children)), None)

    def rows(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """What the database answers; nothing while it is away."""
        try:
            if self._connection is None or self._connection.broken or self._connection.closed:
                self._connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=2)
            return self._connection.execute(statement, parameters).fetchall()
        except psycopg.OperationalError:
            return []

    def in_flight(self, since: datetime) -> list[InFlight]:
        """The photos that were accepted or dispatched since then and are not finished: those that are on their way.

        What an earlier fault has lost, and nobody has found yet, is not among them.
        """
        rows = self.rows(
            "SELECT sha256, lane, dispatched_at IS NULL FROM originals WHERE status IN ('accepted', 'processing') "
            "AND greatest(created_at, dispatched_at) >= %s",
            since,
        )
        return [
            InFlight(str(sha256), str(lane), Stage.WAITING if is_waiting else self._stage(str(sha256)))
            for sha256, lane, is_waiting in rows
        ]

    def _stage(self, sha256: Sha256) -> Stage:
        recipe = Recipe.current()
        if not self.store.exists(keys.prepared_key(sha256, recipe)):
            return Stage.DISPATCHED
        is_made = self.vectors(sha256) and self.store.exists(keys.described_key(sha256, recipe))
        return Stage.MADE if is_made else Stage.PREPARED

    def vectors(self, sha256: Sha256) -> list[Path]:
        """The files of a photo's vectors."""
        return list((self.store.root / "embeddings").glob(f"*/{sha256}.npy"))

    def redis(self) -> "Redis":
        """A connection to the result store."""
        return Redis.from_url(self.result_url, socket_timeout=5, socket_connect_timeout=2)

    def broker(self) -> Connection:
        """A connection to the broker, whose publishes are confirmed."""
        return Connection(self.broker_url, connect_timeout=2, transport_options={"confirm_publish": True})

    def depth(self, queue: str) -> int:
        """How many messages wait in a task queue; 0 while the broker is away."""
        try:
            if self.broker_name != "rabbitmq":
                with self.redis() as redis:
                    return int(redis.llen(queue))
            with self.broker() as connection, connection.channel() as channel:
                return int(task_queue(queue)(channel).queue_declare(passive=True).message_count)
        except (RedisError, OSError, *connection_errors(self.broker())):
            return 0

    def left_in_queues(self) -> dict[str, int]:
        """Every queue that holds a message, waiting or taken and not acknowledged, of whomever it is."""
        if self.broker_name != "rabbitmq":
            with self.redis() as redis:
                queues = [key for key in redis.keys("*") if redis.type(key) == b"list"]
                found = {
                    key.decode(): int(redis.llen(key)) for key in queues if not key.endswith(b".reply.celery.pidbox")
                }
                found["taken and not acknowledged"] = int(redis.hlen("unacked"))
        else:
            found = self._rabbit_queues()
        return {queue: count for queue, count in found.items() if count}

    def _rabbit_queues(self) -> dict[str, int]:
        # What the node was started with leads to it and to nothing else.
        node = psutil.Process(self.pid("rabbitmq")).environ()
        command = [node.get("RABBITMQ_SCRIPTS_DIR", "/usr/lib/rabbitmq/bin") + "/rabbitmqctl", "--quiet"]
        command += ["list_queues", "--formatter", "json", "name", "messages"]
        done = subprocess.run(command, env=node, capture_output=True, text=True)
        if done.returncode:  # too busy to answer in its time: nothing is known to be empty
            return {f"a node that does not answer ({done.stderr.strip()})": 1}
        return {row["name"]: row["messages"] for row in json.loads(done.stdout)}


def connection_errors(connection: Connection) -> tuple[type[Exception], ...]:
    """What kombu raises over this connection while the broker is away."""
    return (*connection.connection_errors, *connection.channel_errors)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, f"there is no {command[0]}") from error
