"""The supervisor with real child processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import eventually
from redis import Redis

from darkroom_cli.servers import ChildProcess, RedisServer, ServerError
from darkroom_cli.supervisor import STATE_FILE, ProcessState, Supervisor, read_states

FOREVER = ["sleep", "600"]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "data") as supervisor:
        yield supervisor


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a supervisor over `<tmp_path>/data` of two commands, one of which has a child of its own."""
    script = f"""
from pathlib import Path
from darkroom_cli.supervisor import Supervisor
with Supervisor(Path({str(tmp_path / "data")!r})) as supervisor:
    supervisor.run("single", ["sleep", "600"])
    supervisor.run("pool", ["sh", "-c", "sleep 600 & wait"])
    print("up", flush=True)
    supervisor.wait()
print("down", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.communicate()


def pids_below(pid: int) -> set[int]:
    return {process.pid for process in psutil.Process(pid).children(recursive=True)}


def pids_of_at_least(number: int, pid: int) -> set[int]:
    """All processes below this one, once there are so many."""
    eventually(lambda: len(pids_below(pid)) >= number)
    return pids_below(pid)


def living(pids: set[int]) -> set[int]:
    return {pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE}


def pid_of(supervisor: Supervisor, name: str) -> int | None:
    return supervisor.states()[name].pid


def says_when_stopped(name: str, said: Path) -> list[str]:
    """A command that notes when it is ready and, at SIGTERM, that it ends."""
    return ["sh", "-c", f"trap 'echo {name} >> {said}; exit 0' TERM; touch {said}.{name}; while :; do sleep 0.05; done"]


def test_a_crashed_process_is_started_again_and_logs_go_on(supervisor: Supervisor, tmp_path: Path) -> None:
    log = tmp_path / "data" / "logs" / "worker.log"
    supervisor.run("worker", ["sh", "-c", "echo started; exec sleep 600"])
    eventually(lambda: log.read_text() == "started\n")
    first = pid_of(supervisor, "worker")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: pid_of(supervisor, "worker") not in (first, None) and pid_of(supervisor, "worker"))
    assert psutil.pid_exists(second)
    assert supervisor.states()["worker"].restarts == 1
    eventually(lambda: log.read_text() == "started\nstarted\n")


def test_what_a_crashed_process_left_behind_is_killed_before_the_restart(supervisor: Supervisor) -> None:
    supervisor.run("pool", ["sh", "-c", "sleep 600 & wait"])
    parent = pid_of(supervisor, "pool")
    assert parent is not None
    (child,) = eventually(lambda: pids_below(parent))
    os.kill(parent, signal.SIGKILL)
    eventually(lambda: not living({child}))
    eventually(lambda: supervisor.states()["pool"].restarts == 1)


def test_a_crashed_server_comes_back_at_the_same_url_with_its_data(supervisor: Supervisor, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", log=supervisor.log_path("redis"))
    supervisor.start("redis", server)
    url = server.url
    with Redis.from_url(url) as redis:
        redis.set("kept", "yes")
    first = pid_of(supervisor, "redis")
    assert first == server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(lambda: pid_of(supervisor, "redis") not in (first, None))
    with Redis.from_url(url) as redis:
        assert redis.get("kept") == b"yes"


def test_servers_stop_after_the_commands_and_in_the_reverse_order_of_their_starts(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with Supervisor(tmp_path / "data") as supervisor:
        for name in ("first", "second"):
            supervisor.start(name, ChildProcess(says_when_stopped(name, said), log=supervisor.log_path(name)))
        supervisor.run("command", says_when_stopped("command", said))
        eventually(lambda: all(Path(f"{said}.{name}").exists() for name in ("first", "second", "command")))
    assert said.read_text().split() == ["command", "second", "first"]


def test_commands_stop_at_the_same_time(tmp_path: Path) -> None:
    """Each ends in good order only when the other was told to end too; else it is killed and says nothing."""
    names = ("one", "two")
    with Supervisor(tmp_path / "data") as supervisor:
        for name, other in (names, names[::-1]):
            told, awaited, ended = (tmp_path / part for part in (f"{name}.told", f"{other}.told", f"{name}.ended"))
            on_stop = f"touch {told}; while [ ! -e {awaited} ]; do sleep 0.05; done; touch {ended}; exit 0"
            script = f"trap '{on_stop}' TERM; touch {tmp_path / name}.up; while :; do sleep 0.05; done"
            supervisor.run(name, ["sh", "-c", script], grace_s=20)
        eventually(lambda: all((tmp_path / f"{name}.up").exists() for name in names))
    assert all((tmp_path / f"{name}.ended").exists() for name in names)


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace_with_its_children(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with Supervisor(tmp_path / "data") as supervisor:
        supervisor.run("stubborn", ["sh", "-c", f"trap '' TERM; sleep 600 & : > {ready}; wait"], grace_s=0.2)
        eventually(ready.exists)
        pid = pid_of(supervisor, "stubborn")
        assert pid is not None
        pids = {pid} | pids_below(pid)
        assert len(pids) == 2
    eventually(lambda: not living(pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_and_ends_the_wait(
    owner: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    pids = pids_of_at_least(4, owner.pid)
    owner.send_signal(number)
    said, _ = owner.communicate(timeout=90)
    assert said == "down\n"
    assert owner.returncode == 0
    eventually(lambda: not living(pids))
    assert not (tmp_path / "data" / STATE_FILE).exists()


def test_nothing_outlives_a_supervisor_that_is_killed(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    # Two commands, the child of one, and the guard.
    pids = pids_of_at_least(4, owner.pid)
    owner.kill()
    owner.wait()
    eventually(lambda: not living(pids))
    assert read_states(tmp_path / "data") == {}
    with Supervisor(tmp_path / "data"):
        assert read_states(tmp_path / "data") == {}


def test_a_killed_guard_is_replaced_at_the_next_start(tmp_path: Path) -> None:
    script = f"""
