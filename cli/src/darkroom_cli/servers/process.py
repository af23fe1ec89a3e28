"""Child processes that are wholly ours: own process group, own log, nothing of them outlives us."""

import atexit
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

# One old file is kept, so a process's logs take at most about twice this, plus what one run writes.
MAX_LOG_BYTES = 10 * 1024 * 1024

# How long a start waits for the last run on the same data, of which the guard may just be killing the rest.
LOCK_WAIT_S = 5.0

POLL_S = 0.05


class ServerError(RuntimeError):
    """A server or a child process could not be started; the message says why and what to do."""


class Process(Protocol):
    """Something that is started, ends by itself or is stopped, and can be started again."""

    def start(self) -> None:
        """Returns when it serves. Raises ServerError."""

    def stop(self) -> None:
        """Returns when nothing of it runs any more; harmless when it is not running."""

    def wait(self) -> None:
        """Returns when its main process has ended, for whatever reason."""

    @property
    def pid(self) -> int | None:
        """Process id of its main process, None when it is not running."""

    @property
    def is_running(self) -> bool:
        """Whether its main process is alive."""


class Running(Protocol):
    """A process just started: `subprocess.Popen`, as far as it is used here."""

    @property
    def pid(self) -> int:
        """Its id, and that of its group."""

    def poll(self) -> int | None:
        """How it ended, negative for the signal that killed it; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The same when it has ended. Raises `subprocess.TimeoutExpired`."""

    def send_signal(self, sig: int, /) -> None:
        """Sends a signal, unless it has ended."""


class ChildProcess:
    """A `Process`: one command in a session of its own, its output appended to a log file.

    `env` is the child's whole environment (default: a copy of ours), `stdin` a descriptor for its standard input, if it
    is to have one. `stop` sends `stop_signal` to the command itself,
    so that a Celery parent shuts its pool down warmly, gives it `grace_s` seconds, then kills the group. What a dead
    command leaves in its group is killed as soon as the death is seen; if we die ourselves, everything is.

    `lock` names a file that the command and all its descendants keep locked while any of them lives: a start waits
    until the last run on the same data is really over, and is refused while another process uses that data.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_s: float = 10.0,
        lock: Path | None = None,
    ) -> None:
        self._argv = list(argv)
        self._log = log
        self._env = None if env is None else dict(env)
        self._stdin = subprocess.DEVNULL if stdin is None else stdin
        self._stop_signal = stop_signal
        self._grace_s = grace_s
        self._lock = lock
        self._child: Running | None = None
        self._group: int | None = None
        self._ending = threading.Lock()

    def start(self) -> None:
        """Starts the command, unless it runs. Raises ServerError when it cannot be executed or its data is in use."""
        if self.is_running:
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        rotate(self._log)
        self._child = self._launch()
        self._group = self._child.pid
        _guard.watch(self._group)

    def _launch(self) -> Running:
        inherited = [] if self._lock is None else [lock_file(self._lock, wait_s=LOCK_WAIT_S)]
        try:
            with self._log.open("ab") as log:
                return subprocess.Popen(
                    self._argv,
                    stdin=self._stdin,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    start_new_session=True,
                    pass_fds=inherited,
                )
        except OSError as exc:
            raise ServerError(f"cannot run {self._argv[0]}: {exc.strerror}") from exc
        finally:
            for descriptor in inherited:
                os.close(descriptor)

    def stop(self, *, grace_s: float | None = None) -> None:
        """Asks the command to end, kills its group when the grace is over. Returns when the group is gone.

        `grace_s` replaces the grace that was set at first.
        """
        child = self._child
        if child is None:
            return
        try:
            if self.is_running:
                child.send_signal(self._stop_signal)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(self._grace_s if grace_s is None else grace_s)
        finally:  # also when somebody interrupts us
            self._end_group()
        child.wait()

    def wait(self) -> None:
        """Returns when the command has ended and the rest of its group has been killed."""
        if self._child is not None:
            self._child.wait()
            self._end_group()

    @property
    def pid(self) -> int | None:
        """Process id of the command, which is its group's id too; None when it is not running."""
        return self._child.pid if self._child is not None and self.is_running else None

    @property
    def is_running(self) -> bool:
        """Whether the command is alive."""
        if self._child is None:
            return False
        if self._child.poll() is None:
            return True
        self._end_group()
        return False

    @property
    def exit_status(self) -> int | None:
        """How the command's last run ended, negative for the signal that killed it; None while it runs."""
        return None if self._child is None else self._child.poll()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines that the command wrote, for an error message."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:]) if self._log.exists() else ""

    def _end_group(self) -> None:
        with self._ending:
            group, self._group = self._group, None
        # Once only, right after the command was found dead: later the kernel may have given its id to another process.
        if group is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
            _guard.forget(group)


class _Guard:
    """Our side of guard.py, started with the first child and again should it die."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid: int | None = None

    def watch(self, group: int) -> None:
        with self._mutex:
            self._groups.add(group)
            self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        with self._mutex:
            self._groups.discard(group)
            self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        try:
            if self._process is None or self._owner_pid != os.getpid():
                self._start()
            else:
                self._write(line)
        except BrokenPipeError:
            self._start()

    def _start(self) -> None:
        if self._owner_pid != os.getpid():
            atexit.register(self._close)
        self._owner_pid = os.getpid()
        script = Path(__file__).with_name("guard.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(self._owner_pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for us, not for it
        )
        self._write("".join(f"+{group}\n" for group in sorted(self._groups)))

    def _write(self, text: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None and self._owner_pid == os.getpid():
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()


_guard = _Guard()


def lock_file(path: Path, *, wait_s: float = 0.0) -> int:
    """An open descriptor that holds the only lock on this file, until it and all its inherited copies are closed.

    Waits up to `wait_s` seconds for another holder. Raises ServerError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(POLL_S)
                continue
            os.close(descriptor)
            raise ServerError(
                f"{path.parent} is in use by another process: stop that one or choose another folder"
            ) from None
        return descriptor


def wait_until_ready(child: ChildProcess, name: str, is_ready: Callable[[], bool], *, timeout_s: float) -> None:
    """Returns when `is_ready` says so. Raises ServerError when the child has ended before, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        if not child.is_running:
            raise ServerError(f"{name} ended while it started; its last words:\n{child.log_tail()}")
        if time.monotonic() > deadline:
            raise ServerError(f"{name} was not ready after {timeout_s:g} s; its last words:\n{child.log_tail()}")
        time.sleep(POLL_S)


def rotate(log: Path) -> None:
    """Moves a log above MAX_LOG_BYTES aside to `<name>.1`, in place of the one before."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_name(log.name + ".1"))
