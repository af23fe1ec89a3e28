"""Photos that kill, hang or exhaust the child which works on them, on both brokers and with real processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import eventually
from thumbnailer_bench import PATIENT, Bench, children, picture, running, slow_picture

from darkroom.tries import RUNS_ALONE_FROM


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One broker for all the tests of this file; each starts a thumbnailer of its own."""
    redis_url = request.getfixturevalue("redis_server").url
    broker_url = redis_url if request.param == "redis" else request.getfixturevalue("rabbit_url")
    with running(Bench(broker_url, redis_url, tmp_path_factory.mktemp("deaths"))) as bench:
        yield bench


def test_a_photo_that_kills_its_child_fails_after_it_died_alone_and_its_neighbour_does_not(bench: Bench) -> None:
    worker = bench.start(**PATIENT)
    bench.ready()
    killer = bench.keep(slow_picture(seed=1))
    neighbour, neighbour_id, neighbour_pid = bench.stop_in_the_middle()  # at work while the other one dies
    killer_id = bench.prepare(killer, generation=3)
    killed: list[int] = []

    for _ in range(RUNS_ALONE_FROM):
        pid = bench.child_working_on(killer_id, besides=tuple(killed))
        assert pid in children(worker) - {neighbour_pid}
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    [failure] = eventually(lambda: bench.failures(killer))
    assert (failure.problem.slug, failure.generation) == ("killed-worker", 3)
    assert bench.ends_as(killer_id)[0] == "FAILURE"
    os.kill(neighbour_pid, signal.SIGCONT)
    bench.answer(neighbour_id)
    assert bench.failures(neighbour) == []
    # The dead are replaced, the neighbour's child is not, and nothing is held against what comes next.
    eventually(lambda: len(children(worker)) == 2)
    assert neighbour_pid in children(worker)
    assert not set(killed) & children(worker)
    bench.answer(bench.prepare(bench.keep(picture(seed=50))))
    assert bench.redis.keys("tries:*") == []
    assert len(bench.failures(killer)) == 1
    worker.stop()


def test_photos_that_overrun_a_time_limit_fail_and_a_child_that_hangs_is_replaced(bench: Bench) -> None:
    worker = bench.start(DARKROOM_TASK_SOFT_LIMIT_S="4", DARKROOM_TASK_HARD_LIMIT_S="6")
    bench.ready()
    before = children(worker)
    # One is a single call of C code, which only a kill ends; the other returns to Python now and then.
    hanging, slow = bench.keep(slow_picture(seed=3)), bench.keep(slow_picture(seed=4, padding=60_000))
    slow_id = bench.prepare(slow)
    ids = bench.dispatch(hanging, generation=2)

    [soft], [hard] = eventually(lambda: bench.failures(slow)), eventually(lambda: bench.failures(hanging))

    assert (soft.problem.slug, soft.problem.limit) == ("image-took-too-long", 4)
    assert (hard.problem.slug, hard.problem.limit, hard.generation) == ("image-took-too-long", 6, 2)
    assert bench.ends_as(slow_id)[0] == "FAILURE"
    assert bench.ends_as(ids["prepare"]) == ("FAILURE", "TimeLimitExceeded")
    eventually(lambda: len(now := children(worker)) == 2 and len(now & before) == 1)
    bench.answer(bench.prepare(bench.keep(picture(seed=51))))
    assert (len(bench.failures(slow)), len(bench.failures(hanging))) == (1, 1)
    assert ids["embed"] not in {each.task_id for each in bench.messages("embed")}
    assert bench.dead_letters() == []
    worker.stop()


def test_a_child_that_was_stopped_beyond_every_limit_is_no_photo_s_fault(bench: Bench) -> None:
    worker = bench.start(DARKROOM_TASK_SOFT_LIMIT_S="4", DARKROOM_TASK_HARD_LIMIT_S="6")
    bench.ready()
    innocent, _, pid = bench.stop_in_the_middle(generation=2)  # for good: the worker kills it at the hard limit

    [loss] = eventually(lambda: bench.losses(innocent))

    assert (loss.generation, loss.cause.partition(":")[0]) == (2, "StalledError")
    assert bench.failures(innocent) == []
    eventually(lambda: len(children(worker) - {pid}) == 2)
    bench.answer(bench.prepare(innocent, generation=3))
    worker.stop()


def pipes(pid: int, flag: int) -> dict[str, Path]:
    """The pipes that a process has open for reading (`os.O_RDONLY`) or for writing (`os.O_WRONLY`), by their inode."""
    folder = Path(f"/proc/{pid}/fd")
    found = {}
    for fd in folder.iterdir():
        [flags] = [line for line in Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().splitlines() if "flags" in line]
        if (inode := str(fd.readlink())).startswith("pipe:") and int(flags.split()[1], 8) & os.O_ACCMODE == flag:
            found[inode] = fd
    return found


def test_a_worker_that_cannot_read_what_a_child_says_ends_with_it_instead_of_standing_still(bench: Bench) -> None:
    worker = bench.start()
    bench.ready()
    held = bench.keep(slow_picture(seed=6))
    held_id = bench.prepare(held)
    child = bench.child_working_on(held_id)
    os.kill(child, signal.SIGSTOP)
    assert worker.pid is not None
    its_own = pipes(child, os.O_RDONLY)
    for inode, pipe in pipes(child, os.O_WRONLY).items():
        if inode not in its_own:
            # A length of 4, and 4 bytes that are no message: what is left when a write was torn.
            pipe.write_bytes(b"\0\0\0\4\0\0\0\0")

    eventually(lambda: not worker.is_running)

    assert worker.exit_status == -signal.SIGKILL
    eventually(lambda: not Path(f"/proc/{child}").exists())
    assert bench.failures(held) == []
