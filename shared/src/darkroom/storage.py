"""Blobs: bytes under a key, written durably or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from darkroom.errors import BlobMissingError, ConfigurationError

INCOMING = "incoming"
"""Uploads that have no name yet. On the same file system as the rest, so that naming them is one rename."""


@dataclass(frozen=True)
class BlobInfo:
    """A blob's key, its size in bytes and when it was written, in seconds since 1970."""

    key: str
    bytes: int
    modified_s: float


class BlobWriter(Protocol):
    """A blob that is being written and gets its key at the end, when its hash is known."""

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Appends."""

    def sync(self) -> None:
        """Returns when the bytes are on stable storage; nothing can be written after it."""

    def place(self, key: str) -> None:
        """Makes the synced bytes appear under `key`, durably, or leaves what lies there when it has as many bytes."""

    def discard(self) -> None:
        """Removes the bytes unless they were placed. Safe to call twice."""


class BlobStore(Protocol):
    """What every service needs of a blob store. Methods block; call them from a thread in an event loop."""

    def put(self, key: str, data: bytes) -> None:
        """Durable and atomic: readers see nothing, or all of it. Overwrites."""

    def get(self, key: str) -> bytes:
        """All bytes; raises `BlobMissingError`."""

    def info(self, key: str) -> BlobInfo:
        """Size and age; raises `BlobMissingError`."""

    def exists(self, key: str) -> bool:
        """Whether a blob lies under `key`."""

    def delete(self, key: str) -> None:
        """Removes the blob if there is one."""

    def walk(self, prefix: str) -> Iterator[BlobInfo]:
        """Every blob whose key starts with the folder `prefix`, in no particular order."""

    def read_range(self, key: str, start: int, chunk_bytes: int = 262_144) -> Iterator[bytes]:
        """The bytes from `start`, in pieces; raises `BlobMissingError` before the first."""

    def new_writer(self) -> BlobWriter:
        """An empty blob without a key."""

    def signed_url(self, key: str, expires_s: int) -> str | None:
        """An address from which anyone may download the blob for that long; None: this store has none."""

    def free_bytes(self) -> int | None:
        """How much more it can take; None where it grows as needed."""


class FileWriter:
    """A `BlobWriter` in a folder."""

    def __init__(self, store: "FileStore") -> None:
        self._store = store
        self.path = store.root / INCOMING / uuid.uuid4().hex
        self._file = self.path.open("xb", buffering=0)
        self._bytes = 0

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        view = memoryview(chunk)
        while view:  # a raw write may take less than it was given
            view = view[self._file.write(view) :]
        self._bytes += len(chunk)

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def place(self, key: str) -> None:
        target = self._store.path(key)
        try:
            if target.stat().st_size == self._bytes:
                sync_folder(target.parent)  # whoever placed the same content may have died before this
                return
        except FileNotFoundError:
            pass
        move_durably(self.path, target)

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class FileStore:
    """A `BlobStore` in one folder of a local or mounted file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / INCOMING).mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where a key's bytes lie; raises `ValueError` as `check_key` does."""
        check_key(key)
        return self.root / key

    def put(self, key: str, data: bytes) -> None:
        target = self.path(key)
        writer = self.new_writer()
        try:
            writer.write(data)
            writer.sync()
            move_durably(writer.path, target)
        finally:
            writer.discard()

    def get(self, key: str) -> bytes:
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError as missing:
            raise BlobMissingError(key) from missing

    def info(self, key: str) -> BlobInfo:
        try:
            found = self.path(key).stat()
        except FileNotFoundError as missing:
            raise BlobMissingError(key) from missing
        return BlobInfo(key, found.st_size, found.st_mtime)

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def delete(self, key: str) -> None:
        path = self.path(key)
        path.unlink(missing_ok=True)
        for folder in (path.parent, *path.parent.parents):
            # Empty folders go with their last blob; a folder that just got another one refuses.
            if folder == self.root or folder.parent == self.root:
                break
            try:
                folder.rmdir()
            except OSError:
                break

    def walk(self, prefix: str) -> Iterator[BlobInfo]:
        top = self.path(prefix.rstrip("/"))
        for folder, _, names in os.walk(top):
            for name in names:
                path = Path(folder) / name
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue  # deleted or renamed while we walked
                yield BlobInfo(path.relative_to(self.root).as_posix(), found.st_size, found.st_mtime)

    def read_range(self, key: str, start: int, chunk_bytes: int = 262_144) -> Iterator[bytes]:
        try:
            file = self.path(key).open("rb")
        except FileNotFoundError as missing:
            raise BlobMissingError(key) from missing

        def pieces() -> Iterator[bytes]:
            with file:
                file.seek(start)
                while piece := file.read(chunk_bytes):
                    yield piece

        return pieces()

    def new_writer(self) -> FileWriter:
        return FileWriter(self)

    def signed_url(self, key: str, expires_s: int) -> str | None:
        return None

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.root).free


OBJECT_STORES = ("s3", "gs", "az")


def open_blob_store(url: str) -> BlobStore:
    """The store that a `DARKROOM_BLOB_URL` names; raises `ConfigurationError` for one that cannot be."""
    parts = urlsplit(url)
    if parts.scheme in OBJECT_STORES and parts.netloc:
        from darkroom.object_storage import open_object_store  # most processes never need it

        return open_object_store(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ConfigurationError(f"DARKROOM_BLOB_URL is {url!r}; it must be file:///absolute/folder or s3://bucket")
    return FileStore(Path(unquote(parts.path)))


def check_key(key: str) -> None:
    """Raises `ValueError` for a key that would leave the store or has a second name."""
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{key!r} is not a blob key")


def move_durably(source: Path, target: Path) -> None:
    """Renames a synced file to its final name, making folders as needed; each new entry is on stable storage."""
    while True:
        try:
            make_folder(target.parent)
            source.replace(target)
            break
        except FileNotFoundError:
            # A folder was empty, and `delete` took it between two of our steps: make it again.
            if not source.exists():
                raise
    with suppress(FileNotFoundError):  # deleted again already, with its folder
        sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder and its missing parents, each entry on stable storage."""
    while not folder.is_dir():
        make_folder(folder.parent)
        try:
            folder.mkdir()
            sync_folder(folder.parent)
        except (FileExistsError, FileNotFoundError):
            continue  # made by another meanwhile, or its empty parent deleted


def sync_folder(folder: Path) -> None:
    """Returns when the folder's entries are on stable storage: a synced file under an unsynced name can be lost."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
