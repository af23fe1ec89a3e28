"""Uploads, duplicates and idempotency keys on a real PostgreSQL."""

import threading
from datetime import timedelta

import pytest
from conftest import eventually
from database_steps import (
    accept,
    adds_up,
    an_upload,
    batch,
    delete,
    event_types,
    fail,
    finish,
    ledger,
    original,
    rows,
    send,
    sha,
    state,
    together,
    waits_for_lock,
)
from sqlalchemy import Engine

from darkroom.contracts.base import Lane
from darkroom.database import dispatch, images, upkeep, uploads

A, B, C = sha("a"), sha("b"), sha("c")


def duplicates(engine: Engine, batch_id: object) -> list[bool]:
    return [
        row.duplicate
        for row in rows(engine, "SELECT duplicate FROM images WHERE batch_id = :b ORDER BY id", b=batch_id)
    ]


def test_a_new_photo_waits_in_the_outbox(engine: Engine) -> None:
    upload = accept(engine, A, B)

    assert {state(engine, file.image_id) for file in upload.files} == {"in_flight"}
    assert batch(engine, upload.batch_id) == {"total": 2, "ready": 0, "failed": 0, "deleted": 0, "pending": 2}
    assert ledger(engine) == {"accepted": 2, "ready": 0, "failed": 0, "deleted": 0, "in_flight": 2}
    assert event_types(engine, upload.files[0].image_id) == ["image.accepted"]
    assert duplicates(engine, upload.batch_id) == [False, False]
    assert {one.sha256 for one in send(engine)} == {A, B}


def test_a_new_upload_is_answered_as_reading_it_would_be(engine: Engine) -> None:
    upload = an_upload(A, B, A, lane=Lane.BULK, tags=["one", "two"])
    with engine.begin() as connection:
        answered = uploads.accept(connection, upload, uploads.lock_originals(connection, upload))

    assert answered is not None
    with engine.connect() as connection:
        read = images.find_batch(connection, upload.batch_id), images.images_of_batch(connection, upload.batch_id)
    assert read[0] is not None
    assert dict(answered[0]._mapping) == dict(read[0]._mapping)
    assert [dict(row._mapping) for row in answered[1]] == [dict(row._mapping) for row in read[1]]


def test_an_upload_of_known_bytes_must_be_read(engine: Engine) -> None:
    accept(engine, A)
    upload = an_upload(A, B)
    with engine.begin() as connection:
        assert uploads.accept(connection, upload, uploads.lock_originals(connection, upload)) is None


def test_the_same_bytes_twice_in_one_request_are_one_original_and_two_images(engine: Engine) -> None:
    upload = accept(engine, A, A)

    assert duplicates(engine, upload.batch_id) == [False, True]
    assert len(send(engine)) == 1
    finish(engine, A)
    assert batch(engine, upload.batch_id)["ready"] == 2


def test_a_duplicate_of_one_in_flight_joins_it(engine: Engine) -> None:
    accept(engine, A)
    send(engine)
    again = accept(engine, A)

    assert duplicates(engine, again.batch_id) == [True]
    assert state(engine, again.files[0].image_id) == "in_flight"
    assert send(engine) == []
    finish(engine, A)
    assert state(engine, again.files[0].image_id) == "ready"


def test_a_duplicate_of_a_ready_one_is_ready_at_once_and_its_batch_complete(engine: Engine) -> None:
    accept(engine, A)
    send(engine)
    finish(engine, A)
    completed_before = len(event_types(engine))

    again = accept(engine, A)

    assert state(engine, again.files[0].image_id) == "ready"
    assert event_types(engine, again.files[0].image_id) == ["image.accepted", "image.ready"]
    assert event_types(engine)[completed_before:] == ["batch.completed"]
    assert batch(engine, again.batch_id)["pending"] == 0
    assert rows(engine, "SELECT ready_at FROM images WHERE id = :id", id=again.files[0].image_id)[0].ready_at
    assert send(engine) == []
    assert adds_up(ledger(engine))


