"""Which callbacks a transition leaves, and who may take one."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from database_steps import (
    DAMAGED,
    artefacts,
    delete,
    fail,
    finish,
    retry,
    rows,
    run,
    send,
    sha,
    together,
)
from database_steps import an_upload as an_upload_without_url
from sqlalchemy import Engine

from darkroom.contracts.callbacks import Callback
from darkroom.database import callbacks, outcomes, uploads
from darkroom.database.callbacks import Claimed, Settlement
from darkroom.database.uploads import Upload
from darkroom.outbound import Host

URL = "https://Hooks.Example.org:8443/darkroom?token=7"
HOST = Host("hooks.example.org")
DELIVERED = Settlement("delivered", 200, None)


def upload(engine: Engine, *names: object, url: str | None = URL) -> Upload:
    """An accepted upload whose sender wants to be called back."""
    made = replace(an_upload_without_url(*map(sha, names), tags=["sea"]), callback_url=url, external_id="order-7")
    with engine.begin() as connection:
        uploads.accept(connection, made, uploads.lock_originals(connection, made))
    return made


def told(engine: Engine, made: Upload) -> list[Callback]:
    """What was written for an upload, in order."""
    found = rows(engine, "SELECT body FROM callbacks WHERE batch_id = :id ORDER BY created_at, type", id=made.batch_id)
    return [Callback.from_wire(json.loads(row.body)) for row in found]


def types(engine: Engine, made: Upload) -> list[str]:
    return [one.type.value for one in told(engine, made)]


def claim(engine: Engine, limit: int = 100, lease_s: float = 60, host: Host = HOST) -> Claimed | None:
    with engine.begin() as connection:
        return callbacks.claim(connection, host, limit, lease_s)


def claimed(engine: Engine, **options: Any) -> Claimed:
    found = claim(engine, **options)
    assert found is not None
    return found


def settle(engine: Engine, one: Claimed, settlement: Settlement) -> bool:
    with engine.begin() as connection:
        return callbacks.settle(connection, one, settlement)


def row(engine: Engine, callback_id: UUID) -> Any:
    return rows(engine, "SELECT * FROM callbacks WHERE id = :id", id=callback_id)[0]


def test_every_image_and_then_the_batch_are_told(engine: Engine) -> None:
    made = upload(engine, "good", "bad")
    send(engine)
    assert told(engine, made) == []
    finish(engine, sha("good"))
    fail(engine, sha("bad"))
    ready, completed, failed = told(engine, made)
    good, bad = made.files
    assert ready.type == "image.ready"
    assert (ready.data.image_id, ready.data.sha256, ready.data.trace_id) == (good.image_id, good.sha256, made.trace_id)
    image = ready.data.image
    assert image is not None
    assert (image.id, image.external_id, image.tags, image.filename) == (
        good.image_id,
        "order-7",
        ("sea",),
        good.filename,
    )
    assert (image.format, image.width, image.height, image.duplicate) == ("JPEG", 40, 32, False)
    assert image.thumbnails["small"] == f"/v1/images/{good.image_id}/thumbnails/small"
    assert (failed.type, failed.data.image_id, failed.data.problem) == ("image.failed", bad.image_id, DAMAGED)
    assert (completed.type, completed.data.image_id) == ("batch.completed", None)
    assert completed.data.batch_id == made.batch_id
    counters = completed.data.batch
    assert counters is not None
    assert (counters.total, counters.ready, counters.failed, counters.deleted) == (2, 1, 1, 0)
    (stored, *_) = rows(engine, "SELECT * FROM callbacks")
    assert (stored.url, stored.host, stored.state, stored.attempts) == (URL, HOST, "pending", 0)


def test_a_known_photo_is_told_of_at_once(engine: Engine) -> None:
    upload(engine, "known", url=None)
    send(engine)
    finish(engine, sha("known"))
    again = upload(engine, "known")
    assert types(engine, again) == ["batch.completed", "image.ready"]
    image = told(engine, again)[1].data.image
    assert image is not None
    assert (image.duplicate, image.width) == (True, 40)


def test_without_a_url_nobody_is_told(engine: Engine) -> None:
    made = upload(engine, "a", url=None)
    send(engine)
    finish(engine, sha("a"))
    assert told(engine, made) == []


def test_two_uploads_of_one_photo_are_told_at_their_own_urls(engine: Engine) -> None:
    one, other = upload(engine, "a"), upload(engine, "a", url="https://other.example/")
    send(engine)
    finish(engine, sha("a"))
    assert types(engine, one) == types(engine, other) == ["batch.completed", "image.ready"]
    found = rows(engine, "SELECT DISTINCT batch_id, url FROM callbacks")
    assert {row.batch_id: row.url for row in found} == {
        one.batch_id: URL,
        other.batch_id: "https://other.example/",
    }


def test_a_deleted_image_is_only_counted(engine: Engine) -> None:
    made = upload(engine, "a")
    send(engine)
    delete(engine, made.files[0].image_id)
    finish(engine, sha("a"))
    (completed,) = told(engine, made)
    assert completed.data.batch is not None
    assert (completed.type, completed.data.batch.deleted) == ("batch.completed", 1)


def test_an_image_that_is_retried_is_told_of_again(engine: Engine) -> None:
    made = upload(engine, "a")
    send(engine)
    fail(engine, sha("a"))
    retry(engine, made.files[0].image_id)
    send(engine)
    finish(engine, sha("a"))
    assert types(engine, made) == ["batch.completed", "image.failed", "batch.completed", "image.ready"]


def test_the_same_end_twice_is_told_once(engine: Engine) -> None:
    made = upload(engine, "a")
    send(engine)
    assert finish(engine, sha("a"))
    assert not finish(engine, sha("a"))
    assert len(told(engine, made)) == 2


def test_a_transition_that_is_rolled_back_tells_nobody(engine: Engine) -> None:
    made = upload(engine, "a")
    send(engine)
    with engine.connect() as connection:
        outcomes.mark_ready(connection, sha("a"), artefacts(sha("a")))
        connection.rollback()
    assert told(engine, made) == []


@pytest.fixture
def five(engine: Engine) -> Upload:
    """Five images that were told of, and their batch: six callbacks to one host."""
    upload(engine, *range(5), url=None)
    send(engine)
    for name in range(5):
        finish(engine, sha(name))
    return upload(engine, *range(5))


def test_no_two_that_claim_at_once_get_the_same_and_no_more_than_the_limit(engine: Engine, five: Upload) -> None:
    found: list[Claimed | None] = []
    assert together(*[lambda: found.append(claim(engine, limit=4))] * 8) == []
    taken = [one.id for one in found if one]
    assert len(taken) == len(set(taken)) == 4
    assert len(found) == 8


def test_a_claim_ends_with_its_lease_and_a_late_result_is_ignored(engine: Engine, five: Upload) -> None:
    first = claimed(engine)
    run(engine, "UPDATE callbacks SET next_attempt_at = 'infinity' WHERE attempts = 0")
    assert claim(engine) is None
    run(engine, "UPDATE callbacks SET lease_until = now() WHERE lease_until IS NOT NULL")
    second = claimed(engine)
    assert (second.id, second.attempt, first.attempt) == (first.id, 2, 1)
    assert not settle(engine, first, DELIVERED)
    assert row(engine, first.id).state == "pending"
    assert settle(engine, second, DELIVERED)
    assert not settle(engine, second, Settlement("failed", 500, "late"))
    found = row(engine, first.id)
    assert (found.state, found.attempts, found.last_status, found.lease_until) == ("delivered", 2, 200, None)
    assert found.finished_at is not None


def test_a_failed_attempt_waits_for_its_time_and_shows_why(engine: Engine, five: Upload) -> None:
    one = claimed(engine)
    assert one.has_more
    settle(engine, one, Settlement("pending", 500, "the receiver answered 500", again_in_s=60))
    found = row(engine, one.id)
    assert (found.state, found.last_status, found.last_error) == ("pending", 500, "the receiver answered 500")
    assert found.next_attempt_at - datetime.now(UTC) > timedelta(seconds=50)
    others = {claimed(engine).id for _ in range(5)}
    assert one.id not in others
    assert claim(engine) is None


def test_a_host_that_is_silent_gets_a_pause_and_then_one_at_a_time(engine: Engine, five: Upload) -> None:
    settle(engine, claimed(engine), Settlement("pending", None, "silence", again_in_s=60, pause_host_s=60))
    assert claim(engine) is None
    with engine.connect() as connection:
        assert callbacks.due_hosts(connection) == []
    run(engine, "UPDATE callback_hosts SET not_before = now()")
    with engine.connect() as connection:
        assert callbacks.due_hosts(connection) == [HOST]
    probe = claimed(engine)
    assert probe.host_failures == 1
    assert claim(engine) is None
    settle(engine, probe, DELIVERED)
    assert {claimed(engine).host_failures, claimed(engine).host_failures} == {0}


def test_a_receiver_that_is_gone_gets_nothing_more_at_that_url(engine: Engine, five: Upload) -> None:
    other = upload(engine, 0, url="https://hooks.example.org/other")
    settle(engine, claimed(engine), Settlement("failed", 410, "gone", is_gone=True))
    states = rows(engine, "SELECT batch_id, state, last_error FROM callbacks")
    assert {(one.state, one.last_error) for one in states if one.batch_id == five.batch_id} == {("failed", "gone")}
    assert {one.state for one in states if one.batch_id == other.batch_id} == {"pending"}


def test_what_waits_and_what_fails_is_counted_and_kept_for_a_while(engine: Engine, five: Upload) -> None:
    with engine.connect() as connection:
        assert callbacks.new_hosts(connection, [five.batch_id]) == [HOST]
    settle(engine, claimed(engine), DELIVERED)
    settle(engine, claimed(engine), Settlement("failed", 500, "given up"))
    settle(engine, claimed(engine), Settlement("pending", 500, "so far"))
    with engine.begin() as connection:
        assert callbacks.count_callbacks(connection) == callbacks.CallbackCounts(pending=4, failing=1, failed=1)
        assert [one.state for one in callbacks.callbacks_of_batch(connection, five.batch_id, 10)][-1] == "delivered"
        now = datetime.now(UTC)
        assert callbacks.forget_callbacks(connection, now - timedelta(days=1)) == 0
        assert callbacks.forget_callbacks(connection, now + timedelta(minutes=1)) == 4 + 6
        assert callbacks.count_callbacks(connection) == callbacks.CallbackCounts(0, 0, 0)
