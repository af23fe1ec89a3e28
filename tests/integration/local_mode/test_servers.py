"""The three embedded servers: used, killed, restarted, stopped, and orphaned."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import psycopg
import pytest
from conftest import eventually
from kombu import Connection, Queue
from redis import Redis
from redis.exceptions import AuthenticationError

from darkroom_cli.servers import PostgresServer, RabbitServer, RedisServer, ServerError
from darkroom_cli.servers import postgres as postgres_module
from darkroom_cli.servers import process as process_module
from darkroom_cli.servers.server import EmbeddedServer

EVERY_SERVER = pytest.mark.parametrize("kind", [PostgresServer, RedisServer, RabbitServer])

ServerT = TypeVar("ServerT", bound=EmbeddedServer)


@contextmanager
def running(server: ServerT) -> Iterator[ServerT]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def keep(server: EmbeddedServer, value: str) -> None:
    """Stores a value so that the server has confirmed it."""
    if isinstance(server, PostgresServer):
        with psycopg.connect(server.dsn) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
            connection.execute("INSERT INTO kept VALUES (%s)", [value])
    elif isinstance(server, RedisServer):
        with Redis.from_url(server.url) as redis:
            redis.rpush("kept", value)
    else:
        with Connection(server.url, transport_options={"confirm_publish": True}) as connection:
            producer = connection.Producer()
            producer.publish(value, routing_key="kept", declare=[kept_queue()], delivery_mode="persistent")
        # RabbitMQ 3.10 writes the name of a new quorum queue to disk about a second after it has confirmed it, and
        # after a kill -9 in between the queue answers nobody any more. Only a queue's first second is concerned.
        eventually(lambda: any(b"%2F_kept" in names.read_bytes() for names in server.data_dir.rglob("names.dets")))


def kept(server: EmbeddedServer) -> list[str]:
    """What `keep` stored, in order."""
    if isinstance(server, PostgresServer):
        with psycopg.connect(server.dsn) as connection:
            return [value for (value,) in connection.execute("SELECT value FROM kept").fetchall()]
    if isinstance(server, RedisServer):
        with Redis.from_url(server.url, decode_responses=True) as redis:
            return list(redis.lrange("kept", 0, -1))
    values: list[str] = []
    with Connection(server.url) as connection, connection.channel() as channel:
        queue = kept_queue()(channel)
        queue.declare()
        while message := queue.get():
            values.append(message.payload)
            if len(values) > 10:
                break
    return values  # unacknowledged, so the node puts them back when the connection closes


def kept_queue() -> Queue:
    return Queue("kept", queue_arguments={"x-queue-type": "quorum"})


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process with this folder in its arguments, its environment or as its working directory."""
    found = []
    for process in psutil.process_iter():
        try:
            told = "\0".join([process.cwd(), *process.cmdline(), *process.environ().values()])
        except psutil.Error:
            continue
        if str(folder) in told and process.pid != os.getpid():
            found.append(process)
    return found


@EVERY_SERVER
def test_confirmed_data_survives_kill_9_and_a_stop_leaves_no_process(
    kind: type[EmbeddedServer], tmp_path: Path
) -> None:
    with running(kind(tmp_path / "server")) as server:
        url = server.url
        keep(server, "before the kill")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        assert not server.is_running
        assert server.pid is None

        server.start()
        assert server.url == url
        assert eventually(lambda: kept(server)) == ["before the kill"]
        keep(server, "after the kill")
        server.stop()
        assert not server.is_running
        eventually(lambda: processes_of(server.data_dir) == [])  # what was killed takes a moment to be gone

    with running(kind(tmp_path / "server")) as another_day:
        assert eventually(lambda: kept(another_day)) == ["before the kill", "after the kill"]


