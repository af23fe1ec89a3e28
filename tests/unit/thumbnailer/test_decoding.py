"""What a file becomes: upright, sRGB, 8 bits, alpha where there is any, no metadata, at the size that is needed."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from pictures import (
    ADOBE_RGB,
    DISPLAY_P3,
    EXACT,
    RED,
    cmyk_profile,
    encoded,
    exif,
    grey_profile,
    lab_to_srgb,
    landscape,
    png,
    png_chunk,
    quarters,
    rgb_profile,
    srgb_decode,
    srgb_encode,
    xyz_to_srgb,
)
from PIL import Image, ImageCms

from thumbnailer import decoding
from thumbnailer.decoding import Limits, Photo, decode, fit, inspect

LIMITS = Limits()
STEPS = np.linspace(0, 1, 1024)

# The EXIF standard's own words: where the first stored row and the first stored column belong in the picture.
FIRST_ROW_AND_COLUMN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(upright: Image.Image, orientation: int) -> Image.Image:
    """The pixels as a camera stores them that marks the picture with `orientation`."""
    places = FIRST_ROW_AND_COLUMN[orientation]
    pixels = np.asarray(upright)
    if "bottom" in places:
        pixels = pixels[::-1]
    if "right" in places:
        pixels = pixels[:, ::-1]
    if places[0] in ("left", "right"):
        pixels = pixels.transpose(1, 0, 2)
    return Image.fromarray(np.ascontiguousarray(pixels))


def centre(photo: Photo) -> tuple[int, ...]:
    """The middle pixel's channels."""
    return tuple(np.asarray(photo.image)[photo.image.height // 2, photo.image.width // 2].tolist())


@pytest.mark.parametrize("orientation", FIRST_ROW_AND_COLUMN)
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_a_picture_is_upright_whatever_its_orientation(name: str, orientation: int) -> None:
    upright = quarters(96, 64)
    data = encoded(stored(upright, orientation), name, exif=exif(orientation=orientation))

    photo = decode(data, LIMITS)

    header = inspect(data, LIMITS)
    assert (header.width, header.height) == (photo.width, photo.height) == photo.image.size == (96, 64)
    difference = np.abs(np.asarray(photo.image).astype(int) - np.asarray(upright))
    assert difference.mean() < 3


@pytest.mark.parametrize(
    ("name", "compression"), [("JPEG", None), ("TIFF", "raw"), ("TIFF", "tiff_lzw"), ("PNG", None)]
)
def test_a_picture_that_is_shrunk_is_upright_too(name: str, compression: str | None) -> None:
    upright = quarters(2100, 4200)
    options = {"compression": compression} if compression else {}
    data = encoded(stored(upright, 6), name, exif=exif(orientation=6), **options)

    photo = decode(data, LIMITS)

    assert (photo.width, photo.height, photo.image.size) == (2100, 4200, (800, 1600))
    expected = np.asarray(quarters(800, 1600)).astype(int)
    assert np.abs(np.asarray(photo.image) - expected).mean() < 3


def test_a_png_that_names_its_orientation_behind_the_pixels_is_upright() -> None:
    raw = exif(orientation=6).removeprefix(b"Exif\0\0")
    data = encoded(stored(quarters(), 6), "PNG")
    end = len(data) - 12
    photo = decode(data[:end] + png_chunk(b"eXIf", raw) + data[end:], LIMITS)
    assert np.array_equal(np.asarray(photo.image), np.asarray(quarters()))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_without_meaning_leaves_the_picture_as_it_is(orientation: int) -> None:
    data = encoded(quarters(), "PNG", exif=exif(orientation=orientation))
    assert inspect(data, LIMITS).orientation == 1
    assert np.array_equal(np.asarray(decode(data, LIMITS).image), np.asarray(quarters()))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_data_that_cannot_be_read_do_not_cost_the_picture() -> None:
    data = encoded(quarters(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    photo = decode(data, LIMITS)
    assert (photo.image.size, photo.taken_at) == ((96, 64), None)


@pytest.mark.parametrize("name", EXACT)
def test_each_format_is_decoded_and_named(name: str) -> None:
    picture = landscape(90, 60)
    header = inspect(encoded(picture, name), LIMITS)
    photo = decode(encoded(picture, name), LIMITS)

    assert (header.format, header.width, header.height, header.frames) == (name, 90, 60, 1)
    assert (photo.format, photo.width, photo.height, photo.frames) == (name, 90, 60, 1)
    assert photo.image.mode == "RGB"
    # A GIF has 256 colours for it, the others reproduce it nearly or exactly.
    difference = np.abs(np.asarray(photo.image).astype(int) - np.asarray(picture)).mean()
    assert difference < (9 if name == "GIF" else 3)


def plain(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (40, 30), colour)  # type: ignore[arg-type]


def transparent_palette() -> Image.Image:
    image = plain("P", 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


def filled(value: object, dtype: str, channels: int = 1) -> np.ndarray:
    shape = (30, 40) if channels == 1 else (30, 40, channels)
    return np.full(shape, value, dtype=dtype)


COLOUR_KINDS = {
    "grey": (encoded(plain("L", 90), "PNG"), (90, 90, 90)),
    "grey JPEG": (encoded(plain("L", 90), "JPEG"), (90, 90, 90)),
    "grey with alpha": (encoded(plain("LA", (90, 128)), "PNG"), (90, 90, 90, 128)),
    "1 bit": (encoded(plain("1", 1), "PNG"), (255, 255, 255)),
    "1 bit fax": (encoded(plain("1", 0), "TIFF", compression="group4"), (0, 0, 0)),
    "1 bit with a transparent colour": (encoded(plain("1", 0), "PNG", transparency=0), (0, 0, 0, 0)),
    "palette": (encoded(transparent_palette(), "PNG"), (200, 100, 50)),
    "palette BMP": (encoded(transparent_palette(), "BMP"), (200, 100, 50)),
    "palette, half transparent": (encoded(transparent_palette(), "PNG", transparency=b"\xff\x80"), (200, 100, 50, 128)),
    "palette GIF, transparent": (encoded(transparent_palette(), "GIF", transparency=1), (0, 0, 0, 0)),
    "RGB with a transparent colour": (encoded(plain("RGB", RED), "PNG", transparency=RED), (0, 0, 0, 0)),
    "RGBA PNG": (encoded(plain("RGBA", (200, 100, 50, 128)), "PNG"), (200, 100, 50, 128)),
    "RGBA WebP": (encoded(plain("RGBA", (200, 100, 50, 128)), "WEBP"), (200, 100, 50, 128)),
    "RGBA TIFF": (encoded(plain("RGBA", (200, 100, 50, 128)), "TIFF"), (200, 100, 50, 128)),
    "RGBA AVIF": (encoded(plain("RGBA", (200, 100, 50, 128)), "AVIF"), (200, 100, 50, 128)),
    "RGBA HEIC": (encoded(plain("RGBA", (200, 100, 50, 128)), "HEIF"), (200, 100, 50, 128)),
    "RGBA without a transparent pixel": (encoded(plain("RGBA", (200, 100, 50, 255)), "PNG"), (200, 100, 50)),
    "16-bit grey PNG": (png(filled(0x8080, "u2"), 0), (128, 128, 128)),
    "16-bit grey PNG, one grey transparent": (png(filled(0x8080, "u2"), 0, (b"tRNS", b"\x80\x80")), (0, 0, 0, 0)),
    "16-bit grey PNG, another grey transparent": (png(filled(0x8080, "u2"), 0, (b"tRNS", b"\x80\x81")), (128,) * 3),
    "16-bit RGB PNG": (png(filled((0xC8C8, 0x6464, 0x3232), "u2", 3), 2), (200, 100, 50)),
    "16-bit RGBA PNG": (png(filled((0xC8C8, 0x6464, 0x3232, 0x8080), "u2", 4), 6), (200, 100, 50, 128)),
    "16-bit grey TIFF": (encoded(Image.fromarray(filled(0x4040, "u2")), "TIFF"), (64, 64, 64)),
    "32-bit grey TIFF, 0 to 65535": (encoded(Image.fromarray(filled(0x4040, "i4")), "TIFF"), (64, 64, 64)),
    "float TIFF, 0 to 1": (encoded(Image.fromarray(filled(0.5, "f4")), "TIFF"), (128, 128, 128)),
    "float TIFF, 0 to 255": (encoded(Image.fromarray(filled(77.0, "f4")), "TIFF"), (77, 77, 77)),
    "float TIFF, not a number": (encoded(Image.fromarray(filled(np.nan, "f4")), "TIFF"), (0, 0, 0)),
    "CMYK JPEG": (encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
    "CMYK TIFF": (encoded(plain("CMYK", (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
    "YCbCr TIFF": (encoded(plain("RGB", RED).convert("YCbCr"), "TIFF"), RED),
    # In memory, a and b are kept with 128 added.
    "L*a*b* TIFF": (encoded(plain("LAB", (153, 148, 138)), "TIFF"), tuple(lab_to_srgb(60, 20, 10))),
}


@pytest.mark.parametrize("kind", COLOUR_KINDS)
def test_each_colour_kind_becomes_rgb_with_alpha_where_it_has_any(kind: str) -> None:
    data, expected = COLOUR_KINDS[kind]
    photo = decode(data, LIMITS)
    assert photo.has_alpha == (len(expected) == 4)
    if expected[3:] == (0,):
        assert centre(photo)[3] == 0  # the colour of what is invisible does not matter
    else:
        assert centre(photo) == pytest.approx(expected, abs=3)


@pytest.mark.parametrize("kind", ["16-bit", "float"])
def test_measurements_on_a_scale_of_their_own_run_from_black_to_white(kind: str) -> None:
    ramp = np.linspace(-300, 90_000, 40).astype("i4" if kind == "16-bit" else "f4")
    image = decode(encoded(Image.fromarray(np.tile(ramp, (30, 1))), "TIFF"), LIMITS).image
    assert image.getpixel((0, 15)) == (0, 0, 0)
    assert image.getpixel((39, 15)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_shrinking_in_bands_gives_what_shrinking_at_once_gives(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    # 5,001 columns leave a partial block at the end of each row.
    small = landscape(90, 24).convert("RGBA")
    small.putalpha(landscape(90, 24, seed=2).convert("L"))
    large = small.resize((5001, 1200), Image.Resampling.BILINEAR)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(large.convert("L")).astype("u2") * 257)
    elif mode == "P":
        picture = large.quantize(64)
    elif mode == "1":
        picture = large.convert("1", dither=Image.Dither.NONE)
    else:
        picture = (large.convert("RGB") if mode in ("CMYK", "F") else large).convert(mode)
    monkeypatch.setattr(decoding, "LONG_SIDE", 400)
    monkeypatch.setattr(decoding, "SHORT_SIDE", 64)
    photo = decode(encoded(picture, "TIFF" if mode in ("CMYK", "F") else "PNG"), LIMITS)

    expected = (large.convert("L") if mode == "I;16" else picture).convert("RGBA").resize((400, 96), reducing_gap=None)
    assert photo.image.size == (400, 96)
    assert photo.has_alpha == (mode in ("LA", "P", "RGBA"))
    shown = [np.asarray(image.convert("RGBA").convert("RGBa")).astype(int) for image in (photo.image, expected)]
    assert np.abs(shown[0] - shown[1]).mean() < 1


@pytest.mark.parametrize(
    ("primaries", "curve"),
    [(ADOBE_RGB, STEPS**2.19921875), (DISPLAY_P3, srgb_decode(STEPS))],
    ids=["Adobe RGB", "Display P3"],
)
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_a_wide_colour_space_becomes_srgb(
    name: str, primaries: tuple[tuple[float, ...], ...], curve: np.ndarray
) -> None:
    colour = (150, 120, 90)
    data = encoded(plain("RGB", colour), name, icc_profile=rgb_profile(primaries, curve))

    linear = np.interp(np.array(colour) / 255, STEPS, curve)
    expected = xyz_to_srgb(linear @ np.array(primaries))
    assert np.abs(expected - colour).max() > 5
    assert centre(decode(data, LIMITS)) == pytest.approx(tuple(expected), abs=4)


def test_alpha_survives_the_change_of_colour_space() -> None:
    data = encoded(plain("RGBA", (150, 120, 90, 77)), "PNG", icc_profile=rgb_profile(ADOBE_RGB, STEPS**2.2))
    red, _, _, alpha = centre(decode(data, LIMITS))
    assert (red > 155, alpha) == (True, 77)


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_inks_look_as_their_profile_says(name: str) -> None:
    # No real cyan looks like this: without the profile it would become (0, 255, 255).
    profile = cmyk_profile({(1, 0, 0, 0): (60, 20, 30)})
    data = encoded(plain("CMYK", (255, 0, 0, 0)), name, icc_profile=profile)
    assert centre(decode(data, LIMITS)) == pytest.approx(tuple(lab_to_srgb(60, 20, 30)), abs=5)


def test_a_grey_profile_is_followed() -> None:
    data = encoded(plain("L", 128), "PNG", icc_profile=grey_profile(STEPS))
    expected = float(srgb_encode(np.array(128 / 255))) * 255
    assert centre(decode(data, LIMITS)) == pytest.approx((expected,) * 3, abs=3)


def test_a_picture_that_is_srgb_by_its_profile_keeps_its_pixels() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = landscape(90, 60)
    photo = decode(encoded(picture, "PNG", icc_profile=profile), LIMITS)
    assert np.array_equal(np.asarray(photo.image), np.asarray(picture))


@pytest.mark.parametrize(
    "profile",
    [b"no profile", rgb_profile(ADOBE_RGB, STEPS)[:200], cmyk_profile({}), bytes(decoding.PROFILE_BYTES + 1)],
    ids=["nonsense", "truncated", "for other colours", "huge"],
)
def test_a_profile_that_cannot_be_used_is_left_out(profile: bytes) -> None:
    picture = landscape(90, 60)
    photo = decode(encoded(picture, "TIFF", icc_profile=profile), LIMITS)
    assert np.array_equal(np.asarray(photo.image), np.asarray(picture))


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "HEIF"])
def test_the_first_of_several_frames_is_taken_and_all_are_counted(name: str) -> None:
    others = [plain("RGB", colour) for colour in ("blue", "yellow")]
    data = encoded(plain("RGB", RED), name, save_all=True, append_images=others)
    photo = decode(data, LIMITS)
    assert photo.frames == inspect(data, LIMITS).frames == 3
    assert centre(photo) == pytest.approx(RED, abs=6)


def test_a_frame_smaller_than_its_gif_is_placed_on_the_canvas() -> None:
    data = bytearray(encoded(plain("RGB", RED), "GIF"))
    data[6:10] = (80).to_bytes(2, "little") + (60).to_bytes(2, "little")
    photo = decode(bytes(data), LIMITS)
    assert (photo.width, photo.height) == (80, 60)
    assert photo.image.convert("RGB").getpixel((20, 15)) == pytest.approx(RED, abs=2)


def test_a_progressive_jpeg_looks_like_a_baseline_one() -> None:
    picture = landscape(640, 480)
    baseline, progressive = (decode(encoded(picture, "JPEG", progressive=flag), LIMITS) for flag in (False, True))
    assert np.array_equal(np.asarray(baseline.image), np.asarray(progressive.image))


def test_the_further_pictures_of_a_multi_picture_jpeg_are_not_counted() -> None:
    buffer = io.BytesIO()
    quarters().save(buffer, "MPO", save_all=True, append_images=[plain("RGB", "blue")])
    photo = decode(buffer.getvalue(), LIMITS)
    assert (photo.format, photo.frames, photo.image.size) == ("JPEG", 1, (96, 64))


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((3300, 2200), (1650, 1100)), ((3100, 2000), (3100, 2000)), ((6500, 4400), (1625, 1100))],
    ids=["a half is enough", "a half would be too small", "a quarter is enough"],
)
def test_a_jpeg_is_decoded_no_larger_than_needed(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    seen = []
    shrink = decoding._shrink
    monkeypatch.setattr(decoding, "_shrink", lambda held, *rest: seen.append(held.shape[1::-1]) or shrink(held, *rest))
    decode(encoded(plain("RGB", RED).resize(size), "JPEG"), LIMITS)
    assert seen == [decoded]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"taken": "2024:05:06 07:08:09"}, datetime(2024, 5, 6, 7, 8, 9)),
        (
            {"taken": "2024:05:06 07:08:09", "offset": "+02:00"},
            datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone(timedelta(hours=2))),
        ),
        ({"taken": "2024:05:06 07:08:09", "offset": "Z"}, datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ({"taken": "2024:05:06 07:08:09", "offset": "  :  "}, datetime(2024, 5, 6, 7, 8, 9)),
        ({"taken": "0000:00:00 00:00:00", "offset": "+02:00"}, None),
        ({"taken": "    :  :     :  :  "}, None),
        ({"offset": "+02:00"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_the_time_of_the_photo_is_read_or_left_out(
    name: str, tags: dict[str, object], expected: datetime | None
) -> None:
    taken_at = decode(encoded(quarters(), name, exif=exif(orientation=1, **tags)), LIMITS).taken_at
    assert taken_at == expected
    assert taken_at is None or taken_at.utcoffset() == expected.utcoffset()


@pytest.mark.parametrize(
    ("size", "long_side", "short_side", "expected"),
    [
        ((4000, 3000), 1600, 0, (1600, 1200)),
        ((3000, 4000), 1600, 0, (1200, 1600)),
        ((1600, 900), 1600, 0, (1600, 900)),
        ((30, 20), 1600, 0, (30, 20)),
        ((8000, 400), 768, 384, (7680, 384)),
        ((8000, 300), 768, 384, (8000, 300)),
        ((1000, 900), 768, 384, (768, 691)),
        ((65535, 1), 256, 0, (256, 1)),
    ],
)
def test_sizes_are_fitted_and_never_enlarged(
    size: tuple[int, int], long_side: int, short_side: int, expected: tuple[int, int]
) -> None:
    assert fit(*size, long_side, short_side) == expected


def test_decoding_the_same_bytes_again_gives_the_same_pixels() -> None:
    data = encoded(landscape(3000, 2000), "JPEG", exif=exif(orientation=8))
    assert decode(data, LIMITS).image.tobytes() == decode(data, LIMITS).image.tobytes()


def test_a_decoded_picture_carries_no_metadata() -> None:
    data = encoded(quarters(), "JPEG", exif=exif(orientation=1, taken="2024:05:06 07:08:09"), comment=b"secret")
    assert decode(data, LIMITS).image.info == {}


@pytest.mark.parametrize("name", sorted({*EXACT, "JPEG"}))
def test_a_file_is_let_go_before_its_picture_is_made_smaller(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(landscape(1900, 1300), name)
    file, was_closed = io.BytesIO(data), []
    shrink = decoding._shrink

    def watched(*arguments: Any) -> Any:
        was_closed.append(file.closed)
        return shrink(*arguments)

    expected = decode(data, LIMITS).image.tobytes()
    monkeypatch.setattr(decoding, "_shrink", watched)
    assert decode(file, LIMITS).image.tobytes() == expected
    assert was_closed == [True]
