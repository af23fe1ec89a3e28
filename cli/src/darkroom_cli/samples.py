"""Sample pictures for the demo, drawn by code: one plain shape in one colour each, in every format that is read.

They are the same at every call, so that a demo can say which picture a search must find.
"""

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageOps
from pillow_heif import from_pillow

Point = tuple[float, float]
Encoder = Callable[[Image.Image], bytes]

PAINTS = {
    "red": "#e0201b",
    "orange": "#fb8c00",
    "yellow": "#ffd91a",
    "green": "#23903c",
    "turquoise": "#12bcc4",
    "blue": "#1e5fe0",
    "purple": "#8428b0",
    "pink": "#ff7fbf",
    "brown": "#74472a",
    "black": "#0a0a0a",
    "white": "#fdfdfd",
    "gray": "#7a7a7a",
}

PAPER, CREAM, MIST, SLATE, NIGHT = "#ffffff", "#f4efe0", "#dfe3e6", "#3c464d", "#171a2c"


def _circle(radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> list[Point]:
    return [(x + radius * math.cos(t), y + radius * math.sin(t)) for t in _turns(180)]


def _turns(steps: int, start: float = -0.25) -> list[float]:
    return [2 * math.pi * (start + n / steps) for n in range(steps)]


def _polygon(corners: int) -> list[Point]:
    return [(math.cos(t), math.sin(t)) for t in _turns(corners)]


def _star() -> list[Point]:
    return [
        ((0.42 if n % 2 else 1) * math.cos(t), (0.42 if n % 2 else 1) * math.sin(t)) for n, t in enumerate(_turns(10))
    ]


def _heart() -> list[Point]:
    curve = [
        (
            16 * math.sin(t) ** 3,
            -13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t),
        )
        for t in _turns(180)
    ]
    return [(x / 17, (y - 2) / 17) for x, y in curve]


def _drop() -> list[Point]:
    return [(0.62 * math.sin(t) * math.sin(t / 2) * 1.25, -math.cos(t)) for t in _turns(180, 0)]


def _flower() -> list[Point]:
    radii = [(0.72 + 0.28 * math.cos(6 * t), t) for t in _turns(360)]
    return [(r * math.cos(t), r * math.sin(t)) for r, t in radii]


Part = tuple[list[Point], bool]
"""An outline, x to the right and y down in about -1..1, and whether it adds to the shape or is cut out of it."""

SHAPES: dict[str, list[Part]] = {
    "circle": [(_circle(), True)],
    "oval": [([(x, 0.6 * y) for x, y in _circle()], True)],
    "square": [([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)], True)],
    "triangle": [([(0, -0.95), (1, 0.8), (-1, 0.8)], True)],
    "diamond": [([(0, -1), (0.7, 0), (0, 1), (-0.7, 0)], True)],
    "pentagon": [(_polygon(5), True)],
    "hexagon": [(_polygon(6), True)],
    "star": [(_star(), True)],
    "heart": [(_heart(), True)],
    "drop": [(_drop(), True)],
    "flower": [(_flower(), True)],
    "ring": [(_circle(), True), (_circle(0.58), False)],
    "crescent": [(_circle(), True), (_circle(0.85, 0.45, -0.1), False)],
    "semicircle": [([(x, y + 0.4) for x, y in _circle() if y <= 1e-9], True)],
    "cross": [
        ([(-0.3, -1), (0.3, -1), (0.3, 1), (-0.3, 1)], True),
        ([(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)], True),
    ],
    "arrow": [([(-1, -0.25), (0.15, -0.25), (0.15, -0.7), (1, 0), (0.15, 0.7), (0.15, 0.25), (-1, 0.25)], True)],
    "cloud": [
        (_circle(0.36, -0.6, 0.12), True),
        (_circle(0.5, -0.1, -0.1), True),
        (_circle(0.4, 0.45, 0.08), True),
        ([(-0.6, 0.1), (0.5, 0.1), (0.5, 0.48), (-0.6, 0.48)], True),
    ],
}


