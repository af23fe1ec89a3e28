"""What the fences of a queue say about it, on a real PostgreSQL."""

import pytest
from sqlalchemy import Engine, text

from darkroom.contracts.messages import FenceAnswer, Verdict
from darkroom.database import upkeep
from darkroom.database.upkeep import QueueProbe

RIGHT = FenceAnswer(verdict=Verdict.OK, answer="all 9 colours within 2")
OTHER = FenceAnswer(verdict=Verdict.WRONG, answer="colour 3 is off by 99")


def states(engine: Engine) -> dict[str, QueueProbe]:
    with engine.connect() as connection:
        return {one.queue: one for one in upkeep.probe_states(connection)}


def send(engine: Engine, queue: str, answer: FenceAnswer | None = None, *, ago_s: int = 0) -> int:
    """Sends a fence that came back a quarter of a second later with an answer, or not at all."""
    with engine.begin() as connection:
        number = upkeep.send_fence(connection, queue)
        if answer is not None:
            upkeep.return_fence(connection, number, answer)
        connection.execute(
            text(
                "UPDATE fences SET sent_at = sent_at - make_interval(secs => :ago_s), returned_at = CASE WHEN"
                " returned_at IS NOT NULL THEN sent_at + interval '0.25 s' - make_interval(secs => :ago_s) END"
                " WHERE number = :number"
            ),
            {"ago_s": ago_s, "number": number},
        )
    return number


def test_a_queue_without_a_fence_is_not_spoken_of(engine: Engine) -> None:
    assert states(engine) == {}


def test_the_last_answer_tells(engine: Engine) -> None:
    send(engine, "prepare", OTHER, ago_s=30)
    send(engine, "prepare", RIGHT, ago_s=15)
    send(engine, "embed", RIGHT, ago_s=30)
    send(engine, "embed", OTHER, ago_s=15)
    send(engine, "finalize", FenceAnswer())
    found = states(engine)
    assert {queue: one.state for queue, one in found.items()} == {
        "embed": "wrong",
        "finalize": "unknown",
        "prepare": "ok",
    }
    assert found["embed"].text == OTHER.answer
    assert found["prepare"].text == f"back after 0.25 s: {RIGHT.answer}"


@pytest.mark.parametrize(
    ("queue", "ago_s", "state"),
    [
        ("prepare", 60, "ok"),
        ("prepare", 130, "late"),
        ("prepare.bulk", 130, "ok"),  # a backlog there is no fault
        ("prepare.bulk", 3700, "late"),
    ],
)
def test_a_fence_on_its_way_is_late_after_the_bound_of_its_lane(
    engine: Engine, queue: str, ago_s: int, state: str
) -> None:
    send(engine, queue, RIGHT, ago_s=ago_s + 15)
    send(engine, queue, ago_s=ago_s)
    assert states(engine)[queue].state == state


def test_one_that_was_lost_and_followed_by_one_that_came_back_is_not_late(engine: Engine) -> None:
    send(engine, "prepare", ago_s=600)
    send(engine, "prepare", RIGHT)
    assert states(engine)["prepare"].state == "ok"


def test_every_fence_that_is_sent_again_leaves_the_oldest_late(engine: Engine) -> None:
    for ago_s in (150, 90, 30):
        send(engine, "prepare", ago_s=ago_s)
    found = states(engine)["prepare"]
    assert found.state == "late"
    since_s = int(found.text.partition("for ")[2].partition(" s")[0])
    assert 150 <= since_s < 210  # and not 90, however slowly we got here


def test_nothing_is_said_of_a_queue_while_the_scheduler_stands(engine: Engine) -> None:
    send(engine, "prepare", RIGHT, ago_s=600)
    assert states(engine)["prepare"].state == "unknown"
    assert "does the scheduler run" in states(engine)["prepare"].text


def test_only_the_first_return_of_a_fence_counts(engine: Engine) -> None:
    number = send(engine, "prepare", RIGHT)
    with engine.begin() as connection:
        upkeep.return_fence(connection, number, OTHER)
    assert states(engine)["prepare"].state == "ok"
