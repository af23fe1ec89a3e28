"""Blobs in an object store, by obstore: S3 and what speaks like it. Imported only where `DARKROOM_BLOB_URL` names one.

Credentials, region and endpoint come from the provider's own variables (`AWS_*`), which obstore reads. A process that
forks must not have sent a request before: its children would wait for threads that they do not have.
"""

import logging
import mimetypes
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store, from_url

from darkroom.errors import BlobMissingError, ConfigurationError
from darkroom.storage import INCOMING, BlobInfo, check_key

log = logging.getLogger(__name__)

PART_BYTES = 8 * 2**20
"""What is read or written in one request. S3 asks for 5 MiB at least, and allows 10,000 parts: 80 GB."""

PARTS_AT_ONCE = 2
"""Of one upload: what a slow store makes us hold is two parts a file."""

RETRIES = 3
RETRY_TIMEOUT = timedelta(seconds=10)
"""Below the time that a worker's task or an upload has; after it, tasks are tried again and uploads answered 503."""


class StorageUnavailableError(OSError):
    """The object store refused or did not answer: as with a disk that fails, tasks try again and uploads get a 503."""


class ObjectWriter:
    """A `BlobWriter` under a passing name; S3 cannot rename, so `place` has the store copy it."""

    def __init__(self, store: "ObjectStore") -> None:
        self._store = store
        self._key = f"{INCOMING}/{uuid.uuid4().hex}"
        self._file = obstore.open_writer(store.client, self._key, buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
        self._bytes = 0
        self._is_closed = False

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        with _reported(self._key):
            self._file.write(chunk)
        self._bytes += len(chunk)

    def sync(self) -> None:
        with _reported(self._key):
            self._close()

    def place(self, key: str) -> None:
        check_key(key)
        try:
            if self._store.info(key).bytes == self._bytes:
                return
        except BlobMissingError:
            pass
        with _reported(self._key):
            obstore.copy(self._store.client, self._key, key)

    def discard(self) -> None:
        try:
            with _reported(self._key):
                self._close()  # the parts of an upload that never ends would be kept, and paid for
            self._store.delete(self._key)
        except OSError as error:  # the clean up finds it by its age
            log.warning("storage.not_discarded", extra={"key": self._key, "error": str(error)})

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._file.close()


class ObjectStore:
    """A `BlobStore` in a bucket, or below a prefix of it. A request that was answered is on stable storage."""

    def __init__(self, client: "S3Store | GCSStore | AzureStore") -> None:
        self.client = client

    def put(self, key: str, data: bytes) -> None:
        check_key(key)
        media_type = mimetypes.guess_type(key)[0] or "application/octet-stream"
        with _reported(key):
            obstore.put(self.client, key, data, attributes={"Content-Type": media_type})

    def get(self, key: str) -> bytes:
        check_key(key)
        with _reported(key):
            return obstore.get(self.client, key).bytes().to_bytes()

    def info(self, key: str) -> BlobInfo:
        check_key(key)
        with _reported(key):
            found = obstore.head(self.client, key)
        return BlobInfo(key, found["size"], found["last_modified"].timestamp())

    def exists(self, key: str) -> bool:
        try:
            self.info(key)
        except BlobMissingError:
            return False
        return True

    def delete(self, key: str) -> None:
        check_key(key)
        try:
            with _reported(key):
                obstore.delete(self.client, key)
        except BlobMissingError:
            return

    def walk(self, prefix: str) -> Iterator[BlobInfo]:
        with _reported(prefix):
            for found in obstore.list(self.client, prefix.rstrip("/")):
                for blob in found:
                    yield BlobInfo(blob["path"], blob["size"], blob["last_modified"].timestamp())

    def read_range(self, key: str, start: int, chunk_bytes: int = 262_144) -> Iterator[bytes]:
        size = self.info(key).bytes

        def pieces() -> Iterator[bytes]:
            # A request for each part: one for all would be cut while a slow client takes its time.
            for offset in range(start, size, PART_BYTES):
                with _reported(key):
                    part = obstore.get_range(self.client, key, start=offset, end=min(offset + PART_BYTES, size))
                view = memoryview(part)
                for begin in range(0, len(view), chunk_bytes):
                    yield bytes(view[begin : begin + chunk_bytes])

        return pieces()

    def new_writer(self) -> ObjectWriter:
        return ObjectWriter(self)

    def signed_url(self, key: str, expires_s: int) -> str | None:
        check_key(key)
        with _reported(key):
            return obstore.sign(self.client, "GET", key, timedelta(seconds=expires_s))

    def free_bytes(self) -> int | None:
        return None


def open_object_store(url: str) -> ObjectStore:
    """The store that an `s3://`, `gs://` or `az://` URL names; connects on first use.

    Raises `ConfigurationError`. Only `s3://` is tested.
    """
    try:
        client = from_url(url, retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_TIMEOUT})
    except (exceptions.BaseError, ValueError) as error:
        raise ConfigurationError(f"DARKROOM_BLOB_URL is {url!r}, which cannot be opened: {error}") from error
    return ObjectStore(client)  # type: ignore[arg-type]


@contextmanager
def _reported(key: str) -> Iterator[None]:
    """Errors of the library as those that every store raises."""
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        raise BlobMissingError(key) from error
    except (exceptions.BaseError, OSError) as error:
        raise StorageUnavailableError(f"the object store failed at {key!r}: {error}") from error
