"""The placeholder, the colours and the hash of a picture, against an independent implementation and known pictures."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import thumbhash as oracle
from pictures import encoded, landscape, quarters
from PIL import Image, ImageEnhance

from thumbnailer.decoding import Limits, decode
from thumbnailer.describing import Swatch, palette, perceptual_hash, thumbhash


def hash_bytes(image: Image.Image) -> list[int]:
    return list(base64.b64decode(thumbhash(image)))


def differing_bits(first: Image.Image, second: Image.Image) -> int:
    return (int(perceptual_hash(first), 16) ^ int(perceptual_hash(second), 16)).bit_count()


def with_alpha(image: Image.Image, seed: int) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(landscape(*image.size, seed=seed).convert("L"))
    return image


# The other implementation fails on alpha. No size here makes the number of terms end in .5, which it rounds to even and
# the format's reference up, or is smaller than the number of terms, where it rounds noise.
@pytest.mark.parametrize("size", [(24, 24), (32, 24), (24, 33), (40, 8), (7, 30)])
@pytest.mark.parametrize("seed", range(6))
def test_a_thumbhash_is_what_another_implementation_computes(size: tuple[int, int], seed: int) -> None:
    image = landscape(*size, seed=seed)
    assert hash_bytes(image) == oracle.rgba_to_thumb_hash(*size, np.asarray(image.convert("RGBA")).ravel().tolist())


def shown(code: str, width: int, height: int) -> np.ndarray:
    """What a ThumbHash shows, float (height, width, 4), levels 0 to 255; written from the format's description."""
    data = base64.b64decode(code)
    first, second = int.from_bytes(data[:3], "little"), int.from_bytes(data[3:5], "little")
    has_alpha, is_landscape = first >> 23, second >> 15
    most = 5 if has_alpha else 7
    across, down = (most, second & 7) if is_landscape else (second & 7, most)
    body = data[6:] if has_alpha else data[5:]
    nibbles = iter([half for byte in body for half in (byte & 15, byte >> 4)])
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5

    def channel(mean: float, scale: float, terms_across: int, terms_down: int) -> np.ndarray:
        values = np.full((height, width), mean)
        for v in range(terms_down):
            for u in range(terms_across):
                if (u or v) and u * terms_down < terms_across * (terms_down - v):
                    wave = np.cos(np.pi * u * x / width) * np.cos(np.pi * v * y / height)
                    values += 2 * scale * (next(nibbles) / 7.5 - 1) * wave
        return values

    lightness = channel((first & 63) / 63, (first >> 18 & 31) / 31, max(3, across), max(3, down))
    p = channel((first >> 6 & 63) / 31.5 - 1, (second >> 3 & 63) / 63, 3, 3)
    q = channel((first >> 12 & 63) / 31.5 - 1, (second >> 9 & 63) / 63, 3, 3)
    alpha = channel((data[5] & 15) / 15, (data[5] >> 4) / 15, 5, 5) if has_alpha else np.ones((height, width))
    blue = lightness - 2 / 3 * p
    red = (3 * lightness - blue + q) / 2
    return np.clip(np.stack([red, red - q, blue, alpha], axis=-1), 0, 1) * 255


@pytest.mark.parametrize("size", [(1200, 800), (800, 1200), (500, 500), (60, 30)])
def test_a_thumbhash_shows_shape_and_colours_of_the_picture(size: tuple[int, int]) -> None:
    code = thumbhash(quarters(*size))
    expected = np.asarray(quarters(60, 40).convert("RGBA")).astype(float)
    difference = np.abs(shown(code, 60, 40) - expected)
    assert difference[3:17, 3:27].mean() < 30
    assert difference.mean() < 35
    assert len(code) <= 36


@pytest.mark.parametrize("size", [(900, 600), (600, 900)])
def test_a_thumbhash_shows_where_a_picture_is_transparent(size: tuple[int, int]) -> None:
    image = Image.new("RGBA", size, (200, 40, 40, 0))
    image.paste((200, 40, 40, 255), (0, 0, size[0] // 2, size[1]))
    pixels = shown(thumbhash(image), 60, 60)
    assert pixels[:, 5:22, 3].min() > 200
    assert pixels[:, 38:55, 3].max() < 55
    assert np.abs(pixels[:, :25, :3] - (200, 40, 40)).max() < 12


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 100, 50)])
def test_the_thumbhash_of_one_colour_is_that_colour_and_no_noise(colour: tuple[int, int, int]) -> None:
    pixels = shown(thumbhash(Image.new("RGB", (640, 480), colour)), 8, 6)
    assert np.abs(pixels - (*colour, 255)).max() <= 6
    assert np.ptp(pixels, axis=(0, 1)).max() == 0


def test_a_picture_of_which_nothing_is_visible_has_a_thumbhash_and_no_colours() -> None:
    image = Image.new("RGBA", (50, 40), (0, 0, 0, 0))
    assert hash_bytes(image)
    assert palette(image) == []


def test_a_palette_names_the_colours_by_their_share() -> None:
    image = Image.new("RGB", (640, 640), "#102030")
    image.paste("#c04020", (0, 0, 640, 200))
    image.paste("#e0e0d0", (0, 200, 320, 360))
    assert palette(image) == [Swatch("#102030", 563), Swatch("#c04020", 313), Swatch("#e0e0d0", 125)]


def test_a_palette_has_at_most_five_colours_that_add_up_to_nearly_everything() -> None:
    colours = palette(landscape(900, 600))
    assert len(colours) == 5
    assert sum(swatch.permille for swatch in colours) == pytest.approx(1000, abs=3)
    assert colours == sorted(colours, key=lambda swatch: -swatch.permille)


def test_invisible_pixels_have_no_colour() -> None:
    image = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 50, 100))
    assert palette(image)[0].colour == "#0000ff"
    assert "#ff0000" not in [swatch.colour for swatch in palette(image)]


@pytest.mark.parametrize("seed", range(5))
def test_likenesses_have_close_hashes(seed: int) -> None:
    original = landscape(900, 600, seed=seed)
    likenesses = {
        "smaller": original.resize((300, 200)),
        "recompressed": decode(encoded(original, "JPEG", quality=30, subsampling=2), Limits()).image,
        "brighter": ImageEnhance.Brightness(original).enhance(1.15),
        "grey": original.convert("L").convert("RGB"),
    }
    assert {name: bits for name, image in likenesses.items() if (bits := differing_bits(original, image)) > 6} == {}


def test_different_pictures_have_distant_hashes() -> None:
    pictures = [landscape(300, 200, seed=seed) for seed in range(12)]
    distances = [differing_bits(a, b) for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(distances) > 12


def test_a_hash_is_16_hex_digits_and_the_same_for_all_flat_pictures() -> None:
    hashes = {perceptual_hash(Image.new("RGB", (64, 48), colour)) for colour in ("white", "black", "red")}
    assert hashes == {"0" * 16}
    assert len(perceptual_hash(landscape(300, 200))) == 16


@pytest.mark.parametrize("describe", [thumbhash, palette, perceptual_hash])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 2), (5000, 3)])
def test_every_size_can_be_described_and_twice_alike(describe: object, size: tuple[int, int]) -> None:
    image = with_alpha(landscape(*size), seed=3)
    assert describe(image) == describe(image)  # type: ignore[operator]
    assert image.size == size  # the argument was not changed
