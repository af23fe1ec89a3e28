"""A thumbnailer that is told to stop while it works, on both brokers and with real processes."""

import os
import signal
from collections.abc import Iterator

import pytest
from conftest import eventually
from thumbnailer_bench import PATIENT, Bench, children, picture, running, slow_picture

from darkroom.tries import RUNS_ALONE_FROM
from thumbnailer.tasks import computed_s


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One broker for all the tests of this file; each starts a thumbnailer of its own."""
    redis_url = request.getfixturevalue("redis_server").url
    broker_url = redis_url if request.param == "redis" else request.getfixturevalue("rabbit_url")
    with running(Bench(broker_url, redis_url, tmp_path_factory.mktemp("stops"))) as bench:
        yield bench


def test_a_stop_finishes_what_is_being_decoded_and_hands_back_the_rest(bench: Bench) -> None:
    worker = bench.start(**PATIENT)
    bench.ready()
    decoding = [bench.stop_in_the_middle()[1] for _ in children(worker)]
    held = [bench.prepare(bench.keep(picture(seed=seed))) for seed in range(10, 14)]
    described = [bench.thumbnails(bench.keep(picture(seed=seed))) for seed in range(20, 24)]
    pids = children(worker)

    os.kill(worker.pid or 0, signal.SIGTERM)
    eventually(lambda: "Warm shutdown" in worker.log_tail(1000))
    for pid in pids:
        os.kill(pid, signal.SIGCONT)

    eventually(lambda: not worker.is_running, within_s=40)  # the grace period of docker-compose.yml
    assert worker.exit_status == 0
    assert [bench.state(task_id) for task_id in decoding] == ["SUCCESS"] * 2
    # Visible to others at once (RabbitMQ takes a moment of its own), each one once, and nothing that is done.
    for queue, handed_back in (("prepare", held), ("thumbnails", described)):
        eventually(lambda queue=queue, handed_back=handed_back: len(bench.messages(queue)) >= len(handed_back))
        assert sorted(each.task_id for each in bench.messages(queue)) == sorted(handed_back)
    assert bench.redis.keys("tries:*") == []
    assert bench.messages("finalize") == []


def wait_for_work(pid: int, seconds: float = 0.5) -> None:
    """Returns when a process has computed so long from now: a child that has marked a photo is in its decoder then.

    Before, Python may be in a callback of its own, such as a weakref's, and only prints what a handler raises there.
    """
    before_s = computed_s(pid) or 0.0
    eventually(lambda: (computed_s(pid) or 0.0) >= before_s + seconds)


def test_a_child_that_is_told_to_end_gives_its_photo_back_and_no_try_is_counted(bench: Bench) -> None:
    worker = bench.start()
    bench.ready()
    task_id = bench.prepare(bench.keep(slow_picture(seed=1, padding=60_000)))

    for _ in range(RUNS_ALONE_FROM + 1):  # as often as would fail a photo that kills its worker
        pid = bench.child_working_on(task_id)
        wait_for_work(pid)
        os.kill(pid, signal.SIGTERM)
        eventually(lambda pid=pid: pid not in children(worker))

    bench.child_working_on(task_id)
    assert bench.messages("finalize") == []
    worker.stop(grace_s=0)
