"""The demo's samples: enough of them, in every format, the same each time, and showing what they say."""

import io
import subprocess
import sys

import pillow_heif
import pytest
from PIL import Image, ImageColor, ImageOps

from darkroom_cli.samples import PAINTS, SAMPLES, SHAPES, Sample, draw, write_samples

pillow_heif.register_heif_opener()


def test_there_are_enough_samples_and_no_two_show_the_same():
    assert len(SAMPLES) >= 24
    assert len({sample.filename for sample in SAMPLES}) == len(SAMPLES)
    assert len({(sample.colour, sample.shape) for sample in SAMPLES}) == len(SAMPLES)


def test_every_format_size_and_trait_is_among_them():
    assert {sample.format for sample in SAMPLES} == {"JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"}
    pixels = [width * height for width, height in (sample.size for sample in SAMPLES)]
    assert min(pixels) == 64 * 64
    assert max(pixels) == 12_000_000
    opened = {sample.filename: Image.open(io.BytesIO(sample.data())) for sample in SAMPLES}
    assert {picture.getexif().get(0x0112, 1) for picture in opened.values()} >= {1, 3, 5, 6, 8}
    assert {picture.mode for picture in opened.values()} >= {"RGB", "RGBA", "CMYK", "P", "L", "1", "I;16"}
    assert {name for name, picture in opened.items() if getattr(picture, "n_frames", 1) > 1} == {
        "yellow-triangle-moving.gif",
        "pink-cloud-moving.webp",
        "turquoise-pentagon.tiff",
    }
    assert "progressive" in opened["brown-cross.jpg"].info
    assert opened["brown-oval-profile.jpg"].info["icc_profile"]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.filename)
def test_a_sample_is_an_upright_picture_of_its_size_with_its_colour(sample: Sample):
    picture = Image.open(io.BytesIO(sample.data()))
    assert picture.format == sample.format
    picture = ImageOps.exif_transpose(picture)
    assert picture.size == sample.size
    if picture.mode == "I;16":
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    picture = picture.convert("RGBA")
    flat = Image.new("RGB", picture.size, "#ffffff")
    flat.paste(picture, mask=picture)
    share = _share_near(flat.resize((96, 96), Image.Resampling.NEAREST), ImageColor.getrgb(PAINTS[sample.colour]))
    assert 0.08 < share < 0.55


def test_samples_are_the_same_in_every_process(tmp_path):
    small = [sample for sample in SAMPLES if sample.size[0] * sample.size[1] < 2_000_000]
    write_samples(tmp_path / "here", small)
    script = (
        "import sys; from pathlib import Path; from darkroom_cli.samples import *\n"
        "names = sys.argv[2:]; write_samples(Path(sys.argv[1]), [s for s in SAMPLES if s.filename in names])"
    )
    names = [sample.filename for sample in small]
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "there"), *names], check=True)
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_stays_inside_its_picture(shape):
    shown = draw("black", shape, (120, 90), "#ffffff", is_cut_out=True).getchannel("A")
    left, top, right, bottom = shown.getbbox()
    assert 0 < left < 60 < right < 120
    assert 0 < top < 45 < bottom < 90


def _share_near(picture: Image.Image, colour: tuple[int, int, int], tolerance: int = 40) -> float:
    pixels = list(picture.get_flattened_data())
    return sum(all(abs(a - b) < tolerance for a, b in zip(pixel, colour, strict=True)) for pixel in pixels) / len(
        pixels
    )
