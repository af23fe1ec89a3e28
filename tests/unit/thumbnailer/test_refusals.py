"""What is refused, from where on, and what the sender is told."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from pictures import EXACT, encoded, landscape, png_chunk, quarters
from PIL import Image, ImageFile, TiffImagePlugin

from darkroom.errors import PermanentError
from thumbnailer import decoding, plain
from thumbnailer.decoding import Limits, decode, inspect
from thumbnailer.problems import PictureProblem

# Pillow warns of some damages before it raises.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LIMITS = Limits()
PICTURE = landscape(96, 64)
FRAMES = {"save_all": True, "append_images": [landscape(96, 64, seed) for seed in (1, 2)]}

FILES = {name: encoded(PICTURE, name) for name in EXACT} | {
    "progressive JPEG": encoded(PICTURE, "JPEG", progressive=True),
    "LZW TIFF": encoded(PICTURE, "TIFF", compression="tiff_lzw"),
    "JPEG TIFF": encoded(PICTURE, "TIFF", compression="jpeg"),
    "lossy WebP": encoded(PICTURE, "WEBP", lossless=False),
    "animated GIF": encoded(PICTURE, "GIF", **FRAMES),
    "animated WebP": encoded(PICTURE, "WEBP", **FRAMES),
    "animated PNG": encoded(PICTURE, "PNG", **FRAMES),
    "AVIF sequence": encoded(PICTURE, "AVIF", **FRAMES),
    "HEIC collection": encoded(PICTURE, "HEIF", **FRAMES),
}


def refusal(data: bytes, limits: Limits = LIMITS) -> PictureProblem:
    """The problem with which `decode` refuses the bytes."""
    with pytest.raises(PictureProblem) as caught:
        decode(data, limits)
    return caught.value


@pytest.fixture
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the test fail where a pixel is decoded."""

    def load(image: Image.Image) -> None:
        pytest.fail(f"{image.format} was decoded")

    def reduced(name: str, *_: object) -> None:
        pytest.fail(f"{name} was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", load)
    monkeypatch.setattr(plain, "reduced", reduced)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_wherever_it_ends(name: str) -> None:
    data = FILES[name]
    # The last byte of a GIF is a trailer which old encoders leave out.
    end = len(data) - ("GIF" in name)
    cuts = {end * part // 20 for part in range(1, 20)} | {16, 40, end - 12, end - 4, end - 2, end - 1}
    slugs = [refusal(data[:cut]).slug for cut in sorted(cuts)]
    assert set(slugs) <= {"image-truncated", "image-corrupt"}
    # In TIFF and progressive JPEG, what is missing can look like something wrong.
    assert slugs.count("image-truncated") > len(slugs) / 2


def test_a_gif_without_its_trailer_is_complete() -> None:
    assert decode(FILES["animated GIF"][:-1], LIMITS).frames == 3


def test_a_png_without_its_end_is_truncated_although_it_has_all_pixels() -> None:
    assert refusal(FILES["PNG"][:-12]).slug == "image-truncated"


@pytest.mark.parametrize("name", FILES)
def test_bytes_behind_the_end_of_a_picture_do_no_harm(name: str) -> None:
    # Phones append motion pictures, and some cameras padding.
    whole, longer = (decode(data, LIMITS) for data in (FILES[name], FILES[name] + bytes(64)))
    assert whole.image.tobytes() == longer.image.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(name: str) -> None:
    choose = random.Random(name)
    limits = Limits(pixels=4_000_000)
    refused = 0
    for _ in range(60):
        data = bytearray(FILES[name])
        span = min(len(data), choose.choice((64, 400, len(data))))
        for _ in range(choose.choice((1, 3, 10))):
            data[choose.randrange(span)] = choose.randrange(256)
        try:
            decode(bytes(data), limits)
        except PictureProblem as problem:
            refused += 1
            assert problem.problem.detail
    assert refused


def test_a_problem_says_the_value_the_limit_and_the_remedy() -> None:
    refused = refusal(encoded(PICTURE, "PNG"), Limits(pixels=6143))
    assert isinstance(refused, PermanentError)
    problem = refused.problem
    assert (problem.slug, problem.value, problem.limit, problem.status) == ("too-many-pixels", 6144, 6143, 422)
    assert problem.detail == "The picture is 96 x 64 = 6144 pixels and the limit is 6143."
    assert problem.remedy == "Scale it down before sending it."


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.usefixtures("no_pixels")
def test_a_header_is_read_and_refused_without_decoding_a_pixel(name: str) -> None:
    data = encoded(PICTURE, name)
    assert (inspect(data, Limits(pixels=96 * 64, side_px=96, file_bytes=len(data))).width) == 96
    for limits, slug, value, limit in (
        (Limits(pixels=96 * 64 - 1), "too-many-pixels", 96 * 64, 96 * 64 - 1),
        (Limits(side_px=95), "image-side-too-long", 96, 95),
        (Limits(file_bytes=len(data) - 1), "image-too-large", len(data), len(data) - 1),
    ):
        problem = refusal(data, limits).problem
        assert (problem.slug, problem.value, problem.limit) == (slug, value, limit)


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "HEIF"])
@pytest.mark.usefixtures("no_pixels")
def test_too_many_frames_are_refused_without_decoding_one(name: str) -> None:
    data = encoded(PICTURE, name, **FRAMES)
    assert inspect(data, Limits(frames=3)).frames == 3
    problem = refusal(data, Limits(frames=2)).problem
    assert (problem.slug, problem.value, problem.limit) == ("too-many-frames", 3, 2)


