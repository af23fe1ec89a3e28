"""Pictures as HTTP answers: conditional, in ranges, cached for ever, and never run by a browser."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from darkroom.contracts.base import BlobKey
from darkroom.errors import PermanentError
from darkroom.storage import BlobStore
from gateway.rest.problems import ProblemResponse
from gateway.sniffing import media_type

AT_ONCE_BYTES = 256 * 1024
"""Thumbnails are below it, and go out after one change of threads instead of one for each piece."""


@dataclass(frozen=True)
class Blob:
    """What to serve: `etag` without quotes, and whether a browser saves it (under `filename`) or shows it."""

    key: BlobKey
    etag: str
    is_download: bool = False
    filename: str | None = None


@dataclass(frozen=True)
class ByteRange:
    """Bytes from `start` up to, not including, `stop`."""

    start: int
    stop: int


def requested_range(header: str | None, size: int) -> ByteRange | None:
    """The one range that a `Range` header asks of `size` bytes; None: all of them.

    Several ranges, other units and what cannot be read are answered whole, as RFC 9110 allows. Raises
    `range-not-satisfiable` when the range begins behind the end.
    """
    asked = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.replace(" ", "")) if header else None
    if asked is None or not (asked[1] or asked[2]):
        return None
    if not asked[1]:
        start, stop = max(0, size - int(asked[2])), size
    else:
        start, stop = int(asked[1]), min(size, int(asked[2]) + 1) if asked[2] else size
        if asked[2] and int(asked[2]) < start:
            return None
    if start >= size:
        raise PermanentError.of(
            "range-not-satisfiable",
            "The range lies outside of the picture",
            416,
            f"The range {header!r} begins behind the last of {size} bytes.",
            value=header,
            limit=size,
            remedy="Ask for bytes that there are.",
        )
    return ByteRange(start, stop)


def matches(header: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` header names this entity."""
    if header is None:
        return False
    return header.strip() == "*" or f'"{etag}"' in [one.strip().removeprefix("W/") for one in header.split(",")]


async def serve(request: Request, store: BlobStore, blob: Blob, direct_s: int = 0) -> Response:
    """The answer to a GET or HEAD of a blob: 200, 206, 304, or 416 as a problem.

    With `direct_s`, a GET is redirected (307) to where the store itself serves the blob for that many seconds.
    """
    headers = {
        "ETag": f'"{blob.etag}"',
        # The content under an image's id never changes; only whether it is there.
        "Cache-Control": "public, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if matches(request.headers.get("if-none-match"), blob.etag):
        return Response(status_code=304, headers=headers)
    if direct_s and request.method == "GET" and (url := await run_sync(_signed, store, blob.key, direct_s)):
        # Whoever has the address has the picture: not for shared caches, and not for as long as it is valid.
        return RedirectResponse(url, 307, {"Cache-Control": f"private, max-age={direct_s // 2}"})
    range_header = request.headers.get("range")
    if request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
        range_header = None
    try:
        opened = await run_sync(_open, store, blob.key, range_header)
    except PermanentError as error:
        return ProblemResponse(error.problem, {"Content-Range": f"bytes */{error.problem.limit}"})
    asked = opened.asked
    headers |= {"Content-Type": opened.media_type, "Content-Length": str(opened.part.stop - opened.part.start)}
    if asked is not None:
        headers["Content-Range"] = f"bytes {asked.start}-{asked.stop - 1}/{opened.size}"
    if blob.is_download:
        headers["Content-Disposition"] = disposition(blob.filename or blob.key.rpartition("/")[2])
    status = 200 if asked is None else 206
    if request.method == "HEAD":
        return Response(None, status, headers)
    if isinstance(opened.content, bytes):
        return Response(opened.content, status, headers)
    return StreamingResponse(opened.content, status, headers)


def disposition(filename: str) -> str:
    """A `Content-Disposition` that saves under this name, in the two forms that browsers know."""
    plain = re.sub(r"[^ !#-\[\]-~]", "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


@dataclass(frozen=True)
class _Opened:
    media_type: str
    size: int
    asked: ByteRange | None
    content: bytes | Iterator[bytes]

    @property
    def part(self) -> ByteRange:
        return self.asked or ByteRange(0, self.size)


def _signed(store: BlobStore, key: BlobKey, expires_s: int) -> str | None:
    store.info(key)  # a blob that is missing is our problem to report, not the object store's
    return store.signed_url(key, expires_s)


def _open(store: BlobStore, key: BlobKey, range_header: str | None) -> _Opened:
    """The media type by the blob's first bytes, and the asked part: at once when it is small, else in pieces."""
    size = store.info(key).bytes
    asked = requested_range(range_header, size)
    part = asked or ByteRange(0, size)
    length = part.stop - part.start
    pieces = _cut(store.read_range(key, part.start), length)
    return _Opened(media_type(store, key), size, asked, b"".join(pieces) if length <= AT_ONCE_BYTES else pieces)


def _cut(pieces: Iterator[bytes], length: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece[:length]
        length -= len(piece)
        if length <= 0:
            return
