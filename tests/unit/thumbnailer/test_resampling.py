"""Making pictures smaller: the right size, the same light and colours, nothing shifted, in every mode."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import landscape
from PIL import Image

from thumbnailer.resampling import resample

MODES = ("L", "La", "RGB", "RGBa", "RGBA", "CMYK", "LAB")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture's channels as those of another mode, whatever they mean there."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.asarray(image.convert("RGBA"))
    pixels = pixels[..., 0] if channels == 1 else pixels[..., :channels]
    return Image.frombytes(mode, image.size, np.ascontiguousarray(pixels).tobytes())


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "LAB"])
@pytest.mark.parametrize("size", [(400, 300), (333, 251), (170, 131), (100, 75), (31, 47), (1, 1)], ids=str)
def test_every_mode_and_ratio_looks_as_an_average_over_what_each_pixel_covers(mode: str, size: tuple[int, int]) -> None:
    image = in_mode(landscape(500, 380), mode)
    made = resample(image, size)
    expected = image.resize(size, Image.Resampling.BOX)
    assert (made.mode, made.size) == (mode, size)
    assert np.abs(np.asarray(made).astype(int) - np.asarray(expected)).mean() < 4


@pytest.mark.parametrize("mode", MODES)
def test_a_flat_picture_stays_as_it_is(mode: str) -> None:
    flat = Image.new(mode, (301, 203), tuple(range(90, 90 + len(Image.new(mode, (1, 1)).getbands()))))
    made = np.asarray(resample(flat, (77, 52)))
    assert np.abs(made.astype(int) - np.asarray(flat)[:1, :1]).max() <= 1


@pytest.mark.parametrize("width", [999, 1000, 1001])
@pytest.mark.parametrize("target", [640, 400, 333, 111])
def test_nothing_is_shifted(width: int, target: int) -> None:
    ramp = np.tile(np.linspace(0, 255, width), (8, 1))
    made = np.asarray(resample(Image.fromarray(ramp.astype(np.uint8)), (target, 4)), float).mean(axis=0)
    centres = (np.arange(target) + 0.5) * width / target - 0.5
    expected = 255 * centres / (width - 1)
    inner = slice(4, -4)  # at the edges a filter has nothing to look at beyond them
    assert np.abs(made - expected)[inner].max() < 1.5


def test_the_colours_of_lab_are_averaged_around_grey() -> None:
    # As a file has them: -1 and 1, which are 255 and 1 as bytes.
    almost_grey = np.array([[[128, 255, 255], [128, 1, 1]]], np.uint8).repeat(20, 0).reshape(1, 40, 3).repeat(40, 0)
    made = resample(Image.frombytes("LAB", (40, 40), almost_grey.tobytes()), (10, 10))
    assert np.abs(np.frombuffer(made.tobytes(), np.int8).reshape(10, 10, 3)[..., 1:]).max() <= 1


def test_what_is_transparent_does_not_bleed() -> None:
    image = Image.new("RGBA", (400, 400), (0, 0, 255, 0))
    image.paste((255, 0, 0, 255), (0, 0, 200, 400))
    made = np.asarray(resample(image, (130, 130)))
    assert made[made[..., 3] > 8][:, 2].max() < 40


def test_a_picture_of_the_wanted_size_is_left_alone() -> None:
    image = landscape(60, 40)
    assert resample(image, (60, 40)) is image
