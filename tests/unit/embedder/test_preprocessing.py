"""Preprocessing gives what the transformers image processor gives, number by number."""

import io
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_models import save_clip, save_siglip
from transformers import AutoImageProcessor

from darkroom.errors import ConfigurationError, PermanentError
from embedder.model import BUNDLED_FOLDER
from embedder.preprocessing import Preprocessing


def jpeg(width: int, height: int, mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(width * height).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module", params=["clip", "siglip", "bundled"])
def processor(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    saved = {"clip": save_clip, "siglip": save_siglip, "bundled": lambda _: BUNDLED_FOLDER}[request.param](folder)
    return AutoImageProcessor.from_pretrained(saved, local_files_only=True)


@pytest.mark.parametrize("size", [(768, 512), (512, 768), (600, 600), (768, 385), (40, 33), (16, 700)])
def test_pixels_equal_those_of_transformers(processor, size):
    proxy = jpeg(*size)
    expected = processor(Image.open(io.BytesIO(proxy)), return_tensors="np")["pixel_values"][0]
    pixels = Preprocessing.of(processor).pixels(proxy)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("size", [(1, 1), (65_500, 1), (1, 65_500), (16_000, 384), (65_500, 384), (384, 65_500)])
def test_a_very_long_picture_takes_no_more_memory_than_it_has_pixels(processor, size):
    """Scaled as a whole, as transformers does it, some become 10 GB, and the embedder is gone."""
    preprocessing, proxy = Preprocessing.of(processor), flat_proxy(*size)
    with at_most(50_000_000 + 4 * size[0] * size[1]):
        pixels = preprocessing.pixels(proxy)
    assert pixels.shape == (3, *preprocessing.size)
    assert (np.ptp(pixels, axis=(1, 2)) == 0).all()


def test_a_batch_of_the_longest_pictures_takes_no_more_memory_than_one():
    """Four helpers at once would take 0.8 GB."""
    preprocessing, proxy = Preprocessing.of(AutoImageProcessor.from_pretrained(BUNDLED_FOLDER)), flat_proxy(65_500, 384)
    with ThreadPoolExecutor(4) as helpers:
        list(helpers.map(lambda _: preprocessing.pixels(flat_proxy(64, 64)), range(16)))  # have their stacks
        with at_most(200_000_000):
            several = list(helpers.map(preprocessing.pixels, [proxy] * 4))
    assert len(several) == 4


@pytest.mark.parametrize("short_side", [29, 232, 384])
def test_a_long_picture_is_looked_at_up_to_its_edge_and_not_beyond(short_side):
    """232 / 224 * 224 is more than 232 to a computer, and Pillow refuses what lies outside of a picture."""
    of_clip = Preprocessing(224, (224, 224), Image.Resampling.BICUBIC, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    for size in ((20_000, short_side), (short_side, 20_000)):
        assert (np.ptp(of_clip.pixels(flat_proxy(*size)), axis=(1, 2)) == 0).all()


def flat_proxy(width: int, height: int) -> bytes:
    """A proxy as the thumbnailer encodes it."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 100, 50)).save(file, "JPEG", quality=95, subsampling="4:4:4")
    return file.getvalue()


@contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """A ceiling for what this process may have beside what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (private_bytes() + more_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def private_bytes() -> int:
    """What RLIMIT_DATA counts of this process."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:")]
    return int(line.split()[1]) * 1024


def test_a_grey_proxy_is_read_as_colour(processor):
    proxy = jpeg(96, 64, "L")
    expected = processor(Image.open(io.BytesIO(proxy)), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(Preprocessing.of(processor).pixels(proxy), expected)


@pytest.mark.parametrize("proxy", [b"", b"no picture", jpeg(96, 64)[:300]], ids=["empty", "text", "truncated"])
def test_a_damaged_proxy_is_a_permanent_error(processor, proxy):
    with pytest.raises(PermanentError) as caught:
        Preprocessing.of(processor).pixels(proxy)
    assert caught.value.problem.slug == "proxy-undecodable"


@pytest.mark.parametrize(
    "change", [{"do_normalize": False}, {"do_pad": True}, {"size": {"longest_edge": 64, "shortest_edge": 8}}]
)
def test_steps_that_we_do_not_know_are_refused_at_boot(tmp_path, change):
    processor = AutoImageProcessor.from_pretrained(save_clip(tmp_path), local_files_only=True)
    for name, value in change.items():
        setattr(processor, name, type(processor.size)(**value) if name == "size" else value)
    with pytest.raises(ConfigurationError, match=r"preprocessor_config\.json"):
        Preprocessing.of(processor)
