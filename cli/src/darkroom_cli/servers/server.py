"""What the embedded servers have in common."""

import os
import secrets
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from darkroom_cli.servers.process import ChildProcess, Process, wait_until_ready


class Server(Process, Protocol):
    """A `Process` that others connect to."""

    @property
    def url(self) -> str:
        """Where clients connect: the same for the life of this object, over stops, crashes and restarts."""


# A server that is still starting serves nobody, and each survives a kill; but an Erlang machine that is told to end
# while it boots may not do so at all.
ABORT_GRACE_S = 2.0


class EmbeddedServer(ABC):
    """A `Server` that runs as one child process on the data in one folder, for this machine's users only.

    The folder is created, readable by us alone. `log` is where the server's output goes (default: `server.log` in the
    folder). Starting after a crash, even by kill -9 of us, takes up the same data.
    """

    name: str
    start_timeout_s = 60.0

    def __init__(self, data_dir: Path, *, log: Path | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.log = log or self.data_dir / "server.log"
        self._child: ChildProcess | None = None
        self._has_served = False

    def start(self) -> None:
        """Returns when the server accepts connections; at once when it is running. Raises ServerError."""
        if self.is_running:
            return
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._has_served = False
        try:
            child = self._child = self._make_child()
            child.start()
            wait_until_ready(child, self.name, self._is_ready, timeout_s=self.start_timeout_s)
            self._has_served = True
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shuts the server down in good order; returns when nothing of it runs any more."""
        if self._child is not None:
            self._child.stop(grace_s=None if self._has_served else ABORT_GRACE_S)

    def wait(self) -> None:
        """Returns when the server's main process has ended, for whatever reason."""
        if self._child is not None:
            self._child.wait()

    @property
    def pid(self) -> int | None:
        """Process id of the server, None when it is not running."""
        return None if self._child is None else self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether the server's main process is alive."""
        return self._child is not None and self._child.is_running

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect."""

    @abstractmethod
    def _make_child(self) -> ChildProcess:
        """The command to run, with all that it needs on disk in place."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether the server just started accepts connections."""


def stored_secret(path: Path) -> str:
    """The password kept in this file, made at the first call: loopback is open to every user of the machine."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Replaces the file in one step by one that only we can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
