"""The maintenance worker: jobs side by side, each once at a time, each with a row that shows how it went."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from conftest import eventually
from scheduler_photos import run_sql, upload
from sqlalchemy import Engine, select

from darkroom.celery_app import create_app, declare_topology, request
from darkroom.contracts.messages import JobReport, Nothing
from darkroom.contracts.tasks import AUDIT_LEDGER, BACK_UP, CLEAN_UP, RECONCILE, TaskContract
from darkroom.database.tables import periodic_jobs
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import open_blob_store
from darkroom_cli.servers import ChildProcess, PostgresServer
from scheduler.schedule import JOBS

Spawn = Callable[..., ChildProcess]

MAINTENANCE_JOBS = [job for job in JOBS if job.contract.queue == "maintenance"]

on_redis = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


def row(engine: Engine, name: str) -> Any:
    """A job's row, or None."""
    with engine.connect() as connection:
        return connection.execute(select(periodic_jobs).where(periodic_jobs.c.name == name)).one_or_none()


def has_ended(engine: Engine, name: str) -> bool:
    found = row(engine, name)
    return found is not None and found.finished_at is not None


@pytest.fixture
def send(broker_url: str, redis_url: str) -> Callable[[TaskContract[Nothing, JobReport]], None]:
    """Sends a job as beat does."""
    app: Celery = create_app("test", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    with app.connection_for_write() as connection:
        declare_topology(connection)
    return lambda contract: request(app, contract, Nothing(), expires=600).apply_async() and None


def test_every_job_runs_and_its_row_says_what_it_did(
    spawn: Spawn, engine: Engine, send: Callable[..., None], postgres: PostgresServer
) -> None:
    for job in MAINTENANCE_JOBS:
        send(job.contract)
    spawn("darkroom-scheduler", "maintenance", DARKROOM_PG_BIN_DIR=str(postgres.bin_dir))
    eventually(lambda: all(has_ended(engine, job.name) for job in MAINTENANCE_JOBS), within_s=90)
    while (tick := row(engine, "reconcile")).summary == "failed":  # a busy broker refused a fence
        run_sql(engine, "DELETE FROM fences")
        send(RECONCILE)
        eventually(lambda tick=tick: row(engine, "reconcile").finished_at > tick.finished_at, within_s=60)
    rows = {job.name: row(engine, job.name) for job in MAINTENANCE_JOBS}
    assert {name: one.alarm for name, one in rows.items()} == dict.fromkeys(rows)
    assert all(one.succeeded_at is not None for one in rows.values())
    assert rows["reconcile"].summary.endswith("fences sent: 8")
    assert rows["back_up"].summary.startswith("backups/darkroom-")


def slow_programs(folder: Path) -> tuple[Path, Path]:
    """A folder with a `pg_dump` that waits until something is written to the second path, and is its output."""
    programs, gate = folder / "bin", folder / "gate"
    programs.mkdir()
    os.mkfifo(gate)
    (programs / "pg_dump").write_text(f"#!/bin/sh\necho begun >> {folder}/begun\ncat {gate}\n")
    (programs / "pg_restore").write_text("#!/bin/sh\ncat > /dev/null\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    return programs, gate


@on_redis
def test_a_running_backup_holds_nobody_up_and_runs_once(
    spawn: Spawn, engine: Engine, send: Callable[..., None], tmp_path: Path
) -> None:
    """All other jobs, and the reconciler twice, run meanwhile; and a stop waits for its end."""
    programs, gate = slow_programs(tmp_path)
    worker = spawn("darkroom-scheduler", "maintenance", DARKROOM_PG_BIN_DIR=str(programs))
    send(BACK_UP)
    eventually(lambda: (tmp_path / "begun").exists(), within_s=60)
    for job in MAINTENANCE_JOBS:
        send(job.contract)
    others = [job.name for job in MAINTENANCE_JOBS if job.name != "back_up"]
    eventually(lambda: all(has_ended(engine, name) for name in others), within_s=60)
    first = row(engine, "reconcile").finished_at
    send(RECONCILE)
    eventually(lambda: row(engine, "reconcile").finished_at > first, within_s=60)
    eventually(lambda: "runs already" in worker.log_tail(1000), within_s=60)
    assert not has_ended(engine, "back_up")

    os.kill(worker.pid or 0, signal.SIGTERM)
    eventually(lambda: "Warm shutdown" in worker.log_tail(1000))
    gate.write_text("a dump")
    eventually(lambda: not worker.is_running, within_s=60)
    assert worker.exit_status == 0
    assert row(engine, "back_up").alarm is None
    assert row(engine, "back_up").succeeded_at is not None
    assert (tmp_path / "begun").read_text() == "begun\n"


@on_redis
def test_a_job_that_fails_or_finds_something_shows_an_alarm_until_it_goes_well(
    spawn: Spawn, engine: Engine, send: Callable[..., None], tmp_path: Path, blob_url: str
) -> None:
    upload(engine, open_blob_store(blob_url), "a red star")
    run_sql(engine, "DELETE FROM images")
    spawn("darkroom-scheduler", "maintenance", DARKROOM_PG_BIN_DIR=str(tmp_path))
    for contract in (BACK_UP, AUDIT_LEDGER):
        send(contract)
    eventually(lambda: has_ended(engine, "back_up") and has_ended(engine, "audit_ledger"), within_s=60)
    assert "pg_dump is not in" in row(engine, "back_up").alarm
    assert row(engine, "back_up").succeeded_at is None
    assert "accepted: the ledger says 1, 0 are there" in row(engine, "audit_ledger").alarm
    run_sql(engine, "UPDATE ledger SET accepted = 0")
    send(AUDIT_LEDGER)
    eventually(lambda: row(engine, "audit_ledger").alarm is None, within_s=60)


@on_redis
def test_a_tick_that_comes_too_late_is_dropped(
    spawn: Spawn, engine: Engine, send: Callable[..., None], broker_url: str, redis_url: str
) -> None:
    app = create_app("test", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    past = -timedelta(hours=1).total_seconds()
    request(app, CLEAN_UP, Nothing(), expires=past).apply_async()
    send(AUDIT_LEDGER)
    worker = spawn("darkroom-scheduler", "maintenance")
    eventually(lambda: has_ended(engine, "audit_ledger"), within_s=60)
    eventually(lambda: "Discarding revoked task: scheduler.clean_up" in worker.log_tail(1000), within_s=60)
    assert row(engine, "clean_up") is None