def draw(
    colour: str,
    shape: str,
    size: tuple[int, int],
    ground: str,
    *,
    fill: float = 0.36,
    tilt: float = 0.0,
    is_cut_out: bool = False,
) -> Image.Image:
    """The shape in the middle of an RGB picture; `fill` is its radius as a share of the short side, `tilt` in radians.

    A cut-out is RGBA, with nothing around the shape.
    """
    mask = _mask(shape, size, fill, tilt)
    paint = Image.new("RGB", size, PAINTS[colour])
    if is_cut_out:
        paint.putalpha(mask)
        return paint
    # A little shade towards the bottom: no two rows are alike, as in a photo.
    shade = ImageOps.invert(Image.linear_gradient("L")).resize(size).point(lambda v: 225 + v * 30 // 255)
    paper = ImageChops.multiply(Image.new("RGB", size, ground), Image.merge("RGB", [shade] * 3))
    return Image.composite(paint, paper, mask)


def _mask(shape: str, size: tuple[int, int], fill: float, tilt: float) -> Image.Image:
    width, height = size
    fine = 4 if width * height < 1_000_000 else 1  # smooth edges where single pixels show
    mask = Image.new("L", (width * fine, height * fine))
    pen = ImageDraw.Draw(mask)
    radius = min(size) * fill * fine
    cos, sin = math.cos(tilt), math.sin(tilt)
    for outline, adds in SHAPES[shape]:
        corners = [
            (width * fine / 2 + radius * (x * cos - y * sin), height * fine / 2 + radius * (x * sin + y * cos))
            for x, y in outline
        ]
        pen.polygon(corners, fill=255 if adds else 0)
    return mask.reduce(fine) if fine > 1 else mask


_STORED_AS = {
    1: None,
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera did to the picture that its EXIF orientation undoes."""


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _jpeg(*, orientation: int = 1, mode: str = "RGB", taken_at: datetime | None = None, **options: Any) -> Encoder:
    def encode(picture: Image.Image) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x010F] = "Darkroom samples"
        if taken_at is not None:
            exif.get_ifd(0x8769)[0x9003] = taken_at.strftime("%Y:%m:%d %H:%M:%S")
        turn = _STORED_AS[orientation]
        stored = picture.convert(mode) if turn is None else picture.convert(mode).transpose(turn)
        return _saved(stored, "JPEG", quality=90, exif=exif, **options)

    return encode


def _file(kind: str, mode: str | None = None, **options: Any) -> Encoder:
    return lambda picture: _saved(picture if mode is None else picture.convert(mode), kind, **options)


def _sixteen_bits(picture: Image.Image) -> bytes:
    return _saved(picture.convert("L").convert("I").point(lambda v: v * 257).convert("I;16"), "PNG")


def _one_bit(picture: Image.Image) -> bytes:
    return _saved(picture.convert("1", dither=Image.Dither.NONE), "PNG")


def _transparent_palette(picture: Image.Image) -> bytes:
    return _saved(picture.quantize(32, Image.Quantize.FASTOCTREE), "PNG")


def _heic(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    from_pillow(picture).save(file, format="HEIF", quality=85)
    return file.getvalue()


def _frames(kind: str, **options: Any) -> Encoder:
    def encode(picture: Image.Image) -> bytes:
        later = [picture.rotate(15 * n, fillcolor=picture.getpixel((0, 0))) for n in (1, 2, 3)]
        return _saved(picture, kind, save_all=True, append_images=later, **options)

    return encode


def _srgb_profile() -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)  # when it was made: now
    return bytes(profile)


@dataclass(frozen=True)
class Sample:
    """One sample: what is on it, and what Darkroom must say about it. `size`: width and height in pixels, upright."""

    filename: str
    colour: str
    shape: str
    size: tuple[int, int]
    encode: Encoder
    ground: str = PAPER
    is_cut_out: bool = False

    @property
    def format(self) -> str:
        """The format as an image's `format` names it."""
        return _FORMATS[Path(self.filename).suffix]

    def data(self) -> bytes:
        """The file's bytes."""
        return self.encode(draw(self.colour, self.shape, self.size, self.ground, is_cut_out=self.is_cut_out))


_FORMATS = {
    ".jpg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
    ".heic": "HEIF",
}

SAMPLES: tuple[Sample, ...] = (
    Sample(
        "red-circle-turned.jpg",
        "red",
        "circle",
        (1200, 1600),
        _jpeg(orientation=6, taken_at=datetime(2024, 7, 14, 18, 30, 5)),
        CREAM,
    ),
    Sample("red-square-12mp.jpg", "red", "square", (4000, 3000), _jpeg(), MIST),
    Sample("red-star.gif", "red", "star", (320, 240), _file("GIF")),
    Sample("orange-hexagon.bmp", "orange", "hexagon", (400, 300), _file("BMP"), SLATE),
    Sample("orange-diamond-turned.jpg", "orange", "diamond", (1280, 960), _jpeg(orientation=3)),
    Sample("orange-arrow-cmyk.jpg", "orange", "arrow", (900, 700), _jpeg(mode="CMYK")),
    Sample("yellow-triangle-moving.gif", "yellow", "triangle", (480, 360), _frames("GIF", duration=120, loop=0), SLATE),
    Sample("yellow-star-cut-out.webp", "yellow", "star", (600, 600), _file("WEBP", lossless=True), is_cut_out=True),
    Sample("yellow-crescent-64px.png", "yellow", "crescent", (64, 64), _file("PNG"), NIGHT),
    Sample("green-square-cut-out.png", "green", "square", (800, 600), _file("PNG"), is_cut_out=True),
    Sample("green-triangle.tiff", "green", "triangle", (700, 525), _file("TIFF", compression="tiff_lzw"), CREAM),
    Sample("green-circle-6mp.webp", "green", "circle", (3000, 2000), _file("WEBP", quality=80)),
    Sample("turquoise-drop.heic", "turquoise", "drop", (1024, 768), _heic),
    Sample(
        "turquoise-pentagon.tiff",
        "turquoise",
        "pentagon",
        (500, 500),
        _frames("TIFF", compression="tiff_lzw"),
        NIGHT,
    ),
    Sample("blue-star.webp", "blue", "star", (1200, 900), _file("WEBP", quality=85)),
    Sample("blue-circle-64px.png", "blue", "circle", (64, 64), _file("PNG")),
    Sample("blue-heart-transposed.jpg", "blue", "heart", (1000, 750), _jpeg(orientation=5), CREAM),
    Sample("purple-heart.tiff", "purple", "heart", (640, 640), _file("TIFF", compression="tiff_adobe_deflate"), MIST),
    Sample("purple-semicircle.jpg", "purple", "semicircle", (960, 1280), _jpeg(orientation=8)),
    Sample("purple-ring-palette.png", "purple", "ring", (512, 512), _transparent_palette, is_cut_out=True),
    Sample("pink-flower.avif", "pink", "flower", (1440, 1080), _file("AVIF", quality=75, max_threads=1), SLATE),
    Sample("pink-cloud-moving.webp", "pink", "cloud", (540, 405), _frames("WEBP", duration=150, loop=0), NIGHT),
    Sample("brown-cross.jpg", "brown", "cross", (1920, 1440), _jpeg(progressive=True), CREAM),
    Sample("brown-oval-profile.jpg", "brown", "oval", (1100, 800), _jpeg(icc_profile=_srgb_profile())),
    Sample("black-arrow-1bit.png", "black", "arrow", (640, 480), _one_bit),
    Sample("black-heart-grayscale.jpg", "black", "heart", (720, 720), _jpeg(mode="L")),
    Sample("white-cross-16bit.png", "white", "cross", (800, 800), _sixteen_bits, NIGHT),
    Sample("gray-square-portrait.jpg", "gray", "square", (750, 1000), _jpeg(subsampling=0)),
)


def write_samples(folder: Path, samples: Iterable[Sample] = SAMPLES) -> list[Path]:
    """Draws the samples into a folder; returns their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for sample in samples:
        path = folder / sample.filename
        path.write_bytes(sample.data())
        paths.append(path)
    return paths
