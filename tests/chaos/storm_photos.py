"""The photos of a storm: mixed formats and sizes, duplicates, some broken on purpose; the same for the same seed."""

import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

BROKEN_EVERY = 10
DUPLICATE_EVERY = 25

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
SMALL_SIDES_PX = (64, 200, 500)
LARGE_SIDE_PX = 1800
"""Above the largest thumbnail: what is decoded at reduced scale."""

ORIENTATION = 0x0112


@dataclass(frozen=True)
class StormPhoto:
    """One upload."""

    number: int
    filename: str
    lane: str
    data: bytes
    is_broken: bool


def storm_photo(seed: int, number: int) -> StormPhoto:
    """The upload with this number, from 0. One in 25 has the bytes of an earlier one, one in ten is cut in half."""
    lane = "bulk" if number % 3 == 2 else "interactive"
    if number % DUPLICATE_EVERY == DUPLICATE_EVERY - 1:
        earlier = storm_photo(seed, number - 3)
        return StormPhoto(number, earlier.filename, lane, earlier.data, earlier.is_broken)
    choose = random.Random(f"{seed}:{number}")
    # Only these two have a large picture in a few kilobytes.
    kind, side = choose.choice(FORMATS), choose.choice(SMALL_SIDES_PX)
    if number % 50 == 7:
        kind, side = choose.choice(["JPEG", "WEBP"]), LARGE_SIDE_PX
    data = _encoded(_picture(choose, side, has_alpha=kind in ("PNG", "WEBP") and choose.random() < 0.5), kind, choose)
    is_broken = number % BROKEN_EVERY == BROKEN_EVERY - 1
    return StormPhoto(
        number, f"{number}.{kind.lower()}", lane, data[: len(data) // 2] if is_broken else data, is_broken
    )


def _picture(choose: random.Random, side: int, *, has_alpha: bool) -> Image.Image:
    noise = np.random.default_rng(choose.getrandbits(32))
    cells = noise.integers(0, 256, (choose.randint(3, 9), choose.randint(3, 9), 4), dtype=np.uint8)
    image = Image.fromarray(cells, "RGBA").resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
    return image if has_alpha else image.convert("RGB")


def _encoded(image: Image.Image, kind: str, choose: random.Random) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = choose.randint(1, 8)
    image.save(buffer, kind, **({"exif": exif} if kind == "JPEG" else {}))
    return buffer.getvalue()