import psutil, time
from pathlib import Path
from darkroom_cli.servers import ChildProcess
first, second = (ChildProcess(["sleep", "600"], log=Path({str(tmp_path / "log")!r})) for _ in range(2))
first.start()
(guard,) = [child for child in psutil.Process().children() if child.pid != first.pid]
guard.kill()
guard.wait()
second.start()
print(first.pid, second.pid, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = {int(pid) for pid in process.stdout.readline().split()}
    assert living(pids) == pids
    assert len(pids) == 2
    process.kill()
    process.communicate()
    eventually(lambda: not living(pids))


def test_a_signal_while_a_slow_server_starts_leaves_nothing_running(tmp_path: Path) -> None:
    script = f"""
import threading
from pathlib import Path
from darkroom_cli.servers import RabbitServer
from darkroom_cli.supervisor import StopRequested, Supervisor
try:
    with Supervisor(Path({str(tmp_path / "data")!r})) as supervisor:
        supervisor.start("rabbitmq", RabbitServer(Path({str(tmp_path / "rabbitmq")!r})))
        threading.Event().wait()  # it was quicker than the signal
except StopRequested as exc:
    print("stopped by", exc)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    # The guard, the port mapper and the node, which has yet to boot. It must not leave a port mapper of its own either.
    pids = pids_of_at_least(3, process.pid)
    process.terminate()
    said, _ = process.communicate(timeout=90)
    assert said == "stopped by SIGTERM\n"
    eventually(lambda: not living(pids))
    eventually(
        lambda: not [each for each in psutil.process_iter(["environ"]) if str(tmp_path) in str(each.info["environ"])]
    )


def test_a_second_supervisor_on_the_same_folder_is_refused(supervisor: Supervisor) -> None:
    with pytest.raises(ServerError, match=rf"already runs on .* as process {os.getpid()}: .*--data-dir"):
        Supervisor(supervisor.data_dir).__enter__()
    supervisor.run("still works", FOREVER)


def test_the_first_start_of_a_broken_process_fails_at_once(supervisor: Supervisor) -> None:
    with pytest.raises(ServerError, match="no/such/command"):
        supervisor.run("broken", ["/no/such/command"])
    assert supervisor.states() == {}


def test_a_name_is_given_once(supervisor: Supervisor) -> None:
    supervisor.run("worker", FOREVER)
    with pytest.raises(ValueError, match="worker is already kept"):
        supervisor.run("worker", FOREVER)


def test_the_state_file_follows_the_processes(supervisor: Supervisor) -> None:
    supervisor.run("worker", FOREVER)
    pid = pid_of(supervisor, "worker")
    assert pid is not None
    assert read_states(supervisor.data_dir) == supervisor.states()
    assert json.loads((supervisor.data_dir / STATE_FILE).read_text())["supervisor"] == os.getpid()
    os.kill(pid, signal.SIGKILL)

    def is_noted_as_down() -> bool:
        return read_states(supervisor.data_dir)["worker"].pid is None

    eventually(is_noted_as_down, every_s=0.01)
    eventually(lambda: read_states(supervisor.data_dir)["worker"].restarts == 1)
    state = read_states(supervisor.data_dir)["worker"]
    assert state == ProcessState(pid=pid_of(supervisor, "worker"), restarts=1, since=state.since)
    assert state.pid not in (pid, None)


def test_a_child_is_told_only_the_environment_it_is_given(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = ChildProcess(["/usr/bin/env"], log=log, env={"DARKROOM_ONLY": "this"})
    child.start()
    child.wait()
    assert log.read_text() == "DARKROOM_ONLY=this\n"
