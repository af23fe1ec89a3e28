"""How work on an original ends, on a real PostgreSQL: every transition that may and may not happen."""

import random
import threading
from datetime import timedelta

import pytest
from database_steps import (
    accept,
    adds_up,
    batch,
    delete,
    event_types,
    fail,
    finish,
    ledger,
    original,
    retry,
    rows,
    run,
    send,
    sha,
    state,
    sweep,
    together,
)
from sqlalchemy import Engine

from darkroom.contracts.base import Lane
from darkroom.database import dispatch, images, outcomes, upkeep

A, B = sha("a"), sha("b")

ACTS = 150
"""Of each thread: three seconds' worth on a machine that does nothing else."""


def test_success_finishes_every_image_of_the_original(engine: Engine) -> None:
    first, second = accept(engine, A), accept(engine, A)
    send(engine)

    assert finish(engine, A)

    for upload in (first, second):
        assert state(engine, upload.files[0].image_id) == "ready"
        assert event_types(engine, upload.files[0].image_id) == ["image.accepted", "image.ready"]
        assert batch(engine, upload.batch_id)["ready"] == 1
    assert event_types(engine) == ["batch.completed", "batch.completed"]
    assert original(engine, A).perceptual_hash == -1  # all 64 bits set, as a signed number


def test_the_same_success_twice_changes_nothing(engine: Engine) -> None:
    upload = accept(engine, A)
    send(engine)
    finish(engine, A)
    before = (ledger(engine), event_types(engine), original(engine, A))

    assert not finish(engine, A)

    assert (ledger(engine), event_types(engine), original(engine, A)) == before
    assert event_types(engine, upload.files[0].image_id) == ["image.accepted", "image.ready"]


def test_success_counts_from_any_generation(engine: Engine) -> None:
    accept(engine, A)
    send(engine)
    with engine.begin() as connection:
        outcomes.send_again(connection, [A], upkeep.database_now(connection), backoff_s=1)

    assert finish(engine, A)


def test_failure_fails_every_image_with_its_cause(engine: Engine) -> None:
    upload = accept(engine, A, B)
    send(engine)

    assert fail(engine, A)

    assert state(engine, upload.files[0].image_id) == "failed"
    assert original(engine, A).error["title"] == "Damaged"
    assert original(engine, A).attempts == 1
    assert batch(engine, upload.batch_id) == {"total": 2, "ready": 0, "failed": 1, "deleted": 0, "pending": 1}
    finish(engine, B)
    assert event_types(engine) == ["batch.completed"]


def test_the_same_failure_twice_changes_nothing(engine: Engine) -> None:
    accept(engine, A)
    send(engine)
    fail(engine, A)
    before = (ledger(engine), event_types(engine), original(engine, A))

    assert not fail(engine, A)

    assert (ledger(engine), event_types(engine), original(engine, A)) == before


@pytest.mark.parametrize("generation", [1, 3])
def test_failure_of_another_generation_is_ignored(engine: Engine, generation: int) -> None:
    upload = accept(engine, A)
    send(engine)
    with engine.begin() as connection:
        outcomes.send_again(connection, [A], upkeep.database_now(connection), backoff_s=1)
    assert [one.generation for one in send(engine)] == [2]

    assert not fail(engine, A, generation)

    assert state(engine, upload.files[0].image_id) == "in_flight"


def test_success_after_failure_counts(engine: Engine) -> None:
    upload = accept(engine, A)
    send(engine)
    fail(engine, A)

    assert finish(engine, A)

    assert state(engine, upload.files[0].image_id) == "ready"
    assert original(engine, A).error is None
    assert batch(engine, upload.batch_id) == {"total": 1, "ready": 1, "failed": 0, "deleted": 0, "pending": 0}
    # The batch was complete before, and moving on from failed to ready completes nothing.
    assert event_types(engine) == ["batch.completed"]
    assert adds_up(ledger(engine))


