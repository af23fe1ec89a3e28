"""Backups that restore, reports that add up, and an audit that notices."""

import hashlib
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from scheduler_photos import (
    MODEL,
    PROBLEM,
    dispatch_all,
    fail,
    finalize_message,
    leave_everything,
    register_model,
    run_sql,
    upload,
)
from sqlalchemy import Engine, select

from darkroom.contracts.base import Lane
from darkroom.database import images, outcomes
from darkroom.database.tables import backups, usage_reports
from darkroom.errors import ConfigurationError
from darkroom.storage import BlobStore, open_blob_store
from darkroom_cli.servers import PostgresServer
from scheduler.backups import BackupError, back_up, verify
from scheduler.finalize import finish
from scheduler.reports import audit_ledger, build_report, report_usage

NOW = datetime(2026, 5, 11, 7, 30, tzinfo=UTC)
MONDAY = datetime(2026, 5, 4, tzinfo=UTC)


@pytest.fixture
def store(blob_url: str) -> BlobStore:
    return open_blob_store(blob_url)


def make_photos(engine: Engine, store: BlobStore) -> None:
    """One ready on each lane, one failed, one deleted, one in flight, and a duplicate of a ready one."""
    register_model(engine)
    ready, bulk = upload(engine, store, "ready"), upload(engine, store, "bulk", Lane.BULK)
    failed, deleted, _ = (upload(engine, store, name) for name in ("failed", "deleted", "in flight"))
    dispatch_all(engine)
    for photo in (ready, bulk):
        finish(engine, store, finalize_message(photo.sha256), leave_everything(store, photo.sha256))
    fail(engine, failed.sha256)
    with engine.begin() as connection:
        outcomes.delete_image(connection, deleted.image_id)
    upload(engine, store, "ready")


def test_a_backup_restores_into_another_database(
    engine: Engine, store: BlobStore, database_url: str, postgres: PostgresServer
) -> None:
    make_photos(engine, store)
    report = back_up(engine, store, database_url, postgres.bin_dir, NOW)
    with engine.connect() as connection:
        row = connection.execute(select(backups)).one()
    data = store.get(row.key)
    assert (row.key, row.bytes, row.sha256) == (
        "backups/darkroom-20260511T073000Z.dump",
        len(data),
        hashlib.sha256(data).hexdigest(),
    )
    assert report.summary == f"{row.key}, {row.bytes} bytes"

    name = f"restored_{uuid4().hex}"
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        try:
            target = postgres.dsn.replace("/darkroom?", f"/{name}?")
            restore = [postgres.bin_dir / "pg_restore", "--exit-on-error", "--no-owner", f"--dbname={target}"]
            subprocess.run(restore, input=data, check=True)
            with psycopg.connect(target) as restored, engine.connect() as connection:
                for table in ("images", "originals", "embeddings", "events", "ledger", "models"):
                    query = f"SELECT count(*), md5(string_agg({table}::text, '|' ORDER BY {table}::text)) FROM {table}"
                    assert restored.execute(query).fetchone() == tuple(connection.exec_driver_sql(query).one())
                with psycopg.connect(target) as writer:  # the ledger's trigger came along
                    writer.execute("DELETE FROM images WHERE state = 'failed'")
                    assert writer.execute("SELECT sum(failed) FROM ledger").fetchone() == (0,)
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_a_cut_backup_is_not_taken_for_one(
    engine: Engine, store: BlobStore, database_url: str, postgres: PostgresServer
) -> None:
    back_up(engine, store, database_url, postgres.bin_dir, NOW)
    [blob] = store.walk("backups/")
    store.put("backups/cut.dump", store.get(blob.key)[:-100])
    with pytest.raises(BackupError, match="pg_restore ended with status 1"):
        verify(store, "backups/cut.dump", postgres.bin_dir)


def test_a_failed_backup_leaves_nothing_and_shows_no_password(engine: Engine, store: BlobStore, tmp_path: Path) -> None:
    program = tmp_path / "pg_dump"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\necho half\necho "no such server" >&2\nexit 1\n')
    program.chmod(0o755)
    with pytest.raises(BackupError, match="pg_dump ended with status 1: no such server"):
        back_up(engine, store, "postgresql+psycopg://dark:s3cret@db.example/photos", tmp_path, NOW)
    assert list(store.walk("backups/")) == list(store.walk("incoming/")) == []
    assert (tmp_path / "arguments").read_text() == "--format=custom --no-password --exclude-table-data=trace_rows\n"
    with engine.connect() as connection:
        assert connection.execute(select(backups)).all() == []


