"""Files made to do harm, and what each of them must come to. Everything here is made by code, each time the same bytes.

`CORPUS` is the table: a name, the bytes, and the ends that are right: problems by their slug, or READY with these
pixels. What a fuzzing run found is kept here too (`fuzz_prepare.py`).
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener(decode_threads=1)

READY = "ready"

DAMAGED = frozenset({"image-truncated", "image-corrupt"})
"""What is missing can look like something wrong: which of the two it is called matters to the reader alone."""


@dataclass(frozen=True)
class Hostile:
    """One file and its right ends.

    `ends`: slugs of problems, or READY, which must then look like `shown`. `refused`: the problem with which the
    gateway turns the upload away; None where only a decoder can tell.
    """

    name: str
    make: Callable[[], bytes]
    ends: frozenset[str]
    refused: str | None = None
    shown: Callable[[], Image.Image] | None = None


# --- Whole files, from which the others are made ----------------------------------------------------------------------

WIDTH, HEIGHT = 96, 64


@cache
def drawing(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Soft blobs of colour, and no row like another."""
    grid = np.random.default_rng(7).integers(20, 236, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    """The file's bytes in the format `name`."""
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


_FRAMES = {"save_all": True, "append_images": [drawing().rotate(180), drawing().rotate(90)]}

SEEDS: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encoded(drawing(), "JPEG", quality=95, subsampling=0),
    "progressive JPEG": lambda: encoded(drawing(), "JPEG", quality=95, progressive=True),
    "CMYK JPEG": lambda: encoded(drawing().convert("CMYK"), "JPEG", quality=95),
    "PNG": lambda: encoded(drawing(), "PNG"),
    "interlaced PNG": lambda: interlaced_png(drawing()),
    "palette PNG": lambda: encoded(drawing().quantize(16), "PNG"),
    "animated PNG": lambda: encoded(drawing(), "PNG", **_FRAMES),
    "GIF": lambda: encoded(drawing().quantize(64), "GIF"),
    "animated GIF": lambda: encoded(drawing(), "GIF", **_FRAMES),
    "TIFF": lambda: encoded(drawing(), "TIFF"),
    "LZW TIFF": lambda: encoded(drawing(), "TIFF", compression="tiff_lzw"),
    "deflate TIFF": lambda: encoded(drawing(), "TIFF", compression="tiff_adobe_deflate"),
    "PackBits TIFF": lambda: encoded(drawing(), "TIFF", compression="packbits"),
    "JPEG TIFF": lambda: encoded(drawing(), "TIFF", compression="jpeg"),
    "fax TIFF": lambda: encoded(drawing().convert("1"), "TIFF", compression="group4"),
    "BigTIFF": lambda: encoded(drawing(), "TIFF", big_tiff=True),
    "BMP": lambda: encoded(drawing(), "BMP"),
    "lossy WebP": lambda: encoded(drawing(), "WEBP", quality=95),
    "lossless WebP": lambda: encoded(drawing(), "WEBP", lossless=True),
    "WebP with alpha": lambda: encoded(drawing().convert("RGBA").rotate(30), "WEBP", quality=95),
    "animated WebP": lambda: encoded(drawing(), "WEBP", **_FRAMES),
    "AVIF": lambda: encoded(drawing(), "AVIF", quality=95, subsampling="4:4:4", speed=10, max_threads=1),
    "AVIF sequence": lambda: encoded(drawing(), "AVIF", speed=10, max_threads=1, **_FRAMES),
    "HEIC": lambda: encoded(drawing(), "HEIF", quality=95, chroma=444),
}
"""One whole file of each kind that is read."""


