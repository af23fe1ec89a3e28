"""Keeps the local mode's processes running, and ends them together."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from darkroom_cli.servers.nursery import Nursery, child_process
from darkroom_cli.servers.process import Process, ServerError, lock_file
from darkroom_cli.servers.server import write_private

logger = logging.getLogger(__name__)

MAX_PAUSE_S = 10.0
# A process that lived this long came up properly: its next crash is the first of a new series.
STABLE_S = 60.0

STATE_FILE = "processes.json"
LOCK_FILE = "supervisor.lock"


class StopRequested(KeyboardInterrupt):
    """SIGTERM or SIGINT: the `with` block of the supervisor is left and everything stopped."""


@dataclass(frozen=True)
class ProcessState:
    """What is known of one process: `pid` is None while it is down, `since` (ISO 8601, UTC) when that last changed."""

    pid: int | None
    restarts: int
    since: str


class Supervisor:
    """Runs named processes over one data folder, as a context manager that owns the folder meanwhile.

    A process that ends is started again after 1, 2, 4, 8 and then every 10 seconds. Leaving the `with` block, which
    SIGTERM and SIGINT do by raising `StopRequested` in it, stops all commands at once and then the servers, the last
    first. Should this process itself be killed, the guard of `servers.process` kills its children.

    Entering raises ServerError when another supervisor has the folder.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        self._keepers: dict[str, _Keeper] = {}
        self._writing = threading.Lock()
        self._lock: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock_folder(self.data_dir)
        # Python lets only the main thread handle signals; in another one the caller leaves the block by itself.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, _raise_once) for number in (signal.SIGTERM, signal.SIGINT)}
        self._write_state()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Stopping takes a while: an impatient second Ctrl-C must not leave half of it running.
        for number in self._handlers:
            signal.signal(number, _do_nothing)
        try:
            self._stop_all()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def log_path(self, name: str) -> Path:
        """Where the output of the process of this name belongs."""
        return self.data_dir / "logs" / f"{name}.log"

    def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        grace_s: float = 10.0,
        is_server: bool = False,
        nursery: Nursery | None = None,
    ) -> None:
        """Starts a command and keeps it running, its output in `<data-dir>/logs/<name>.log`.

        `env` is its whole environment (default: a copy of ours); it has `grace_s` seconds to end after SIGTERM. One
        that is a server to others is stopped after them. A script in Python may be forked from a nursery, which must
        outlive the supervisor. Raises ServerError when it cannot be executed.
        """
        process = child_process(argv, log=self.log_path(name), env=env, grace_s=grace_s, nursery=nursery)
        self._keep(name, process, is_server=is_server)

    def start(self, name: str, server: Process) -> None:
        """Starts a server that later processes need, and keeps it running; returns when it serves.

        Raises what its first start raises, and then does not keep it.
        """
        self._keep(name, server, is_server=True)

    def _keep(self, name: str, process: Process, *, is_server: bool) -> None:
        if name in self._keepers:
            raise ValueError(f"a process named {name} is already kept")
        keeper = self._keepers[name] = _Keeper(name, process, self._write_state, is_server=is_server)
        keeper.start()
        keeper.settled.wait()
        if keeper.error is not None:
            del self._keepers[name]
            self._write_state()
            raise keeper.error

    def states(self) -> dict[str, ProcessState]:
        """The state of each process by name, in the order of their starts."""
        return {name: keeper.state for name, keeper in list(self._keepers.items())}

    def wait(self) -> None:
        """Returns at SIGTERM or SIGINT. Call it from the main thread."""
        with suppress(StopRequested):
            threading.Event().wait()

    def _stop_all(self) -> None:
        # A worker takes seconds to wind down, and none waits for another; servers outlive all who use them.
        commands = [keeper for keeper in self._keepers.values() if not keeper.is_server]
        with ThreadPoolExecutor(max_workers=max(1, len(commands))) as threads:
            for ended in [threads.submit(keeper.end) for keeper in commands]:
                ended.result()
        for keeper in reversed(self._keepers.values()):
            if keeper.is_server:
                keeper.end()
        with self._writing:
            (self.data_dir / STATE_FILE).unlink(missing_ok=True)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _write_state(self) -> None:
        with self._writing:
            processes = {name: asdict(state) for name, state in self.states().items()}
            state = {"supervisor": os.getpid(), "processes": processes}
            write_private(self.data_dir / STATE_FILE, json.dumps(state, indent=2) + "\n")


class _Keeper(threading.Thread):
    """Runs one process again and again. A thread each, because starting a server takes seconds and a stop waits."""

    def __init__(self, name: str, process: Process, on_change: Callable[[], None], *, is_server: bool) -> None:
        super().__init__(name=f"keeper of {name}", daemon=True)
        self.is_server = is_server
        self._label = name
        self._process = process
        self._on_change = on_change
        self._stopping = threading.Event()
        self._restarts = 0
        self.settled = threading.Event()
        self.error: Exception | None = None
        self.state = ProcessState(pid=None, restarts=0, since=_now())

    def run(self) -> None:
        crashes = 0
        while True:
            started = time.monotonic()
            try:
                self._process.start()
            # Any error: a keeper that died of it would leave its process unkept.
            except Exception as exc:
                if not self.settled.is_set():
                    self.error = exc
                    self.settled.set()
                    return
                logger.warning("process.start_failed", extra={"child": self._label, "error": str(exc)})
            else:
                self._note(self._process.pid)
                self.settled.set()
                self._process.wait()
                self._note(None)
            crashes = 0 if time.monotonic() - started >= STABLE_S else crashes
            pause_s = restart_pause_s(crashes)
            if self._stopping.is_set():
                break
            logger.warning("process.ended", extra={"child": self._label, "restart_in_s": pause_s})
            if self._stopping.wait(pause_s):
                break
            crashes += 1
            self._restarts += 1
        self._process.stop()

    def end(self) -> None:
        """Stops the process for good."""
        self._stopping.set()
        while self.is_alive():
            # More than once: a start in progress may make what there is to stop only after the first time.
            self._process.stop()
            self.join(timeout=0.2)

    def _note(self, pid: int | None) -> None:
        self.state = ProcessState(pid=pid, restarts=self._restarts, since=_now())
        self._on_change()


def restart_pause_s(crashes: int) -> float:
    """Seconds to wait before a restart after this many quick crashes in a row before it: 1, 2, 4, 8, 10, 10..."""
    return min(2.0 ** min(crashes, 10), MAX_PAUSE_S)


def read_states(data_dir: Path) -> dict[str, ProcessState]:
    """The processes of the supervisor that runs over this folder, from outside; empty when none runs."""
    try:
        written = json.loads((data_dir / STATE_FILE).read_text())
        os.kill(written["supervisor"], 0)
    except (FileNotFoundError, ProcessLookupError):
        return {}
    except PermissionError:
        pass  # alive, and another user's
    return {name: ProcessState(**state) for name, state in written["processes"].items()}


def _lock_folder(data_dir: Path) -> int:
    path = data_dir / LOCK_FILE
    try:
        descriptor = lock_file(path)
    except ServerError as exc:
        holder = path.read_text().strip()
        raise ServerError(
            f"Darkroom already runs on {data_dir} as process {holder}: "
            f"stop it with `kill {holder}` or choose another folder with --data-dir"
        ) from exc
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _raise_once(number: int, frame: FrameType | None) -> None:
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, _do_nothing)
    raise StopRequested(signal.Signals(number).name)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """In place of SIG_IGN, which a child that is started just now would inherit."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
