"""The libwebp that Pillow is linked with, asked for what Pillow does not ask it for.

Decoding, Pillow and OpenCV hold all pixels of a WebP twice. libwebp writes them row by row to where it is told, and
never looks at them again: given back to the system as soon as they have been used, they take a few MB.

Encoding, Pillow has it hold a copy of all pixels, 4 bytes each, before it turns them to lightness and colour.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

import numpy as np
from PIL import _webp

PIECES = 16
"""The file is handed over in so many, and rows come out after each. Of a lossless one, libwebp begins with its tables
afresh until it has them all: few enough pieces that this costs no hostile file much."""

HUGE_PAGE_BYTES = 2**21
"""Taken from the system and given back so much at a time, pixels cost a tenth less CPU than by pages of 4 KiB."""

_MODES = {3: 0, 4: 1}
"""libwebp's number for RGB and RGBA, by their channels."""
_OK, _NEEDS_MORE = 0, 5

_ENCODER_ABI = 0x020F
"""The version of the structures below. libwebp refuses those of another major one, the first two digits."""
_DEFAULT_PRESET = 0


class UndecodableError(Exception):
    """These pixels cannot be decoded here."""


def bands(webp: bytes, shape: tuple[int, int, int], rows: int) -> Iterator[np.ndarray]:
    """So many rows at a time of a WebP that is no animation, RGB or RGBA; the last may be fewer.

    `shape` is (height, width, channels). A band is uint8 (rows, width, channels) and holds only until the next is asked
    for. Raises UndecodableError where the file is damaged or truncated or of another size, or libwebp is out of reach;
    OSError where there is no memory.
    """
    height, width, channels = shape
    row_bytes = width * channels
    memory = mmap.mmap(-1, height * row_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    pixels = np.frombuffer(memory, np.uint8).reshape(shape)
    begins_at = -pixels.ctypes.data % HUGE_PAGE_BYTES  # of the first huge page
    given_back = used = 0
    for decoded in _decoded_rows(webp, pixels):
        while used < decoded and (used + rows <= decoded or decoded == height):
            yield pixels[used : used + rows]
            used = min(used + rows, height)
        whole = (used * row_bytes - begins_at) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES + begins_at
        if whole > given_back:
            memory.madvise(mmap.MADV_DONTNEED, given_back, whole - given_back)
            given_back = whole
    if used < height:
        raise UndecodableError(f"its rows from {used} on are missing")


def _decoded_rows(webp: bytes, pixels: np.ndarray) -> Iterator[int]:
    """Decodes the file into the pixels; says again and again how many rows are there."""
    libwebp = _libwebp()
    if libwebp is None:
        raise UndecodableError("Pillow's libwebp is out of reach")
    height, width, channels = pixels.shape
    decoder = libwebp.WebPINewRGB(_MODES[channels], pixels.ctypes.data, pixels.nbytes, width * channels)
    if not decoder:
        raise MemoryError("no memory for a decoder of WebP")
    last, found_width, found_height = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    step = len(webp) // PIECES + 1
    try:
        for end in range(step, len(webp) + step, step):
            status = libwebp.WebPIUpdate(decoder, webp, min(end, len(webp)))
            if status not in (_OK, _NEEDS_MORE):
                raise UndecodableError(f"libwebp's status is {status}")
            if libwebp.WebPIDecGetRGB(decoder, last, found_width, found_height, None) and last.value:
                if (found_height.value, found_width.value) != (height, width):
                    raise UndecodableError(f"it has {found_width.value} x {found_height.value} pixels")
                yield last.value
    finally:
        libwebp.WebPIDelete(decoder)


class _Config(ctypes.Structure):
    """`WebPConfig` of `webp/encode.h`: how to encode."""

    _fields_ = [
        ("lossless", ctypes.c_int),
        ("quality", ctypes.c_float),
        ("method", ctypes.c_int),
        ("further", ctypes.c_int * 26),
    ]


class _Image(ctypes.Structure):
    """`WebPPicture` of `webp/encode.h`: what to encode, and where to."""

    _fields_ = [
        ("use_argb", ctypes.c_int),
        ("colorspace", ctypes.c_int),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("planes", ctypes.c_void_p * 3),
        ("plane_strides", ctypes.c_int * 2),
        ("alpha", ctypes.c_void_p),
        ("alpha_stride", ctypes.c_int),
        ("padding_1", ctypes.c_uint32 * 2),
        ("argb", ctypes.c_void_p),
        ("argb_stride", ctypes.c_int),
        ("padding_2", ctypes.c_uint32 * 3),
        ("writer", ctypes.c_void_p),
        ("writers_own", ctypes.c_void_p),
        ("extra_info_type", ctypes.c_int),
        ("further", ctypes.c_void_p * 5),
        ("padding_3", ctypes.c_uint32 * 3),
        ("padding_4", ctypes.c_void_p * 2),
        ("padding_5", ctypes.c_uint32 * 8),
        ("memory", ctypes.c_void_p * 4),
    ]


class _Written(ctypes.Structure):
    """`WebPMemoryWriter` of `webp/encode.h`: the bytes of a file as they come."""

    _fields_ = [
        ("bytes", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("room", ctypes.c_size_t),
        ("padding", ctypes.c_uint32),
    ]


def encoded(pixels: np.ndarray, quality: float, method: int) -> bytes | None:
    """The lossy WebP of RGB pixels, uint8 (height, width, 3): the same bytes that Pillow would give.

    None where libwebp is out of reach, or another one than these structures are for, or cannot encode such a picture:
    Pillow then says why.
    """
    library = _libwebp()
    if library is None:
        return None
    config, image, written = _Config(), _Image(), _Written()
    if not library.WebPConfigInitInternal(ctypes.byref(config), _DEFAULT_PRESET, quality, _ENCODER_ABI):
        return None
    if not library.WebPPictureInitInternal(ctypes.byref(image), _ENCODER_ABI):
        return None
    pixels = np.ascontiguousarray(pixels)
    config.method = method
    image.height, image.width, _ = pixels.shape
    image.writer = ctypes.cast(library.WebPMemoryWrite, ctypes.c_void_p)
    image.writers_own = ctypes.addressof(written)
    library.WebPMemoryWriterInit(ctypes.byref(written))
    try:
        is_encoded = library.WebPPictureImportRGB(
            ctypes.byref(image), pixels.ctypes.data, pixels.strides[0]
        ) and library.WebPEncode(ctypes.byref(config), ctypes.byref(image))
        return ctypes.string_at(written.bytes, written.size) if is_encoded else None
    finally:
        library.WebPMemoryWriterClear(ctypes.byref(written))
        library.WebPPictureFree(ctypes.byref(image))


@cache
def _libwebp() -> ctypes.CDLL | None:
    """The library that Pillow's own module has brought into this process; None where it is a part of that module."""
    library = ctypes.CDLL(_webp.__file__)
    a_number = ctypes.POINTER(ctypes.c_int)
    try:
        library.WebPINewRGB.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        library.WebPINewRGB.restype = ctypes.c_void_p
        library.WebPIUpdate.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        library.WebPIDecGetRGB.argtypes = [ctypes.c_void_p, a_number, a_number, a_number, a_number]
        library.WebPIDecGetRGB.restype = ctypes.c_void_p
        library.WebPIDelete.argtypes = [ctypes.c_void_p]
        library.WebPIDelete.restype = None
        a_config, an_image, the_written = (ctypes.POINTER(each) for each in (_Config, _Image, _Written))
        library.WebPConfigInitInternal.argtypes = [a_config, ctypes.c_int, ctypes.c_float, ctypes.c_int]
        library.WebPPictureInitInternal.argtypes = [an_image, ctypes.c_int]
        library.WebPPictureImportRGB.argtypes = [an_image, ctypes.c_void_p, ctypes.c_int]
        library.WebPEncode.argtypes = [a_config, an_image]
        library.WebPPictureFree.argtypes = [an_image]
        library.WebPPictureFree.restype = None
        for function in (library.WebPMemoryWriterInit, library.WebPMemoryWriterClear):
            function.argtypes = [the_written]
            function.restype = None
    except AttributeError:
        return None
    return library
