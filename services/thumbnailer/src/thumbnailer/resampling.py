"""Pictures made smaller, with OpenCV's filters: several times faster than Pillow's, on one core."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

Picture = Image.Image | np.ndarray
"""Pillow's, of any mode; or pixels, uint8 (height, width, channels), RGB or RGBa, whose alpha is premultiplied."""

# One picture at a time on one core in each worker process: more threads would only take the neighbours' cores.
cv2.setNumThreads(1)

# Up to here a cubic filter, which looks at four pixels, misses none; beyond, all that a pixel covers are averaged.
CUBIC_RATIO = 1.5

# Pillow holds RGB with a fourth channel, which is nothing. OpenCV resamples four channels a third faster than three;
# in larger pictures their memory counts for more.
PADDED_PIXELS = 4_000_000

STRIP_BYTES = 2**18

_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}


def as_image(held: Picture) -> Image.Image:
    """Pillow's picture: itself, or a copy of the pixels."""
    return picture(held, "RGB" if held.shape[2] == 3 else "RGBa") if isinstance(held, np.ndarray) else held


def as_pixels(held: Picture) -> np.ndarray | None:
    """RGB pixels: themselves, or a copy of Pillow's; None of a picture in another mode."""
    if isinstance(held, np.ndarray):
        return held if held.shape[2] == 3 else None
    return _pixels(held, "RGB") if held.mode == "RGB" else None


def resample(image: Image.Image, size: tuple[int, int], *, used_up: bool = False) -> Image.Image:
    """The picture at `size` (width, height in pixels), which is at most its own; of any mode with 8 bits a channel.

    What is transparent does not bleed into its neighbours: alpha is premultiplied meanwhile where it is not yet.
    A picture that nobody needs any more may be `used_up`: its memory is free as soon as its pixels have been read.
    """
    if image.size == size:
        return image
    if image.mode == "LAB":
        # Outside of Pillow its colours are signed bytes, which no average of bytes is right for.
        return image.resize(size, Image.Resampling.BICUBIC)
    if premultiplied := _PREMULTIPLIED.get(image.mode):
        return resample(image.convert(premultiplied), size).convert(image.mode)
    mode = image.mode
    pixels = _pixels(image, "RGBX" if mode == "RGB" and image.width * image.height <= PADDED_PIXELS else mode)
    if used_up:
        image.close()
    pixels = resampled(pixels, size)
    return picture(pixels, mode)


def resampled(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels, uint8 (height, width[, channels]), at `size` (width, height), which is at most their own."""
    height, width = pixels.shape[:2]
    factor = min(width // size[0], height // size[1])
    if factor > 1:
        # Averaging whole blocks is faster than any filter, and leaves a ratio below 2.
        reduced = (math.ceil(width / factor), math.ceil(height / factor))
        pixels = cv2.resize(pixels, reduced, interpolation=cv2.INTER_AREA)
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    ratio = max(width / size[0], height / size[1])
    interpolation = cv2.INTER_CUBIC if ratio < CUBIC_RATIO else cv2.INTER_AREA
    return cv2.resize(pixels, size, interpolation=interpolation)


def picture(pixels: np.ndarray, mode: str) -> Image.Image:
    """The picture of such pixels, a copy of them; RGB may have a fourth channel, which is nothing."""
    raw = "RGBX" if mode == "RGB" and pixels.shape[2] == 4 else mode
    return Image.frombytes(mode, pixels.shape[1::-1], pixels, "raw", raw)


def _pixels(image: Image.Image, raw: str) -> np.ndarray:
    """A copy of the pixels, uint8, (height, width) or (height, width, channels), with the channels of a raw mode.

    Strip by strip: Pillow hands out a whole picture by way of two copies at once.
    """
    channels = 4 if raw == "RGBX" else len(image.getbands())
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    rows = max(1, STRIP_BYTES // (image.width * channels))
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = image.crop((0, top, image.width, bottom)).tobytes("raw", raw)
        pixels[top:bottom] = np.frombuffer(strip, np.uint8).reshape(bottom - top, image.width, channels)
    return pixels if channels > 1 else pixels[..., 0]
