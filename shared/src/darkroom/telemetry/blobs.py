"""Spans for what is read from and written to the blob store."""

from collections.abc import Iterator

from opentelemetry.trace import SpanKind

from darkroom.errors import BlobMissingError
from darkroom.storage import BlobInfo, BlobStore, BlobWriter
from darkroom.telemetry import names, tracing
from darkroom.telemetry.tracing import Attributes


class TracedBlobs:
    """A `BlobStore` around another: what is part of a trace shows there, all else goes straight through."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def put(self, key: str, data: bytes) -> None:
        attributes: Attributes = {names.BLOB_KEY: key, names.BLOB_BYTES: len(data)}
        with tracing.step(names.BLOB_PUT, attributes, kind=SpanKind.CLIENT):
            self._store.put(key, data)

    def get(self, key: str) -> bytes:
        with tracing.step(names.BLOB_GET, {names.BLOB_KEY: key}, kind=SpanKind.CLIENT) as span:
            try:
                data = self._store.get(key)
            except BlobMissingError as error:
                # An answer and no fault: whoever looks whether work is done already asks this way.
                span.set_attribute(names.BLOB_IS_MISSING, True)
                missing = error
            else:
                span.set_attribute(names.BLOB_BYTES, len(data))
                return data
        raise missing

    def info(self, key: str) -> BlobInfo:
        return self._store.info(key)

    def exists(self, key: str) -> bool:
        return self._store.exists(key)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def walk(self, prefix: str) -> Iterator[BlobInfo]:
        return self._store.walk(prefix)

    def read_range(self, key: str, start: int, chunk_bytes: int = 262_144) -> Iterator[bytes]:
        return self._store.read_range(key, start, chunk_bytes)

    def new_writer(self) -> BlobWriter:
        return self._store.new_writer()

    def signed_url(self, key: str, expires_s: int) -> str | None:
        return self._store.signed_url(key, expires_s)

    def free_bytes(self) -> int | None:
        return self._store.free_bytes()