def test_failure_never_goes_over_ready(engine: Engine) -> None:
    upload = accept(engine, A)
    send(engine)
    finish(engine, A)

    assert not fail(engine, A)

    assert state(engine, upload.files[0].image_id) == "ready"
    assert original(engine, A).status == "ready"


def test_neither_success_nor_failure_revives_a_deleted_image(engine: Engine) -> None:
    upload = accept(engine, A, A, B)
    send(engine)
    kept, deleted, other = (file.image_id for file in upload.files)
    assert delete(engine, deleted)
    assert delete(engine, other)

    finish(engine, A)
    fail(engine, B)

    assert [state(engine, each) for each in (kept, deleted, other)] == ["ready", "deleted", "deleted"]
    assert event_types(engine, deleted) == ["image.accepted", "image.deleted"]
    assert event_types(engine, other) == ["image.accepted", "image.deleted"]
    assert batch(engine, upload.batch_id) == {"total": 3, "ready": 1, "failed": 0, "deleted": 2, "pending": 0}


def test_deleting_twice_or_what_never_was_is_told(engine: Engine) -> None:
    upload = accept(engine, A)

    assert delete(engine, upload.files[0].image_id)
    assert not delete(engine, upload.files[0].image_id)
    assert not delete(engine, upload.batch_id)
    assert ledger(engine)["deleted"] == 1


def test_deleting_the_last_pending_image_completes_its_batch(engine: Engine) -> None:
    upload = accept(engine, A, B)
    send(engine)
    finish(engine, A)
    assert event_types(engine) == []

    delete(engine, upload.files[1].image_id)

    assert event_types(engine) == ["batch.completed"]


def test_what_nothing_refers_to_any_more_is_not_dispatched(engine: Engine) -> None:
    upload = accept(engine, A)
    delete(engine, upload.files[0].image_id)

    assert send(engine) == []
    assert original(engine, A).unreferenced_at is not None

    accept(engine, A)
    assert [one.sha256 for one in send(engine)] == [A]


def test_a_retry_sends_every_failed_image_of_the_original_again(engine: Engine) -> None:
    first, second = accept(engine, A), accept(engine, A)
    send(engine)
    fail(engine, A)

    assert retry(engine, first.files[0].image_id) == "failed"

    assert state(engine, second.files[0].image_id) == "in_flight"
    assert batch(engine, second.batch_id)["pending"] == 1
    assert original(engine, A).error is None
    [again] = send(engine)
    assert finish(engine, again.sha256)
    # Each batch was complete twice, and said so twice.
    assert event_types(engine).count("batch.completed") == 4


def test_a_failure_that_is_delivered_again_does_not_fail_a_retry(engine: Engine) -> None:
    upload = accept(engine, A)
    [first] = send(engine)
    fail(engine, A, first.generation)
    retry(engine, upload.files[0].image_id)

    assert not fail(engine, A, first.generation)

    assert state(engine, upload.files[0].image_id) == "in_flight"
    [second] = send(engine)
    assert not fail(engine, A, first.generation)
    assert fail(engine, A, second.generation)


@pytest.mark.parametrize("outcome", ["ready", "in_flight"])
def test_a_retry_of_what_did_not_fail_changes_nothing(engine: Engine, outcome: str) -> None:
    upload = accept(engine, A)
    send(engine)
    if outcome == "ready":
        finish(engine, A)
    before = ledger(engine)

    assert retry(engine, upload.files[0].image_id) == outcome

    assert ledger(engine) == before
    assert send(engine) == []


def test_a_retry_of_a_deleted_or_unknown_image_is_none(engine: Engine) -> None:
    upload = accept(engine, A)
    send(engine)
    fail(engine, A)
    delete(engine, upload.files[0].image_id)

    assert retry(engine, upload.files[0].image_id) is None
    assert retry(engine, upload.batch_id) is None


