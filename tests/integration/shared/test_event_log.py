"""The event table on a real PostgreSQL: numbered in the order of commits by one relay."""

import threading

from database_steps import accept, an_upload, fail, finish, rows, run, send, sha, together
from sqlalchemy import Engine

from darkroom.contracts.events import Event
from darkroom.database import events, upkeep, uploads

A, B = sha("a"), sha("b")


def number(engine: Engine, limit: int = 1000) -> int:
    with engine.begin() as connection:
        return events.number_events(connection, limit)


def unpublished(engine: Engine) -> list[Event]:
    with engine.connect() as connection:
        return [waiting.event for waiting in events.unpublished_events(connection, 1000)]


def test_events_are_numbered_without_gaps_and_read_back_whole(engine: Engine) -> None:
    upload = accept(engine, A)
    send(engine)
    fail(engine, A)

    assert number(engine) == 3
    assert number(engine) == 0

    accepted, failed, completed = unpublished(engine)
    assert [event.id for event in (accepted, failed, completed)] == [1, 2, 3]
    assert (accepted.type, accepted.image_id, accepted.sha256) == ("image.accepted", upload.files[0].image_id, A)
    assert (accepted.problem, accepted.trace_id) == (None, upload.trace_id)
    assert failed.problem is not None
    assert failed.problem.slug == "image-corrupt"
    assert (completed.type, completed.image_id, completed.sha256) == ("batch.completed", None, None)
    assert completed.batch_id == upload.batch_id


def test_what_was_stamped_is_not_published_again(engine: Engine) -> None:
    accept(engine, A, B)
    number(engine)
    first, second = unpublished(engine)
    with engine.begin() as connection:
        events.stamp_events(connection, [first.id])

    assert unpublished(engine) == [second]


def test_a_row_that_commits_later_gets_a_later_number(engine: Engine) -> None:
    slow = an_upload(A)
    with engine.begin() as connection:
        uploads.accept(connection, slow, uploads.lock_originals(connection, slow))
        # Its rows are there, before those of B, but nobody can see them yet.
        accept(engine, B)
        assert number(engine) == 1
        assert [event.sha256 for event in unpublished(engine)] == [B]
    number(engine)

    assert [event.sha256 for event in unpublished(engine)] == [B, A]


def test_a_limit_takes_the_oldest_rows_first(engine: Engine) -> None:
    accept(engine, *[sha(name) for name in range(9)])
    while number(engine, limit=2):
        pass

    in_order = [row.id for row in rows(engine, "SELECT id FROM events ORDER BY row_id")]
    assert in_order == list(range(1, 10))


def test_a_reader_that_follows_the_numbers_misses_nothing(engine: Engine) -> None:
    # The reader has seen all before n when it has seen n: no number may appear below the highest one seen.
    is_over = threading.Event()
    seen: list[int] = []

    def write(name: int) -> None:
        for turn in range(10):
            accept(engine, sha((name, turn)))
            send(engine)
            finish(engine, sha((name, turn)))

    def relay() -> None:
        while not is_over.is_set():
            number(engine, limit=5)
        while number(engine):
            pass

    def read() -> None:
        last = 0
        while True:
            was_over = is_over.is_set() and not relaying.is_alive()
            found = [row.id for row in rows(engine, "SELECT id FROM events WHERE id > :last ORDER BY id", last=last)]
            seen.extend(found)
            last = max([last, *found])
            if was_over:
                return

    relaying, reading = threading.Thread(target=relay), threading.Thread(target=read)
    relaying.start()
    reading.start()
    assert together(*(lambda name=name: write(name) for name in range(4))) == []
    is_over.set()
    relaying.join()
    reading.join()

    assert seen == sorted(row.id for row in rows(engine, "SELECT id FROM events"))
    assert len(seen) == 4 * 10 * 3


def test_one_connection_numbers_and_one_publishes(engine: Engine) -> None:
    with engine.connect() as leader, engine.connect() as standby:
        for lead in (events.lead_numbering, events.lead_publishing):
            assert lead(leader)
            assert not lead(standby)
        leader.invalidate()


def test_only_published_events_are_forgotten_and_numbers_are_never_given_twice(engine: Engine) -> None:
    accept(engine, A, B)
    number(engine)
    with engine.begin() as connection:
        events.stamp_events(connection, [1])
        assert upkeep.forget_events(connection, upkeep.database_now(connection)) == 1
    assert [event.id for event in unpublished(engine)] == [2]

    run(engine, "DELETE FROM events")
    accept(engine, sha("c"))
    number(engine)

    assert [event.id for event in unpublished(engine)] == [3]
