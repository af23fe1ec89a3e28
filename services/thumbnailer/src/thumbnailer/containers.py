"""What a file's container says before a codec sees it: is it complete, how many frames, how large.

The codecs forgive some truncations (a PNG without its end, an animation cut in a later frame) and some allocate the
whole canvas on opening (WebP), so these walks come first. They read a few bytes for each block and allocate nothing.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from thumbnailer import problems

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""Inside coded data, 0xFF is always followed by 0 or is a restart mark; before a marker, more of them may stand."""

PNG_MARK = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced PNG: first column and row, then the steps to the next ones."""
_PIECE_BYTES = 2**16
"""Of a PNG's compressed data at a time: what a decompressor leaves over, it copies."""

_WEBP_ALPHA = 0x10
"""The flag of a WebP that says: with alpha."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")


@dataclass(frozen=True)
class Container:
    """A complete container: frames and canvas size where the walk finds them out, else None for the codec to say.

    `scans` and `end` are a JPEG's: its passes over the picture, and where its end marker stands.
    """

    frames: int | None = None
    size: tuple[int, int] | None = None
    exif: bytes | None = None
    scans: int = 0
    end: int = 0


def picture_format(data: bytes) -> str:
    """The format's name, one of FORMATS, by the file's first bytes; raises `unsupported-format`."""
    start = data[:16]
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(PNG_MARK):
        return "PNG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if start[:2] == b"BM":
        return "BMP"
    if start[4:8] == b"ftyp":
        # A file type box holds the main brand, a version, then compatible brands; many encoders put the general `mif1`
        # first and say only among the compatible ones which codec it is. 256 bytes hold more brands than any writes.
        box = data[8 : max(12, min(int.from_bytes(start[:4], "big"), 256))]
        brands = {box[i : i + 4] for i in range(0, len(box), 4) if i != 4}
        if brands & AVIF_BRANDS:
            return "AVIF"
        if brands & HEIF_BRANDS:
            return "HEIF"
    found = f"the bytes {start[:12].hex(' ')}" if data else "nothing: it is empty"
    raise problems.unsupported(found, ", ".join(FORMATS))


def examine(name: str, data: bytes, frame_limit: int) -> Container:
    """What the container of the format `name` tells; raises `image-truncated`, `image-corrupt`, `too-many-frames`.

    Walks stop at `frame_limit`, so that a file of a million empty frames costs no more than one at the limit.
    """
    try:
        match name:
            case "PNG":
                return _png(data)
            case "GIF":
                return _gif(data, frame_limit)
            case "WEBP":
                return _webp(data)
            case "TIFF":
                return _tiff(data, frame_limit)
            case "AVIF" | "HEIF":
                return _iso_media(name, data)
            case "JPEG":
                return _jpeg(data)
            case _:
                return Container()
    except (struct.error, IndexError, OverflowError) as exc:
        # Every walk reads forward, so the only way to read past the end, by however much, is that it comes too early.
        raise problems.truncated(name, f"it ends at byte {len(data)}, inside a block") from exc


def _jpeg(data: bytes) -> Container:
    scans, at = 0, 2
    missing: dict[int, set[int]] = {}  # of a progressive JPEG: each component's coefficients without their last bit
    while (found := _JPEG_MARKER.search(data, at)) is not None:
        kind, at = data[found.end() - 1], found.end()
        if kind == 0xD9:
            # The further pictures of a multi-picture JPEG are previews and gain maps of the first.
            if any(missing.values()):
                raise problems.truncated("JPEG", "its last passes over the picture are missing")
            return Container(frames=1, scans=scans, end=found.start())
        if kind not in (0x01, 0xD8):  # these two are markers without a segment
            (length,) = struct.unpack_from(">H", data, at)
            if kind == 0xC2:
                missing = {component: set(range(64)) for component in data[at + 8 : at + length : 3]}
            elif kind == 0xDA:
                scans += 1
                components = data[at + 3 : at + length - 3 : 2]
                first, last, bits = struct.unpack_from(">BBB", data, at + length - 3)
                if bits & 15 == 0:
                    for component in components:
                        missing.get(component, set()).difference_update(range(first, last + 1))
            at += length
    raise problems.truncated("JPEG", f"it ends at byte {len(data)}, before its end marker")


def has_all_rows(png: bytes) -> bool:
    """Whether the compressed data of a PNG, whose container is complete, hold every row that its header promises.

    Costs as much as decompressing them; nothing is kept.
    """
    width, height, depth, colour, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", png, 16)
    bits = depth * PNG_CHANNELS.get(colour, 0)
    wanted = 0
    for left, top, across, down in PNG_PASSES if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0:
            wanted += max(0, rows) * (1 + (columns * bits + 7) // 8)
    inflate = zlib.decompressobj()
    for piece in png_data(png):
        while piece and wanted > 0:
            wanted -= len(inflate.decompress(piece, 2**20))
            piece = inflate.unconsumed_tail
    return wanted <= len(inflate.flush()) if wanted > 0 else True


def png_data(png: bytes) -> Iterator[bytes]:
    """The pieces of compressed data, none empty, up to the first other chunk behind them: so far decoders read."""
    at, is_begun = 8, False
    while True:
        length, kind = struct.unpack_from(">I4s", png, at)
        if kind == b"IDAT":
            is_begun, end = True, at + 8 + length
            for start in range(at + 8, end, _PIECE_BYTES):
                yield png[start : min(start + _PIECE_BYTES, end)]
        elif is_begun:
            return
        at += 12 + length


def _png(data: bytes) -> Container:
    view = memoryview(data)
    frames, exif, at = 1, None, 8
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        (expected,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(view[at + 4 : end]) != expected:
            raise problems.corrupt("PNG", f"the checksum of its {kind!r} chunk at byte {at} is wrong")
        if (kind == b"IHDR") != (at == 8):
            raise problems.corrupt("PNG", f"its chunk at byte {at} is {kind!r}: one header comes first, and no other")
        if kind == b"acTL":
            (frames,) = struct.unpack_from(">I", data, at + 8)
        elif kind == b"eXIf":
            exif = data[at + 8 : end]
        elif kind == b"IEND":
            return Container(frames=max(1, frames), exif=exif)
        at = end + 4


def _gif(data: bytes, frame_limit: int) -> Container:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    frames, at = 0, 13 + _colour_table_bytes(flags)
    # Many old encoders leave the trailer out: the end is only too early inside a block.
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C:
            frames += 1
            if frames > frame_limit:
                raise problems.too_many_frames(frames, frame_limit)
            at += 11 + _colour_table_bytes(data[at + 9])
        elif data[at] == 0x21:
            at += 2
        else:
            if frames:
                break  # the codecs, too, take unknown bytes behind a frame for the end
            raise problems.corrupt("GIF", f"there is no block at byte {at}")
        while data[at]:
            at += 1 + data[at]
        at += 1
    if not frames:
        raise problems.truncated("GIF", f"it ends at byte {len(data)}, before its first frame")
    return Container(frames=frames, size=(width, height))


def _colour_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(data: bytes) -> Container:
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if len(data) < end:
        raise problems.truncated("WEBP", f"it has {len(data)} bytes and says that there are {end}")
    size, frames = None, 0
    for kind, payload, _ in _webp_chunks(data, end):
        if kind == b"VP8X" and size is None:
            extents = data[payload + 4 : payload + 10]
            size = int.from_bytes(extents[:3], "little") + 1, int.from_bytes(extents[3:], "little") + 1
        elif kind == b"VP8 " and size is None:
            width, height = struct.unpack_from("<HH", data, payload + 6)
            size = width & 0x3FFF, height & 0x3FFF
        elif kind == b"VP8L" and size is None:
            (bits,) = struct.unpack_from("<I", data, payload + 1)
            size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif kind == b"ANMF":
            frames += 1
    if size is None:
        raise problems.corrupt("WEBP", "it holds no picture")
    return Container(frames=max(1, frames), size=size)


def webp_still(data: bytes) -> bytes | None:
    """A WebP with the picture alone of one whose container is complete; None where that is an animation."""
    chunks, kinds = [], [b"VP8X", b"VP8 ", b"VP8L"]
    for kind, start, length in _webp_chunks(data, 8 + struct.unpack_from("<I", data, 4)[0]):
        if kind not in kinds:
            continue
        payload = data[start : start + length]
        if kind == b"VP8X":  # says, among other things, whether alpha is coded by itself: if not, none is looked for
            if payload[0] & _WEBP_ALPHA:
                kinds.append(b"ALPH")
            payload = bytes([payload[0] & _WEBP_ALPHA]) + payload[1:]
        chunks.append(kind + struct.pack("<I", length) + payload + bytes(length & 1))
        if kind in (b"VP8 ", b"VP8L"):
            body = b"WEBP" + b"".join(chunks)
            return b"RIFF" + struct.pack("<I", len(body)) + body
    return None


def _webp_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Of each chunk its kind, and where its payload starts and how long that is."""
    at = 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, length
        at += 8 + length + (length & 1)


