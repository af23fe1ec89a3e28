"""The outbox on a real PostgreSQL: leases, stamps and generations."""

import threading
from datetime import timedelta

from conftest import eventually
from database_steps import accept, delete, finish, original, rows, run, send, sha, sweep, together
from sqlalchemy import Engine

from darkroom.contracts.base import Lane
from darkroom.contracts.messages import FenceAnswer
from darkroom.database import dispatch, outcomes, upkeep
from darkroom.database.dispatch import Leased
from darkroom.workflow import task_ids

A, B, C = sha("a"), sha("b"), sha("c")


def lease(engine: Engine, limit: int = 100, lease_s: float = 60, lane: Lane | None = None) -> list[Leased]:
    with engine.begin() as connection:
        return dispatch.lease(connection, limit, lease_s, lane)


def expire_leases(engine: Engine) -> None:
    run(engine, "UPDATE originals SET lease_until = now() - interval '1 second' WHERE lease_until IS NOT NULL")


def test_interactive_originals_go_first_and_the_oldest_of_them_before_others(engine: Engine) -> None:
    accept(engine, A, lane=Lane.BULK)
    accept(engine, B)
    accept(engine, C)

    assert [one.sha256 for one in lease(engine, limit=1)] == [B]
    assert [one.sha256 for one in lease(engine, limit=5)] == [C, A]


def test_one_lane_can_be_leased_alone(engine: Engine) -> None:
    accept(engine, A, lane=Lane.BULK)
    accept(engine, B)

    assert [one.sha256 for one in lease(engine, lane=Lane.INTERACTIVE)] == [B]
    assert lease(engine, lane=Lane.INTERACTIVE) == []
    assert [one.sha256 for one in lease(engine, lane=Lane.BULK)] == [A]


def test_what_is_leased_or_sent_is_not_leased_again(engine: Engine) -> None:
    accept(engine, A, B)
    [first] = lease(engine, limit=1)
    assert len(lease(engine)) == 1
    assert lease(engine) == []

    with engine.begin() as connection:
        dispatch.stamp(connection, [first])
    assert original(engine, first.sha256).status == "processing"
    assert lease(engine) == []


def test_dispatchers_at_work_at_once_share_the_originals_out(engine: Engine) -> None:
    shas = [sha(number) for number in range(60)]
    accept(engine, *shas)
    taken: list[Leased] = []

    def take() -> None:
        while some := lease(engine, limit=7):
            taken.extend(some)

    assert together(*[take] * 4) == []

    assert sorted(one.sha256 for one in taken) == sorted(shas)
    assert {one.generation for one in taken} == {1}


def test_a_dispatcher_does_not_wait_for_what_another_one_is_leasing(engine: Engine) -> None:
    accept(engine, A, B)
    with engine.begin() as connection:
        [first] = dispatch.lease(connection, 1, 60)
        [second] = lease(engine)

    assert {first.sha256, second.sha256} == {A, B}


def test_an_expired_lease_is_given_again_under_a_new_generation(engine: Engine) -> None:
    accept(engine, A)
    [first] = lease(engine)
    expire_leases(engine)
    [second] = lease(engine)

    assert (first.generation, second.generation) == (1, 2)


def test_the_stamp_of_an_older_generation_changes_nothing(engine: Engine) -> None:
    accept(engine, A)
    first = lease(engine)
    expire_leases(engine)
    second = lease(engine)
    before = original(engine, A)

    with engine.begin() as connection:
        dispatch.stamp(connection, first)
        dispatch.release(connection, first, delay_s=0)

    assert original(engine, A) == before
    with engine.begin() as connection:
        dispatch.stamp(connection, second)
    assert original(engine, A).dispatched_at is not None


def test_a_stamp_after_the_work_is_done_keeps_it_done(engine: Engine) -> None:
    accept(engine, A)
    leased = lease(engine)
    finish(engine, A)
    with engine.begin() as connection:
        dispatch.stamp(connection, leased)

    assert original(engine, A).status == "ready"


def test_what_could_not_be_published_is_due_again_after_a_pause(engine: Engine) -> None:
    accept(engine, A, B)
    first, second = lease(engine)
    with engine.begin() as connection:
        dispatch.release(connection, [first], delay_s=0)
        dispatch.release(connection, [second], delay_s=60)

    assert [one.sha256 for one in lease(engine)] == [first.sha256]


def test_the_ids_of_the_tasks_are_recorded_with_the_lease(engine: Engine) -> None:
    accept(engine, A)
    lease(engine)

    recorded = {str(row.id): row.name for row in rows(engine, "SELECT id, name FROM tasks WHERE sha256 = :s", s=A)}
    assert set(recorded) == set(task_ids(A, 1).values())
    assert "scheduler.finalize" in recorded.values()


