"""WebP encoded by Pillow's libwebp directly: the same bytes as by way of Pillow, which gets what cannot be done so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pictures import encoded, landscape
from PIL import Image

from darkroom.contracts.base import OutputFormat
from thumbnailer import libwebp
from thumbnailer.decoding import Limits, decode
from thumbnailer.rendering import render_large, render_proxy


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 9), (333, 251), (640, 480)], ids=str)
@pytest.mark.parametrize(("quality", "method"), [(84, 0), (84, 4), (30, 2)])
def test_the_bytes_are_those_that_pillow_gives(size: tuple[int, int], quality: int, method: int) -> None:
    image = landscape(*size)
    by_pillow = encoded(image, "WEBP", lossless=False, quality=quality, method=method)
    assert libwebp.encoded(np.asarray(image), quality, method) == by_pillow


def test_pixels_that_do_not_lie_one_behind_the_other_are_put_in_order() -> None:
    pixels = np.asarray(landscape(200, 100))
    assert libwebp.encoded(pixels[::2, ::-1], 84, 0) == libwebp.encoded(pixels[::2, ::-1].copy(), 84, 0)


def test_a_picture_that_is_too_long_for_the_format_is_left_to_pillow() -> None:
    assert libwebp.encoded(np.zeros((1, 16_384, 3), np.uint8), 84, 0) is None


def test_structures_of_another_version_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libwebp, "_ENCODER_ABI", libwebp._ENCODER_ABI + 0x0100)
    assert libwebp.encoded(np.zeros((8, 8, 3), np.uint8), 84, 0) is None


def test_pillow_encodes_the_same_where_libwebp_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = decode(encoded(landscape(400, 300), "JPEG"), Limits())
    directly = render_large(photo)
    monkeypatch.setattr(libwebp, "_libwebp", lambda: None)
    assert render_large(photo) == directly


@pytest.mark.parametrize("output", OutputFormat)
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_pixels_and_pillows_picture_of_them_are_rendered_alike(name: str, output: OutputFormat) -> None:
    photo = decode(encoded(landscape(1800, 1200), name), Limits())
    same = replace(photo, picture=photo.image)
    assert isinstance(photo.picture, np.ndarray)
    assert isinstance(same.picture, Image.Image)
    assert render_large(photo, output) == render_large(same, output)
    shown = [np.frombuffer(render_proxy(each).data, np.uint8) for each in (photo, same)]
    assert len(shown[0]) == pytest.approx(len(shown[1]), rel=0.01)
