"""A small picture whose thumbnail is known, taken through the real decoder and renderer by every fence.

It lies on its side, as phones store photos, and is too large for `small`: a wrong rotation, scale or colour shows.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import ExifTags, Image

from darkroom.contracts.messages import FenceAnswer
from darkroom.fences import verdict
from thumbnailer import decoding, describing, rendering
from thumbnailer.decoding import Limits

COLUMNS, ROWS, BLOCK_PX = 3, 4, 72
COLOURS = (
    ((200, 40, 40), (60, 140, 220), (240, 240, 240)),
    ((40, 160, 60), (250, 200, 30), (30, 30, 60)),
    ((150, 60, 170), (120, 120, 120), (240, 120, 20)),
    ((20, 110, 110), (250, 180, 190), (90, 60, 30)),
)
"""The blocks of the upright picture, row by row."""

SMALL = (192, 256)
"""216 x 288 pixels in a square of 256."""

PERCEPTUAL_HASH = 0x0CB6B6B600494949
MAX_BITS = 10
"""Fewer differing bits than this are the same picture."""

MAX_LEVELS = 8
"""Of 255, in the middle of a block: twice what JPEG and WebP of any version were seen to cost."""

LIMITS = Limits()


@cache
def question() -> bytes:
    """The picture as JPEG, turned to the left with an EXIF note to turn it back."""
    upright = Image.new("RGB", (COLUMNS, ROWS))
    upright.putdata([colour for row in COLOURS for colour in row])
    large = upright.resize((COLUMNS * BLOCK_PX, ROWS * BLOCK_PX), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    large.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


def answer() -> FenceAnswer:
    """What the renderer makes of the picture, compared with what it should be. Raises whatever decoder and codec do."""
    photo = decoding.decode(question(), LIMITS)
    large, proxy = rendering.render_large(photo), rendering.render_proxy(photo)
    source = rendering.thumbnail_source(proxy.data, large.data)
    small = rendering.render_small(source)
    bits = (int(describing.perceptual_hash(source), 16) ^ PERCEPTUAL_HASH).bit_count()
    with Image.open(io.BytesIO(small.data)) as image:
        size, levels = image.size, _worst_block(image.convert("RGB"))
    return verdict(
        f"a thumbnail of {size[0]} x {size[1]} pixels, colours within {levels} of 255, {bits} of 64 hash bits off",
        is_right=size == SMALL and levels <= MAX_LEVELS and bits < MAX_BITS,
    )


def _worst_block(image: Image.Image) -> int:
    """The largest difference of a channel in the middle of any block from what was drawn there."""
    # Three cells to a block, so that the one in the middle has nothing of its neighbours.
    cells = np.asarray(image.resize((3 * COLUMNS, 3 * ROWS), Image.Resampling.BOX), np.int16)
    return int(np.abs(cells[1::3, 1::3] - np.array(COLOURS)).max())