def png(width: int, height: int, rows: bytes, *before: tuple[bytes, bytes], kind: int = 2, interlace: int = 0) -> bytes:
    """A PNG of 8 bits a channel whose data are these rows, filter bytes included, with chunks put before them."""
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, interlace)
    chunks = ((b"IHDR", header), *before, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    """One chunk of a PNG with its checksum."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def interlaced_png(image: Image.Image, passes: int = 7) -> bytes:
    """The picture as an interlaced PNG, or the first of its passes."""
    pixels = np.asarray(image.convert("RGB"))
    steps = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, across in steps[:passes] for row in pixels[top::down, left::across]
    )
    return png(*image.size, rows, interlace=1)


def rgb_rows(image: Image.Image, count: int) -> bytes:
    """The first rows of a picture as PNG wants them."""
    return b"".join(b"\0" + row.tobytes() for row in np.asarray(image.convert("RGB"))[:count])


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP file of these chunks."""
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) & 1) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def tiff(entries: list[tuple[int, int, int, int]], data: bytes = b"", next_ifd: int = 0) -> bytes:
    """A little-endian TIFF of one directory, (tag, type, count, value or offset); `data` begins at byte 8."""
    at = 8 + len(data)
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return (
        b"II*\0"
        + struct.pack("<I", at)
        + data
        + struct.pack("<H", len(entries))
        + directory
        + struct.pack("<I", next_ifd)
    )


def tiff_of_one_tile(width: int, height: int, data: bytes | None = None) -> bytes:
    """A TIFF of one pixel, which lies in a tile of this size; `data` in place of the tile's deflated zeros."""
    payload = zlib.compress(bytes(width * height * 3), 9) if data is None else data
    bits = struct.pack("<4H", 8, 8, 8, 0)
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, 8), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3)]
    entries += [(322, 4, 1, width), (323, 4, 1, height), (324, 4, 1, 16), (325, 4, 1, len(payload))]
    return tiff(entries, bits + payload)


def flat(name: str, mode: str = "RGB", side_px: int = 6000, **options: object) -> bytes:
    """A few kilobytes that unpack to a large square of one colour."""
    return encoded(Image.new(mode, (side_px, side_px)), name, **options)


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A whole small PNG with these chunks before its pixels."""
    whole = SEEDS["PNG"]()
    return whole[:33] + b"".join(png_chunk(*chunk) for chunk in chunks) + whole[33:]


def png_with_notes(count: int) -> bytes:
    """A whole small PNG with so many compressed notes of a megabyte."""
    packed = zlib.compress(bytes(2**20), 9)
    return png_with(*((b"zTXt", b"note %d\0\0" % number + packed) for number in range(count)))


def gif_that_grows(side_px: int) -> bytes:
    """A GIF whose screen has one pixel, and whose first frame is a square of this size."""
    data = bytearray(flat("GIF", "P", side_px))
    struct.pack_into("<HH", data, 6, 1, 1)
    return bytes(data)


def box(kind: bytes, *payload: bytes) -> bytes:
    """One box of an AVIF or HEIC file."""
    body = b"".join(payload)
    return struct.pack(">I4s", len(body) + 8, kind) + body


# --- Where files can be cut -------------------------------------------------------------------------------------------


def jpeg_boundaries(data: bytes) -> Iterator[int]:
    """Where each segment begins, where its payload does, and where coded data begin and end."""
    at = 2
    while at < len(data) - 1:
        if data[at] != 0xFF or data[at + 1] in (0, *range(0xD0, 0xD8)):
            at += 1
            continue
        yield at
        if data[at + 1] == 0xD9:
            return
        yield at + 4
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield at


def png_boundaries(data: bytes) -> Iterator[int]:
    """Where each chunk, its name, its payload and its checksum begin."""
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield from (at, at + 4, at + 8, at + 8 + length)
        at += 12 + length


def gif_boundaries(data: bytes) -> Iterator[int]:
    """Where each block, its colour table and each of its pieces begins."""

    def table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    yield from (6, 13)
    at = 13 + table(data[10])
    while data[at] != 0x3B:
        yield at
        if data[at] == 0x2C:
            yield at + 10
            at += 10 + table(data[at + 9])
            yield at
            at += 1
        else:
            at += 2
        while data[at]:
            yield at
            at += 1 + data[at]
        yield at
        at += 1


def tiff_boundaries(data: bytes) -> Iterator[int]:
    """Where each directory, each of its entries, what those refer to, and each strip begins and ends."""
    is_big = data[2] == 43
    offset, head, entry = ("<Q", "<Q", "<HHQQ") if is_big else ("<I", "<H", "<HHII")
    widths = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 16: 8}
    start = 8 if is_big else 4
    yield from (2, start)
    (at,) = struct.unpack_from(offset, data, start)
    while at:
        yield at
        (count,) = struct.unpack_from(head, data, at)
        at += struct.calcsize(head)
        strips: dict[int, list[int]] = {}
        for _ in range(count):
            yield at
            tag, kind, number, value = struct.unpack_from(entry, data, at)
            size = widths.get(kind, 1) * number
            inline = size <= struct.calcsize(offset)
            if not inline:
                yield from (value, value + size)
            if tag in (273, 279):
                where = at + struct.calcsize(entry) - struct.calcsize(offset) if inline else value
                code = {2: "H", 4: "I", 8: "Q"}[widths[kind]]
                strips[tag] = list(struct.unpack_from(f"<{number}{code}", data, where))
            at += struct.calcsize(entry)
        for where, length in zip(strips[273], strips[279], strict=True):
            yield from (where, where + length)
        yield at
        (at,) = struct.unpack_from(offset, data, at)


def webp_boundaries(data: bytes) -> Iterator[int]:
    """Where the file's header and each chunk, its length and its payload begin."""
    yield from (4, 8, 12)
    at = 12
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield from (at, at + 4, at + 8, at + 8 + length)
        at += 8 + length + (length & 1)


