"""Commands in Python that start at once and share memory: forks of a process which has imported their code already.

Importing is most of what the start of a service costs, and most of its memory while it is idle. All else is as for a
command that is started from nothing: a session and a log of its own, the environment that it is given and no other,
the script from its first line, a normal end.
"""

import errno
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from darkroom_cli.servers.process import ChildProcess, Running, ServerError

logger = logging.getLogger(__name__)

STATUS_TIMEOUT_S = 60.0
"""How long a nursery may take to tell how a fork has ended; that it has died itself is seen at once."""


def can_fork() -> bool:
    """Whether this machine knows descriptors of processes: Linux since 5.3, unless a sandbox forbids them."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class Nursery:
    """A process that has imported some modules, started at the first need, and again when it has died.

    Its forks live on when it dies. `env` is its whole environment, which `/proc/<pid>/environ` shows for them too. One
    `within` another is a fork itself and shares what that one has imported. As a context manager it ends with the
    block; it must outlive whoever waits for its forks, for it alone knows how they end.
    """

    def __init__(
        self, modules: Sequence[str], *, log: Path, env: Mapping[str, str], within: "Nursery | None" = None
    ) -> None:
        self._modules = list(modules)
        self._log = log
        self._env = dict(env)
        self._within = within
        self._turn = threading.Lock()
        self._process: ChildProcess | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id, None when it is not running."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts the process, unless it runs; returns before it has imported anything. Raises ServerError."""
        with self._turn:
            self._start()

    def fork(self) -> "Fork":
        """A new process that waits to be told what it is to become. Raises ServerError."""
        with self._turn:
            self._start()
            try:
                return self._ask()
            except OSError:  # it has died just now, or cannot import
                self._end()
            self._start()
            try:
                return self._ask()
            except OSError as exc:
                raise ServerError(
                    f"{', '.join(self._modules)} cannot be imported; the end of {self._log}:\n{self._tail()}"
                ) from exc

    def close(self) -> None:
        """Ends the process; its forks live on."""
        with self._turn:
            self._end()

    def _start(self) -> None:
        if self._process is not None and self._process.is_running:
            return
        if self._process is not None:
            logger.warning("process.ended", extra={"child": f"nursery of {self._modules[0]}", "restart_in_s": 0})
        self._end()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            given: dict[str, Any] = {"log": self._log, "env": self._env, "stdin": theirs.fileno()}
            argv = [str(Path(__file__).with_name("forking.py")), *self._modules]
            self._process = (
                ForkedProcess(self._within, argv, **given)
                if self._within
                else ChildProcess([sys.executable, "-P", *argv], **given)
            )
            self._process.start()

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.stop()
        self._control = self._process = None

    def _ask(self) -> "Fork":
        if self._control is None:
            raise ConnectionError("closed")
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"f"], [theirs.fileno()])
        return Fork(ours)

    def _tail(self) -> str:
        return "" if self._process is None else self._process.log_tail()


class Fork:
    """What `subprocess.Popen` is for a command, as far as `ChildProcess` uses it. Raises OSError when none answers."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        said, descriptors, _, _ = socket.recv_fds(told, 32, 1)
        if not said:
            told.close()
            raise ConnectionError("the nursery has ended")
        self.pid = int(said)
        self.returncode: int | None = None
        self._pidfd = descriptors[0]
        weakref.finalize(self, os.close, self._pidfd)
        self._reading = threading.Lock()

    def begin(self, argv: Sequence[str], env: Mapping[str, str] | None, stdin: int, output: int) -> None:
        """Tells it to run a Python script, unless it has ended, with descriptors to read and to write."""
        message = json.dumps({"argv": list(argv), "env": None if env is None else dict(env)}).encode() + b"\n"
        with suppress(ConnectionError):
            sent = socket.send_fds(self._told, [message], [stdin, output])
            self._told.sendall(message[sent:])

    def poll(self) -> int | None:
        """The exit status, as `Popen` has it, or None; -SIGKILL where a killed nursery cannot tell it."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; raises `subprocess.TimeoutExpired`."""
        status = self._await(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Sends it, unless the process has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def _await(self, timeout_s: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if poll.poll(None if timeout_s is None else timeout_s * 1000):
                with self._reading:
                    if self.returncode is None:
                        self.returncode = self._status()
        return self.returncode

    def _status(self) -> int:
        self._told.settimeout(STATUS_TIMEOUT_S)
        said = b""
        with self._told, suppress(OSError):
            said = self._told.recv(32)
        return int(said or -signal.SIGKILL)


class ForkedProcess(ChildProcess):
    """A `ChildProcess` that a nursery starts: a script in Python, by its absolute path. `env`: else the nursery's."""

    def __init__(
        self,
        nursery: Nursery,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        grace_s: float = 10.0,
    ) -> None:
        super().__init__(argv, log=log, env=env, stdin=stdin, grace_s=grace_s)
        self._nursery = nursery

    def start(self) -> None:
        """Starts the command, unless it runs. Raises ServerError when there is none, or its code cannot be loaded."""
        if self.is_running:
            return
        super().start()
        # Not before the guard knows of it, who ends what we leave behind: until then it waits, and ends when we do.
        if isinstance(self._child, Fork):
            with Path(os.devnull).open("rb") as nothing, self._log.open("ab") as log:
                stdin = nothing.fileno() if self._stdin == subprocess.DEVNULL else self._stdin
                self._child.begin(self._argv, self._env, stdin, log.fileno())

    def _launch(self) -> Running:
        if not Path(self._argv[0]).is_file():
            raise ServerError(f"cannot run {self._argv[0]}: {os.strerror(errno.ENOENT)}")
        return self._nursery.fork()


def child_process(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    grace_s: float = 10.0,
    nursery: Nursery | None = None,
) -> ChildProcess:
    """The command as a process of its own, forked where there is a nursery for it."""
    if nursery is None:
        return ChildProcess(argv, log=log, env=env, grace_s=grace_s)
    return ForkedProcess(nursery, argv, log=log, env=env, grace_s=grace_s)