def test_what_was_lost_is_sent_again_after_a_pause_of_up_to_a_minute_however_often(engine: Engine) -> None:
    accept(engine, A)
    pauses = []
    for losses in range(14):
        run(engine, "UPDATE originals SET not_before = now()")
        assert len(send(engine)) == 1
        with engine.begin() as connection:
            assert outcomes.send_again(connection, [A], upkeep.database_now(connection), backoff_s=15) == 1
            row = connection.exec_driver_sql("SELECT losses, not_before - now() AS pause FROM originals").one()
        assert row.losses == losses + 1
        pauses.append(row.pause.total_seconds())

    assert pauses == [0, 15, 30] + [60] * 11


def test_what_waits_for_its_pause_is_not_leased(engine: Engine) -> None:
    accept(engine, A)
    for _ in range(2):
        send(engine)
        with engine.begin() as connection:
            outcomes.send_again(connection, [A], upkeep.database_now(connection), backoff_s=60)

    assert send(engine) == []


def test_what_was_dispatched_anew_or_is_over_is_not_sent_again(engine: Engine) -> None:
    accept(engine, A, B)
    with engine.connect() as connection:
        before = upkeep.database_now(connection)
    send(engine)
    finish(engine, B)

    with engine.begin() as connection:
        assert outcomes.send_again(connection, [A, B], before, backoff_s=1) == 0
        assert outcomes.send_again(connection, [B], upkeep.database_now(connection), backoff_s=1) == 0


def test_overdue_originals_are_those_of_the_lane_that_were_sent_before(engine: Engine) -> None:
    accept(engine, A)
    accept(engine, B, lane=Lane.BULK)
    accept(engine, sha("over"))
    accept(engine, sha("later"))
    run(engine, "UPDATE originals SET not_before = now() + interval '1 hour' WHERE sha256 = :s", s=sha("later"))
    send(engine)
    finish(engine, sha("over"))
    with engine.begin() as connection:
        now = upkeep.database_now(connection)
        assert upkeep.overdue_originals(connection, Lane.INTERACTIVE, now, 10) == [A]
        assert upkeep.overdue_originals(connection, Lane.BULK, now, 10) == [B]
        assert upkeep.overdue_originals(connection, Lane.INTERACTIVE, now - timedelta(minutes=1), 10) == []


def test_no_error_is_null_for_queries_too(engine: Engine) -> None:
    # JSON's own null is a value: `error IS NOT NULL` would find every photo.
    accept(engine, A)
    send(engine)
    finish(engine, A)

    assert rows(engine, "SELECT FROM originals WHERE error IS NOT NULL") == []
    assert rows(engine, "SELECT FROM events WHERE problem IS NOT NULL") == []


def test_a_row_that_is_removed_behind_the_system_s_back_shows(engine: Engine) -> None:
    upload = accept(engine, A, B)
    assert adds_up(ledger(engine))

    run(engine, "DELETE FROM images WHERE id = :id", id=upload.files[0].image_id)

    assert ledger(engine) == {"accepted": 2, "ready": 0, "failed": 0, "deleted": 0, "in_flight": 1}
    assert not adds_up(ledger(engine))


def test_a_row_that_is_changed_behind_the_system_s_back_moves_the_ledger(engine: Engine) -> None:
    upload = accept(engine, A)

    run(engine, "UPDATE images SET state = 'ready' WHERE id = :id", id=upload.files[0].image_id)

    assert (ledger(engine)["ready"], ledger(engine)["in_flight"]) == (1, 0)


