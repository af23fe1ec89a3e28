"""A reader of dead letters loses none of them, and outlives what it cannot settle."""

from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy.exc import OperationalError

from darkroom.contracts.tasks import EMBED_TEXT, PREPARE, RECONCILE
from darkroom.database.dead_letters import Outcome
from scheduler.dead_letters import MAX_BODY_BYTES, DeadLetters, dead_letter_step, letter_of, outlived

GONE = OperationalError("SELECT 1", {}, Exception("gone"))


def message(**changes: Any) -> Mock:
    given = {"headers": {}, "body": b"{}", "content_type": "application/json", "content_encoding": "utf-8"}
    return Mock(**given | {"delivery_info": {"routing_key": "prepare"}} | changes)


def step_of(letters: Mock) -> tuple[Any, Mock]:
    """The step, and the timer of its worker."""
    worker = Mock()
    step = dead_letter_step(letters)(worker)
    step._timer = worker.timer
    return step, worker.timer


@pytest.mark.parametrize("kept", [None, GONE, ValueError("a bug")])
def test_a_letter_that_cannot_be_written_down_now_is_held_and_tried_again(kept: Exception | None) -> None:
    letters, letter = Mock(spec=DeadLetters), message()
    letters.settle.side_effect = [GONE if kept is None else AttributeError("a bug"), Outcome.OBSOLETE]
    letters.keep.side_effect = kept
    step, timer = step_of(letters)
    step._take(letter)
    assert not letter.ack_log_error.called
    [((_, again, arguments), _)] = timer.call_after.call_args_list
    again(*arguments)
    assert letter.ack_log_error.call_count == 1


def test_a_letter_that_breaks_the_reader_is_kept_for_a_person() -> None:
    letters, letter = Mock(spec=DeadLetters), message()
    letters.settle.side_effect = AttributeError("a bug")
    step_of(letters)[0]._take(letter)
    [((kept, fault), _)] = letters.keep.call_args_list
    assert kept.body == b"{}"
    assert "AttributeError" in fault
    assert letter.ack_log_error.call_count == 1


DEATHS = [{"queue": "embed", "reason": "delivery_limit", "count": 1}, {"queue": "prepare", "count": 2}]


@pytest.mark.parametrize(
    ("task", "death", "is_over"),
    [
        (RECONCILE.name, {"reason": "expired", "original-expiration": "5000"}, True),
        (EMBED_TEXT.name, {"reason": "expired", "original-expiration": "5000"}, True),
        (RECONCILE.name, {"reason": "expired"}, False),
        (RECONCILE.name, {"reason": "rejected", "original-expiration": "5000"}, False),
        (PREPARE.name, {"reason": "expired", "original-expiration": "5000"}, False),
    ],
    ids=["job", "search", "time limit of a queue", "rejected", "photo"],
)
def test_only_what_outlived_the_time_of_its_sender_leaves_no_row(
    task: str, death: dict[str, Any], is_over: bool
) -> None:
    letters = Mock(spec=DeadLetters)
    headers = {"task": task, "x-death": [death | {"queue": "q", "count": 1}]}
    assert outlived(headers) is is_over
    step_of(letters)[0]._take(letter := message(headers=headers))
    assert letters.settle.called is not is_over
    assert letter.ack_log_error.called


def test_a_letter_tells_where_and_why_it_died_last() -> None:
    headers = {"task": "a.b", "id": "7", "x-death": DEATHS}
    letter = letter_of(headers, "prepare", b"[]", {"content_type": "application/json"})
    assert (letter.queue, letter.reason, letter.deaths, letter.task_id) == ("embed", "delivery_limit", 3, "7")


@pytest.mark.parametrize(
    ("key", "queue"), [("prepare.bulk", "prepare.bulk"), ("0." * 27 + "1.embed", "embed"), ("other", None)]
)
def test_without_a_record_of_its_death_the_key_names_its_queue(key: str, queue: str | None) -> None:
    letter = letter_of({}, key, b"", {})
    assert (letter.queue, letter.reason, letter.deaths) == (queue, "unknown", 1)


def test_a_letter_is_known_again_when_it_is_delivered_twice_and_not_when_it_dies_twice() -> None:
    first = letter_of({"id": "1", "x-delivery-count": 1}, "prepare", b"x", {})
    assert letter_of({"x-delivery-count": 2, "id": "1"}, "prepare", b"x", {}).fingerprint == first.fingerprint
    assert letter_of({"id": "1", "darkroom-replays": 1}, "prepare", b"x", {}).fingerprint != first.fingerprint
    assert letter_of({"id": "1"}, "prepare", b"y", {}).fingerprint != first.fingerprint


def test_what_is_too_long_is_cut_and_its_length_kept() -> None:
    letter = letter_of({"x": "y" * MAX_BODY_BYTES}, "prepare", b"x" * (MAX_BODY_BYTES + 1), {})
    assert (len(letter.body), letter.body_bytes, letter.headers) == (MAX_BODY_BYTES, MAX_BODY_BYTES + 1, None)


def test_no_header_is_refused_by_the_database() -> None:
    letter = letter_of({"task": "a\0b\ud800", "id": 3, "n": b"\0", "x-death": "no list"}, "k\0", b"\0", {})
    assert letter.task == "a\ufffdb?"
    assert letter.headers is not None
    assert letter.headers.isascii()
    assert "\0" not in letter.headers
