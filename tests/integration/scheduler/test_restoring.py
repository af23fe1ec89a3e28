"""A backup restored into another database and another store: what comes back, what is refused, what is missing."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from conftest import eventually
from scheduler_photos import (
    MODEL,
    Photo,
    dispatch_all,
    events_of,
    fail,
    finalize_message,
    leave_everything,
    original_of,
    register_model,
    run_sql,
    state_of,
    upload,
)
from sqlalchemy import Engine, func, select, text

from darkroom.contracts import keys
from darkroom.contracts.base import ThumbnailSize
from darkroom.database import dispatch, images, vectors
from darkroom.database.engine import migrate, sync_engine
from darkroom.database.images import ImageFilter
from darkroom.database.tables import backups, fences
from darkroom.settings import DatabaseSettings
from darkroom.storage import BlobStore, open_blob_store
from darkroom_cli.servers import PostgresServer
from scheduler.backups import BackupError, back_up
from scheduler.commands import INCOMPLETE
from scheduler.finalize import finish
from scheduler.restore import Dump, RestoreError, find_backup, list_backups, restore_blobs, restore_database

NOW = datetime(2026, 5, 11, 7, 30, tzinfo=UTC)


@pytest.fixture
def store(blob_url: str) -> BlobStore:
    return open_blob_store(blob_url)


@pytest.fixture
def other_store(tmp_path: Path) -> BlobStore:
    """An empty one."""
    return open_blob_store((tmp_path / "other").as_uri())


@pytest.fixture
def other_url(postgres: PostgresServer) -> Iterator[str]:
    """A database with nothing in it."""
    name = f"restored_{uuid4().hex}"
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        yield postgres.url.replace("/darkroom?", f"/{name}?")
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def other(other_url: str) -> Iterator[Engine]:
    engine = sync_engine(DatabaseSettings(database_url=other_url))
    yield engine
    engine.dispose()


def make_ready(engine: Engine, store: BlobStore, *names: str) -> list[Photo]:
    photos = [upload(engine, store, name) for name in names]
    dispatch_all(engine)
    for photo in photos:
        finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    return photos


@pytest.fixture
def restore(
    engine: Engine,
    store: BlobStore,
    other: Engine,
    database_url: str,
    other_url: str,
    postgres: PostgresServer,
) -> Callable[..., int]:
    """Backs up and restores into the other database; returns how many photos were unfinished."""

    def run(*, is_replaced: bool = False) -> int:
        if not list_backups(store):
            back_up(engine, store, database_url, postgres.bin_dir, NOW)
        dump = find_backup([store], None)
        return restore_database(
            other, other_url, dump, postgres.bin_dir, is_replaced=is_replaced, say=lambda text: None
        )

    return run


def end_sessions(engine: Engine, other: Engine) -> None:
    """Closes our connections to the other database; returns when PostgreSQL has seen it."""
    other.dispose()
    left = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND backend_type = 'client backend'")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        eventually(lambda: connection.scalar(left, {"name": other.url.database}) == 0)


def silent(said: str) -> None:
    """Tells nobody."""


def test_every_photo_is_back_with_its_blobs_and_found(
    engine: Engine, store: BlobStore, other: Engine, other_store: BlobStore, restore: Callable[..., int]
) -> None:
    register_model(engine)
    first, second = make_ready(engine, store, "first", "second")
    broken, waiting = upload(engine, store, "broken"), upload(engine, store, "waiting")
    dispatch_all(engine)
    fail(engine, broken.sha256)

    assert restore() == 1
    done = restore_blobs(other, other_store, store, silent)

    assert (done.originals, done.missing, done.rebuilt, done.unknown) == (4, [], 0, 0)
    kept = {
        blob.key: blob.bytes
        for prefix in ("originals", "derived", "embeddings", "backups")
        for blob in store.walk(prefix)
    }
    assert {
        blob.key: blob.bytes
        for prefix in ("originals", "derived", "embeddings", "backups")
        for blob in other_store.walk(prefix)
    } == kept
    assert [state_of(other, photo) for photo in (first, second, broken, waiting)] == [
        *("ready", "ready", "failed", "in_flight")
    ]
    with other.begin() as connection:
        assert images.read_ledger(connection) == images.count_images(connection)
        model = vectors.active_model(connection)
        vector = vectors.vector_of_image(connection, MODEL, first.image_id)
        assert model is not None and vector is not None
        nearest = vectors.nearest(connection, model, vector, ImageFilter(), 1)
        assert [(row.id, round(row.score, 2)) for row in nearest] == [(first.image_id, 1.0)]
        row = connection.execute(select(backups)).one()
    assert (row.key, row.bytes) == ("backups/darkroom-20260511T073000Z.dump", kept[row.key])


def test_what_was_under_way_goes_on_above_every_generation_and_event_of_before(
    engine: Engine, store: BlobStore, other: Engine, restore: Callable[..., int]
) -> None:
    photo = upload(engine, store, "waiting")
    dispatch_all(engine)
    with engine.begin() as connection:
        last_event = connection.scalar(select(func.nextval("event_ids")))
        connection.execute(fences.insert().values(queue="prepare"))
    restore()
    [leased] = dispatch_all(other).items()
    assert leased == (photo.sha256, 1002)
    with other.begin() as connection:
        assert connection.scalar(select(func.nextval("event_ids"))) > last_event + 1000
        assert connection.execute(select(fences)).all() == []
        with other.begin() as another:
            assert dispatch.backlog(another).originals == 0


def test_what_the_old_store_lost_is_made_again_or_named(
    engine: Engine, store: BlobStore, other: Engine, other_store: BlobStore, restore: Callable[..., int]
) -> None:
    register_model(engine)
    whole, thumbless, lost, damaged = make_ready(engine, store, "whole", "thumbless", "lost", "damaged")
    restore()
    later = upload(engine, store, "later")
    small = keys.thumbnail_key(thumbless.sha256, keys.Recipe.current(), ThumbnailSize.SMALL)
    store.delete(small)
    store.delete(keys.original_key(lost.sha256))
    store.put(keys.original_key(damaged.sha256), b"DAMAGED")

    done = restore_blobs(other, other_store, store, silent)

    assert (done.missing, done.rebuilt, done.unknown) == (sorted([lost.sha256, damaged.sha256]), 1, 1)
    assert [state_of(other, photo) for photo in (whole, thumbless, lost)] == ["ready"] * 3
    assert list(dispatch_all(other)) == [thumbless.sha256]
    assert "image.failed" not in events_of(other, lost)
    assert original_of(other, later.sha256) is None


def test_a_second_run_copies_only_what_is_missing(
    engine: Engine, store: BlobStore, other: Engine, other_store: BlobStore, restore: Callable[..., int]
) -> None:
    register_model(engine)
    [photo] = make_ready(engine, store, "photo")
    restore()
    restore_blobs(other, other_store, store, silent)
    other_store.delete(keys.original_key(photo.sha256))
    assert restore(is_replaced=True) == 0
    again = restore_blobs(other, other_store, store, silent)
    assert (again.copied_blobs, again.copied_bytes, again.missing) == (1, len("photo"), [])


def test_a_database_with_photos_is_not_touched(
    engine: Engine, store: BlobStore, other: Engine, restore: Callable[..., int]
) -> None:
    migrate(other)
    kept = upload(other, store, "kept")
    end_sessions(engine, other)
    with pytest.raises(RestoreError, match="--replace"):
        restore()
    assert state_of(other, kept) == "in_flight"


def test_a_database_that_was_only_migrated_counts_as_empty(
    engine: Engine, store: BlobStore, other: Engine, restore: Callable[..., int]
) -> None:
    upload(engine, store, "one")
    migrate(other)
    end_sessions(engine, other)
    assert restore() == 1


def test_tables_of_somebody_else_are_never_dropped(
    engine: Engine, store: BlobStore, other: Engine, restore: Callable[..., int]
) -> None:
    run_sql(other, "CREATE TABLE invoices (id integer)")
    end_sessions(engine, other)
    with pytest.raises(RestoreError, match="invoices"):
        restore(is_replaced=True)
    run_sql(other, "INSERT INTO invoices VALUES (1)")


def test_running_services_keep_a_restore_away(
    engine: Engine, store: BlobStore, other: Engine, other_url: str, restore: Callable[..., int]
) -> None:
    with psycopg.connect(other_url.replace("+psycopg", "")), pytest.raises(RestoreError, match="1 other sessions"):
        restore()


def test_a_cut_backup_leaves_the_database_as_it_was(
    engine: Engine, store: BlobStore, database_url: str, other: Engine, other_url: str, postgres: PostgresServer
) -> None:
    back_up(engine, store, database_url, postgres.bin_dir, NOW)
    migrate(other)
    kept = upload(other, store, "kept")
    end_sessions(engine, other)
    cut = store.get(find_backup([store], None).name)[:-100]
    with pytest.raises(BackupError):
        restore_database(
            other, other_url, Dump("cut", lambda: iter([cut])), postgres.bin_dir, is_replaced=True, say=silent
        )
    assert state_of(other, kept) == "in_flight"


def test_a_backup_of_a_newer_release_says_so(engine: Engine, store: BlobStore, restore: Callable[..., int]) -> None:
    run_sql(engine, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RestoreError, match="newer release"):
        restore()


def test_the_command_restores_the_newest_backup_and_lists_what_is_missing(
    engine: Engine,
    store: BlobStore,
    blob_url: str,
    database_url: str,
    other_url: str,
    tmp_path: Path,
    postgres: PostgresServer,
) -> None:
    register_model(engine)
    _, lost = make_ready(engine, store, "kept", "lost")
    store.delete(keys.original_key(lost.sha256))

    def run(*arguments: str, database: str, blobs: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {
            "DARKROOM_DATABASE_URL": database,
            "DARKROOM_BLOB_URL": blobs,
            "DARKROOM_PG_BIN_DIR": str(postgres.bin_dir),
        }
        command = [Path(sys.executable).with_name("darkroom-scheduler"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    made = run("backup", database=database_url, blobs=blob_url)
    name = made.stdout.split(",")[0]
    assert store.exists(name)
    new = (tmp_path / "new").as_uri()
    listed = run("restore", "--list", "--blobs-from", blob_url, database=other_url, blobs=new)
    assert listed.stdout.startswith(name)
    nothing = run("restore", database=other_url, blobs=new)
    assert nothing.returncode == 1 and "There is no backup" in nothing.stderr
    restored = run("restore", "--blobs-from", blob_url, database=other_url, blobs=new)
    assert restored.returncode == INCOMPLETE, restored.stderr
    assert restored.stdout.splitlines() == [keys.original_key(lost.sha256)]
    assert f"restored {name}: 2 photos" in restored.stderr
    again = run("restore", "--blobs-from", blob_url, database=other_url, blobs=new)
    assert again.returncode == 1 and "--replace" in again.stderr