def test_the_ledger_adds_up_at_every_moment_while_eight_threads_do_everything(engine: Engine) -> None:
    shas = [sha(number) for number in range(6)]
    known: list[object] = []
    is_over = threading.Event()
    wrong: list[dict[str, int]] = []

    def act(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(ACTS):
            sha256 = chance.choice(shas)
            match chance.randrange(8):
                case 0 | 1:
                    chosen = chance.sample(shas, chance.randrange(1, 5))
                    upload = accept(engine, *chosen, lane=chance.choice(list(Lane)))
                    known.extend(file.image_id for file in upload.files)
                case 2:
                    send(engine, limit=3)
                case 3:
                    finish(engine, sha256)
                case 4:
                    fail(engine, sha256, original(engine, sha256).generation if chance.random() < 0.8 else 1)
                case 5 if known:
                    delete(engine, chance.choice(known))  # type: ignore[arg-type]
                case 6 if known:
                    retry(engine, chance.choice(known))  # type: ignore[arg-type]
                case 7:
                    sweep(engine)
                    with engine.begin() as connection:
                        if upkeep.lock_swept(connection, sha256):
                            upkeep.remove_swept(connection, sha256)
                case _:
                    pass

    def watch() -> None:
        while not is_over.is_set():
            counts = ledger(engine)
            if not adds_up(counts):
                wrong.append(counts)

    accept(engine, *shas)
    watcher = threading.Thread(target=watch)
    watcher.start()
    errors = together(*(lambda seed=seed: act(seed) for seed in range(8)))
    is_over.set()
    watcher.join()

    assert errors == []
    assert wrong == []
    with engine.connect() as connection:
        assert images.count_images(connection) == ledger(engine)
    assert ledger(engine)["accepted"] > 30
    # Every batch's counters are those of its images, and it is complete exactly when nothing is pending.
    assert (
        rows(
            engine,
            """
            SELECT b.id FROM batches b JOIN images i ON i.batch_id = b.id GROUP BY b.id
            HAVING b.ready <> count(*) FILTER (WHERE state = 'ready')
                OR b.failed <> count(*) FILTER (WHERE state = 'failed')
                OR b.deleted <> count(*) FILTER (WHERE state = 'deleted')
                OR b.pending <> count(*) FILTER (WHERE state = 'in_flight')
                OR (b.pending = 0) <> (b.completed_at IS NOT NULL)
            """,
        )
        == []
    )
    # No image is in flight without an original that is.
    assert (
        rows(
            engine,
            """
            SELECT FROM images i LEFT JOIN originals o USING (sha256)
            WHERE i.state = 'in_flight' AND (o.status IS NULL OR o.status NOT IN ('accepted', 'processing'))
               OR i.state = 'ready' AND (o.status IS NULL OR o.status <> 'ready')
               OR i.state = 'failed' AND (o.status IS NULL OR o.status <> 'failed')
            """,
        )
        == []
    )


def test_a_batch_that_many_threads_finish_completes_once(engine: Engine) -> None:
    shas = [sha(number) for number in range(8)]
    upload = accept(engine, *shas)
    send(engine)

    assert together(*(lambda each=each: finish(engine, each) for each in shas)) == []

    assert batch(engine, upload.batch_id)["ready"] == 8
    assert event_types(engine) == ["batch.completed"]


def test_success_and_failure_of_one_photo_at_once_leave_one_outcome(engine: Engine) -> None:
    for turn in range(6):
        name = sha(turn)
        upload = accept(engine, name)
        send(engine)
        assert together(lambda name=name: finish(engine, name), lambda name=name: fail(engine, name)) == []
        # Whoever came first: success counts after failure, failure never over success.
        assert state(engine, upload.files[0].image_id) == "ready"
        assert event_types(engine, upload.files[0].image_id)[-1] == "image.ready"


def test_a_finished_image_shows_what_is_known_of_its_original(engine: Engine) -> None:
    upload = accept(engine, A)
    with engine.connect() as connection:
        before = images.find_image(connection, upload.files[0].image_id)
    send(engine)
    finish(engine, A)
    with engine.connect() as connection:
        after = images.find_image(connection, upload.files[0].image_id)
        task = dispatch.task_ids(A, 1)["prepare"]
        issued = images.find_task(connection, task)  # type: ignore[arg-type]

    assert before is not None
    assert after is not None
    assert issued is not None
    assert (before.original_status, before.width) == ("accepted", None)
    assert (after.original_status, after.width, after.thumbnails["small"]["bytes"]) == ("ready", 40, 100)
    assert issued.name == "thumbnailer.prepare"
