"""A fence comes back whatever becomes of its question; the markers lie on a real Redis."""

from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from darkroom.contracts.messages import FenceAnswer, Verdict
from darkroom.errors import PermanentError
from darkroom.fences import MAX_CHARACTERS, answered, verdict
from darkroom.tries import TriesMarkers
from darkroom_cli.servers import reserve_port

RIGHT = FenceAnswer(verdict=Verdict.OK, answer="as it should be")


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as redis:
        yield redis


def raising(error: Exception) -> Callable[[], FenceAnswer]:
    def compute() -> FenceAnswer:
        raise error

    return compute


def test_the_answer_is_what_was_computed_and_leaves_no_marker(redis: Redis) -> None:
    assert answered("1", TriesMarkers(redis), lambda: RIGHT) == RIGHT
    assert redis.keys() == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no codec"), "computing it raised ValueError('no codec')"),
        (MemoryError(), "computing it raised MemoryError()"),
        (PermanentError.of("image-corrupt", "Damaged", 422, "It is damaged."), "It is damaged."),
    ],
)
def test_an_error_is_a_wrong_answer(redis: Redis, error: Exception, words: str) -> None:
    assert answered("1", TriesMarkers(redis), raising(error)) == FenceAnswer(verdict=Verdict.WRONG, answer=words)
    assert redis.keys() == []


def test_a_question_that_killed_its_worker_twice_is_not_asked_again(redis: Redis) -> None:
    tries = TriesMarkers(redis)
    for _ in range(2):
        tries.begin("1")  # and the process dies
    answer = answered("1", tries, raising(AssertionError("it was asked again")))
    assert answer.verdict is Verdict.WRONG
    assert answer.answer is not None and "ended its worker process 2 times" in answer.answer


def test_without_redis_nothing_is_known_and_the_fence_comes_back() -> None:
    nobody = Redis.from_url(f"redis://127.0.0.1:{reserve_port()}/0")
    answer = answered("1", TriesMarkers(nobody), raising(AssertionError("it was asked without a marker")))
    assert answer.verdict is None
    assert answer.answer is not None and answer.answer.startswith("not computed: ")


def test_a_long_answer_is_cut(redis: Redis) -> None:
    assert len(str(verdict("x" * 1000, is_right=False).answer)) == MAX_CHARACTERS
