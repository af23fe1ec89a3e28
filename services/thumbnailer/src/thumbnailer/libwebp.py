"""The rows of a WebP while it is being decoded, by the libwebp that Pillow is linked with.

Pillow and OpenCV hold all pixels of a WebP, and twice. libwebp writes them row by row to where it is told, and never
looks at them again: given back to the system as soon as they have been used, they take a few MB.
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
    except AttributeError:
        return None
    return library
