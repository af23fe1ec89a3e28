"""Uploads on their way into the blob store: hashed, limited and synced as they arrive, never held whole."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import anyio
from anyio.to_thread import run_sync

from darkroom.contracts.base import Sha256
from darkroom.contracts.problems import problem
from darkroom.errors import PermanentError
from darkroom.storage import BlobStore, BlobWriter
from darkroom.telemetry import names, tracing
from gateway.errors import InvalidFieldsError
from gateway.multipart import Event, MultipartReader, PartBegins, PartData, PartEnds
from gateway.problems import gateway_stopping
from gateway.sniffing import MEDIA_TYPES, SNIFF_BYTES, sniff

FILE_FIELD = "file"

CHUNK_BYTES = 256 * 1024
"""More than this is hashed and written in one go in a thread, before the next is taken: the change of threads costs
about 0.1 ms, hashing this much 0.2 ms."""

PIECE_BYTES = 16 * 1024
"""What comes in at least so many bytes is kept as it came; smaller pieces are copied together, because a thousand views
of a byte each take more memory than a chunk."""

MAX_FIELDS = 100
MAX_FIELD_BYTES = 4096
"""Of one form field besides the files; tags, ids and lanes are short."""
MAX_FILENAME_CHARACTERS = 255


@dataclass(frozen=True)
class FormLimits:
    """How many files of how many bytes one form may bring."""

    files: int
    file_bytes: int


@dataclass(frozen=True)
class SyncedFile:
    """One file whose bytes are on stable storage, not yet under a key."""

    writer: BlobWriter
    filename: str | None
    sha256: Sha256
    bytes: int


@dataclass
class ReceivedForm:
    """A whole form. Whoever has placed its files, or removed what was left of them, says that `is_over`."""

    files: list[SyncedFile] = field(default_factory=list)
    fields: list[tuple[str, str]] = field(default_factory=list)
    is_over: bool = False


class Receiving:
    """Takes uploads in, until the gateway has to go. For use in its event loop."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._open: set[anyio.CancelScope] = set()

    def end(self) -> None:
        """Has every upload that is not here in full end with the problem `gateway-stopping`, and no other."""
        for scope in self._open:
            scope.cancel()

    @asynccontextmanager
    async def form(
        self, body: AsyncIterator[bytes], content_type: str | None, limits: FormLimits
    ) -> AsyncIterator[ReceivedForm]:
        """The form in a request's body, its files synced. Files that were not placed by the end of the block are gone.

        Raises the problems `wrong-content-type` and `malformed-upload`, and those of `parts`.
        """
        async with self.parts(_parts_in(body, MultipartReader(content_type)), limits) as form:
            yield form

    @asynccontextmanager
    async def parts(self, parts: AsyncIterator[Event], limits: FormLimits) -> AsyncIterator[ReceivedForm]:
        """The same from parts, however they arrive.

        Raises the problems `too-many-files`, `too-many-fields`, `field-too-large`, `invalid-field`, `image-too-large`,
        `empty-file`, `unsupported-format`, `no-file` and `gateway-stopping`.
        """
        form, incoming = ReceivedForm(), list[_IncomingFile]()
        try:
            with tracing.step(names.RECEIVE_UPLOAD) as span, self._interruptible():
                await _receive(parts, self._store, limits, form, incoming)
                span.set_attributes(
                    {names.FILES: len(form.files), names.BLOB_BYTES: sum(file.bytes for file in form.files)}
                )
            yield form
        finally:
            if not form.is_over:
                # A client that hung up has cancelled us: what it left behind goes all the same.
                with anyio.CancelScope(shield=True):
                    await run_sync(_discard, incoming)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        with anyio.CancelScope() as scope:
            self._open.add(scope)
            try:
                yield
            finally:
                self._open.remove(scope)
        if scope.cancelled_caught:
            raise gateway_stopping()