def test_missing_programs_are_named_with_the_remedy(engine: Engine, store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="DARKROOM_PG_BIN_DIR"):
        back_up(engine, store, "postgresql+psycopg://db.example/photos", tmp_path, NOW)


def test_the_report_says_what_a_weeks_photos_became(engine: Engine, store: BlobStore) -> None:
    make_photos(engine, store)
    run_sql(engine, "UPDATE images SET created_at = :monday", monday=MONDAY)
    run_sql(engine, "UPDATE images SET ready_at = created_at + interval '4 seconds' WHERE ready_at IS NOT NULL")
    run_sql(engine, "UPDATE images SET ready_at = created_at WHERE duplicate")
    run_sql(engine, "UPDATE images SET ready_at = created_at + interval '9 seconds' WHERE lane = 'bulk'")
    run_sql(engine, "UPDATE originals SET created_at = :monday", monday=MONDAY)
    report = build_report(engine, store, MONDAY, MONDAY + timedelta(days=7))
    sizes = [len(name) for name in ("ready", "bulk", "failed", "deleted", "in flight")]
    assert report.model_dump(mode="json", exclude={"storage_bytes"}) == {
        "period_start": "2026-05-04T00:00:00Z",
        "period_end": "2026-05-11T00:00:00Z",
        "photos": {"accepted": 6, "ready": 3, "failed": 1, "deleted": 1, "in_flight": 1},
        "bytes": sum(sizes),
        "failures_by_cause": {PROBLEM.slug: 1},
        "seconds_to_ready": {
            "bulk": {"photos": 1, "p50": 9.0, "p95": 9.0},
            "interactive": {"photos": 1, "p50": 4.0, "p95": 4.0},
        },
    }
    storage = report.storage_bytes
    assert storage["originals"] == sum(sizes)
    assert storage["embeddings"] == sum(blob.bytes for blob in store.walk(f"embeddings/{MODEL}")) > 0
    assert storage["derived"] > 280
    assert storage["database"] > 1_000_000
    assert (storage["backups"], storage["queries"], storage["incoming"]) == (0, 0, 0)


def test_a_week_without_photos_has_a_report_too_and_a_second_run_replaces_it(engine: Engine, store: BlobStore) -> None:
    report_usage(engine, store, NOW)
    upload(engine, store, "found later")
    run_sql(engine, "UPDATE images SET created_at = :monday", monday=MONDAY)
    report_usage(engine, store, NOW + timedelta(hours=1))
    with engine.connect() as connection:
        [row] = connection.execute(select(usage_reports)).all()
    assert (row.period_start, row.period_end) == (MONDAY, MONDAY + timedelta(days=7))
    assert row.report["photos"]["accepted"] == 1
    assert row.report["seconds_to_ready"] == row.report["failures_by_cause"] == {}


def test_the_audit_is_silent_while_the_ledger_adds_up(engine: Engine, store: BlobStore) -> None:
    make_photos(engine, store)
    report = audit_ledger(engine)
    assert (report.summary, report.alarm) == ("6 images counted", None)


@pytest.mark.parametrize(
    ("statement", "difference"),
    [
        ("DELETE FROM images WHERE state = 'failed'", "accepted: the ledger says 6, 5 are there"),
        (
            "SET LOCAL session_replication_role = replica; UPDATE images SET state = 'ready' WHERE state = 'in_flight'",
            "in_flight: the ledger says 1, 0 are there",
        ),
    ],
    ids=["a row removed", "a state changed without the trigger"],
)
def test_the_audit_notices_what_happened_behind_the_systems_back(
    engine: Engine, store: BlobStore, statement: str, difference: str
) -> None:
    make_photos(engine, store)
    run_sql(engine, statement)
    alarm = audit_ledger(engine).alarm
    assert alarm is not None and difference in alarm


def test_an_upload_during_the_audit_is_no_difference(engine: Engine, store: BlobStore) -> None:
    """Both sides are read in one snapshot."""
    make_photos(engine, store)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        counters = images.read_ledger(connection)
        upload(engine, store, "meanwhile")
        assert images.count_images(connection) == counters
    assert audit_ledger(engine).alarm is None
