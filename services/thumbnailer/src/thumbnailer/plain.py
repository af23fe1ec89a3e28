"""Plain JPEG, PNG and WebP files, decoded straight to arrays, with less CPU time and memory than Pillow takes.

A JPEG by the same libjpeg-turbo, without Pillow's copies; a PNG and a WebP a few rows at a time, without ever holding
all of their pixels. OpenCV and libwebp never see the file that was sent, but one that is made of its coded pixels
alone: no metadata, no animation. What is not plain, or cannot be decoded without a warning, is left to Pillow, which
then says what is wrong with it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg
from isal import isal_zlib
from PIL import Image

from thumbnailer import containers, libwebp
from thumbnailer.libwebp import UndecodableError
from thumbnailer.resampling import picture

# A band and the copies of it that are in hand at once stay in a core's cache.
BAND_BYTES = 2**18

# A JPEG is decoded to at most this, but for the longest, which are not made smaller: they would be held twice, as an
# array and as a picture.
JPEG_PIXELS = 12_000_000

LIBJPEG_GREY = {127, 128}
"""What libjpeg leaves in every channel of pixels that it has no data for."""

_PNG_COLOUR = {3: 2, 4: 6}
"""A PNG's number for RGB and RGBA, by their channels."""
_PNG_FILTERS = 5
_BLOCK_BYTES = 0xFFFF
"""The longest that a block of zlib's may be."""


def reduced(name: str, data: bytes, image: Image.Image, factor: int) -> np.ndarray | None:
    """The pixels averaged over blocks of `factor` x `factor`, RGB or premultiplied RGBa; None: this is for Pillow.

    `data` is a complete container with one frame, `image` what Pillow says of it, drafted if it is a JPEG; no pixel
    need be loaded. The array is uint8 (height, width, channels).
    """
    if image.mode not in ("RGB", "RGBA") or "transparency" in image.info:
        return None
    width, height, channels = *image.size, len(image.mode)
    if name == "JPEG":
        pixels = _jpeg(data, (height, width, channels))
        return None if pixels is None else _averaged(pixels, factor)
    rows = factor * max(1, BAND_BYTES // (width * channels * factor))
    if name == "PNG" and data[24:29] == bytes((8, _PNG_COLOUR[channels], 0, 0, 0)):
        bands = _png_bands(data, (height, width, channels), rows)
    elif name == "WEBP" and (still := containers.webp_still(data)) is not None:
        bands = libwebp.bands(still, (height, width, channels), rows)
    else:
        return None
    made = np.empty((math.ceil(height / factor), math.ceil(width / factor), channels), np.uint8)
    top = 0
    try:
        for band in bands:
            small = _averaged(band, factor)
            made[top : top + len(small)] = small
            top += len(small)
    except UndecodableError:
        return None
    return made


def _jpeg(data: bytes, shape: tuple[int, int, int]) -> np.ndarray | None:
    """RGB, decoded at that size; None where libjpeg so much as warns, or where the last pixel may be its grey.

    Grey is what it leaves where the data end too early, and not always with a warning.
    """
    height, width, _ = shape
    if width * height > JPEG_PIXELS:
        return None
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:
        return None
    is_whole = not set(pixels[-1, -1].tolist()) <= LIBJPEG_GREY
    return pixels if pixels.shape == shape and is_whole else None


def _averaged(pixels: np.ndarray, factor: int) -> np.ndarray:
    """RGB or RGBA averaged over blocks, alpha premultiplied; the last block of a row or column may be a partial one."""
    height, width, channels = pixels.shape
    if channels == 4:
        pixels = np.asarray(Image.fromarray(pixels).convert("RGBa"))
    if factor == 1:
        return pixels
    if factor == 2 and width % 2 == height % 2 == 0:
        # In half of the time; of other blocks OpenCV rounds the average in another way than Pillow does.
        return cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(picture(pixels, "RGB" if channels == 3 else "RGBa").reduce(factor))


def _png_bands(png: bytes, shape: tuple[int, int, int], rows: int) -> Iterator[np.ndarray]:
    """So many rows at a time of a PNG with 8 bits a channel that is not interlaced, as RGB or RGBA.

    They are inflated here. OpenCV then gets a band as a PNG of its own, whose first row is the one above, decoded: what
    follows may be predicted from it.
    """
    height, width, channels = shape
    coded, above = _Inflated(png), b""
    for top in range(0, height, rows):
        filtered = coded.read(min(rows, height - top) * (1 + width * channels))
        if max(filtered[:: 1 + width * channels]) >= _PNG_FILTERS:
            raise UndecodableError("a row has a filter that does not exist")
        shape = (bool(above) + min(rows, height - top), width, channels)
        pixels = _decoded(_png(above + filtered, shape), shape)
        if pixels is None:
            raise UndecodableError(f"its rows from {top} on cannot be decoded")
        pixels = _rgb(pixels[bool(above) :])
        above = b"\0" + pixels[-1].tobytes()
        yield pixels


class _Inflated:
    """The filtered rows of a PNG, read like a file."""

    def __init__(self, png: bytes) -> None:
        self._pieces = containers.png_data(png)
        self._inflate = isal_zlib.decompressobj()  # takes 0.35 of zlib's time

    def read(self, size: int) -> bytes:
        """The next so many bytes."""
        parts = []
        while size:
            piece = self._inflate.unconsumed_tail or next(self._pieces, b"")
            try:
                part = self._inflate.decompress(piece, size)
            except isal_zlib.error as exc:  # type: ignore[misc]  # its stubs take the class for an instance
                raise UndecodableError(str(exc)) from exc
            if not part and not piece:
                raise UndecodableError("its pixels end before the last one")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _png(filtered: bytes, shape: tuple[int, int, int]) -> bytes:
    """The PNG of these rows, which are not compressed."""
    height, width, channels = shape
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR[channels], 0, 0, 0)
    parts = [containers.PNG_MARK]
    for kind, payload in ((b"IHDR", header), (b"IDAT", _stored(filtered)), (b"IEND", b"")):
        checksum = isal_zlib.crc32(payload, isal_zlib.crc32(kind))
        parts += [struct.pack(">I", len(payload)), kind, payload, struct.pack(">I", checksum)]
    return b"".join(parts)


def _stored(data: bytes) -> bytes:
    """The bytes in zlib's format, in blocks that are not compressed; zlib itself takes several times as long."""
    parts = [b"\x78\x01"]
    for at in range(0, len(data), _BLOCK_BYTES):
        block = data[at : at + _BLOCK_BYTES]
        is_last = at + _BLOCK_BYTES >= len(data)
        parts += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join([*parts, struct.pack(">I", isal_zlib.adler32(data))])


def _decoded(data: bytes, shape: tuple[int, int, int]) -> np.ndarray | None:
    """OpenCV's BGR or BGRA; None where it cannot decode the file, or finds a picture of another shape."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR if shape[2] == 3 else cv2.IMREAD_UNCHANGED)
    return pixels if pixels is not None and pixels.shape == shape and pixels.dtype == np.uint8 else None


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """BGR as RGB, BGRA as RGBA."""
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
