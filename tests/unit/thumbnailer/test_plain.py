"""Plain JPEG, PNG and WebP, decoded to arrays: pixel for pixel as Pillow does, and what is not plain is left to it."""

from __future__ import annotations

import io
import mmap
import struct
import zlib

import numpy as np
import pytest
from pictures import encoded, exif, landscape, png_chunk
from PIL import Image

from thumbnailer import containers, libwebp, plain

COLOURS = {2: "RGB", 6: "RGBA"}


def noise(mode: str, width: int, height: int) -> Image.Image:
    channels = np.random.default_rng(5).integers(0, 256, (height, width, len(mode)), np.uint8)
    return Image.fromarray(channels)


def reduced(data: bytes, factor: int = 1) -> np.ndarray | None:
    image = Image.open(io.BytesIO(data))
    return plain.reduced(str(image.format), data, image, factor)


def by_pillow(data: bytes, factor: int = 1) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    return np.asarray((image.convert("RGBa") if image.mode == "RGBA" else image).reduce(factor))


def filtered_png(colour: int, width: int, height: int, pieces: int = 1, level: int = 6) -> bytes:
    """A PNG of random rows with a random filter each, its data in so many chunks, between empty ones."""
    random = np.random.default_rng(width)
    rows = random.integers(0, 256, (height, 1 + width * len(COLOURS[colour])), np.uint8)
    rows[:, 0] = random.integers(0, 5, height)
    coded = zlib.compress(rows.tobytes(), level)
    size = -(-len(coded) // pieces)
    parts = [coded[at : at + size] for at in range(0, len(coded), size)]
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    data = b"".join(png_chunk(b"IDAT", part) + png_chunk(b"IDAT", b"") for part in parts)
    return containers.PNG_MARK + png_chunk(b"IHDR", header) + data + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (331, 1), (97, 64), (64, 257), (331, 150)], ids=str)
@pytest.mark.parametrize(("pieces", "level"), [(1, 6), (7, 0), (300, 9)])
@pytest.mark.parametrize("band_bytes", [1, 1000, plain.BAND_BYTES])
def test_every_filter_of_a_png_is_undone_as_pillow_does(
    monkeypatch: pytest.MonkeyPatch, colour: int, size: tuple[int, int], pieces: int, level: int, band_bytes: int
) -> None:
    monkeypatch.setattr(plain, "BAND_BYTES", band_bytes)
    data = filtered_png(colour, *size, pieces, level)
    assert np.array_equal(reduced(data), by_pillow(data))


@pytest.mark.parametrize("mode", COLOURS.values())
@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False, "quality": 70}], ids=str)
@pytest.mark.parametrize("with_notes", [False, True])
def test_a_webp_is_decoded_to_the_pixels_that_pillow_finds(
    mode: str, options: dict[str, object], with_notes: bool
) -> None:
    notes = {"exif": exif(orientation=6), "icc_profile": b"none", "xmp": b"<x/>"} if with_notes else {}
    data = encoded(noise(mode, 97, 65), "WEBP", **options, **notes)
    assert np.array_equal(reduced(data), by_pillow(data))


def test_a_webp_that_says_it_has_no_alpha_is_opaque_whatever_it_holds() -> None:
    data = bytearray(encoded(noise("RGBA", 97, 65), "WEBP", lossless=False, quality=70))
    assert data[12:16] == b"VP8X"
    assert data[30:34] == b"ALPH"
    data[20] &= ~0x10  # where the container says that alpha is coded by itself
    pixels = reduced(bytes(data))
    assert pixels is not None
    assert np.all(pixels[..., 3] == 255)
    assert np.array_equal(pixels, by_pillow(bytes(data)))