@pytest.mark.parametrize("kind", ["VP8X", "VP8L", "VP8 "])
def test_a_webp_bomb_is_refused_before_its_canvas_is_allocated(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    payload = {
        "VP8X": bytes(4) + b"\xff\xff\x3f" * 2,
        "VP8L": b"\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14),
        "VP8 ": bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 0x3FFF, 0x3FFF),
    }[kind]
    body = b"WEBP" + kind.encode() + struct.pack("<I", len(payload)) + payload + bytes(len(payload) & 1)
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("the codec was opened"))
    assert refusal(data).slug == ("image-side-too-long" if kind == "VP8X" else "too-many-pixels")


@pytest.mark.usefixtures("no_pixels")
def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(PICTURE, "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    problem = refusal(data[:-2] + scan * 500 + data[-2:]).problem
    assert (problem.slug, problem.limit) == ("too-many-scans", 500)


@pytest.mark.parametrize("is_big", [False, True], ids=["TIFF", "BigTIFF"])
def test_a_tiff_whose_pages_form_a_circle_is_refused(is_big: bool) -> None:
    data = bytearray(encoded(PICTURE, "TIFF", big_tiff=is_big))
    offset, count, entry = ("<Q", "<Q", 20) if is_big else ("<I", "<H", 12)
    (first,) = struct.unpack_from(offset, data, 8 if is_big else 4)
    (entries,) = struct.unpack_from(count, data, first)
    struct.pack_into(offset, data, first + struct.calcsize(count) + entries * entry, first)
    refused = refusal(bytes(data))
    assert (refused.slug, "circle" in str(refused)) == ("image-corrupt", True)


@pytest.mark.parametrize("is_big", [False, True], ids=["TIFF", "BigTIFF"])
def test_the_pages_of_both_kinds_of_tiff_are_counted(is_big: bool) -> None:
    assert inspect(encoded(PICTURE, "TIFF", big_tiff=is_big, **FRAMES), LIMITS).frames == 3


def test_a_png_whose_text_unpacks_to_gigabytes_is_refused() -> None:
    bomb = b"Comment\0\0" + zlib.compress(bytes(64 * 1024 * 1024), 9)
    data = encoded(PICTURE, "PNG")
    assert refusal(data[:33] + png_chunk(b"zTXt", bomb) + data[33:]).slug == "image-corrupt"


def test_a_png_with_a_wrong_checksum_is_corrupt() -> None:
    data = bytearray(encoded(PICTURE, "PNG"))
    data[data.index(b"IDAT") + 40] ^= 1
    assert refusal(bytes(data)).slug == "image-corrupt"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"%PDF-1.7 and so on", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"8BPS\0\1", b"\0\0\1\0" * 9],
    ids=["nothing", "one byte", "PDF", "SVG", "PSD", "ICO"],
)
def test_what_is_no_supported_picture_is_refused_by_its_first_bytes(data: bytes) -> None:
    problem = refusal(data).problem
    assert (problem.slug, problem.status) == ("unsupported-format", 415)
    assert "JPEG, PNG, WEBP, GIF, TIFF, BMP, AVIF, HEIF" in problem.detail


@pytest.mark.parametrize("brand", [b"isom", b"qt  ", b"mp42"])
def test_a_film_is_not_a_picture(brand: bytes) -> None:
    data = struct.pack(">I4s4sI4s", 20, b"ftyp", brand, 0, brand) + bytes(100)
    assert refusal(data).slug == "unsupported-format"


def test_a_supported_start_with_nonsense_behind_it_is_refused_as_damaged() -> None:
    for start in (b"\xff\xd8\xff\xe0", b"BM", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"II*\0", b"RIFF\x08\0\0\0WEBP"):
        assert refusal(start + b"nonsense" * 40).slug in {"image-corrupt", "image-truncated"}


@pytest.mark.parametrize(
    ("name", "decoder"), [("BMP", "PIL.ImageFile.ImageFile.load"), ("JPEG", "simplejpeg.decode_jpeg")]
)
def test_running_out_of_memory_is_the_pictures_fault_and_says_so(
    monkeypatch: pytest.MonkeyPatch, name: str, decoder: str
) -> None:
    def starve(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoder, starve)
    problem = refusal(encoded(quarters(), name), Limits(memory_bytes=123)).problem
    assert (problem.slug, problem.limit) == ("image-needs-too-much-memory", 123)


def test_a_time_limit_raised_while_decoding_is_not_blamed_on_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    class TimeLimitError(Exception):
        """Stands for the worker's own, which derives from Exception as well."""

    def shrink(*_: object) -> Image.Image:
        raise TimeLimitError

    monkeypatch.setattr(decoding, "_shrink", shrink)
    with pytest.raises(TimeLimitError):
        decode(encoded(PICTURE, "PNG"), LIMITS)
