"""Markers of risky work, on a real Redis."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from darkroom.errors import PermanentError, TransientError
from darkroom.tries import MARKER_EXPIRES_S, RUNS_ALONE_FROM, TriesMarkers, died_alone
from darkroom_cli.servers import RedisServer


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as redis:
        yield redis


@pytest.fixture
def tries(redis: Redis) -> TriesMarkers:
    return TriesMarkers(redis)


def die(tries: TriesMarkers, task_id: str) -> None:
    """What a process that is killed inside of `guard` leaves behind."""
    tries.begin(task_id)


def test_a_task_that_ends_leaves_no_marker(tries: TriesMarkers, redis: Redis) -> None:
    with tries.guard("a"):
        assert redis.get("tries:a") == b"1"

    assert redis.keys("tries:*") == []


def test_a_task_that_raises_survived_and_leaves_no_marker(tries: TriesMarkers, redis: Redis) -> None:
    with pytest.raises(ValueError, match="odd"), tries.guard("a"):
        raise ValueError("odd")

    assert redis.keys("tries:*") == []


def test_a_task_that_died_alone_is_not_begun_again(tries: TriesMarkers, redis: Redis) -> None:
    for _ in range(RUNS_ALONE_FROM):
        die(tries, "a")

    with pytest.raises(PermanentError) as refused, tries.guard("a"):
        pytest.fail("it was begun")

    assert refused.value.problem.slug == "killed-worker"
    assert redis.keys("tries:*") == []


def test_deaths_of_one_task_are_not_held_against_another(tries: TriesMarkers) -> None:
    for _ in range(RUNS_ALONE_FROM):
        die(tries, "a")

    with tries.guard("b"):
        assert tries.unfinished("a", "b") == [RUNS_ALONE_FROM, 1]


def test_a_try_that_ends_forgets_the_deaths_before_it(tries: TriesMarkers) -> None:
    die(tries, "a")
    with tries.guard("a"):
        pass

    assert tries.begin("a") == 1


def test_a_batch_counts_each_of_its_tasks(tries: TriesMarkers, redis: Redis) -> None:
    die(tries, "b")

    assert tries.unfinished("a", "b", "c") == [0, 1, 0]
    assert tries.begin_together("a", "b", "c") == [1, 2, 1]
    assert redis.keys("tries:*") != []
    tries.end("a", "b", "c")
    assert redis.keys("tries:*") == []
    assert tries.unfinished() == []


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


def test_a_try_counts_once_however_often_redis_is_asked_to_count_it(own_redis: RedisServer) -> None:
    impatient = Retry(ConstantBackoff(0.01), 1000)
    with Redis.from_url(own_redis.url, socket_timeout=0.2, retry=impatient) as redis, ThreadPoolExecutor(1) as thread:
        tries = TriesMarkers(redis)
        redis.ping()
        os.kill(own_redis.pid, signal.SIGSTOP)  # what it is sent meanwhile, it does when it goes on
        try:
            begun = thread.submit(tries.begin_together, "a", "b")
            with pytest.raises(TimeoutError):
                begun.result(timeout=1)
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        assert begun.result() == [1, 1]
        assert tries.unfinished("a", "b") == [1, 1]


def test_a_marker_that_is_left_behind_goes_by_itself(tries: TriesMarkers, redis: Redis) -> None:
    die(tries, "a")

    assert 0 < redis.ttl("tries:a") <= MARKER_EXPIRES_S


@pytest.mark.parametrize(("number", "may_not_begin"), [(1, False), (2, False), (3, True), (4, True)])
def test_only_who_died_alone_may_not_begin(number: int, may_not_begin: bool) -> None:
    assert died_alone(number) is may_not_begin


def test_without_redis_no_risky_work_begins(redis_url: str) -> None:
    address, _, _ = redis_url.rpartition(":")
    with Redis.from_url(f"{address}:1/0") as nowhere:
        tries = TriesMarkers(nowhere)
        for call in (lambda: tries.begin("a"), lambda: tries.unfinished("a"), lambda: tries.end("a")):
            with pytest.raises(TransientError, match="result store"):
                call()
        with pytest.raises(TransientError), tries.guard("a"):
            pytest.fail("it was begun")
