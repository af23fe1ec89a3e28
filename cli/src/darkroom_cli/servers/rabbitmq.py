"""A private RabbitMQ node, from an installed rabbitmq-server."""

import os
import shutil
import socket
from functools import cached_property
from pathlib import Path

from darkroom_cli.servers.ports import LOOPBACK, reserve_port
from darkroom_cli.servers.process import ChildProcess, ServerError, wait_until_ready
from darkroom_cli.servers.server import EmbeddedServer, stored_secret, write_private

USER = "darkroom"

# Disk: the default alarm and this one block every publisher; a nearly full disk should stop uploads, not the queues.
# Memory: an idle node takes about 120 MB, and quorum queues keep their write-ahead log's tables in memory, of which the
# default allows 512 MB.
CONFIGURATION = """\
listeners.tcp.local = {host}:{port}
default_user = {user}
default_pass = {password}
vm_memory_high_watermark.absolute = 768MB
disk_free_limit.absolute = 50MB
raft.wal_max_size_bytes = 67108864
log.console = true
log.console.level = info
"""

# The node of Debian comes first: its rabbitmq-server on PATH changes to another user, who cannot enter our folder.
DEBIAN_SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class RabbitServer(EmbeddedServer):
    """One RabbitMQ node on loopback ports of its own, with its own port mapper (epmd), cookie, user and data."""

    name = "RabbitMQ"
    start_timeout_s = 120.0  # 8 s on an idle machine; recovering queues on a busy one takes longer

    def __init__(self, data_dir: Path, *, log: Path | None = None) -> None:
        super().__init__(data_dir, log=log)
        self._epmd: ChildProcess | None = None

    @cached_property
    def port(self) -> int:
        """The AMQP port, chosen at the first use."""
        return reserve_port()

    @property
    def url(self) -> str:
        """`amqp://darkroom:password@127.0.0.1:port//` (virtual host `/`)."""
        return f"amqp://{USER}:{self._password}@{LOOPBACK}:{self.port}//"

    def stop(self) -> None:
        """Shuts the node down in good order, then its port mapper."""
        super().stop()
        if self._epmd is not None:
            self._epmd.stop()

    @cached_property
    def environment(self) -> dict[str, str]:
        """What rabbitmqctl and the node need to find this node and nothing of another one."""
        home = self.data_dir / "home"
        # Settings of another node or of the packaged one must not leak in.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))
        }
        return inherited | {
            "HOME": str(home),
            "ERL_EPMD_PORT": str(reserve_port()),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_CRASH_DUMP_BYTES": "0",
            # Without a port mapper they fail, instead of leaving a daemon of it behind that nobody ends.
            "ERL_FLAGS": "-start_epmd false",
            "RABBITMQ_NODENAME": f"{USER}@localhost",
            "RABBITMQ_DIST_PORT": str(reserve_port()),
            "RABBITMQ_CONFIG_FILE": str(self.data_dir / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.data_dir / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.data_dir / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.data_dir / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.data_dir / "data"),
            "RABBITMQ_SCHEMA_DIR": str(self.data_dir / "schema"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.data_dir / "schema"),
            "RABBITMQ_LOG_BASE": str(self.data_dir / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.data_dir / "rabbitmq.pid"),
            # With it the script becomes the Erlang machine instead of waiting beside it: one pid, which takes signals.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-noinput +B i -kernel inet_dist_use_interface {127,0,0,1} "
                # Idle schedulers sleep at once instead of spinning.
                "+sbwt none +sbwtdcpu none +sbwtdio none"
            ),
        }

    @property
    def _password(self) -> str:
        # Kept, because the node creates its user at its first boot only.
        return stored_secret(self.data_dir / "password")

    def _start_epmd(self) -> None:
        # In the foreground, so that it is our child and ends with us.
        if self._epmd is None:
            epmd = shutil.which("epmd")
            if epmd is None:
                raise ServerError(f"no epmd found beside RabbitMQ: {INSTALL}")
            self._epmd = ChildProcess([epmd], log=self.log.with_name("epmd.log"), env=self.environment, grace_s=2.0)
        self._epmd.start()
        wait_until_ready(self._epmd, "epmd", self._epmd_listens, timeout_s=20.0)

    def _epmd_listens(self) -> bool:
        try:
            socket.create_connection((LOOPBACK, int(self.environment["ERL_EPMD_PORT"])), timeout=1).close()
        except OSError:
            return False
        return True

    def _make_child(self) -> ChildProcess:
        script = find_rabbitmq_server()
        self._start_epmd()
        (self.data_dir / "home").mkdir(mode=0o700, exist_ok=True)
        write_private(self.data_dir / "enabled_plugins", "[].\n")
        write_private(
            self.data_dir / "rabbitmq.conf",
            CONFIGURATION.format(host=LOOPBACK, port=self.port, user=USER, password=self._password),
        )
        return ChildProcess(
            [script],
            log=self.log,
            env=self.environment,
            lock=self.data_dir / "lock",
            grace_s=60.0,
        )

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                # A frame of type 1, `connection.start`: the port may be open before the node is.
                return connection.recv(1) == b"\x01"
        except OSError:
            return False


INSTALL = "run `apt-get install rabbitmq-server` (macOS: `brew install rabbitmq`)"


def find_rabbitmq_server() -> str:
    """Path of the script that runs a node as the present user. Raises ServerError."""
    if os.access(DEBIAN_SCRIPT, os.X_OK):
        return str(DEBIAN_SCRIPT)
    on_path = shutil.which("rabbitmq-server")
    if on_path is None:
        raise ServerError(f"no rabbitmq-server found: {INSTALL}, or give --broker the URL of one that runs")
    return on_path
