"""A backup brought to life: the database from its dump, the blobs from another store, and what is missing named."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy import Engine

from darkroom.contracts.base import BlobKey, ModelId, Sha256
from darkroom.contracts.keys import derived_prefix, embedding_key, original_key
from darkroom.database import outcomes, recovery
from darkroom.database.engine import migrate
from darkroom.database.recovery import Expected
from darkroom.database.tables import metadata
from darkroom.errors import BlobMissingError, DarkroomError
from darkroom.storage import BlobInfo, BlobStore
from scheduler import backups
from scheduler.checking import Condition, condition_of

log = logging.getLogger(__name__)

BACKUPS = "backups/"
CHUNK = 500
"""Originals looked at in one transaction."""

Say = Callable[[str], None]
"""Tells the operator how far it is."""


class RestoreError(DarkroomError):
    """Nothing was restored, or not all of it; the message says which, and what to do."""


@dataclass
class Restored:
    """What became of the blobs. `missing`: originals whose bytes are in neither store; `unknown`: how many originals
    lie in the stores that the backup knows nothing of."""

    originals: int = 0
    copied_blobs: int = 0
    copied_bytes: int = 0
    rebuilt: int = 0
    missing: list[Sha256] = field(default_factory=list)
    unknown: int = 0


def list_backups(store: BlobStore) -> list[BlobInfo]:
    """The dumps in a store, newest first: their names carry their moment."""
    return sorted(store.walk(BACKUPS), key=lambda blob: blob.key, reverse=True)


@dataclass(frozen=True)
class Dump:
    """A backup that was found: its name, and its bytes from the start."""

    name: str
    read: Callable[[], Iterator[bytes]]


def find_backup(stores: list[BlobStore], named: str | None) -> Dump:
    """The named dump: a file, a key in one of the stores, or their newest when none is named.

    Raises `RestoreError` when there is no such backup.
    """
    if named is not None and Path(named).is_file():
        return Dump(named, partial(_pieces, Path(named)))
    for store in stores:
        found = list_backups(store)
        keys = [blob.key for blob in found if named is None or named in (blob.key, blob.key.removeprefix(BACKUPS))]
        if keys:
            return Dump(keys[0], partial(store.read_range, keys[0], 0))
    what = f"There is no backup {named!r}, neither as a file nor" if named else "There is no backup"
    raise RestoreError(f"{what} in the blob store; --list shows those that there are, --blobs-from names another store")


def restore_database(
    engine: Engine,
    database_url: str,
    dump: Dump,
    bin_dir: Path | None,
    *,
    is_replaced: bool,
    say: Say,
) -> int:
    """Fills an empty database from a dump and has it go on from there; returns how many originals are unfinished.

    `is_replaced` empties one that has photos. A database that others use, or that has tables of somebody else, is
    refused. Raises `RestoreError`, `BackupError`, `ConfigurationError`; a dump that cannot be read changes nothing.
    """
    say("reading the backup to its end")
    environment = backups.libpq_environment(database_url)
    backups.restore_into("--file=/dev/null", {}, dump.read(), bin_dir)
    with engine.begin() as connection:
        foreign = recovery.foreign_tables(connection, [*metadata.tables, "alembic_version"])
        if foreign:
            raise RestoreError(
                f"The database has tables of somebody else ({', '.join(foreign[:5])}): use one of Darkroom's own"
            )
        if not is_replaced and recovery.has_photos(connection):
            raise RestoreError(
                "The database has photos: restore into an empty one, or give --replace to empty this one"
            )
        if others := recovery.other_sessions(connection):
            raise RestoreError(f"{others} other sessions use the database: stop every gateway and scheduler first")
        recovery.drop_everything(connection)
    engine.dispose()
    say("restoring the database")
    # One transaction: after a failure the database is empty, and the same command works again.
    options = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", "--no-comments"]
    backups.restore_into("--dbname=postgresql:///", environment, dump.read(), bin_dir, *options)
    from alembic.util.exc import CommandError  # of all processes of the scheduler, this one alone needs Alembic

    try:
        migrate(engine)
    except CommandError as error:
        raise RestoreError(
            f"The backup is of a newer release of Darkroom ({error}): restore it with that one"
        ) from error
    with engine.begin() as connection:
        return recovery.begin_again(connection)


def restore_blobs(engine: Engine, store: BlobStore, source: BlobStore | None, say: Say) -> Restored:
    """Copies what the rows need from `source`, checks all of it, and has what can be made again made again.

    What lies in `store` with the right size stays: a second run goes on where the first one stopped.
    """
    done = Restored()
    with engine.begin() as connection:
        models = recovery.model_ids(connection)
    for chunk in _chunks(engine):
        found: dict[Condition, list[Sha256]] = {condition: [] for condition in Condition}
        for expected in chunk:
            if source is not None:
                _copy_photo(source, store, expected, models, done)
            found[condition_of(store, expected)].append(expected.sha256)
        with engine.begin() as connection:
            done.rebuilt += outcomes.rebuild(connection, found[Condition.BROKEN])
        done.missing += found[Condition.LOST]
        done.originals += len(chunk)
        say(f"{done.originals} photos looked at, {done.copied_blobs} blobs copied")
    done.unknown = len(_unknown(engine, [one for one in (store, source) if one is not None]))
    _know_backups(engine, store, source, done)
    return done


def _chunks(engine: Engine) -> Iterator[list[Expected]]:
    after = ""
    while True:
        with engine.begin() as connection:  # a short one each time: blobs may be copied for hours
            chunk = recovery.expected_after(connection, after, CHUNK)
        if not chunk:
            return
        yield chunk
        after = chunk[-1].sha256


def _copy_photo(
    source: BlobStore, store: BlobStore, expected: Expected, models: Sequence[ModelId], done: Restored
) -> None:
    _copy(source, store, original_key(expected.sha256), done, expected)
    for blob in source.walk(derived_prefix(expected.sha256)):
        _copy(source, store, blob.key, done)
    for model in models:
        _copy(source, store, embedding_key(model, expected.sha256), done)


def _copy(source: BlobStore, store: BlobStore, key: BlobKey, done: Restored, original: Expected | None = None) -> None:
    """Copies one blob; of an original only the bytes that its hash names. What the source does not have is left out."""
    try:
        size = source.info(key).bytes
        if store.exists(key) and store.info(key).bytes == size:
            return
        pieces = source.read_range(key, 0)
    except BlobMissingError:
        return
    writer, digest = store.new_writer(), hashlib.sha256()
    try:
        for piece in pieces:
            writer.write(piece)
            digest.update(piece)
        if original is not None and digest.hexdigest() != original.sha256:
            log.error("restore.damaged", extra={"key": key})
            return
        writer.sync()
        writer.place(key)
    finally:
        writer.discard()
    done.copied_blobs += 1
    done.copied_bytes += size


def _unknown(engine: Engine, stores: list[BlobStore]) -> set[Sha256]:
    found = {blob.key.rpartition("/")[2] for store in stores for blob in store.walk("originals/")}
    for chunk in _chunks(engine):
        found -= {expected.sha256 for expected in chunk}
    return found


def _know_backups(engine: Engine, store: BlobStore, source: BlobStore | None, done: Restored) -> None:
    """Copies the dumps and gives each a row: those made since, and the restored one itself, would be swept without."""
    if source is not None:
        for blob in list_backups(source):
            _copy(source, store, blob.key, done)
    there = list_backups(store)
    for blob in there:
        digest = hashlib.sha256()
        for piece in store.read_range(blob.key, 0):
            digest.update(piece)
        with engine.begin() as connection:
            made_at = datetime.fromtimestamp(blob.modified_s, UTC)
            recovery.know_backup(connection, blob.key, blob.bytes, digest.hexdigest(), made_at)
    with engine.begin() as connection:
        recovery.forget_backups_except(connection, [blob.key for blob in there])


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(backups.CHUNK_BYTES):
            yield piece
