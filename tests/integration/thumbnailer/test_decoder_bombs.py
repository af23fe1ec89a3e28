"""Bombs that pass the check of their header, on real children: each is one failed photo with its cause.

Its neighbours finish, the parent lives, and no child dies of what only wants memory.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import eventually
from hostile_corpus import flat, gif_that_grows, png, png_with_notes, tiff_of_one_tile
from PIL import Image
from thumbnailer_bench import Bench, children, picture, running, slow_picture

MEMORY = "image-needs-too-much-memory"

BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "interlaced PNG of 190 MB in 190 KB": (lambda: png(8000, 8000, bytes(24_002) * 8000, interlace=1), MEMORY),
    "PNG with notes of 70 MB": (lambda: png_with_notes(70), MEMORY),
    "JPEG whose coefficients all wait for the last scan": (lambda: flat("JPEG", "CMYK", progressive=True), MEMORY),
    "WebP": (lambda: flat("WEBP", method=0), MEMORY),
    "animated WebP": (
        lambda: flat("WEBP", method=0, save_all=True, append_images=[Image.new("RGB", (6000, 6000), "red")]),
        MEMORY,
    ),
    "AVIF": (lambda: flat("AVIF", speed=10, max_threads=1), MEMORY),
    "TIFF of one pixel in a tile of 81 MP": (lambda: tiff_of_one_tile(9008, 9008), MEMORY),
    "GIF whose frame is larger than its screen": (lambda: gif_that_grows(12_000), "too-many-pixels"),
    "JPEG of 480 scans": (lambda: slow_picture(seed=1, padding=60_000, height=2_400), "image-took-too-long"),
}


def bench_on(request: pytest.FixtureRequest, broker: str, folder: Path) -> Bench:
    redis_url = request.getfixturevalue("redis_server").url
    return Bench(redis_url if broker == "redis" else request.getfixturevalue("rabbit_url"), redis_url, folder)


@pytest.fixture(params=["redis", "rabbitmq"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Each of the two brokers in turn, without a worker."""
    with running(bench_on(request, request.param, tmp_path)) as bench:
        yield bench


@pytest.fixture
def redis_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Redis alone, for what no broker changes."""
    with running(bench_on(request, "redis", tmp_path)) as bench:
        yield bench


def test_each_bomb_fails_once_with_its_cause_and_takes_nobody_with_it(bench: Bench) -> None:
    worker = bench.start(
        DARKROOM_DECODE_MEMORY_BYTES=str(128 * 2**20), DARKROOM_TASK_SOFT_LIMIT_S="4", DARKROOM_TASK_HARD_LIMIT_S="30"
    )
    bench.ready()
    before = children(worker)
    bombs = {name: bench.keep(make()) for name, (make, _) in BOMBS.items()}
    neighbours = [bench.keep(picture(seed=seed)) for seed in range(len(bombs))]

    sent = []
    for number, (bomb, neighbour) in enumerate(zip(bombs.values(), neighbours, strict=True), 1):
        sent.append((bench.dispatch(bomb, generation=number)["prepare"], bench.prepare(neighbour)))

    for bomb_id, neighbour_id in sent:
        assert bench.ends_as(bomb_id)[0] == "FAILURE"
        bench.answer(neighbour_id)
    for number, (name, sha256) in enumerate(bombs.items(), 1):
        [failure] = eventually(lambda sha256=sha256: bench.failures(sha256))
        assert (failure.problem.slug, failure.generation) == (BOMBS[name][1], number), name
        assert failure.problem.remedy
    assert [sha256 for sha256 in neighbours if bench.failures(sha256)] == []
    assert worker.is_running
    assert children(worker) == before
    assert bench.redis.keys("tries:*") == []
    assert bench.dead_letters() == []


def test_a_child_whose_parent_stands_still_is_ended_by_the_kernel_and_its_photo_fails_once(redis_bench: Bench) -> None:
    bench = redis_bench
    worker = bench.start(DARKROOM_TASK_SOFT_LIMIT_S="5", DARKROOM_TASK_HARD_LIMIT_S="6")
    bench.ready()
    endless = bench.keep(slow_picture(seed=2, height=5_000))
    pid = bench.child_working_on(bench.prepare(endless))
    os.kill(worker.pid, signal.SIGSTOP)  # nobody is there to keep the time limits
    try:
        # Its parent has not been told yet, so that it is still there as a zombie.
        eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", within_s=120)
    finally:
        os.kill(worker.pid, signal.SIGCONT)

    [failure] = eventually(lambda: bench.failures(endless), within_s=90)

    assert failure.problem.slug in ("image-took-too-long", "killed-worker")
    bench.answer(bench.prepare(bench.keep(picture(seed=60))))
    assert len(bench.failures(endless)) == 1
    assert pid not in children(worker)