@EVERY_SERVER
def test_a_server_ends_with_its_owner_and_its_data_can_be_taken_up(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from darkroom_cli.servers import {kind.__name__}
server = {kind.__name__}(Path({str(tmp_path / "server")!r}))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    eventually(lambda: not processes_of(tmp_path / "server"))
    with running(kind(tmp_path / "server")) as server:
        keep(server, "in the next life")
        assert eventually(lambda: kept(server)) == ["in the next life"]


@EVERY_SERVER
def test_two_servers_run_at_once_without_seeing_each_other(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    with ExitStack() as stack:
        one, two = (stack.enter_context(running(kind(tmp_path / name))) for name in ("one", "two"))
        keep(one, "of one")
        keep(two, "of two")
        assert one.url != two.url
        assert (kept(one), kept(two)) == (["of one"], ["of two"])


@EVERY_SERVER
def test_a_server_listens_on_loopback_only_below_the_ephemeral_ports(
    kind: type[EmbeddedServer], tmp_path: Path
) -> None:
    with running(kind(tmp_path / "server")) as server:
        processes = processes_of(server.data_dir)
        assert server.pid in [process.pid for process in processes]
        listening = []
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # a session of the readiness check may just be ending
                listening += [
                    connection.laddr
                    for connection in process.net_connections("inet")
                    if connection.status == psutil.CONN_LISTEN
                ]
    addresses = {address.ip for address in listening}
    # epmd listens on the loopback of both families, whatever it is told.
    assert addresses <= {"127.0.0.1", "::1"}
    assert all(20_000 <= address.port < 32_768 for address in listening)
    # AMQP, distribution and port mapper; one port; none, a Unix socket.
    assert len({address.port for address in listening}) == {RabbitServer: 3, RedisServer: 1, PostgresServer: 0}[kind]


@pytest.mark.parametrize("kind", [PostgresServer, RedisServer])
def test_data_in_use_is_refused_and_left_alone(
    kind: type[EmbeddedServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "LOCK_WAIT_S", 0.1)
    monkeypatch.setattr(postgres_module, "LOCK_WAIT_S", 0.1)
    folder = tmp_path / ("long-" * 20)  # PostgreSQL's socket has a folder elsewhere then
    with running(kind(folder)) as server:
        with pytest.raises(ServerError, match="in use by another process"):
            kind(folder).start()
        keep(server, "still here")
        assert kept(server) == ["still here"]


def test_other_users_of_the_machine_cannot_reach_the_database(tmp_path: Path) -> None:
    with running(PostgresServer(tmp_path / "server")) as server:
        folder = Path(server.dsn.partition("host=")[2])
        assert (folder / ".s.PGSQL.5432").is_socket()
        assert folder.stat().st_mode & 0o077 == 0


def test_redis_refuses_a_client_without_the_password(tmp_path: Path) -> None:
    with running(RedisServer(tmp_path / "server")) as server:
        with Redis(port=server.port, protocol=2) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        with Redis.from_url(server.url) as friend:
            assert friend.ping()


def test_postgresql_starts_over_lock_files_that_name_a_living_process(tmp_path: Path) -> None:
    with running(PostgresServer(tmp_path / "server")) as server:
        keep(server, "kept")
        folder = Path(server.dsn.partition("host=")[2])
        lock_files = [tmp_path / "server" / "data" / "postmaster.pid", folder / ".s.PGSQL.5432.lock"]
        contents = [path.read_text().splitlines() for path in lock_files]
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        # As in a new container, where somebody else has got the dead server's process id.
        for path, lines in zip(lock_files, contents, strict=True):
            path.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
        server.start()
        assert kept(server) == ["kept"]


def test_postgresql_takes_up_an_initialisation_that_was_cut_off(tmp_path: Path) -> None:
    half = tmp_path / "server" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("16\n")
    with running(PostgresServer(tmp_path / "server")) as server:
        keep(server, "kept")
        assert kept(server) == ["kept"]


def test_postgresql_has_pgvector_and_durable_settings(tmp_path: Path) -> None:
    with running(PostgresServer(tmp_path / "server")) as server, psycopg.connect(server.dsn) as connection:
        connection.execute("CREATE EXTENSION vector")
        (distance,) = connection.execute("SELECT '[1,2]'::halfvec <-> '[1,5]'::halfvec").fetchone() or (None,)
        assert distance == 3
        shown = {}
        for name in ("fsync", "synchronous_commit", "full_page_writes", "max_connections", "timezone"):
            (shown[name],) = connection.execute(f"SHOW {name}").fetchone() or (None,)
        assert shown == {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "max_connections": "100",
            "timezone": "UTC",
        }


def test_the_programs_of_postgresql_dump_and_restore_a_database(tmp_path: Path) -> None:
    dump = tmp_path / "backup.dump"
    with running(PostgresServer(tmp_path / "server")) as server:
        keep(server, "worth a backup")
        subprocess.run([server.bin_dir / "pg_dump", "--format=custom", f"--file={dump}", server.dsn], check=True)
        with psycopg.connect(server.dsn) as connection:
            connection.execute("DROP TABLE kept")
        subprocess.run([server.bin_dir / "pg_restore", f"--dbname={server.dsn}", dump], check=True)
        assert kept(server) == ["worth a backup"]


def test_redis_keeps_every_key_and_every_command(tmp_path: Path) -> None:
    with (
        running(RedisServer(tmp_path / "server")) as server,
        Redis.from_url(server.url, decode_responses=True) as redis,
    ):
        wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "bind": "127.0.0.1"}
        assert {name: redis.config_get(name)[name] for name in wanted} == wanted


def test_a_server_that_cannot_start_says_what_it_said(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "server")
    (tmp_path / "server" / "data").mkdir(parents=True)
    (tmp_path / "server" / "data" / "appendonly.aof").write_text("not an append-only file")
    with pytest.raises(ServerError, match=r"(?s)Redis ended while it started.*Bad file format"):
        server.start()
    assert not server.is_running
