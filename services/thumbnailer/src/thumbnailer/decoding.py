"""From untrusted bytes to an upright sRGB picture of bounded size, or to a `PictureProblem` that says which and why.

This is the only place that decodes an upload. Whatever can be refused is refused from the header, before a pixel is
decoded; the pixels are shrunk before anything else touches them, so that colour and rotation cost the same for a
phone's photo and for a gigantic scan.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import cv2
import numpy as np
import pillow_heif
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,  # noqa: F401 (imported to register the format; Pillow would import every plugin it has)
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    ImageCms,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from thumbnailer import ceilings, containers, plain, problems
from thumbnailer.resampling import Picture, as_image, resample, resampled

# One picture at a time on one core in each worker process: more threads would only take the neighbours' cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
# Our own limits apply, in `inspect`. Pillow's would only warn up to twice its own number.
Image.MAX_IMAGE_PIXELS = None

# What `large` and `proxy` are made of. The proxy's long side is shorter, but its short side must not fall below
# SHORT_SIDE where the original has it, so a very long picture is decoded larger than LONG_SIDE.
LONG_SIDE = 1600
SHORT_SIDE = 384

# The longest that libjpeg reads and writes, though the format could hold 65,535.
JPEG_SIDE = 65_500

# The largest ICC profiles in use, for four-colour printing, have 2 to 3 MB; a larger one is not worth parsing.
PROFILE_BYTES = 8 * 1024 * 1024

# No codec takes less for the pixels that it decodes at full size. Where the ceiling has no room for so much, that is
# what was wrong, even if all that the codec says is that it failed.
BYTES_A_PIXEL = 4

# Everything that Pillow, its codecs, pillow-heif and OpenCV were seen or are documented to raise about a file.
# Not `Exception`: the worker's soft time limit is raised inside these calls and must pass through.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    cv2.error,
)

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Limits:
    """What a file may ask of a worker; all but the last two are checked from its header."""

    file_bytes: int = 256 * 1024 * 1024
    # 12,000 x 9,000, a common phone's full resolution, is 108 MP; a decoder holds 4 bytes for each of them.
    pixels: int = 120_000_000
    # A JPEG must stay within JPEG_SIDE.
    side_px: int = 65_535
    # An animation of 100 s at 50 frames a second.
    frames: int = 5_000
    # A progressive JPEG has about 10. Each scan is one more pass over all of the picture (libjpeg's advice is 500).
    scans: int = 500
    # What a decode may have at once beside the file: the hungriest take 20 bytes for each pixel.
    memory_bytes: int = 2 * 1024**3
    # Celery's limits come first. A process that still computes then has lost the parent that keeps them.
    cpu_s: int = 60


@dataclass(frozen=True)
class Header:
    """What a file says about itself. Width and height in pixels as a viewer shows them, upright by EXIF."""

    format: str
    width: int
    height: int
    frames: int
    mode: str
    orientation: int


@dataclass(frozen=True)
class Photo:
    """A decoded picture: upright, sRGB, 8 bits a channel, mode RGB or (where a pixel is transparent) RGBA.

    `picture` carries no metadata and is at most as large as `large` and `proxy` need it; `width` and `height` are
    those of the full original, upright. `taken_at` is aware where the camera recorded its offset from UTC, else naive
    in the unknown local time of the place; None where it is missing or broken.
    """

    picture: Picture
    width: int
    height: int
    format: str
    frames: int
    taken_at: datetime | None

    @property
    def image(self) -> Image.Image:
        return as_image(self.picture)

    @property
    def has_alpha(self) -> bool:
        return isinstance(self.picture, Image.Image) and self.picture.mode == "RGBA"


def inspect(data: bytes, limits: Limits) -> Header:
    """What the file's header says; no pixel is decoded.

    Raises PictureProblem where the bytes are no supported picture, are truncated or damaged, or break a limit.
    """
    with _below_the_ceilings(limits):
        header, _, _ = _open(data, limits)
    return header


def decode(file: bytes | io.BytesIO, limits: Limits) -> Photo:
    """The file's first (or main) picture, upright, in sRGB, at the size that `large` and `proxy` need.

    A `BytesIO` is used up: closed, and its memory free, as soon as its bytes have been decoded. Raises PictureProblem
    as `inspect` does, and where the pixels turn out to be truncated or damaged or need more memory than the limit. A
    process that computes for longer than the limit is killed.
    """
    with _below_the_ceilings(limits):
        return _decode(file, limits)


@contextmanager
def _below_the_ceilings(limits: Limits) -> Iterator[None]:
    try:
        with ceilings.of_memory(limits.memory_bytes), ceilings.of_cpu(limits.cpu_s):
            yield
    except MemoryError as exc:
        raise problems.needs_too_much_memory(limits.memory_bytes) from exc


def _decode(file: bytes | io.BytesIO, limits: Limits) -> Photo:
    data = file.getvalue() if isinstance(file, io.BytesIO) else file
    header, image, exif = _open(data, limits)
    # TIFF turns itself upright while it loads.
    orientation = 1 if header.format == "TIFF" else header.orientation
    width, height = fit(header.width, header.height, LONG_SIDE, SHORT_SIDE)
    size = (height, width) if orientation >= 5 else (width, height)
    with _blaming_the_picture(header.format, (header.width, header.height), limits):
        if header.format == "JPEG":
            image.draft(None, size)
        profile, stored_size = image.info.get("icc_profile"), image.size
        # Averaging whole blocks first is several times faster than resampling everything, and leaves a ratio below 2.
        factor = max(1, min(stored_size[0] // size[0], stored_size[1] // size[1]))
        held = _averaged(image, factor, header, data)
        del data
        if isinstance(file, io.BytesIO):
            file.close()
        held = _shrink(held, size, (stored_size[0] / factor, stored_size[1] / factor))
        held = _to_srgb(held, profile)
    if orientation in TRANSPOSITIONS:
        held = as_image(held).transpose(TRANSPOSITIONS[orientation])
    if isinstance(held, Image.Image):
        held.info = {}
    return Photo(held, header.width, header.height, header.format, header.frames, _taken_at(exif))


def fit(width: int, height: int, long_side: int, short_side: int = 0) -> tuple[int, int]:
    """The size in pixels at which the long side is `long_side`, or more if the short side would fall below
    `short_side`; never larger than the original, never below one pixel."""
    scale = max(long_side / max(width, height), short_side / min(width, height))
    if scale >= 1:
        return width, height
    return max(1, round(width * scale)), max(1, round(height * scale))


def _open(data: bytes, limits: Limits) -> tuple[Header, Image.Image, Image.Exif]:
    if len(data) > limits.file_bytes:
        raise problems.too_large(len(data), limits.file_bytes)
    name = containers.picture_format(data)
    container = containers.examine(name, data, limits.frames)
    if container.size:
        # Before the codec is opened: WebP's allocates the whole canvas then.
        _check_size(*container.size, limits)
    with _blaming_the_picture(name, container.size, limits):
        image = Image.open(io.BytesIO(data), formats=[name])
        width, height = image.size
        frames = int(container.frames or getattr(image, "n_frames", 1) or 1)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # A tile may be larger than the picture, and is decoded whole.
            tags = image.tag_v2
            _check_size(tags.get(TiffImagePlugin.TILEWIDTH, 1), tags.get(TiffImagePlugin.TILELENGTH, 1), limits)
    _check_size(width, height, limits)
    if name == "JPEG" and max(width, height) > JPEG_SIDE:
        raise problems.side_too_long(width, height, JPEG_SIDE)
    if frames > limits.frames:
        raise problems.too_many_frames(frames, limits.frames)
    if container.scans > limits.scans:
        raise problems.too_many_scans(container.scans, limits.scans)
    exif = _exif(image, container.exif)
    orientation = _orientation(exif)
    if orientation >= 5 and name != "TIFF":
        width, height = height, width
    return Header(name, width, height, frames, image.mode, orientation), image, exif


def _check_size(width: int, height: int, limits: Limits) -> None:
    if max(width, height) > limits.side_px:
        raise problems.side_too_long(width, height, limits.side_px)
    if width * height > limits.pixels:
        raise problems.too_many_pixels(width, height, limits.pixels)


@contextmanager
def _blaming_the_picture(name: str, size: tuple[int, int] | None, limits: Limits) -> Iterator[None]:
    """Turns what a decoder raises into a PictureProblem, or into the MemoryError that it stands for."""
    width, height = size or (0, 0)
    try:
        yield
    except DECODER_ERRORS as exc:
        fault = str(exc) or type(exc).__name__
        is_starved = width * height * BYTES_A_PIXEL > limits.memory_bytes
        if is_starved or "memory" in fault.lower() or fault.endswith("error -9"):  # -9: Pillow's number for it
            raise MemoryError(fault) from exc
        if isinstance(exc, UnidentifiedImageError):
            fault = "its header is damaged"
        # Only the text tells a short file from a damaged one. Both are final: the difference is for the reader alone.
        if isinstance(exc, EOFError) or "truncat" in fault.lower() or "end of file" in fault.lower():
            raise problems.truncated(name, fault) from exc
        raise problems.corrupt(name, fault) from exc


def _is_whole(name: str, data: bytes, image: Image.Image) -> bool:
    """Whether the coded data reach the last pixel of a picture whose container is complete.

    Where they end too early, Pillow's PNG decoder leaves black and libjpeg grey, and neither says so. Most pictures end
    in other colours; for the few that do not, finding out costs a second look at the data.
    """
    bottom = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
    if name == "PNG":
        is_interlaced = data[28] == 1  # such rows do not come in their order
        return (any(bottom) and not is_interlaced) or containers.has_all_rows(data)
    if name == "JPEG" and set(bottom[-len(image.getbands()) :]) <= plain.LIBJPEG_GREY:
        # More data before the end would change a picture that lacks some; one that has all passes over them.
        end = containers.examine(name, data, 1).end
        return _coarse(data) == _coarse(data[:end] + bytes(range(1, 255)) * 4 + data[end:])
    return True


def _coarse(jpeg: bytes) -> bytes:
    """The pixels at an eighth of their size, which costs little."""
    image = Image.open(io.BytesIO(jpeg), formats=["JPEG"])
    image.draft(None, (1, 1))
    return image.tobytes()


def _averaged(image: Image.Image, factor: int, header: Header, data: bytes) -> Picture:
    """The picture averaged over blocks, as pixels or in 8 bits a channel, mode L, La, RGB, RGBa, CMYK or LAB.

    The picture that it is made of, of which nothing is loaded yet, is used up.
    """
    held: Picture | None = plain.reduced(header.format, data, image, factor) if header.frames == 1 else None
    if held is None:
        image.load()
        if not _is_whole(header.format, data, image):
            raise problems.truncated(header.format, "its pixels end before the last one")
        held = _reduced(image, factor)
    if held is not image:
        image.close()
    return held


def _shrink(held: Picture, size: tuple[int, int], covered: tuple[float, float]) -> Picture:
    """The picture at `size`, used up. The last block of a row or column may be a partial one: the rest is covered."""
    if not all(side.is_integer() for side in covered):
        return as_image(held).resize(size, Image.Resampling.BICUBIC, box=(0, 0, *covered))
    return resampled(held, size) if isinstance(held, np.ndarray) else resample(held, size, used_up=True)


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """The picture in 8 bits a channel, averaged over blocks of `factor` x `factor` pixels."""
    values = _value_range(image)
    if factor == 1:
        return _eight_bit(image, values)
    # In bands, so that the copies which the conversions make stay small beside the decoded picture itself.
    rows = factor * 128
    reduced: Image.Image | None = None
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        band = _eight_bit(image.crop(box), values).reduce(factor)
        if reduced is None:
            reduced = Image.new(band.mode, (band.width, math.ceil(image.height / factor)))
        reduced.paste(band, (0, top // factor))
    if reduced is None:
        raise ValueError("a picture without rows")
    return reduced


def _value_range(image: Image.Image) -> tuple[float, float]:
    """The values that mean black and white, for the modes with more than 8 bits a channel."""
    if image.mode.startswith("I;16"):
        # A TIFF may say 12 bits; a PNG always has 16 here.
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,)) if hasattr(image, "tag_v2") else (16,)
        return 0, 2 ** int(bits[0]) - 1
    if image.mode not in ("I", "F"):
        return 0, 255
    values = np.asarray(image)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    # Such files do not say what white is: take the smallest of the customary scales that holds all values, or,
    # for measurements on a scale of their own, the darkest and the brightest value.
    for white in (1, 255, 65535) if image.mode == "F" else (255, 65535):
        if low >= 0 and high <= white:
            return 0, white
    return low, high


def _eight_bit(image: Image.Image, values: tuple[float, float]) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        black, white = values
        transparent = image.info.get("transparency")
        pixels = np.asarray(image)
        scaled = (np.nan_to_num(pixels.astype(np.float32)) - black) * (255 / ((white - black) or 1))
        grey = Image.fromarray(np.clip(scaled + 0.5, 0, 255).astype(np.uint8))
        if isinstance(transparent, int):
            grey.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
            return grey.convert("La")
        return grey
    if image.has_transparency_data:
        return image.convert("La") if image.mode == "LA" else image.convert("RGBA").convert("RGBa")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("RGB")


def _to_srgb(held: Picture, profile_bytes: bytes | None) -> Picture:
    """The picture in sRGB, mode RGB, or RGBA where any pixel is not opaque."""
    if isinstance(held, np.ndarray) and held.shape[2] == 3 and not profile_bytes:
        return held
    image, alpha = as_image(held), None
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    image = _converted_by_profile(image, profile_bytes) or image
    if image.mode != "RGB":  # else it would be copied
        image = image.convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        image.putalpha(alpha)
    return image


def _converted_by_profile(image: Image.Image, profile_bytes: bytes | None) -> Image.Image | None:
    """The picture in sRGB by its embedded profile; None without one, or with one that is broken or for other colours.

    A picture with a broken profile is then shown as it would be without, as viewers do: its pixels are not at fault.
    """
    colour_space = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}[image.mode]
    try:
        if profile_bytes and len(profile_bytes) <= PROFILE_BYTES:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        elif image.mode == "LAB":
            profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            return None
        if profile.profile.xcolor_space.strip() != colour_space:
            return None
        # Relative colorimetric with black point compensation is what browsers show, so the thumbnail looks like the
        # original.
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if image.mode == "RGB" and _changes_nothing(transform):
            return image
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, *DECODER_ERRORS):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether the transform leaves a grid of colours as they are, to one level: the profile is sRGB itself.

    Most embedded profiles are. Finding out takes 2 ms, transforming 1600 x 1200 pixels 25 ms.
    """
    grid = np.stack(np.meshgrid(*[np.linspace(0, 255, 6, dtype=np.uint8)] * 3), axis=-1).reshape(1, -1, 3)
    converted = ImageCms.applyTransform(Image.fromarray(grid), transform)
    return converted is not None and int(np.abs(np.asarray(converted).astype(int) - grid).max()) <= 1


def _exif(image: Image.Image, png_exif: bytes | None) -> Image.Exif:
    """The picture's EXIF data, empty where it is missing or cannot be read: a picture is not refused for that."""
    try:
        if image.format == "PNG" and "exif" not in image.info and "Raw profile type exif" not in image.info:
            # Pillow would decode all pixels to look for EXIF data behind them.
            exif = Image.Exif()
            if png_exif:
                exif.load(png_exif)
            return exif
        return image.getexif()
    except DECODER_ERRORS:
        return Image.Exif()


def _orientation(exif: Image.Exif) -> int:
    """EXIF orientation 1 to 8; 1, upright, where it is missing or has no meaning."""
    try:
        value = exif.get(ExifTags.Base.Orientation)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _taken_at(exif: Image.Exif) -> datetime | None:
    try:
        details = exif.get_ifd(ExifTags.IFD.Exif)
        local = datetime.strptime(str(details[ExifTags.Base.DateTimeOriginal]).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except DECODER_ERRORS:
        return None
    offset = str(details.get(ExifTags.Base.OffsetTimeOriginal, "")).strip("\0 ")
    try:
        return datetime.strptime(f"{local.isoformat()}{offset}", "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return local
