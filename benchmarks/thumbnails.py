"""What a photo's pixels cost: CPU time of our way, the naive way, pyvips, and what no way can do without.

    python benchmarks/thumbnails.py

Ours is everything that `prepare` and `thumbnails` do: decode at scale, large, proxy, medium, small, thumbhash, palette,
perceptual hash. The others make the three WebP sizes only: naive Pillow each from the full picture at WebP's default
method; pyvips as a cascade, at its default effort and at that which is nearest to ours in quality; the limit decodes at
scale and encodes sizes that were made before. How like the original each is, is measured too (SSIM).
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from rounds import Comparison, Ratio, arguments, interleaved, own_cpu_s, publish

from thumbnailer.decoding import Limits, decode
from thumbnailer.describing import palette, perceptual_hash, thumbhash
from thumbnailer.rendering import render_large, render_medium, render_proxy, render_small, thumbnail_source

SIDES = (1600, 768, 256)
PHOTOS = {
    "12 MP JPEG": (4000, 3000, "JPEG", {"quality": 90}),
    "3 MP JPEG": (2000, 1500, "JPEG", {"quality": 90}),
    "12 MP PNG": (4000, 3000, "PNG", {}),
    "12 MP WebP": (4000, 3000, "WEBP", {"quality": 90}),
}
MEMORY_LIMIT_MB = 120

Sizes = list[bytes]


@cache
def pixels(width: int, height: int) -> Image.Image:
    """A picture with structure at every scale, down to the single pixel, as photos have: noise of several octaves."""
    random = np.random.default_rng(1)
    colours, light = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    for octave in range(2, 12):
        side, amplitude = 2**octave, 2 ** (5.2 - octave / 3)
        shape = (side * height // width, side)
        light += _enlarged(random.normal(0, amplitude, shape), (width, height))
        if octave < 9:  # colour has less detail than light
            colours += _enlarged(random.normal(0, amplitude / 2, (*shape, 3)), (width, height))
    return Image.fromarray(np.clip(colours + light[..., None] + 128, 0, 255).astype(np.uint8))


def _enlarged(noise: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(noise.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)


def encoded(image: Image.Image, encoder: str, **options: object) -> bytes:
    """The picture in a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, encoder, **options)
    return buffer.getvalue()


def ours(data: bytes) -> Sizes:
    """Everything that Darkroom leaves of a photo, besides the vector."""
    file = io.BytesIO(data)  # as `prepare` does: the file is let go as soon as it is decoded
    del data
    decoded = decode(file, Limits())
    large, proxy = render_large(decoded), render_proxy(decoded)
    source = thumbnail_source(proxy.data, large.data)
    medium, small = render_medium(source), render_small(source)
    thumbhash(source)
    palette(source)
    perceptual_hash(source)
    return [large.data, medium.data, small.data]


def naive(data: bytes) -> Sizes:
    """Three thumbnails, each from the full picture."""
    made = []
    for side in SIDES:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=None)
        made.append(encoded(image, "WEBP", quality=80, method=4))
    return made


def vips(data: bytes, effort: int, quality: int) -> Sizes:
    """Three thumbnails, each from the one before; shrunk while it decodes where the format can."""
    os.environ["VIPS_CONCURRENCY"] = "1"  # read when the library is loaded: one core, as all others have
    import pyvips  # not where only ours runs, whose memory is measured

    image, made = pyvips.Image.thumbnail_buffer(data, SIDES[0]), []
    for side in SIDES:
        image = (image if side == SIDES[0] else image.thumbnail_image(side)).copy_memory()
        made.append(image.webpsave_buffer(Q=quality, effort=effort, keep="none"))
    return made


def limit(ready: list[Image.Image], data: bytes) -> Sizes:
    """The decoder at scale and the encoder, and nothing between them."""
    image = Image.open(io.BytesIO(data))
    image.draft(None, ready[0].size)
    image.load()
    return [encoded(each, "WEBP", quality=84, method=4 if each is ready[-1] else 0) for each in ready]