@pytest.mark.parametrize("name", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", COLOURS.values())
@pytest.mark.parametrize("size", [(120, 90), (121, 91), (119, 89)], ids=str)
@pytest.mark.parametrize("factor", [2, 3, 7])
def test_blocks_are_averaged_as_pillow_averages_them(
    monkeypatch: pytest.MonkeyPatch, name: str, mode: str, size: tuple[int, int], factor: int
) -> None:
    monkeypatch.setattr(plain, "BAND_BYTES", 5000)
    data = encoded(noise(mode, *size), name)
    assert np.array_equal(reduced(data, factor), by_pillow(data, factor))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_jpeg_is_decoded_at_scale_to_the_pixels_that_pillow_finds(
    subsampling: str, progressive: bool, scale: int, factor: int
) -> None:
    data = encoded(landscape(901, 700), "JPEG", subsampling=subsampling, progressive=progressive)
    image, drafted = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    for each in (image, drafted):
        each.draft(None, (900 // scale, 700 // scale))
    assert drafted.width == -(-901 // scale)
    assert np.array_equal(plain.reduced("JPEG", data, image, factor), np.asarray(drafted.reduce(factor)))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 1), (8, 8), (17, 9)], ids=str)
def test_the_smallest_jpegs_are_decoded_to_the_pixels_that_pillow_finds(size: tuple[int, int]) -> None:
    data = encoded(landscape(*size), "JPEG")
    assert np.array_equal(reduced(data), by_pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_of_other_colours_is_left_to_pillow(mode: str) -> None:
    assert reduced(encoded(landscape(40, 30).convert(mode), "JPEG")) is None


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_libjpeg_warns_of_is_left_to_pillow(progressive: bool) -> None:
    data = encoded(landscape(400, 300), "JPEG", progressive=progressive)
    assert reduced(data) is not None
    assert reduced(data[: len(data) * 3 // 4] + data[-2:]) is None


def test_a_jpeg_that_ends_in_grey_is_left_to_pillow() -> None:
    image = landscape(64, 48)
    image.paste((128, 128, 128), (48, 32, 64, 48))
    assert reduced(encoded(image, "JPEG", quality=100, subsampling="4:4:4")) is None


def test_a_jpeg_that_would_be_held_twice_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(landscape(40, 30), "JPEG")
    monkeypatch.setattr(plain, "JPEG_PIXELS", 40 * 30)
    assert reduced(data) is not None
    monkeypatch.setattr(plain, "JPEG_PIXELS", 40 * 30 - 1)
    assert reduced(data) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16"])
def test_a_png_of_other_colours_is_left_to_pillow(mode: str) -> None:
    assert reduced(encoded(landscape(40, 30).convert("L" if mode == "I;16" else "RGB").convert(mode), "PNG")) is None


def test_a_png_with_a_transparent_colour_is_left_to_pillow() -> None:
    assert reduced(encoded(landscape(40, 30), "PNG", transparency=(1, 2, 3))) is None


@pytest.mark.parametrize("depth_and_rest", [(16, 2, 0, 0, 0), (8, 2, 0, 0, 1)], ids=["16 bits", "interlaced"])
def test_a_png_of_16_bits_or_interlaced_is_left_to_pillow(depth_and_rest: tuple[int, ...]) -> None:
    whole = encoded(landscape(40, 30), "PNG")
    header = whole[16:24] + bytes(depth_and_rest)
    assert reduced(whole[:8] + png_chunk(b"IHDR", header) + whole[33:]) is None


@pytest.mark.parametrize("frames", [1, 2])
def test_an_animated_webp_is_left_to_pillow(frames: int) -> None:
    others = [landscape(40, 30, seed) for seed in range(1, frames)]
    data = encoded(landscape(40, 30), "WEBP", save_all=True, append_images=others)
    still = b"ANIM" not in data
    assert (reduced(data) is None) != still


@pytest.mark.parametrize("name", ["GIF", "TIFF", "BMP"])
def test_other_formats_are_left_to_pillow(name: str) -> None:
    assert reduced(encoded(landscape(40, 30), name)) is None


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("mode", COLOURS.values())
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_webp_whose_pages_are_given_back_while_it_is_decoded_keeps_its_pixels(
    monkeypatch: pytest.MonkeyPatch, lossless: bool, mode: str, factor: int
) -> None:
    monkeypatch.setattr(libwebp, "HUGE_PAGE_BYTES", mmap.PAGESIZE)
    monkeypatch.setattr(plain, "BAND_BYTES", 5000)
    data = encoded(noise(mode, 331, 203), "WEBP", lossless=lossless, method=0)
    assert np.array_equal(reduced(data, factor), by_pillow(data, factor))


@pytest.mark.parametrize(("lossless", "sound"), [(False, 20), (True, 30)])
def test_a_webp_that_is_damaged_is_left_to_pillow(lossless: bool, sound: int) -> None:
    data = bytearray(encoded(landscape(40, 30), "WEBP", lossless=lossless))
    image = Image.open(io.BytesIO(data))
    data[sound:] = bytes(len(data) - sound)
    assert plain.reduced("WEBP", bytes(data), image, 1) is None


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_webp_whose_pixels_end_too_early_is_left_to_pillow(lossless: bool, share: float) -> None:
    data = encoded(noise("RGB", 400, 300), "WEBP", lossless=lossless)
    image = Image.open(io.BytesIO(data))
    coded = data[20 : int(len(data) * share)]
    chunk = data[12:16] + struct.pack("<I", len(coded)) + coded + bytes(len(coded) & 1)
    cut = b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
    assert plain.reduced("WEBP", cut, image, 2) is None


def test_a_webp_of_another_size_than_its_header_says_is_left_to_pillow() -> None:
    image = Image.open(io.BytesIO(encoded(landscape(40, 30), "WEBP")))
    for size in ((40, 31), (41, 30), (40, 29), (39, 30), (30, 40)):
        assert plain.reduced("WEBP", encoded(landscape(*size), "WEBP"), image, 1) is None


def test_a_webp_is_left_to_pillow_where_libwebp_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(landscape(40, 30), "WEBP")
    monkeypatch.setattr(libwebp, "_libwebp", lambda: None)
    assert reduced(data) is None


def black_png(rows: bytes) -> bytes:
    """A PNG of 40 x 30 pixels that has these rows."""
    whole = encoded(Image.new("RGB", (40, 30)), "PNG")
    return whole[:33] + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("missing", [1, 30, 120, 121, 3000, 3630])
def test_a_png_whose_rows_are_not_all_there_is_left_to_pillow(missing: int) -> None:
    assert reduced(black_png(bytes(121 * 30))) is not None
    assert reduced(black_png(bytes(121 * 30 - missing))) is None


@pytest.mark.parametrize("row", [0, 29])
def test_a_png_with_a_filter_that_does_not_exist_is_left_to_pillow(row: int) -> None:
    rows = bytearray(121 * 30)
    rows[121 * row] = 5
    assert reduced(black_png(rows)) is None


def test_a_png_whose_compressed_data_are_damaged_is_left_to_pillow() -> None:
    whole = black_png(bytes(121 * 30))
    coded = bytearray(zlib.compress(np.random.default_rng(1).bytes(121 * 30)))
    coded[2:40] = b"\xff" * 38
    assert reduced(whole[:33] + png_chunk(b"IDAT", bytes(coded)) + png_chunk(b"IEND", b"")) is None


def test_libwebp_gets_no_notes_of_a_webp() -> None:
    noted = encoded(
        noise("RGBA", 40, 30), "WEBP", lossless=False, exif=exif(orientation=6), icc_profile=b"mine", xmp=b"<x/>"
    )
    still = containers.webp_still(noted)
    assert still is not None
    assert [kind for kind in (b"VP8X", b"ALPH", b"VP8 ", b"EXIF", b"ICCP", b"XMP ") if kind in still] == [
        b"VP8X",
        b"ALPH",
        b"VP8 ",
    ]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(still))), np.asarray(Image.open(io.BytesIO(noted))))