def _tiff(data: bytes, frame_limit: int) -> Container:
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    offset, count, entry_bytes = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    seen: set[int] = set()
    (at,) = struct.unpack_from(order + offset, data, 8 if is_big else 4)
    while at:
        if at in seen:
            raise problems.corrupt("TIFF", f"its page directory at byte {at} refers to itself in a circle")
        if at >= len(data):
            raise problems.truncated("TIFF", f"it has {len(data)} bytes and a page directory at byte {at}")
        seen.add(at)
        if len(seen) > frame_limit:
            raise problems.too_many_frames(len(seen), frame_limit)
        (entries,) = struct.unpack_from(order + count, data, at)
        at += struct.calcsize(order + count) + entries * entry_bytes
        (at,) = struct.unpack_from(order + offset, data, at)
    if not seen:
        raise problems.corrupt("TIFF", "it holds no page")
    return Container(frames=len(seen))


def _iso_media(name: str, data: bytes) -> Container:
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + 8)
        elif length == 0:
            break  # the last box, as long as the file
        if length < 8:
            raise problems.corrupt(name, f"its box {kind!r} at byte {at} has the impossible length {length}")
        at += length
        if at > len(data):
            raise problems.truncated(name, f"it has {len(data)} bytes and its box {kind!r} ends at byte {at}")
    return Container()
