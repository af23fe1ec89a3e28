"""Commands that are forked from a process which has imported their code."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import eventually
from process_memory import holds

from darkroom_cli.servers import ForkedProcess, Nursery, ServerError
from darkroom_cli.supervisor import Supervisor

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}

FOREVER = "import threading; print('started', flush=True); threading.Event().wait()"


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    with Nursery(["json"], log=tmp_path / "nursery.log", env=PLAIN) as nursery:
        yield nursery


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "command.log"


def script(folder: Path, code: str, name: str = "command") -> str:
    """The path of a new script."""
    path = folder / name
    path.write_text(code)
    return str(path)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def run(nursery: Nursery, argv: list[str], log: Path, env: dict[str, str] | None = None) -> int | None:
    """The exit status of a command that ends by itself."""
    child = ForkedProcess(nursery, argv, log=log, env=env)
    child.start()
    child.wait()
    return child.exit_status


@pytest.fixture
def forever(nursery: Nursery, tmp_path: Path, log: Path) -> Iterator[ForkedProcess]:
    child = ForkedProcess(nursery, [script(tmp_path, FOREVER), "and", "ever"], log=log)
    child.start()
    eventually(lambda: log.read_text() == "started\n")
    yield child
    child.stop()


def test_a_fork_is_told_its_words_and_its_environment_only_and_has_imported_already(
    nursery: Nursery, tmp_path: Path, log: Path
) -> None:
    code = """
import os, sys
print("json" in sys.modules, __name__, sys.argv[1:], dict(os.environ), repr(sys.stdin.read()))
os.execv("/usr/bin/env", ["env"])
"""
    assert run(nursery, [script(tmp_path, code), "one", "two"], log, {"DARKROOM_ONLY": "this"}) == 0
    assert log.read_text().splitlines() == [
        "True __main__ ['one', 'two'] {'DARKROOM_ONLY': 'this'} ''",
        "DARKROOM_ONLY=this",
    ]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("1 / 0", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_how_a_fork_has_ended_is_known(nursery: Nursery, tmp_path: Path, log: Path, code: str, status: int) -> None:
    assert run(nursery, [script(tmp_path, code)], log) == status


def test_ps_shows_the_command_and_no_folders_where_there_is_no_room(nursery: Nursery, log: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="dr-") as folder:
        long = Path(folder) / ("long" * 60)
        long.mkdir()
        for place, shown in ((Path(folder), [sys.executable, f"{folder}/command"]), (long, ["command"])):
            child = ForkedProcess(nursery, [script(place, FOREVER), "for", "ever"], log=log)
            child.start()
            eventually(lambda child=child: psutil.Process(child.pid).name() == "command")
            eventually(lambda child=child, shown=shown: [*shown, "for", "ever"] == words(child))
            child.stop()


def words(child: ForkedProcess) -> list[str]:
    """What `ps` shows."""
    return [word for word in psutil.Process(child.pid).cmdline() if word]


def test_a_stopped_fork_ends_with_what_it_has_started(nursery: Nursery, tmp_path: Path, log: Path) -> None:
    code = "import subprocess; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
    child = ForkedProcess(nursery, [script(tmp_path, code)], log=log)
    child.start()
    eventually(lambda: log.read_text().endswith("\n"))
    child.stop()
    assert child.exit_status == -signal.SIGTERM
    assert not child.is_running
    eventually(lambda: is_gone(int(log.read_text())))


def test_no_nursery_and_no_later_fork_has_the_environment_of_another_in_its_memory(
    nursery: Nursery, tmp_path: Path
) -> None:
    secret = "the-secret-" + os.urandom(8).hex()
    path = script(tmp_path, FOREVER)
    children = [
        ForkedProcess(nursery, [path], log=tmp_path / f"{number}.log", env={"SECRET": told})
        for number, told in enumerate([secret, "nothing"])
    ]
    for child in children:
        child.start()
        eventually(lambda log=child._log: log.read_text() == "started\n")
    pids = [pid for pid in (nursery.pid, *(child.pid for child in children)) if pid is not None]
    assert [holds(pid, secret) for pid in pids] == [False, True, False]
    for child in children:
        child.stop()


def test_a_killed_nursery_takes_no_fork_with_it_and_is_started_again(
    nursery: Nursery, forever: ForkedProcess, tmp_path: Path, log: Path
) -> None:
    first = nursery.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(lambda: nursery.pid is None)
    assert forever.is_running
    assert run(nursery, [script(tmp_path, "raise SystemExit(7)", "other")], log) == 7
    assert nursery.pid not in (None, first)
    # Nobody is left to tell how it ends, but that it does is seen.
    os.kill(forever.pid or 0, signal.SIGKILL)
    forever.wait()
    assert forever.exit_status == -signal.SIGKILL


def test_a_nursery_within_another_is_its_fork_and_outlives_it(nursery: Nursery, tmp_path: Path, log: Path) -> None:
    path = script(tmp_path, "import sys; print('json' in sys.modules, 'colorsys' in sys.modules)")
    with Nursery(["colorsys"], log=tmp_path / "within.log", env=PLAIN, within=nursery) as within:
        assert run(within, [path], log) == 0
        assert log.read_text() == "True True\n"
        assert psutil.Process(within.pid).ppid() == nursery.pid
        os.kill(nursery.pid or 0, signal.SIGKILL)
        assert run(within, [path], log) == 0
        os.kill(within.pid or 0, signal.SIGKILL)
        assert run(within, [path], log) == 0
        assert psutil.Process(within.pid).ppid() == nursery.pid


def test_code_that_cannot_be_imported_is_said_at_the_first_start(tmp_path: Path, log: Path) -> None:
    with (
        Nursery(["no_such_module"], log=tmp_path / "nursery.log", env=PLAIN) as nursery,
        pytest.raises(ServerError, match=r"no_such_module cannot be imported; (.|\n)*ModuleNotFoundError"),
    ):
        run(nursery, [script(tmp_path, "")], log)


def test_a_command_that_is_not_there_is_said_at_the_first_start(nursery: Nursery, log: Path) -> None:
    with pytest.raises(ServerError, match="cannot run /no/such/command: No such file"):
        run(nursery, ["/no/such/command"], log)


def test_a_killed_fork_is_started_again_by_the_supervisor(nursery: Nursery, tmp_path: Path) -> None:
    with Supervisor(tmp_path / "data") as supervisor:
        supervisor.run("worker", [script(tmp_path, FOREVER)], nursery=nursery)
        log = supervisor.log_path("worker")
        eventually(lambda: log.read_text() == "started\n")
        first = supervisor.states()["worker"].pid
        os.kill(first or 0, signal.SIGKILL)
        eventually(lambda: log.read_text() == "started\nstarted\n")
        eventually(lambda: supervisor.states()["worker"].restarts == 1)
        second = supervisor.states()["worker"].pid
    assert is_gone(second or 0)


def test_nothing_outlives_an_owner_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from darkroom_cli.servers import ForkedProcess, Nursery
folder = Path({str(tmp_path)!r})
outer = Nursery(["json"], log=folder / "nursery.log", env=dict(os.environ))
inner = Nursery(["csv"], log=folder / "nursery.log", env=dict(os.environ), within=outer)
child = ForkedProcess(inner, [{script(tmp_path, FOREVER)!r}], log=folder / "log")
child.start()
waiting = inner.fork()
print(outer.pid, inner.pid, child.pid, waiting.pid, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 4
    assert not any(is_gone(pid) for pid in pids)
    process.kill()
    process.communicate()
    eventually(lambda: all(is_gone(pid) for pid in pids))
