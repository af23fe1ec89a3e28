"""Preprocessing gives what the transformers image processor gives, number by number."""

import io
import resource
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


@pytest.mark.parametrize("size", [(65_500, 1), (1, 65_500), (16_000, 384)])
def test_a_very_long_picture_takes_no_more_memory_than_it_has_pixels(processor, size):
    """Scaled as a whole, as transformers does it, the first two become 10 GB, and the embedder is gone."""
    file = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(file, "JPEG", quality=95)
    preprocessing = Preprocessing.of(processor)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (private_bytes() + 100_000_000, hard))
    try:
        pixels = preprocessing.pixels(file.getvalue())
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert pixels.shape == (3, *preprocessing.size)
    assert (np.ptp(pixels, axis=(1, 2)) == 0).all()


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