def test_a_photo_that_comes_back_after_it_was_swept_is_dispatched(engine: Engine) -> None:
    # Its row is new, so its generation begins at 1 again, and so do the ids of its tasks.
    upload = accept(engine, A)
    send(engine)
    finish(engine, A)
    delete(engine, upload.files[0].image_id)
    assert sweep(engine) == [A]
    with engine.begin() as connection:
        assert upkeep.lock_swept(connection, A)
        upkeep.remove_swept(connection, A)

    accept(engine, A)

    assert [one.sha256 for one in send(engine)] == [A]


def test_the_backlog_is_what_waits(engine: Engine) -> None:
    with engine.connect() as connection:
        assert dispatch.backlog(connection) == dispatch.Backlog(0, None, 0)
    accept(engine, A, B)
    send(engine, limit=1)

    with engine.connect() as connection:
        waiting = dispatch.backlog(connection)
    assert (waiting.originals, waiting.backfills) == (1, 0)
    assert waiting.oldest_s is not None
    assert waiting.oldest_s >= 0


def test_a_lease_and_everything_else_that_wants_the_same_rows_do_not_deadlock(engine: Engine) -> None:
    shas = [sha(number) for number in range(10)]
    accept(engine, *shas)

    def dispatching() -> None:
        for _ in range(10):
            leased = lease(engine, limit=10, lease_s=0)
            with engine.begin() as connection:
                dispatch.stamp(connection, leased)
            with engine.begin() as connection:
                outcomes.send_again(connection, shas[::-1], upkeep.database_now(connection), backoff_s=0)

    def releasing() -> None:
        for _ in range(10):
            leased = lease(engine, limit=10)
            with engine.begin() as connection:
                dispatch.release(connection, leased, delay_s=0)

    def uploading() -> None:
        for _ in range(10):
            accept(engine, *shas[::-1])

    assert together(dispatching, dispatching, releasing, uploading) == []


def test_a_fence_comes_back_once(engine: Engine) -> None:
    with engine.begin() as connection:
        since = upkeep.database_now(connection) - timedelta(minutes=1)
        first, second = upkeep.send_fence(connection, "prepare"), upkeep.send_fence(connection, "embed.bulk")
    with engine.begin() as connection:
        upkeep.return_fence(connection, first, FenceAnswer())
    with engine.connect() as connection:
        returned, outstanding = upkeep.fence_history(connection, since)
    with engine.begin() as connection:
        upkeep.return_fence(connection, first, FenceAnswer())
        upkeep.return_fence(connection, 10**6, FenceAnswer())
        again, _ = upkeep.fence_history(connection, since)

    assert second > first
    assert (outstanding.number, outstanding.queue, outstanding.returned_at) == (second, "embed.bulk", None)
    assert returned.returned_at is not None
    assert again == returned
    with engine.begin() as connection:
        assert upkeep.forget_fences(connection, upkeep.database_now(connection)) == 2


def test_one_connection_leads_beat_until_it_closes(engine: Engine) -> None:
    with engine.connect() as leader:
        assert upkeep.lead_beat(leader)
        assert upkeep.lead_beat(leader)
        with engine.connect() as standby:
            assert not upkeep.lead_beat(standby)
        leader.invalidate()

    def takes_over() -> bool:
        """the standby leads after the leader's connection is gone"""
        with engine.connect() as standby:
            leads = upkeep.lead_beat(standby)
            standby.invalidate()
            return leads

    assert eventually(takes_over)


def test_a_job_s_last_run_is_kept_and_its_alarm_stays_until_a_run_without_one(engine: Engine) -> None:
    with engine.begin() as connection:
        upkeep.job_scheduled(connection, "audit_ledger", upkeep.database_now(connection))
        upkeep.job_started(connection, "audit_ledger")
        upkeep.job_finished(connection, "audit_ledger", "differs", "1 image is missing", is_success=False)
    with engine.begin() as connection:
        [failed] = upkeep.all_jobs(connection)
        upkeep.job_started(connection, "audit_ledger")
        upkeep.job_finished(connection, "audit_ledger", "adds up", None, is_success=True)
        [succeeded] = upkeep.all_jobs(connection)

    assert (failed.alarm, failed.succeeded_at) == ("1 image is missing", None)
    assert (succeeded.alarm, succeeded.summary) == (None, "adds up")
    assert succeeded.succeeded_at is not None


def test_concurrent_leases_see_a_row_that_commits_between_them(engine: Engine) -> None:
    accept(engine, A)
    seen: list[str] = []
    with engine.begin() as connection:
        dispatch.lease(connection, 10, 60)
        thread = threading.Thread(
            target=lambda: seen.extend(one.sha256 for one in (accept(engine, B), lease(engine))[1])
        )
        thread.start()
        thread.join()

    assert seen == [B]
