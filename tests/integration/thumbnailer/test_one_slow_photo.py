"""One photo that is slow or hostile holds one slot up to its own time limit, and nothing else, on both brokers."""

import os
import signal
from collections.abc import Iterator

import pytest
from conftest import eventually
from thumbnailer_bench import PATIENT, Bench, picture, running, slow_picture

BEHIND = range(12)


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    redis_url = request.getfixturevalue("redis_server").url
    broker_url = redis_url if request.param == "redis" else request.getfixturevalue("rabbit_url")
    with running(Bench(broker_url, redis_url, tmp_path_factory.mktemp("slow"))) as bench:
        yield bench


def test_photos_behind_one_that_stands_still_go_through_the_other_slot(bench: Bench) -> None:
    worker = bench.start(**PATIENT)  # two slots
    bench.ready()
    _, slow_id, pid = bench.stop_in_the_middle()

    behind = [bench.keep(picture(seed=10 + number)) for number in BEHIND]
    sent = [bench.prepare(sha256) for sha256 in behind]
    for task_id in sent:
        bench.answer(task_id)
    # None of them waited for it, in the queue or in the worker: it is still where it was.
    assert bench.state(slow_id) == "STARTED"

    os.kill(pid, signal.SIGCONT)
    bench.answer(slow_id)
    worker.stop()


def test_a_hostile_photo_in_the_only_slot_holds_the_next_ones_up_to_its_own_limit(bench: Bench) -> None:
    worker = bench.start(
        DARKROOM_WORKER_CONCURRENCY="1", DARKROOM_TASK_SOFT_LIMIT_S="2", DARKROOM_TASK_HARD_LIMIT_S="3"
    )
    bench.ready()
    hostile = bench.keep(slow_picture(seed=2))
    hostile_id = bench.prepare(hostile)
    eventually(lambda: bench.state(hostile_id) != "PENDING")
    behind = [bench.keep(picture(seed=30 + number)) for number in BEHIND]
    sent = [bench.prepare(sha256) for sha256 in behind]

    [failure] = eventually(lambda: bench.failures(hostile))
    assert (failure.problem.slug, failure.problem.limit) == ("image-took-too-long", 3)
    for task_id in sent:
        bench.answer(task_id)
    # It is not tried again, before them or among them, and none of them fails with it.
    assert [bench.failures(sha256) for sha256 in (hostile, *behind)] == [[failure], *([[]] * len(behind))]
    worker.stop()