def test_a_duplicate_of_a_failed_one_fails_at_once_for_the_same_reason(engine: Engine) -> None:
    accept(engine, A)
    send(engine)
    fail(engine, A)

    again = accept(engine, A)

    assert state(engine, again.files[0].image_id) == "failed"
    failed = rows(engine, "SELECT problem FROM events WHERE type = 'image.failed' ORDER BY row_id")
    assert [row.problem["title"] for row in failed] == ["Damaged", "Damaged"]
    assert send(engine) == []


def test_an_upload_of_known_and_new_photos_is_complete_with_the_last_of_them(engine: Engine) -> None:
    accept(engine, A)
    send(engine)
    finish(engine, A)
    before = len(event_types(engine))

    mixed = accept(engine, A, B)
    assert batch(engine, mixed.batch_id) == {"total": 2, "ready": 1, "failed": 0, "deleted": 0, "pending": 1}
    send(engine)
    assert event_types(engine)[before:] == []
    finish(engine, B)

    assert event_types(engine)[before:] == ["batch.completed"]


def test_an_interactive_upload_moves_a_bulk_original_in_flight_to_its_lane(engine: Engine) -> None:
    accept(engine, A, lane=Lane.BULK)
    [first] = send(engine)

    accept(engine, A, lane=Lane.INTERACTIVE)

    [second] = send(engine)
    assert (first.lane, second.lane) == (Lane.BULK, Lane.INTERACTIVE)
    assert second.generation > first.generation


def test_a_move_to_the_interactive_lane_outlives_the_stamp_of_a_publish_that_it_overtook(engine: Engine) -> None:
    accept(engine, A, lane=Lane.BULK)
    with engine.begin() as connection:
        bulk = dispatch.lease(connection, 1, lease_s=60)
    accept(engine, A, lane=Lane.INTERACTIVE)
    with engine.begin() as connection:
        dispatch.stamp(connection, bulk)

    assert [one.lane for one in send(engine)] == [Lane.INTERACTIVE]


@pytest.mark.parametrize(
    ("first", "second"), [(Lane.INTERACTIVE, Lane.BULK), (Lane.INTERACTIVE, Lane.INTERACTIVE), (Lane.BULK, Lane.BULK)]
)
def test_no_other_upload_sends_an_original_twice(engine: Engine, first: Lane, second: Lane) -> None:
    accept(engine, A, lane=first)
    send(engine)
    accept(engine, A, lane=second)

    assert send(engine) == []


def test_an_upload_that_rolls_back_leaves_nothing(engine: Engine) -> None:
    upload = an_upload(A)
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        uploads.accept(connection, upload, uploads.lock_originals(connection, upload))
        _ = 1 / 0

    assert ledger(engine)["accepted"] == 0
    assert rows(engine, "SELECT FROM originals") == []
    assert rows(engine, "SELECT FROM events") == []


def test_of_two_identical_uploads_that_race_one_is_the_duplicate(engine: Engine) -> None:
    made = []

    assert together(*[lambda: made.append(accept(engine, A))] * 4) == []

    assert sorted(
        duplicates(engine, made[0].batch_id) + [d for one in made[1:] for d in duplicates(engine, one.batch_id)]
    ) == [
        False,
        True,
        True,
        True,
    ]
    assert len(send(engine)) == 1
    assert ledger(engine)["accepted"] == 4


def test_an_upload_waits_for_the_identical_one_before_it_and_then_knows_it(engine: Engine) -> None:
    first, second = an_upload(A), an_upload(A)
    known: list[set[str]] = []

    def upload_second() -> None:
        with engine.begin() as connection:
            known.append(uploads.lock_originals(connection, second))
            uploads.accept(connection, second, known[0])

    with engine.begin() as connection:
        assert uploads.lock_originals(connection, first) == set()
        waiting = threading.Thread(target=upload_second)
        waiting.start()
        eventually(waits_for_lock(engine))
        assert known == []
        uploads.accept(connection, first, set())
    waiting.join()

    assert known == [{A}]