def likeness(made: Sizes, wanted: list[Image.Image]) -> list[float]:
    """SSIM of the lightness of each size, beside the full picture reduced by LANCZOS without any loss."""
    return [_ssim(Image.open(io.BytesIO(each)), reference) for each, reference in zip(made, wanted, strict=True)]


def _ssim(first: Image.Image, second: Image.Image) -> float:
    a, b = (np.asarray(each.convert("L"), np.float32) for each in (first, second))
    blurred = partial(cv2.GaussianBlur, ksize=(11, 11), sigmaX=1.5)
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + 6.5025) * (2 * covariance + 58.5225)
    return float((above / ((mean_a**2 + mean_b**2 + 6.5025) * (var_a + var_b + 58.5225))).mean())


def peak_mb(data: bytes, photos: int) -> float:
    """Most memory that a fresh process of the thumbnailer's ever held, when it has done so many of one photo."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = [sys.executable, __file__, "--peak-of", file.name, "--photos", str(photos)]
        return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _print_peak(file: Path, photos: int) -> None:
    import thumbnailer.tasks  # noqa: F401 (a child has Celery and all of the worker's code, too)

    for _ in range(photos):
        ours(file.read_bytes())
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def timed(work: Callable[[bytes], Sizes], data: bytes) -> Mapping[str, float]:
    """CPU time of one call, in milliseconds."""
    begun = own_cpu_s()
    work(data)
    return {"cpu": (own_cpu_s() - begun) * 1000}


def main() -> None:
    """Prints a table for each kind of photo, one for quality and one for memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--photos", type=int, default=1, help=argparse.SUPPRESS)
    chosen = arguments(__doc__, parser)
    if chosen.peak_of:
        _print_peak(chosen.peak_of, chosen.photos)
        return
    speed, alike, size = [], [], []
    peaks: dict[str, list[float]] = {}
    for name, (width, height, picture_format, options) in PHOTOS.items():
        data = encoded(pixels(width, height), picture_format, **options)
        full = Image.open(io.BytesIO(data)).convert("RGB")
        sizes = [full.resize((side, side * height // width), Image.Resampling.LANCZOS) for side in SIDES]
        del full
        ways: dict[str, Callable[[bytes], Sizes]] = {
            "ours, all": ours,
            "pyvips cascade, effort 4": partial(vips, effort=4, quality=80),
            "pyvips cascade, effort 2": partial(vips, effort=2, quality=83),
            "pyvips cascade, effort 0": partial(vips, effort=0, quality=84),
            "naive Pillow": naive,
        }
        ratios = [
            Ratio("naive / ours", "naive Pillow", "ours, all", at_least=3.5),
            Ratio("ours / pyvips at effort 4", "ours, all", "pyvips cascade, effort 4", at_most=0.77),
            Ratio("ours / pyvips at effort 2", "ours, all", "pyvips cascade, effort 2", at_most=0.77),
            Ratio("ours / pyvips at effort 0", "ours, all", "pyvips cascade, effort 0"),
        ]
        if picture_format == "JPEG":
            ways["limit: decode + encode"] = partial(limit, sizes)
            ratios.append(Ratio("ours / limit", "ours, all", "limit: decode + encode", at_most=1.2))
        made = {way: work(data) for way, work in ways.items()}  # the first call of each also imports its codecs
        rounds = interleaved({way: partial(timed, work, data) for way, work in ways.items()}, chosen.rounds)
        speed.append(Comparison.of(name, "ms of CPU", rounds, "cpu", ratios))
        quality = {way: likeness(each, sizes) for way, each in made.items()}
        alike.append(Comparison(f"{name}: SSIM of large, medium, small", "min, median and max of the three", quality))
        size.append(
            Comparison(
                f"{name}: bytes of all three", "KB", {way: [sum(map(len, each)) / 1000] for way, each in made.items()}
            )
        )
        peaks |= {name: [peak_mb(data, 1)], f"{name}, ten in a row": [peak_mb(data, 10)]}
    memory = Comparison(f"Peak memory of a child, wanted below {MEMORY_LIMIT_MB}", "MB", peaks)
    publish("thumbnails", [*speed, *alike, *size, memory], chosen.results)


if __name__ == "__main__":
    main()
