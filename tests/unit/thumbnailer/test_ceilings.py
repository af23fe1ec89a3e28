"""The kernel keeps the ceilings of a decode, whatever the code in it does."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import pytest
from hostile_child import in_child
from hostile_corpus import drawing, encoded, png, tiff_of_one_tile
from PIL import Image

from thumbnailer import ceilings
from thumbnailer.decoding import Limits, decode
from thumbnailer.problems import PictureProblem

MIB = 2**20


GREEDY = """
from thumbnailer import ceilings
MIB = 2**20
with ceilings.of_memory(64 * MIB):
    print(len(bytearray(32 * MIB)) // MIB)
    try:
        bytearray(128 * MIB)
    except MemoryError:
        print("no more")
print(len(bytearray(128 * MIB)) // MIB)
"""


def test_what_asks_for_more_memory_than_the_ceiling_gets_an_error_and_afterwards_gets_it() -> None:
    # In a process of its own: what other tests have left free in this one would not count.
    said = subprocess.run([sys.executable, "-c", GREEDY], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["32", "no more", "128"]


def test_a_ceiling_does_not_lift_one_that_was_there() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with ceilings.of_memory(64 * MIB):
        outer = resource.getrlimit(resource.RLIMIT_DATA)
        with ceilings.of_memory(1024 * MIB):
            assert resource.getrlimit(resource.RLIMIT_DATA) == outer
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_process_that_computes_too_long_is_ended_by_the_kernel() -> None:
    pid = os.fork()
    if not pid:
        signal.alarm(60)  # should the ceiling not hold
        with ceilings.of_cpu(0.2):
            while True:
                pass
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGPROF


def test_computing_time_is_counted_for_one_stretch_alone() -> None:
    with ceilings.of_cpu(60):
        assert 59 < signal.getitimer(signal.ITIMER_PROF)[0] <= 61  # a tick more
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0


HUNGRY = {
    "pixels of an interlaced PNG": lambda: png(8000, 8000, bytes(24_002) * 8000, interlace=1),
    "coefficients of a progressive JPEG": lambda: encoded(Image.new("CMYK", (8000, 5000)), "JPEG", progressive=True),
    "canvas of a WebP": lambda: encoded(Image.new("RGB", (8000, 5000)), "WEBP", method=0),
    "planes of an AVIF": lambda: encoded(Image.new("RGB", (8000, 5000)), "AVIF", speed=10, max_threads=1),
    "floats of a TIFF": lambda: encoded(Image.new("F", (6000, 6000)), "TIFF", compression="tiff_adobe_deflate"),
    "one tile of a TIFF of one pixel": lambda: tiff_of_one_tile(9008, 9008),
}


@pytest.mark.parametrize("kind", HUNGRY)
def test_a_decoder_that_meets_the_ceiling_fails_the_picture_with_that_cause(kind: str) -> None:
    refused, following = in_child([HUNGRY[kind](), encoded(drawing(), "PNG")], Limits(memory_bytes=128 * MIB), 60)
    assert refused.end == "image-needs-too-much-memory"
    assert f"the limit of {128 * MIB} bytes" in refused.said
    assert "DARKROOM_DECODE_MEMORY_BYTES" in refused.said
    # Nothing of it is left: the next picture has all the room.
    assert following.image is not None and following.image.width == 96


def test_a_tile_larger_than_a_picture_may_be_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(PictureProblem) as caught:
        decode(tiff_of_one_tile(65_536, 65_536, bytes(4)), Limits())
    assert caught.value.slug == "image-side-too-long"
