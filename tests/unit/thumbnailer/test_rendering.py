"""What is kept of a photo: sizes, formats, alpha, and the same bytes every time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pictures import encoded, exif, landscape, quarters
from PIL import Image

from darkroom.contracts.base import OutputFormat
from thumbnailer.decoding import Limits, Photo, decode
from thumbnailer.rendering import (
    Rendition,
    flatten,
    render_large,
    render_medium,
    render_proxy,
    render_small,
    thumbnail_source,
)


def photo(image: Image.Image, name: str = "PNG", **options: object) -> Photo:
    return decode(encoded(image, name, **options), Limits())


def opened(rendition: Rendition) -> Image.Image:
    return Image.open(io.BytesIO(rendition.data))


def all_sizes(picture: Photo, output: OutputFormat = OutputFormat.WEBP) -> dict[str, Rendition]:
    large, proxy = render_large(picture, output), render_proxy(picture)
    source = thumbnail_source(proxy.data, large.data)
    return {
        "large": large,
        "proxy": proxy,
        "medium": render_medium(source, output),
        "small": render_small(source, output),
    }


def see_through() -> Image.Image:
    """Opaque on the left, half transparent in the middle, invisible on the right, and red everywhere."""
    image = Image.new("RGBA", (900, 600), (220, 30, 30, 255))
    image.paste((220, 30, 30, 128), (300, 0, 600, 600))
    image.paste((220, 30, 30, 0), (600, 0, 900, 600))
    return image


@pytest.mark.parametrize("output", OutputFormat)
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((2000, 1500), {"large": (1600, 1200), "proxy": (768, 576), "medium": (768, 576), "small": (256, 192)}),
        ((1500, 2000), {"large": (1200, 1600), "proxy": (576, 768), "medium": (576, 768), "small": (192, 256)}),
        ((4000, 400), {"large": (1600, 160), "proxy": (3840, 384), "medium": (768, 77), "small": (256, 26)}),
        ((3000, 20), {"large": (1600, 11), "proxy": (3000, 20), "medium": (768, 5), "small": (256, 2)}),
        ((1000, 700), {"large": (1000, 700), "proxy": (768, 538), "medium": (768, 538), "small": (256, 179)}),
        ((300, 200), {"large": (300, 200), "proxy": (300, 200), "medium": (300, 200), "small": (256, 171)}),
        ((1, 1), {"large": (1, 1), "proxy": (1, 1), "medium": (1, 1), "small": (1, 1)}),
    ],
    ids=str,
)
def test_each_size_is_as_promised_and_never_enlarged(
    output: OutputFormat, size: tuple[int, int], expected: dict[str, tuple[int, int]]
) -> None:
    renditions = all_sizes(photo(landscape(*size), "JPEG"), output)
    assert {name: (each.width, each.height) for name, each in renditions.items()} == expected
    assert {name: opened(each).size for name, each in renditions.items()} == expected


@pytest.mark.parametrize("output", OutputFormat)
def test_thumbnails_are_in_the_wanted_format_and_the_proxy_is_a_jpeg(output: OutputFormat) -> None:
    renditions = all_sizes(photo(quarters(800, 600)), output)
    assert {each.media_type for name, each in renditions.items() if name != "proxy"} == {f"image/{output}"}
    assert {opened(each).format for name, each in renditions.items() if name != "proxy"} == {output.upper()}
    proxy = opened(renditions["proxy"])
    assert (proxy.format, proxy.mode, renditions["proxy"].media_type) == ("JPEG", "RGB", "image/jpeg")
    assert [component[1:3] for component in proxy.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("output", OutputFormat)
def test_the_same_file_gives_the_same_bytes(output: OutputFormat) -> None:
    data = encoded(landscape(1800, 1200), "JPEG", exif=exif(orientation=6))
    first, second = (all_sizes(decode(data, Limits()), output) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["large", "proxy", "medium", "small"])
def test_a_rendition_looks_like_the_original(name: str) -> None:
    picture = landscape(2400, 1600)
    rendition = opened(all_sizes(photo(picture, "JPEG"))[name])
    expected = picture.resize(rendition.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(rendition).astype(int) - np.asarray(expected)).mean() < 2


@pytest.mark.parametrize("output", [OutputFormat.WEBP, OutputFormat.AVIF])
@pytest.mark.parametrize("name", ["large", "medium", "small"])
def test_alpha_is_kept(output: OutputFormat, name: str) -> None:
    rendition = all_sizes(photo(see_through()), output)[name]
    image = opened(rendition).convert("RGBA")
    row = [image.getpixel((image.width * part // 6, image.height // 2)) for part in (1, 3, 5)]
    assert rendition.has_alpha
    assert [pixel[3] for pixel in row] == pytest.approx([255, 128, 0], abs=3)
    assert row[0][:3] == pytest.approx((220, 30, 30), abs=8)
    assert row[1][:3] == pytest.approx((220, 30, 30), abs=8)


@pytest.mark.parametrize(
    ("output", "names"),
    [(OutputFormat.JPEG, ("large", "proxy", "medium", "small")), (OutputFormat.WEBP, ("proxy",))],
)
def test_what_cannot_hold_alpha_is_flat_on_white(output: OutputFormat, names: tuple[str, ...]) -> None:
    renditions = all_sizes(photo(see_through()), output)
    for name in names:
        image = opened(renditions[name])
        row = [image.getpixel((image.width * part // 6, image.height // 2)) for part in (1, 3, 5)]
        expected = [(220, 30, 30), (237, 142, 142), (255, 255, 255)]
        assert not renditions[name].has_alpha
        assert [channel for pixel in row for channel in pixel] == pytest.approx(np.ravel(expected), abs=4)


def test_an_opaque_picture_is_thumbnailed_from_its_proxy() -> None:
    renditions = all_sizes(photo(landscape(1800, 1200)))
    source = thumbnail_source(renditions["proxy"].data, renditions["large"].data)
    assert (source.size, source.mode) == ((768, 512), "RGB")


def test_alpha_that_is_opaque_everywhere_is_left_out() -> None:
    renditions = all_sizes(photo(landscape(300, 200).convert("RGBA")))
    assert not any(each.has_alpha for each in renditions.values())


@pytest.mark.parametrize("output", OutputFormat)
def test_no_metadata_of_the_original_are_in_a_rendition(output: OutputFormat) -> None:
    data = encoded(quarters(800, 600), "JPEG", exif=exif(orientation=1, taken="2024:05:06 07:08:09"), comment=b"secret")
    for rendition in all_sizes(decode(data, Limits()), output).values():
        image = opened(rendition)
        assert not dict(image.getexif())
        assert not {"exif", "xmp", "icc_profile", "comment"} & set(image.info)
        assert b"2024:05:06" not in rendition.data


def test_rendering_a_rendition_again_changes_no_size() -> None:
    once = all_sizes(photo(landscape(1000, 333), "JPEG"))
    again = all_sizes(decode(once["medium"].data, Limits()))
    assert [again[name].width for name in ("large", "medium", "small")] == [768, 768, 256]
    assert [again[name].height for name in ("large", "medium", "small")] == [256, 256, 85]


def test_flattening_shows_white_through() -> None:
    assert flatten(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert flatten(Image.new("RGBA", (2, 2), (10, 20, 30, 255))).getpixel((0, 0)) == (10, 20, 30)
