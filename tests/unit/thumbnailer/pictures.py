"""Pictures made by code, in every format and colour kind, and the profiles that some of them carry."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener(decode_threads=1)

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 180, 30), (30, 30, 220), (250, 250, 250)

# Options that make each encoder exact, or as near to it as it can be.
EXACT: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True, "method": 0},
    "GIF": {},
    "TIFF": {},
    "BMP": {},
    "AVIF": {"quality": 95, "subsampling": "4:4:4", "speed": 10},
    "HEIF": {"quality": 95, "chroma": 444},
}


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right: no rotation or mirror image is the same."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def landscape(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft random blobs of colour: compresses like a photo, and has something to see at every size."""
    grid = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    """The file's bytes in the format `name`, with the options in EXACT where none are given."""
    buffer = io.BytesIO()
    image.save(buffer, name, **(EXACT[name] | options))
    return buffer.getvalue()


def exif(**tags: object) -> bytes:
    """EXIF data with `orientation`, `taken` and `offset` (texts as a camera writes them)."""
    data = Image.Exif()
    if "orientation" in tags:
        data[0x0112] = tags["orientation"]
    details = {tag: tags[name] for name, tag in (("taken", 0x9003), ("offset", 0x9011)) if name in tags}
    if details:
        data.get_ifd(0x8769).update(details)
    return data.tobytes()


def png(rows: np.ndarray, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of `rows` (height, width[, channels]), 8 or 16 bits by their dtype; for what Pillow cannot write."""
    height, width = rows.shape[:2]
    big_endian = rows.astype(rows.dtype.newbyteorder(">")).reshape(height, -1)
    filtered = b"".join(b"\0" + row.tobytes() for row in big_endian)
    header = struct.pack(">IIBBBBB", width, height, rows.dtype.itemsize * 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(kind, payload)
        for kind, payload in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(filtered)), (b"IEND", b""))
    )


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


# Red, green and blue in XYZ, adapted to the white of D50, from the definitions of the colour spaces.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


def srgb_decode(values: np.ndarray) -> np.ndarray:
    """Linear light of sRGB values, both 0 to 1."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb_encode(linear: np.ndarray) -> np.ndarray:
    """sRGB values of linear light, both 0 to 1; what is outside is cut off."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def xyz_to_srgb(xyz: np.ndarray) -> np.ndarray:
    """sRGB levels, 0 to 255, of XYZ values under D50."""
    return srgb_encode(xyz @ np.linalg.inv(np.array(SRGB))) * 255


def lab_to_srgb(lightness: float, a: float, b: float) -> np.ndarray:
    """sRGB levels, 0 to 255, of a CIE L*a*b* colour under D50."""
    y = (lightness + 16) / 116
    f = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    return xyz_to_srgb(xyz)


def rgb_profile(primaries: Sequence[Sequence[float]], curve: np.ndarray) -> bytes:
    """An ICC display profile from three primaries in XYZ and one curve, linear light at even steps from 0 to 1."""
    table = b"curv" + bytes(4) + struct.pack(">I", len(curve)) + (curve * 65535).round().astype(">u2").tobytes()
    tags = {b"wtpt": _xyz((0.9642, 1.0, 0.8249))}
    for channel, primary in zip(b"rgb", primaries, strict=True):
        tags[bytes([channel]) + b"XYZ"] = _xyz(primary)
        tags[bytes([channel]) + b"TRC"] = table
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(curve: np.ndarray) -> bytes:
    """An ICC profile for grey pictures from one curve, linear light at even steps from 0 to 1."""
    table = b"curv" + bytes(4) + struct.pack(">I", len(curve)) + (curve * 65535).round().astype(">u2").tobytes()
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _xyz((0.9642, 1.0, 0.8249)), b"kTRC": table})


def cmyk_profile(inks: dict[tuple[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """An ICC printer profile on which the full inks in `inks` look as their L*a*b*; all others are white paper."""
    grid = b""
    for index in range(16):
        lightness, a, b = inks.get(tuple(index >> bit & 1 for bit in (3, 2, 1, 0)), (100, 0, 0))
        grid += bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(round(value * 65536) for value in np.eye(3).ravel()))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz((0.9642, 1.0, 0.8249)), b"A2B0": table, b"A2B1": table})


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    directory, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        directory += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s12s4s", size, bytes(4), 0x02400000, kind, space, connection, bytes(12), b"acsp")
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + directory + body
