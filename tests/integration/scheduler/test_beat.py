"""Who leads, and what a leader sends, with real beat processes on real servers."""

import json
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery
from conftest import eventually, log_records
from redis import Redis
from scheduler_photos import run_sql
from sqlalchemy import Engine, select, text

from darkroom.celery_app import await_no_results, create_app
from darkroom.database.engine import migrate, sync_engine
from darkroom.database.tables import periodic_jobs
from darkroom.settings import BrokerSettings, DatabaseSettings, TaskSettings
from darkroom_cli.servers import ChildProcess, PostgresServer, RedisServer
from scheduler.beat import LeaderScheduler
from scheduler.schedule import JOBS

Spawn = Callable[..., ChildProcess]

on_redis = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


def sent(engine: Engine, name: str) -> datetime | None:
    """When a job was last sent."""
    with engine.connect() as connection:
        return connection.scalar(select(periodic_jobs.c.scheduled_at).where(periodic_jobs.c.name == name))


def events_in(child: ChildProcess) -> list[str]:
    """The names of the events that a process logged."""
    return [record["event"] for record in log_records(child.log_tail(10_000))]


def leads(child: ChildProcess) -> bool:
    """Whether a beat process is or was the leader."""
    return "beat.leading" in events_in(child)


def stop_the_clock(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """No job is due again while a test looks, however slow it is."""
    now = datetime.now(UTC)
    monkeypatch.setattr(app, "now", lambda: now)


def messages_in(redis: Redis, queue: str) -> list[str]:
    """The names of the tasks that wait in a queue on Redis."""
    return [json.loads(message)["headers"]["task"] for message in redis.lrange(queue, 0, -1)]


def test_a_standby_takes_over_from_a_killed_leader_and_repeats_nothing(spawn: Spawn, engine: Engine) -> None:
    beats = [spawn("darkroom-scheduler", "beat"), spawn("darkroom-scheduler", "beat")]
    leader = eventually(lambda: next((beat for beat in beats if leads(beat)), None))
    [standby] = [beat for beat in beats if beat is not leader]
    eventually(lambda: all(sent(engine, job.name) for job in JOBS))
    first = {job.name: sent(engine, job.name) for job in JOBS}
    eventually(lambda: "beat: Starting..." in events_in(standby))
    assert not leads(standby)

    assert leader.pid is not None
    os.kill(leader.pid, signal.SIGKILL)
    eventually(lambda: leads(standby))
    eventually(lambda: sent(engine, "reconcile") != first["reconcile"])
    seldom = [job for job in JOBS if job.expires_s > 60]
    again = [job for job in seldom if sent(engine, job.name) != first[job.name]]
    # But for those whose hour has struck meanwhile: one comes every half an hour.
    assert [job.name for job in again if job.when.remaining_estimate(first[job.name]) > timedelta(0)] == []

    assert standby.pid is not None
    os.kill(standby.pid, signal.SIGTERM)
    eventually(lambda: not standby.is_running, within_s=10)  # the grace period of docker-compose.yml
    assert standby.exit_status == 0


@on_redis
def test_a_leader_outlives_a_flushed_redis_and_goes_on_delivering(spawn: Spawn, engine: Engine, redis_url: str) -> None:
    beat = spawn("darkroom-scheduler", "beat")
    eventually(lambda: all(sent(engine, job.name) for job in JOBS))
    redis = Redis.from_url(redis_url)
    redis.flushall()
    again = eventually(lambda: "scheduler.reconcile" in (found := messages_in(redis, "maintenance")) and found)
    assert set(again) <= {"scheduler.reconcile", "scheduler.check_blobs", "scheduler.clean_up"}  # whose time may come
    assert events_in(beat).count("beat.leading") == 1


@on_redis
def test_a_leader_outlives_a_restart_of_the_database_and_leads_again(spawn: Spawn, server_folder: Path) -> None:
    server = PostgresServer(server_folder / "restarted")
    server.start()
    own = sync_engine(DatabaseSettings(database_url=server.url))
    try:
        migrate(own)
        beat = spawn("darkroom-scheduler", "beat", DARKROOM_DATABASE_URL=server.url)
        before = eventually(lambda: sent(own, "reconcile"))
        server.stop()
        eventually(lambda: "beat.database_away" in events_in(beat))
        server.start()
        eventually(lambda: events_in(beat).count("beat.leading") == 2)
        eventually(lambda: sent(own, "reconcile") != before)
        assert beat.is_running
    finally:
        own.dispose()
        server.stop()


@on_redis
def test_jobs_stay_due_while_the_broker_is_away(spawn: Spawn, engine: Engine, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "r")
    server.start()
    try:
        beat = spawn("darkroom-scheduler", "beat", DARKROOM_BROKER_URL=server.url, DARKROOM_RESULT_URL=server.url)
        eventually(lambda: sent(engine, "reconcile"))
        server.stop()
        eventually(lambda: "beat.not_sent" in events_in(beat))
        before = sent(engine, "reconcile")
        server.start()
        eventually(lambda: sent(engine, "reconcile") != before)
        assert events_in(beat).count("beat.leading") == 1
    finally:
        server.stop()


@on_redis
def test_a_restart_sends_no_job_twice_and_a_missed_one_once(
    database_url: str,
    redis_url: str,
    broker_url: str,
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = create_app("beat", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    stop_the_clock(app, monkeypatch)
    await_no_results(app)
    redis, heartbeat = Redis.from_url(redis_url), tmp_path / "heartbeat"

    def lead_once() -> list[str]:
        """What a beat that is started, leads until nothing is due, and ends sends."""
        own = sync_engine(DatabaseSettings(database_url=database_url))
        scheduler = LeaderScheduler(app, own, heartbeat)
        # The session of the one before ends a moment after its connection.
        eventually(lambda: scheduler.tick() and scheduler.is_leading)
        # One that was not sent because something was away stays due.
        while any(entry.is_due().is_due for entry in scheduler.schedule.values()):
            scheduler.tick()
        scheduler.close()
        own.dispose()
        queues = sorted({job.contract.queue for job in JOBS})
        names = [name for queue in queues for name in messages_in(redis, queue)]
        redis.delete(*queues)
        return sorted(name.removeprefix("scheduler.") for name in names)

    assert lead_once() == sorted(job.name for job in JOBS)  # never run
    assert heartbeat.exists()
    assert lead_once() == []
    run_sql(engine, "UPDATE periodic_jobs SET scheduled_at = now() - interval '25 hours' WHERE name = 'back_up'")
    assert lead_once() == ["back_up"]
    assert lead_once() == []


@on_redis
def test_one_scheduler_leads_and_the_lock_goes_with_its_session(
    database_url: str, redis_url: str, broker_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app("beat", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    stop_the_clock(app, monkeypatch)
    await_no_results(app)
    first, second = (LeaderScheduler(app, engine, None) for _ in range(2))
    first.tick()
    second.tick()
    held = text("SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")
    with engine.connect() as connection:
        assert connection.scalar(held) == 1
    redis = Redis.from_url(redis_url)
    assert len(messages_in(redis, "maintenance")) == sum(job.contract.queue == "maintenance" for job in JOBS)
    first.close()
    run_sql(engine, "UPDATE periodic_jobs SET scheduled_at = now() - interval '25 hours' WHERE name = 'audit_ledger'")
    eventually(lambda: second.tick() and "scheduler.audit_ledger" in messages_in(redis, "maintenance")[:1])
    second.close()
    with engine.connect() as connection:
        eventually(lambda: connection.scalar(held) == 0)
