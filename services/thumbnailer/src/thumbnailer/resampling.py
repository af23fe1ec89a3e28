"""Pictures made smaller, with OpenCV's filters: several times faster than Pillow's, on one core."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

# One picture at a time on one core in each worker process: more threads would only take the neighbours' cores.
cv2.setNumThreads(1)

# Up to here a cubic filter, which looks at four pixels, misses none; beyond, all that a pixel covers are averaged.
CUBIC_RATIO = 1.5

STRIP_BYTES = 2**19

_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}


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
    mode, pixels = image.mode, _pixels(image)
    if used_up:
        image.close()
    height, width = pixels.shape[:2]
    factor = min(width // size[0], height // size[1])
    if factor > 1:
        # Averaging whole blocks is faster than any filter, and leaves a ratio below 2.
        reduced = (math.ceil(width / factor), math.ceil(height / factor))
        pixels = cv2.resize(pixels, reduced, interpolation=cv2.INTER_AREA)
    height, width = pixels.shape[:2]
    if (width, height) != size:
        ratio = max(width / size[0], height / size[1])
        interpolation = cv2.INTER_CUBIC if ratio < CUBIC_RATIO else cv2.INTER_AREA
        pixels = cv2.resize(pixels, size, interpolation=interpolation)
    return Image.frombuffer(mode, size, pixels, "raw", mode, 0, 1)


def _pixels(image: Image.Image) -> np.ndarray:
    """A copy of the pixels, shape (height, width) or (height, width, channels), uint8.

    Strip by strip: Pillow hands out a whole picture by way of two copies at once.
    """
    bands = len(image.getbands())
    pixels = np.empty((image.height, image.width, bands) if bands > 1 else (image.height, image.width), np.uint8)
    rows = max(1, STRIP_BYTES // (image.width * bands))
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels
