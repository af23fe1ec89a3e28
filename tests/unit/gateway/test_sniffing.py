"""What the first bytes of a file claim."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sniffing import MEDIA_TYPES, sniff


def heif(*brands: bytes) -> bytes:
    """A file type box with these brands, the first of them the main one, and what may follow."""
    box = brands[0] + b"\0\0\0\0" + b"".join(brands[1:])
    return (len(box) + 8).to_bytes(4, "big") + b"ftyp" + box + b"\0\0\0\x10meta" + b"avif" * 2


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\xff\xd8\xff\xe1\0\0Exif", "JPEG"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"BM\x36\0", "BMP"),
        (heif(b"avif", b"mif1"), "AVIF"),
        (heif(b"mif1", b"avif"), "AVIF"),
        (heif(b"heic", b"mif1"), "HEIC"),
        (heif(b"mif1", b"heic"), "HEIC"),
        (heif(b"msf1"), "HEIC"),
        (heif(b"isom", b"mp42"), None),
        (b"RIFF\x10\0\0\0WAVE", None),
        (b"<svg xmlns=", None),
        (b"%PDF-1.7", None),
        (b"\xff\xd8", None),
        (b"", None),
    ],
)
def test_a_format_is_known_by_its_first_bytes(head: bytes, name: str | None) -> None:
    assert sniff(head) == name
    assert name is None or MEDIA_TYPES[name].startswith("image/")


@given(st.binary(max_size=300))
def test_any_bytes_get_an_answer(head: bytes) -> None:
    assert sniff(head) in {None, *MEDIA_TYPES}


@given(st.binary(max_size=64))
def test_a_broken_file_type_box_gets_an_answer(box: bytes) -> None:
    assert sniff(box[:4].ljust(4, b"\xff") + b"ftyp" + box[4:]) in {None, *MEDIA_TYPES}