async def _parts_in(body: AsyncIterator[bytes], reader: MultipartReader) -> AsyncIterator[Event]:
    async for chunk in body:
        for event in reader.feed(chunk):
            yield event
    reader.finish()


async def _receive(
    parts: AsyncIterator[Event],
    store: BlobStore,
    limits: FormLimits,
    form: ReceivedForm,
    incoming: list["_IncomingFile"],
) -> None:
    part: _IncomingFile | _IncomingField | None = None
    async for event in parts:
        match event:
            case PartBegins(name=name, filename=filename) if name == FILE_FIELD:
                if len(incoming) == limits.files:
                    raise _too_many_files(limits.files)
                part = _IncomingFile(store, _checked_filename(filename), len(incoming) + 1, limits.file_bytes)
                incoming.append(part)
            case PartBegins(name=name):
                if len(form.fields) == MAX_FIELDS:
                    raise _too_many_fields()
                part = _IncomingField(name)
            case PartData(data=data) if part is not None:
                if isinstance(part, _IncomingFile) and part.has_chunk:
                    await run_sync(part.write)  # what comes last is left to `sync`, for which the thread changes anyway
                part.take(data)
            case PartEnds() if isinstance(part, _IncomingFile):
                part.check_complete()
                form.files.append(await run_sync(part.sync))
            case PartEnds() if isinstance(part, _IncomingField):
                form.fields.append((part.name, part.text()))
    if not form.files:
        raise _no_file()


class _IncomingField:
    """A short text."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._value = bytearray()

    def take(self, data: bytes | memoryview) -> None:
        self._value += data
        if len(self._value) > MAX_FIELD_BYTES:
            raise PermanentError.of(
                "field-too-large",
                "A form field is too large",
                413,
                f"The form field {self.name!r} has more than {MAX_FIELD_BYTES} bytes.",
                value=len(self._value),
                limit=MAX_FIELD_BYTES,
                remedy="Shorten it; pictures belong into the field `file`.",
            )

    def text(self) -> str:
        try:
            text = self._value.decode()
        except UnicodeDecodeError as error:
            raise invalid_field(self.name, "is not UTF-8", remedy="Send form fields as UTF-8.") from error
        check_characters(self.name, text)
        return text


class _IncomingFile:
    """A file on its way to the store. `take` collects; `write` and `sync` block and belong into a thread."""

    def __init__(self, store: BlobStore, filename: str | None, number: int, limit: int) -> None:
        self.name = filename or f"file {number}"
        self._filename = filename
        self._store = store
        self._limit = limit
        self._pending: list[bytes | bytearray | memoryview] = []
        self._pending_bytes = 0
        self._bytes = 0
        self._is_sniffed = False
        self._hash = hashlib.sha256()
        self._writer: BlobWriter | None = None

    @property
    def has_chunk(self) -> bool:
        return self._pending_bytes > CHUNK_BYTES

    def take(self, data: bytes | memoryview) -> None:
        if len(data) >= PIECE_BYTES:
            self._pending.append(data)
        elif self._pending and isinstance(self._pending[-1], bytearray):
            self._pending[-1] += data
        else:
            self._pending.append(bytearray(data))
        self._pending_bytes += len(data)
        self._bytes += len(data)
        if self._bytes > self._limit:
            raise _too_large(self.name, self._bytes, self._limit)
        if not self._is_sniffed and self._pending_bytes >= SNIFF_BYTES:
            self._sniff()

    def check_complete(self) -> None:
        if not self._bytes:
            raise _empty(self.name)
        if not self._is_sniffed:
            self._sniff()

    def _sniff(self) -> None:
        head = b"".join(piece[:SNIFF_BYTES] for piece in self._pending)[:SNIFF_BYTES]
        if sniff(head) is None:
            raise _unsupported(self.name, head)
        self._is_sniffed = True

    def write(self) -> None:
        if self._writer is None:
            self._writer = self._store.new_writer()
        pieces, self._pending, self._pending_bytes = self._pending, [], 0
        for piece in pieces:
            self._hash.update(piece)
            self._writer.write(piece)

    def sync(self) -> SyncedFile:
        self.write()
        if self._writer is None:
            raise RuntimeError("write() has opened no writer")
        self._writer.sync()
        return SyncedFile(self._writer, self._filename, self._hash.hexdigest(), self._bytes)

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()


def _discard(files: list[_IncomingFile]) -> None:
    for file in files:
        file.discard()


def check_characters(name: str, text: str) -> None:
    """Raises `invalid-field` for control characters, of which PostgreSQL could not even store NUL."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise invalid_field(name, "contains a control character", remedy="Remove it.")