def test_uploads_of_the_same_photos_in_opposite_order_do_not_deadlock(engine: Engine) -> None:
    shas = [sha(number) for number in range(12)]

    def upload(order: list[str]) -> None:
        for _ in range(8):
            accept(engine, *order)

    assert together(lambda: upload(shas), lambda: upload(shas[::-1]), lambda: upload(shas[6:] + shas[:6])) == []
    assert ledger(engine)["accepted"] == 3 * 8 * 12


def test_an_upload_keeps_an_image_whose_other_referrer_is_deleted_at_the_same_time(engine: Engine) -> None:
    first = accept(engine, A)
    send(engine)
    finish(engine, A)

    assert together(lambda: accept(engine, A), lambda: delete(engine, first.files[0].image_id)) == []

    assert original(engine, A).unreferenced_at is None
    assert ledger(engine) == {"accepted": 2, "ready": 1, "failed": 0, "deleted": 1, "in_flight": 0}


def test_an_idempotency_key_stands_for_one_batch(engine: Engine) -> None:
    upload = accept(engine, A)
    with engine.begin() as connection:
        assert uploads.find_idempotent(connection, "k") is None
        assert uploads.record_idempotent(connection, "k", "print", upload.batch_id)
        assert not uploads.record_idempotent(connection, "k", "other", upload.batch_id)
        assert uploads.find_idempotent(connection, "k") == ("print", upload.batch_id)


def test_of_two_requests_with_one_key_the_second_waits_and_is_told(engine: Engine) -> None:
    first, second = an_upload(A), an_upload(B)
    told: list[bool] = []

    def request_second() -> None:
        with engine.begin() as connection:
            uploads.accept(connection, second, uploads.lock_originals(connection, second))
            told.append(uploads.record_idempotent(connection, "k", "print", second.batch_id))
            if not told[0]:
                connection.rollback()

    with engine.begin() as connection:
        uploads.accept(connection, first, uploads.lock_originals(connection, first))
        assert uploads.record_idempotent(connection, "k", "print", first.batch_id)
        waiting = threading.Thread(target=request_second)
        waiting.start()
        eventually(waits_for_lock(engine))
        assert told == []
    waiting.join()

    assert told == [False]
    assert ledger(engine)["accepted"] == 1


def test_idempotency_keys_are_forgotten_by_age(engine: Engine) -> None:
    upload = accept(engine, A)
    with engine.begin() as connection:
        uploads.record_idempotent(connection, "k", "print", upload.batch_id)
    with engine.begin() as connection:
        now = upkeep.database_now(connection)
        assert uploads.forget_idempotent(connection, now - timedelta(minutes=1)) == 0
        assert uploads.forget_idempotent(connection, now) == 1
        assert uploads.find_idempotent(connection, "k") is None


def test_images_are_listed_newest_first_and_by_what_is_wanted(engine: Engine) -> None:
    first = accept(engine, A, tags=["sea", "red"])
    second = accept(engine, B, tags=["sea"], lane=Lane.BULK)
    third = accept(engine, C)
    send(engine)
    finish(engine, A)
    fail(engine, B)
    ids = [upload.files[0].image_id for upload in (first, second, third)]

    def listed(limit: int = 10, before: object = None, **wanted: object) -> list[object]:
        with engine.connect() as connection:
            found = images.list_images(connection, images.ImageFilter(**wanted), limit, before)  # type: ignore[arg-type]
        return [row.id for row in found]

    assert listed() == ids[::-1]
    assert listed(limit=2) == [ids[2], ids[1]]
    assert listed(before=ids[1]) == [ids[0]]
    assert listed(status="ready") == [ids[0]]
    assert listed(status="failed") == [ids[1]]
    assert listed(status="processing") == [ids[2]]
    assert listed(status="accepted") == []
    assert listed(tags=("sea",)) == [ids[1], ids[0]]
    assert listed(tags=("sea", "red")) == [ids[0]]
    assert listed(lane=Lane.BULK) == [ids[1]]
    delete(engine, ids[0])
    assert listed() == [ids[2], ids[1]]
