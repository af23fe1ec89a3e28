"""What a photo's pixels cost: our way beside the naive one, in CPU time, interleaved in one run.

    .venv/bin/python benchmarks/thumbnails.py

Ours: what `prepare` and `thumbnails` do (decode at scale, large, proxy, medium, small, thumbhash, palette, hash).
Naive: the three WebP sizes, each from the full picture, as a first version would do it. Ratios are what counts:
absolute times differ from machine to machine.
"""

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from thumbnailer.decoding import Limits, decode
from thumbnailer.describing import palette, perceptual_hash, thumbhash
from thumbnailer.rendering import render_large, render_medium, render_proxy, render_small, thumbnail_source

ROUNDS = 5
SIZES = (256, 768, 1600)


def photo(width: int, height: int, picture_format: str) -> bytes:
    """A picture with structure at every scale, as photos have: noise of several octaves, encoded."""
    random = np.random.default_rng(1)
    pixels = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 10):
        side = 2**octave
        coarse = random.normal(0, 2 ** (6.5 - octave / 1.5), (side * 3 // 4, side, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(layer)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8)).save(buffer, picture_format, quality=90)
    return buffer.getvalue()


def ours(data: bytes) -> None:
    """Everything that Darkroom leaves of a photo, besides the vector."""
    decoded = decode(data, Limits())
    large, proxy = render_large(decoded), render_proxy(decoded)
    source = thumbnail_source(proxy.data, large.data)
    render_medium(source)
    render_small(source)
    thumbhash(source)
    palette(source)
    perceptual_hash(source)


def naive(data: bytes) -> None:
    """Three thumbnails, each from the full picture."""
    for side in SIZES:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=None)
        image.save(io.BytesIO(), "WEBP", quality=80, method=4)


def cpu_ms(work: Callable[[bytes], None], data: bytes) -> float:
    """CPU time of this process for one call, in milliseconds."""
    begun = time.process_time()
    work(data)
    return (time.process_time() - begun) * 1000


def main() -> None:
    print(f"{'':14}{'ours ms':>22}{'naive ms':>22}{'naive / ours':>24}")
    for name, width, height, picture_format in (
        ("12 MP JPEG", 4000, 3000, "JPEG"),
        ("3 MP JPEG", 2000, 1500, "JPEG"),
        ("12 MP PNG", 4000, 3000, "PNG"),
        ("12 MP WebP", 4000, 3000, "WEBP"),
    ):
        data = photo(width, height, picture_format)
        ours(data)  # the first call imports codecs
        rounds = [(cpu_ms(ours, data), cpu_ms(naive, data)) for _ in range(ROUNDS)]
        columns = [[a for a, _ in rounds], [b for _, b in rounds], [b / a for a, b in rounds]]
        cells = [f"{min(c):.1f} {statistics.median(c):.1f} {max(c):.1f}" for c in columns]
        print(f"{name:14}{cells[0]:>22}{cells[1]:>22}{cells[2]:>24}")
    print(f"min, median, max of {ROUNDS} rounds")


if __name__ == "__main__":
    main()
