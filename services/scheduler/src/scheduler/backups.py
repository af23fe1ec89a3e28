"""The database as a blob: `pg_dump`, read back by `pg_restore` before it counts."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from sqlalchemy import Engine, make_url

from darkroom.contracts.base import BlobKey
from darkroom.contracts.keys import backup_key
from darkroom.contracts.messages import JobReport
from darkroom.database import upkeep
from darkroom.errors import ConfigurationError, DarkroomError
from darkroom.storage import BlobStore

CHUNK_BYTES = 262_144

WITHOUT_TRACES = "--exclude-table-data=trace_rows"
"""Spans stay for a day and would be most of a backup."""

_ENVIRONMENT = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
}
"""libpq's parameters and the variables that say the same. Arguments could be read by every user of the machine."""


class BackupError(DarkroomError):
    """`pg_dump` or `pg_restore` failed; the message is theirs."""


def libpq_environment(database_url: str) -> dict[str, str]:
    """The variables that lead PostgreSQL's programs to a database; raises `ConfigurationError` for what has none."""
    url = make_url(database_url)
    parameters = url.translate_connect_args(username="user", database="dbname") | dict(url.query)
    unknown = sorted(parameters.keys() - _ENVIRONMENT.keys())
    if unknown:
        raise ConfigurationError(
            f"DARKROOM_DATABASE_URL has {', '.join(unknown)}, which a backup cannot pass on; "
            f"it knows {', '.join(sorted(_ENVIRONMENT))}"
        )
    return {_ENVIRONMENT[name]: str(value) for name, value in parameters.items()}


def back_up(engine: Engine, store: BlobStore, database_url: str, bin_dir: Path | None, now: datetime) -> JobReport:
    """Dumps the database into the store, reads the dump back and records it.

    Raises `BackupError`, or `ConfigurationError` when PostgreSQL's programs are missing. Nothing is recorded then.
    """
    key = backup_key(f"darkroom-{now:%Y%m%dT%H%M%SZ}.dump")
    size, sha256 = _dump(store, key, libpq_environment(database_url), bin_dir)
    try:
        verify(store, key, bin_dir)
    except BaseException:
        store.delete(key)
        raise
    with engine.begin() as connection:
        upkeep.record_backup(connection, key, size, sha256)
    return JobReport(summary=f"{key}, {size} bytes")


def verify(store: BlobStore, key: BlobKey, bin_dir: Path | None) -> None:
    """Returns when `pg_restore` has read a dump to its end; its table of contents alone would not show a cut.

    Raises `BackupError`.
    """
    restore_into("--file=/dev/null", {}, store.read_range(key, 0), bin_dir)


def restore_into(
    target: str, environment: Mapping[str, str], dump: Iterable[bytes], bin_dir: Path | None, *options: str
) -> None:
    """Returns when `pg_restore` has read a dump to its end into a target: `--file=…` or `--dbname=…`.

    Raises `BackupError`, or `ConfigurationError` when the program is missing.
    """
    with _running("pg_restore", [target, *options], environment, bin_dir) as (stdin, _):
        for piece in dump:
            stdin.write(piece)


def _dump(store: BlobStore, key: BlobKey, environment: Mapping[str, str], bin_dir: Path | None) -> tuple[int, str]:
    writer, digest, size = store.new_writer(), hashlib.sha256(), 0
    try:
        with _running("pg_dump", ["--format=custom", "--no-password", WITHOUT_TRACES], environment, bin_dir) as (
            _,
            stdout,
        ):
            while piece := stdout.read(CHUNK_BYTES):
                writer.write(piece)
                digest.update(piece)
                size += len(piece)
        writer.sync()
        writer.place(key)
    finally:
        writer.discard()
    return size, digest.hexdigest()


@contextmanager
def _running(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], bin_dir: Path | None
) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The standard input and output of a program that must succeed; it is killed when the block raises."""
    executable = shutil.which(program, path=bin_dir and str(bin_dir))
    if executable is None:
        raise ConfigurationError(
            f"{program} is not in {bin_dir or 'PATH'}: install PostgreSQL's client programs, at least as new as the "
            "server, or set DARKROOM_PG_BIN_DIR to their folder"
        )
    # Its words go to a file: a pipe that nobody reads would block it when it has much to say.
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [executable, *arguments],
            env={"PATH": os.defpath, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
        )
        if process.stdin is None or process.stdout is None:
            raise BackupError(f"{program} was started without pipes")
        try:
            with suppress(BrokenPipeError):  # it ended early: its exit status tells
                yield process.stdin, process.stdout
            with suppress(BrokenPipeError):
                process.stdin.close()
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if status != 0:
            words.seek(0)
            said = words.read(2000).decode(errors="replace").strip()
            raise BackupError(f"{program} ended with status {status}: {said}")
