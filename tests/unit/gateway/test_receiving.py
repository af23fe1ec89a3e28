"""Files on their way into the store, in whatever pieces they come."""

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import pytest

from darkroom.storage import FileStore
from gateway.multipart import Event, PartBegins, PartData, PartEnds
from gateway.receiving import CHUNK_BYTES, PIECE_BYTES, FormLimits, Receiving, SyncedFile

CONTENT = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 3000


def pieces(content: bytes, sizes: Sequence[int]) -> Iterator[memoryview]:
    """Views of the content, as large as the sizes say by turns."""
    start, turns = 0, cycle(sizes)
    while start < len(content):
        size = next(turns)
        yield memoryview(content)[start : start + size]
        start += size


async def events(content: bytes, sizes: Sequence[int]) -> AsyncIterator[Event]:
    yield PartBegins("file", "photo.jpg")
    for piece in pieces(content, sizes):
        yield PartData(piece)
    yield PartEnds()


def received(folder: Path, parts: AsyncIterator[Event], *, place: str) -> SyncedFile:
    async def receive() -> SyncedFile:
        async with Receiving(FileStore(folder)).parts(parts, FormLimits(1, 10**7)) as form:
            (file,) = form.files
            file.writer.place(place)
            form.is_over = True
        return file

    return asyncio.run(receive())


@pytest.mark.parametrize(
    "sizes",
    [
        [len(CONTENT)],
        [PIECE_BYTES],
        [PIECE_BYTES - 1],
        [1, PIECE_BYTES, 2, 3, 65_536],
        [CHUNK_BYTES, 1],
        [100, 100_000],
    ],
)
def test_a_file_is_the_same_in_whatever_pieces_it_comes(tmp_path: Path, sizes: list[int]) -> None:
    file = received(tmp_path, events(CONTENT, sizes), place="here")
    assert (file.bytes, file.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert (tmp_path / "here").read_bytes() == CONTENT


def test_single_bytes_take_no_more_memory_than_a_chunk(tmp_path: Path) -> None:
    content = CONTENT[: CHUNK_BYTES - 1]
    received(tmp_path, events(CONTENT, [len(CONTENT)]), place="imports")
    tracemalloc.start()
    received(tmp_path, events(content, [1]), place="here")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * CHUNK_BYTES, "a view of each byte would be fifty times as much"