def _checked_filename(filename: str | None) -> str | None:
    if not filename:
        return None
    check_characters("filename", filename)
    if len(filename) > MAX_FILENAME_CHARACTERS:
        raise invalid_field(
            "filename",
            f"has {len(filename)} characters and the limit is {MAX_FILENAME_CHARACTERS}",
            value=len(filename),
            limit=MAX_FILENAME_CHARACTERS,
            remedy="Send the file under a shorter name.",
        )
    return filename


def invalid_field(
    name: str, fault: str, *, value: str | int | None = None, limit: str | int | None = None, remedy: str
) -> InvalidFieldsError:
    """A form field's value cannot be accepted; `fault` completes a sentence about it."""
    return InvalidFieldsError(
        problem(
            "invalid-field",
            "A field's value cannot be accepted",
            422,
            f"The field {name!r} {fault}.",
            value=value,
            limit=limit,
            remedy=remedy,
        ),
        [(name, fault)],
    )


def _too_large(file: str, seen_bytes: int, limit: int) -> PermanentError:
    return PermanentError.of(
        "image-too-large",
        "The file has too many bytes",
        413,
        f"{file} has at least {seen_bytes} bytes and the limit is {limit}; nothing of this request was stored.",
        value=seen_bytes,
        limit=limit,
        remedy="Send a smaller or more strongly compressed file, or raise DARKROOM_MAX_UPLOAD_BYTES.",
        file=file,
    )


def _too_many_files(limit: int) -> PermanentError:
    return PermanentError.of(
        "too-many-files",
        "The request has too many files",
        413,
        f"The request has more than {limit} files; nothing of it was stored.",
        value=limit + 1,
        limit=limit,
        remedy="Send them in several requests, or raise DARKROOM_MAX_UPLOAD_FILES.",
    )


def _too_many_fields() -> PermanentError:
    return PermanentError.of(
        "too-many-fields",
        "The form has too many fields",
        413,
        f"The form has more than {MAX_FIELDS} fields besides its files.",
        value=MAX_FIELDS + 1,
        limit=MAX_FIELDS,
        remedy="Send fewer fields.",
    )


def _empty(file: str) -> PermanentError:
    return PermanentError.of(
        "empty-file",
        "The file is empty",
        422,
        f"{file} has no bytes; nothing of this request was stored.",
        value=0,
        limit=1,
        remedy="Send the file again, or leave it out.",
        file=file,
    )


def _unsupported(file: str, head: bytes) -> PermanentError:
    supported = ", ".join(MEDIA_TYPES)
    found = head[:12].hex(" ")
    return PermanentError.of(
        "unsupported-format",
        "The file is not a picture in a supported format",
        415,
        f"{file} starts with the bytes {found}, which is none of {supported}; nothing of this request was stored.",
        value=found,
        limit=supported,
        remedy="Convert it to one of these formats.",
        file=file,
    )


def _no_file() -> PermanentError:
    return PermanentError.of(
        "no-file",
        "The form has no file",
        422,
        f"The form has no field {FILE_FIELD!r}.",
        remedy="Send each picture as the form field `file`, as in `curl -F file=@photo.jpg`.",
    )
