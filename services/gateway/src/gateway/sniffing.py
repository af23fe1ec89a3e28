"""Which picture format a file claims to be, by its first bytes. Nothing is decoded: that is the thumbnailer's alone."""

from darkroom.contracts.base import BlobKey
from darkroom.storage import BlobStore

SNIFF_BYTES = 256
"""Enough for the list of brands at the start of a HEIC or AVIF file."""

MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WebP": "image/webp",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
    "AVIF": "image/avif",
    "HEIC": "image/heic",
}
"""The supported formats and the `Content-Type` of each."""

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})


def sniff(head: bytes) -> str | None:
    """The format that a file's first `SNIFF_BYTES` bytes claim, a key of `MEDIA_TYPES`; None for any other."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        # The first brand is often the general `mif1`; which codec it is stands among the compatible ones.
        brands = {head[at : at + 4] for at in (8, *range(16, min(int.from_bytes(head[:4], "big"), SNIFF_BYTES), 4))}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIC_BRANDS:
            return "HEIC"
    return None


def media_type(store: BlobStore, key: BlobKey) -> str:
    """The `Content-Type` of a stored blob, by its first bytes; blocks."""
    head = next(store.read_range(key, 0, SNIFF_BYTES), b"")
    return MEDIA_TYPES.get(sniff(head) or "", "application/octet-stream")