def box_boundaries(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[int]:
    """Where each box and what is in it begins, boxes in boxes too."""
    at, stop = start, len(data) if stop is None else stop
    while at + 8 <= stop:
        length, kind = struct.unpack_from(">I4s", data, at)
        yield from (at, at + 4, at + 8)
        inner = {b"meta": 12, b"iprp": 8, b"ipco": 8, b"iinf": 14, b"moov": 8, b"trak": 8, b"mdia": 8, b"minf": 8}
        if kind in inner:
            yield from box_boundaries(data, at + inner[kind], at + length)
        at += length
        yield at


def bmp_boundaries(data: bytes) -> Iterator[int]:
    """Where the headers end, and each row of pixels begins."""
    (pixels,) = struct.unpack_from("<I", data, 10)
    yield from (14, 18, *range(pixels, len(data), WIDTH * 3))


def boundaries(name: str, data: bytes) -> list[int]:
    """Every boundary inside a file that SEEDS made under this name."""
    walks = {
        "JPEG": jpeg_boundaries,
        "PNG": png_boundaries,
        "GIF": gif_boundaries,
        "TIFF": tiff_boundaries,
        "WebP": webp_boundaries,
        "BMP": bmp_boundaries,
    }
    kind = next((kind for kind in ("TIFF", *walks) if kind in name), None)
    return sorted({at for at in (walks[kind] if kind else box_boundaries)(data) if 0 < at < len(data)})


# --- The table --------------------------------------------------------------------------------------------------------


def _one(*slugs: str) -> frozenset[str]:
    return frozenset(slugs)


def _first_frame(name: str) -> Callable[[], Image.Image]:
    """What a whole seed shows, by Pillow itself."""

    def shown() -> Image.Image:
        image = Image.open(io.BytesIO(SEEDS[name]()))
        return image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")

    return cache(shown)


def _cuts() -> Iterator[Hostile]:
    """Every seed, cut at each of its boundaries."""
    for name, make in SEEDS.items():
        for at in boundaries(name, make()):
            # Fewer bytes than the format's own mark are no file of it.
            is_marked = at >= (4 if name.endswith(("JPEG", "TIFF")) else 12)
            whole_enough = "animated GIF" in name  # without its later frames and its trailer it shows the same
            yield Hostile(
                f"{name} cut at byte {at}",
                lambda make=make, at=at: make()[:at],
                DAMAGED | {"unsupported-format"} if not is_marked else DAMAGED | {READY} if whole_enough else DAMAGED,
                shown=_first_frame(name),
            )


def _short_inside() -> Iterator[Hostile]:
    """Complete containers whose coded pixels end too early."""
    yield Hostile("PNG of 40 of its 64 rows", lambda: png(WIDTH, HEIGHT, rgb_rows(drawing(), 40)), DAMAGED)
    yield Hostile("PNG of 63 of its 64 rows", lambda: png(WIDTH, HEIGHT, rgb_rows(drawing(), 63)), DAMAGED)
    yield Hostile("PNG without a row", lambda: png(WIDTH, HEIGHT, b""), DAMAGED)
    for passes in range(1, 7):
        yield Hostile(
            f"interlaced PNG of {passes} of 7 passes", lambda passes=passes: interlaced_png(drawing(), passes), DAMAGED
        )
    for name in ("JPEG", "CMYK JPEG", "progressive JPEG"):
        for percent in (20, 50, 90, 99):
            yield Hostile(
                f"{name} with its end put after {percent} % of its first scan",
                lambda name=name, percent=percent: jpeg_ending_early(SEEDS[name](), percent),
                DAMAGED,
            )
    for scans in range(1, 10):
        yield Hostile(
            f"progressive JPEG of {scans} of 10 scans",
            lambda scans=scans: jpeg_of_scans(SEEDS["progressive JPEG"](), scans),
            DAMAGED,
        )
    for name in ("lossy WebP", "lossless WebP", "WebP with alpha"):
        for percent in (30, 95):
            yield Hostile(
                f"{name} whose lengths fit {percent} % of its pixels",
                lambda name=name, percent=percent: webp_of_part(SEEDS[name](), percent),
                DAMAGED,
            )
    for name in ("AVIF", "HEIC"):
        for percent in (30, 95):
            yield Hostile(
                f"{name} whose media box fits {percent} % of its pixels",
                lambda name=name, percent=percent: boxes_of_part(SEEDS[name](), percent),
                DAMAGED,
            )
    for name in ("LZW TIFF", "deflate TIFF", "PackBits TIFF"):
        for percent in (30, 99):
            yield Hostile(
                f"{name} whose strip has {percent} % of its bytes",
                lambda name=name, percent=percent: tiff_of_part(SEEDS[name](), percent),
                DAMAGED,
            )
    yield Hostile("BMP of one row more than it has", lambda: patched(SEEDS["BMP"](), 22, "<i", HEIGHT + 1), DAMAGED)
    yield Hostile("GIF of more rows than its frame has", gif_of_more_rows, DAMAGED)


def jpeg_ending_early(data: bytes, percent: int) -> bytes:
    """A JPEG with an end marker inside its first scan."""
    start = data.index(b"\xff\xda") + 2
    start += int.from_bytes(data[start : start + 2], "big")
    stop = min(at for at in jpeg_boundaries(data) if at > start)
    return data[: start + (stop - start) * percent // 100].rstrip(b"\xff") + b"\xff\xd9"


def jpeg_of_scans(data: bytes, scans: int) -> bytes:
    """A progressive JPEG that ends in order after so many of its scans."""
    at = -1
    for _ in range(scans + 1):
        at = data.index(b"\xff\xda", at + 1)
    return data[:at] + b"\xff\xd9"


def webp_of_part(data: bytes, percent: int) -> bytes:
    """A WebP whose picture chunk was cut, with lengths that fit."""
    at = data.rindex(b"VP8")
    keep = (len(data) - at - 8) * percent // 100
    cut = bytearray(data[: at + 8 + keep] + bytes(keep & 1))
    struct.pack_into("<I", cut, at + 4, keep)
    struct.pack_into("<I", cut, 4, len(cut) - 8)
    return bytes(cut)


def boxes_of_part(data: bytes, percent: int) -> bytes:
    """An AVIF or HEIC whose last box was cut, with a length that fits."""
    at = data.index(b"mdat") - 4
    cut = bytearray(data[: at + 8 + (len(data) - at - 8) * percent // 100])
    struct.pack_into(">I", cut, at, len(cut) - at)
    return bytes(cut)


def tiff_of_part(data: bytes, percent: int) -> bytes:
    """A TIFF of one strip, which says that it has fewer bytes."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    changed = bytearray(data)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, _, number, value = struct.unpack_from("<HHII", data, entry)
        if tag == 279 and number == 1:
            struct.pack_into("<I", changed, entry + 8, value * percent // 100)
    return bytes(changed)


def gif_of_more_rows() -> bytes:
    """A GIF of 40 rows that says it has 64, on its screen and on its frame."""
    data = bytearray(encoded(drawing().crop((0, 0, WIDTH, 40)).quantize(64), "GIF"))
    frame = data.index(b"\x2c\0\0\0\0", 13)
    struct.pack_into("<H", data, 8, HEIGHT)
    struct.pack_into("<H", data, frame + 7, HEIGHT)
    return bytes(data)


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    """The bytes with others in one place."""
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def _absurd_sizes() -> Iterator[Hostile]:
    """Headers that promise too much, and sides that are as long as may be."""
    large, long = _one("too-many-pixels"), _one("image-side-too-long")
    yield Hostile("PNG of 2^31 - 1 pixels a side", lambda: png(2**31 - 1, 2**31 - 1, bytes(100)), long)
    yield Hostile("PNG of 60,000 pixels a side", lambda: png(60_000, 60_000, bytes(100)), large)
    yield Hostile("PNG of no width", lambda: png(0, HEIGHT, bytes(100)), DAMAGED)
    yield Hostile("JPEG of 65,535 pixels a side", lambda: jpeg_saying(65_535, 65_535), large)
    yield Hostile("JPEG of no height", lambda: jpeg_saying(WIDTH, 0), DAMAGED)
    yield Hostile("GIF of 65,535 pixels a side", lambda: patched(SEEDS["GIF"](), 6, "<HH", 65_535, 65_535), large)
    yield Hostile("GIF whose first frame is larger than may be", lambda: gif_that_grows(12_000), large)
    yield Hostile("TIFF of 2^32 - 1 pixels a side", lambda: tiff_saying(2**32 - 1, 2**32 - 1), long)
    yield Hostile("TIFF of 60,000 pixels a side", lambda: tiff_saying(60_000, 60_000), large)
    yield Hostile("TIFF of one pixel in a tile of 65,536 a side", lambda: tiff_of_one_tile(65_536, 65_536, b"x"), long)
    yield Hostile("BMP of 60,000 pixels a side", lambda: patched(SEEDS["BMP"](), 18, "<ii", 60_000, 60_000), large)
    yield Hostile("BMP of a negative width", lambda: patched(SEEDS["BMP"](), 18, "<i", -WIDTH), long)
    yield Hostile(
        "WebP of 2^24 pixels a side", lambda: riff((b"VP8X", bytes(4) + b"\xff" * 6), (b"VP8L", bytes(9))), long
    )
    yield Hostile(
        "WebP of 16,384 pixels a side", lambda: riff((b"VP8L", b"\x2f" + struct.pack("<I", 2**28 - 1))), large
    )
    for name in ("AVIF", "HEIC"):
        yield Hostile(
            f"{name} of 2^32 - 1 pixels a side", lambda name=name: saying_extent(name, 2**32 - 1), long | DAMAGED
        )
        yield Hostile(f"{name} of 30,000 pixels a side", lambda name=name: saying_extent(name, 30_000), large | DAMAGED)
    yield Hostile("JPEG of 65,535 x 8", lambda: jpeg_saying(65_535, 8), long)
    longest = {(65_500, 1): ("JPEG",), (1, 65_500): ("JPEG",), (65_500, 384): ("JPEG",), (384, 65_500): ("JPEG",)}
    longest |= {(65_535, 1): ("PNG", "TIFF", "BMP", "GIF"), (1, 65_535): ("PNG", "TIFF", "BMP", "GIF")}
    for (width, height), names in longest.items():
        for name in names:
            yield Hostile(
                f"{name} of {width} x {height}",
                lambda name=name, width=width, height=height: flat_of(name, width, height),
                _one(READY),
                shown=lambda width=width, height=height: Image.new("RGB", (width, height), RED),
            )
    for name in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "AVIF"):
        yield Hostile(
            f"{name} of 1 x 1",
            lambda name=name: flat_of(name, 1, 1),
            _one(READY),
            shown=lambda: Image.new("RGB", (1, 1), RED),
        )


RED = (200, 30, 40)


def flat_of(name: str, width: int, height: int) -> bytes:
    """A picture in red of this size."""
    return encoded(Image.new("RGB", (width, height), RED), name)


def jpeg_saying(width: int, height: int) -> bytes:
    """A JPEG whose header says another size."""
    data = SEEDS["JPEG"]()
    return patched(data, data.index(b"\xff\xc0") + 5, ">HH", height, width)


def tiff_saying(width: int, height: int) -> bytes:
    """A TIFF whose directory says another size."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1)]
    return tiff([*entries, (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 100)], bytes(100))


def saying_extent(name: str, side_px: int) -> bytes:
    """An AVIF or HEIC whose item property says another size."""
    data = SEEDS[name]()
    return patched(data, data.index(b"ispe") + 8, ">II", side_px, side_px)


def _bombs() -> Iterator[Hostile]:
    """Small files that unpack to more than a decode may have (`MEMORY_BYTES`), or to more frames than one may have."""
    memory, frames = _one("image-needs-too-much-memory"), _one("too-many-frames")
    yield Hostile(
        "interlaced PNG that unpacks a thousandfold",
        lambda: png(8000, 8000, bytes(24_002) * 8000, interlace=1),
        memory,
    )
    yield Hostile(
        "PNG that unpacks a thousandfold, row by row",
        lambda: png(8000, 8000, bytes(24_001) * 8000),
        _one(READY),
        shown=lambda: Image.new("RGB", (1600, 1600)),
    )
    yield Hostile("PNG with notes of 70 MB", lambda: png_with_notes(70), memory | DAMAGED)
    yield Hostile(
        "PNG with a profile of 64 MB",
        lambda: png_with((b"iCCP", b"x\0\0" + zlib.compress(bytes(2**26), 9))),
        DAMAGED,
    )
    yield Hostile("progressive JPEG of 36 MP", lambda: flat("JPEG", "CMYK", progressive=True), memory)
    yield Hostile("WebP of 36 MP", lambda: flat("WEBP", method=0), memory)
    yield Hostile("AVIF of 36 MP", lambda: flat("AVIF", speed=10, max_threads=1), memory)
    yield Hostile("TIFF of 36 M floats", lambda: flat("TIFF", "F", compression="tiff_adobe_deflate"), memory)
    yield Hostile("TIFF of one pixel in a tile of 81 MP", lambda: tiff_of_one_tile(9008, 9008), memory)
    yield Hostile("GIF of 10,000 frames", lambda: gif_of_frames(10_000), frames)
    yield Hostile("PNG of 10,000 frames", lambda: png_with((b"acTL", struct.pack(">II", 10_000, 0))), frames)
    yield Hostile("WebP of 10,000 frames", webp_of_frames, frames)
    yield Hostile("TIFF of 10,000 pages", lambda: tiff_of_pages(10_000), frames)
    yield Hostile("JPEG of 600 scans", lambda: jpeg_with_scans(600), _one("too-many-scans"))


def gif_of_frames(count: int) -> bytes:
    """A GIF that shows its one small frame so many times."""
    data = SEEDS["GIF"]()
    frame = data[data.rindex(b"\x2c\0\0\0\0") : -1]
    return data[:-1] + frame * (count - 1) + b";"


def webp_of_frames(count: int = 10_000) -> bytes:
    """An animated WebP of so many frames of one small picture."""
    picture = SEEDS["lossless WebP"]()[12:]
    size = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    frame = bytes(6) + size + bytes(4) + picture
    return riff((b"VP8X", b"\x02\0\0\0" + size), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * count)


def tiff_of_pages(count: int) -> bytes:
    """A TIFF of so many pages without a picture."""
    pages = (struct.pack("<HI", 0, 8 + 6 * (page + 1) if page + 1 < count else 0) for page in range(count))
    return b"II*\0" + struct.pack("<I", 8) + b"".join(pages)


def jpeg_with_scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = SEEDS["progressive JPEG"]()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def _shows(seed: str, name: str, make: Callable[[], bytes]) -> Hostile:
    """A file that shows what a whole one shows, whatever else is in it."""
    return Hostile(name, make, _one(READY), shown=_first_frame(seed))


def _strange() -> Iterator[Hostile]:
    """Wrong marks, files that are two things at once, circles, and notes of every size."""
    nothing = "unsupported-format"
    for name, data in {
        "one zero": b"\0",
        "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "ZIP": zipped(),
        "program": b"\x7fELF\2\1\1" + bytes(57),
        "ICO": b"\0\0\1\0\1\0" + bytes(100),
        "film": box(b"ftyp", b"isom", bytes(4), b"mp42") + bytes(100),
    }.items():
        yield Hostile(name, lambda data=data: data, _one(nothing), refused=nothing)
    yield Hostile("file of no bytes", bytes, _one(nothing), refused="empty-file")
    for name in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "lossy WebP", "AVIF", "HEIC"):
        whole = SEEDS[name]
        yield Hostile(f"{name} without its first byte", lambda whole=whole: whole()[1:], _one(nothing), refused=nothing)
        yield Hostile(f"{name} behind a ZIP", lambda whole=whole: zipped() + whole(), _one(nothing), refused=nothing)
        for behind, data in (("a ZIP", zipped()), ("HTML", b"<script>alert(1)</script>"), ("zeros", bytes(2**16))):
            longer = f"{name} with {behind} behind its end"
            if name in ("AVIF", "HEIC") and behind != "zeros":
                # Up to its last byte such a file consists of boxes, and zeros are one that goes on to the end.
                yield Hostile(longer, lambda whole=whole, data=data: whole() + data, DAMAGED)
            else:
                yield _shows(name, longer, lambda whole=whole, data=data: whole() + data)
    marks = {"JPEG": b"\xff\xd8\xff\xe0", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF89a", "BMP": b"BM"}
    for name, mark in marks.items():
        yield Hostile(f"{name}'s mark before a WebP", lambda mark=mark: mark + SEEDS["lossy WebP"](), DAMAGED)
    yield _shows("JPEG", "JPEG with a ZIP in a segment", lambda: jpeg_with(0xE7, zipped()))
    yield _shows("JPEG", "JPEG that is a PDF in its comment", lambda: jpeg_with(0xFE, b"%PDF-1.4\n"))
    yield Hostile("TIFF whose pages form a circle", lambda: tiff_in_a_circle(1), DAMAGED)
    yield Hostile("TIFF of two pages that form a circle", lambda: tiff_in_a_circle(2), DAMAGED)
    yield Hostile("BigTIFF whose directory has 2^64 - 1 entries", lambda: big_tiff_of_entries(2**64 - 1), DAMAGED)
    yield Hostile("TIFF whose directory has 65,535 entries", lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(100), DAMAGED)
    for name, image, options in (
        ("grey JPEG", Image.new("RGB", (97, 63), (128, 128, 128)), {"restart_marker_blocks": 2}),
        ("grey progressive JPEG", Image.new("RGB", (97, 63), (128, 128, 128)), {"progressive": True}),
        ("black PNG", Image.new("RGB", (97, 63)), {}),
        ("transparent PNG", Image.new("RGBA", (97, 63)), {}),
    ):
        # As what is missing looks in a file that was cut.
        make = partial(encoded, image, name.rpartition(" ")[2], **options)
        yield Hostile(f"whole {name}", make, _one(READY), shown=lambda image=image: image)
    yield _shows("PNG", "PNG with 250,000 empty chunks", lambda: png_with(*[(b"prVt", b"")] * 250_000))
    yield Hostile(
        "TIFF whose tags overlap", tiff_of_overlapping_tags, DAMAGED | {READY}, shown=lambda: Image.new("RGB", (1, 1))
    )
    yield _shows(
        "JPEG", "JPEG with EXIF that refers to itself", lambda: jpeg_with(0xE1, b"Exif\0\0" + exif_in_a_circle())
    )
    yield _shows("JPEG", "JPEG with 500 comments of 64 KB", lambda: jpeg_with(0xFE, bytes(65_000), 500))
    yield _shows("JPEG", "JPEG with 100,000 empty comments", lambda: jpeg_with(0xFE, b"", 100_000))
    yield _shows("JPEG", "JPEG with a torn colour profile", lambda: jpeg_with(0xE2, b"ICC_PROFILE\0\1\7nonsense"))
    yield _shows("PNG", "PNG with a private chunk of 20 MB", lambda: png_with((b"prVt", bytes(20 * 2**20))))
    yield _shows("PNG", "PNG with EXIF of nonsense", lambda: png_with((b"eXIf", b"II*\0" + b"\xff" * 200)))
    yield Hostile(
        "PNG with a second header", lambda: png_with((b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))), DAMAGED
    )
    yield _shows("GIF", "GIF with a comment of 10 MB", gif_with_comment)
    yield _shows("lossless WebP", "WebP with EXIF of 20 MB", webp_with_exif)
    yield _shows("AVIF", "AVIF with a free box of 20 MB", lambda: SEEDS["AVIF"]() + box(b"free", bytes(20 * 2**20)))
    yield Hostile("AVIF whose first box has no end", lambda: patched(SEEDS["AVIF"](), 0, ">I", 0), DAMAGED)
    yield Hostile("AVIF whose first box has 4 bytes", lambda: patched(SEEDS["AVIF"](), 0, ">I", 4), DAMAGED | {nothing})


def zipped() -> bytes:
    """A small archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("evil.html"), "<script>alert(1)</script>")
    return buffer.getvalue()


def jpeg_with(marker: int, payload: bytes, times: int = 1) -> bytes:
    """A whole small JPEG with a segment put behind its first one."""
    whole = SEEDS["JPEG"]()
    segment = struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
    return whole[:20] + segment * times + whole[20:]


def tiff_in_a_circle(pages: int) -> bytes:
    """A TIFF whose last page is followed by its first."""
    return (
        b"II*\0"
        + struct.pack("<I", 8)
        + b"".join(struct.pack("<HI", 0, 8 + 6 * ((page + 1) % pages)) for page in range(pages))
    )


def big_tiff_of_entries(count: int) -> bytes:
    """A BigTIFF whose directory says that it has so many entries."""
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, count) + bytes(100)


def exif_in_a_circle() -> bytes:
    """EXIF whose directory names itself as its details."""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)


def tiff_of_overlapping_tags() -> bytes:
    """A TIFF of one pixel with 4,000 tags that all refer to the same 200 KB: 800 MB for who copies them."""
    body = bytes(200_000)
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 1)]
    return tiff([*entries, *((tag, 1, len(body), 8) for tag in range(50_000, 54_000))], body)


def gif_with_comment() -> bytes:
    """A GIF with a comment of 10 MB before its frame."""
    data = SEEDS["GIF"]()
    frame = data.rindex(b"\x2c\0\0\0\0")
    return data[:frame] + b"!\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0" + data[frame:]


def webp_with_exif() -> bytes:
    """A WebP with 20 MB of zeros for EXIF."""
    size = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    picture = SEEDS["lossless WebP"]()[20:]
    return riff((b"VP8X", b"\x08\0\0\0" + size), (b"VP8L", picture), (b"EXIF", bytes(20 * 2**20)))


MEMORY_BYTES = 128 * 2**20
"""The ceiling under which the bombs of this table are too much; those of a worker are higher, and so would bombs be."""

CORPUS: dict[str, Hostile] = {}
for _family in (_cuts, _short_inside, _absurd_sizes, _bombs, _strange):
    for _hostile in _family():
        if CORPUS.setdefault(_hostile.name, _hostile) is not _hostile:
            raise ValueError(f"two files are called {_hostile.name!r}")
