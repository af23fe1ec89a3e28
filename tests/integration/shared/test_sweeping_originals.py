"""Sweeping what nothing refers to, against uploads that come in the middle of it."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import eventually
from database_steps import (
    accept,
    adds_up,
    an_upload,
    delete,
    fail,
    finish,
    ledger,
    original,
    rows,
    send,
    sha,
    state,
    sweep,
    together,
    waits_for_lock,
)
from sqlalchemy import Engine

from darkroom.contracts.keys import original_key
from darkroom.database import outcomes, upkeep, uploads
from darkroom.database.uploads import Upload
from darkroom.storage import FileStore

A, B = sha("a"), sha("b")


def deleted(engine: Engine, sha256: str) -> None:
    """A finished photo whose only image is deleted."""
    upload = accept(engine, sha256)
    send(engine)
    finish(engine, sha256)
    delete(engine, upload.files[0].image_id)


def remove(engine: Engine, sha256: str, store: FileStore | None = None) -> bool:
    """The sweeper's second transaction."""
    with engine.begin() as connection:
        if not upkeep.lock_swept(connection, sha256):
            return False
        if store is not None:
            store.delete(original_key(sha256))
        upkeep.remove_swept(connection, sha256)
        return True


def upload_bytes(engine: Engine, store: FileStore, upload: Upload) -> None:
    """An upload as the gateway does it: the blob is placed under the lock of the row."""
    writer = store.new_writer()
    writer.write(b"bytes")
    writer.sync()
    with engine.begin() as connection:
        known = uploads.lock_originals(connection, upload)
        writer.place(original_key(upload.files[0].sha256))
        uploads.accept(connection, upload, known)
    writer.discard()


def test_only_what_nothing_refers_to_for_long_enough_is_swept(engine: Engine) -> None:
    deleted(engine, A)
    accept(engine, B)

    with engine.begin() as connection:
        now = upkeep.database_now(connection)
        assert upkeep.begin_sweep(connection, now - timedelta(minutes=1), 10) == []
    assert sweep(engine) == [A]
    assert original(engine, B).status == "accepted"


def test_a_sweep_removes_the_row_and_keeps_the_tombstone_in_the_ledger(engine: Engine) -> None:
    deleted(engine, A)
    sweep(engine)

    assert remove(engine, A)

    assert rows(engine, "SELECT FROM originals") == []
    assert ledger(engine) == {"accepted": 1, "ready": 0, "failed": 0, "deleted": 1, "in_flight": 0}


def test_a_sweep_that_was_cut_off_goes_on_with_the_next(engine: Engine) -> None:
    deleted(engine, A)
    assert sweep(engine) == [A]
    assert sweep(engine) == [A]


def test_an_upload_takes_the_mark_off_and_has_the_work_done_again(engine: Engine) -> None:
    deleted(engine, A)
    sweep(engine)

    again = accept(engine, A)

    assert not remove(engine, A)
    assert original(engine, A).unreferenced_at is None
    assert state(engine, again.files[0].image_id) == "in_flight"
    assert [one.sha256 for one in send(engine)] == [A]


@pytest.mark.parametrize("outcome", ["ready", "failed"])
def test_an_outcome_that_comes_late_does_not_revive_what_is_swept(engine: Engine, outcome: str) -> None:
    upload = accept(engine, A)
    [one] = send(engine)
    delete(engine, upload.files[0].image_id)
    sweep(engine)

    assert not (finish(engine, A) if outcome == "ready" else fail(engine, A, one.generation))

    assert original(engine, A).status == "sweeping"
    assert remove(engine, A)
    assert not finish(engine, A)


def test_what_is_swept_is_neither_dispatched_nor_sent_again(engine: Engine) -> None:
    upload = accept(engine, A)
    send(engine)
    delete(engine, upload.files[0].image_id)
    sweep(engine)

    with engine.begin() as connection:
        assert outcomes.send_again(connection, [A], upkeep.database_now(connection), backoff_s=0) == 0
    assert send(engine) == []


def test_an_upload_that_comes_while_the_blob_is_removed_waits_and_puts_it_back(engine: Engine, tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    upload_bytes(engine, store, upload := an_upload(A))
    delete(engine, upload.files[0].image_id)
    sweep(engine)

    with engine.begin() as connection:
        assert upkeep.lock_swept(connection, A)
        waiting = threading.Thread(target=lambda: upload_bytes(engine, store, an_upload(A)))
        waiting.start()
        eventually(waits_for_lock(engine))
        store.delete(original_key(A))
        upkeep.remove_swept(connection, A)
    waiting.join()

    assert store.get(original_key(A)) == b"bytes"
    assert original(engine, A).status == "accepted"


def test_a_sweep_that_comes_while_a_photo_is_uploaded_leaves_it(engine: Engine, tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    upload_bytes(engine, store, first := an_upload(A))
    delete(engine, first.files[0].image_id)
    sweep(engine)
    removed: list[bool] = []

    with engine.begin() as connection:
        again = an_upload(A)
        known = uploads.lock_originals(connection, again)
        waiting = threading.Thread(target=lambda: removed.append(remove(engine, A, store)))
        waiting.start()
        eventually(waits_for_lock(engine))
        uploads.accept(connection, again, known)
    waiting.join()

    assert removed == [False]
    assert store.exists(original_key(A))


def test_uploads_deletes_and_sweeps_at_once_never_lose_a_blob_that_is_referred_to(
    engine: Engine, tmp_path: Path
) -> None:
    store = FileStore(tmp_path)
    missing: list[str] = []

    def upload() -> None:
        for _ in range(25):
            one = an_upload(A)
            upload_bytes(engine, store, one)
            # Our image refers to it, so it must be there, whatever the others do.
            if not store.exists(original_key(A)):
                missing.append("referred to")
            delete(engine, one.files[0].image_id)

    def sweep_all() -> None:
        for _ in range(60):
            for sha256 in sweep(engine):
                remove(engine, sha256, store)

    assert together(upload, upload, upload, sweep_all, sweep_all) == []

    assert missing == []
    assert adds_up(ledger(engine))
    assert ledger(engine)["deleted"] == 75
    for sha256 in sweep(engine):
        remove(engine, sha256, store)
    assert not store.exists(original_key(A))


def test_known_originals_are_those_with_a_row(engine: Engine) -> None:
    accept(engine, A)

    with engine.connect() as connection:
        assert upkeep.known_originals(connection, [A, B]) == {A}
        assert upkeep.known_originals(connection, []) == set()


def test_issued_task_ids_are_forgotten_by_age(engine: Engine) -> None:
    accept(engine, A)
    send(engine)

    with engine.begin() as connection:
        now = upkeep.database_now(connection)
        assert upkeep.forget_tasks(connection, now - timedelta(minutes=1)) == 0
        assert upkeep.forget_tasks(connection, now) == 4
