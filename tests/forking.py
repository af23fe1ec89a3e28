"""Services as processes of their own that start at once: forks of a process which has imported their code already.

Importing is most of what a start costs: 5 s of a core for the embedder, 1 s for a scheduler's process, and the tests
start a hundred. Everything else is as in a start from nothing: a session of its own, the environment alone, the entry
point, a normal end. The commands themselves are run by tests/e2e and tests/architecture/test_environments.py.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from darkroom_cli.servers import ChildProcess
from darkroom_cli.servers.process import rotate

MAX_REQUEST_BYTES = 131_072
"""Of a command and its environment."""


class Nursery:
    """A process that has imported a module, and forks whenever a command of it is to be run."""

    def __init__(self, module: str, env: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, module, str(theirs.fileno())],
                env=dict(env),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(self, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> "Fork":
        """Starts the command in `argv`: a console script by its name, or the path of a script."""
        ours, theirs = socket.socketpair()
        with theirs:
            request = json.dumps({"argv": list(argv), "log": str(log), "env": dict(env)}).encode()
            socket.send_fds(self._control, [request], [theirs.fileno()])
        return Fork(ours)

    def close(self) -> None:
        """Ends the process; its forks are killed."""
        self._control.close()
        self._process.wait(60)


class Fork:
    """What `subprocess.Popen` would be for the fork, as far as `ChildProcess` uses it."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told.makefile("r")
        self._turn = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(told, selectors.EVENT_READ)
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, as `Popen` has it, or None."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; raises `subprocess.TimeoutExpired`."""
        status = self._await(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Sends it, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _await(self, timeout: float | None) -> int | None:
        with self._turn:
            if self.returncode is None and self._selector.select(timeout):
                # Nothing is told by a nursery that has ended, and has killed its forks before.
                self.returncode = int(self._told.readline() or -signal.SIGKILL)
                self._selector.close()
            return self.returncode


class ForkedProcess(ChildProcess):
    """A `ChildProcess` that a nursery starts."""

    def __init__(self, nursery: Nursery, argv: Sequence[str], *, log: Path, env: Mapping[str, str]) -> None:
        super().__init__(argv, log=log, env=env, grace_s=40)
        self._fork = lambda: nursery.fork(argv, log, env)

    def start(self) -> None:
        """Starts the command, unless it runs."""
        if self.is_running:
            return
        rotate(self._log)
        self._log.touch()
        child: Any = self._fork()
        self._child, self._group = child, child.pid


def main() -> None:
    """The nursery; in each fork, the command that it is for."""
    module, descriptor = sys.argv[1:]
    importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the collector of a fork leaves shared memory alone
    with socket.socket(fileno=int(descriptor)) as control:
        request = forked(control)
    if request is not None:
        become(**request)


def forked(control: socket.socket) -> dict[str, Any] | None:
    """Forks whenever it is asked to; in a fork, returns what was asked for, and None when nobody can ask any more."""
    running: dict[int, tuple[int, socket.socket]] = {}
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd != control.fileno():
                selector.unregister(key.fd)
                os.close(key.fd)
                pid, teller = running.pop(key.fd)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with teller, suppress(BrokenPipeError):
                    teller.sendall(f"{status}\n".encode())
                continue
            data, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 1)
            if not data:
                for pid, _ in running.values():
                    os.killpg(pid, signal.SIGKILL)
                return None
            teller = socket.socket(fileno=descriptors[0])
            pid = os.fork()
            if pid == 0:
                os.setsid()
                selector.close()
                teller.close()
                for pidfd, (_, other) in running.items():
                    os.close(pidfd)
                    other.close()
                return dict(json.loads(data))
            pidfd = os.pidfd_open(pid)
            running[pidfd] = pid, teller
            selector.register(pidfd, selectors.EVENT_READ)
            teller.sendall(f"{pid}\n".encode())


def become(argv: list[str], log: str, env: dict[str, str]) -> None:
    """Runs a command as if this process had been started for it."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = argv
    if Path(argv[0]).is_absolute():
        sys.path.insert(0, str(Path(argv[0]).parent))
        runpy.run_path(argv[0], run_name="__main__")
        return
    (command,) = entry_points(group="console_scripts", name=argv[0])
    sys.exit(command.load()())


if __name__ == "__main__":
    main()
