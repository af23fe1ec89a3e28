"""Accepting uploads: when the answer is sent, every byte and one row for each photo are on stable storage."""

import asyncio
import hashlib
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass
from itertools import chain
from typing import Any
from uuid import UUID

from anyio import CancelScope, CapacityLimiter
from anyio.to_thread import run_sync
from opentelemetry.trace import Span, SpanKind, get_current_span
from sqlalchemy import Connection, Engine, Row
from starlette.requests import ClientDisconnect

from darkroom.contracts.base import Lane
from darkroom.contracts.keys import original_key
from darkroom.database import images, uploads
from darkroom.errors import PermanentError
from darkroom.ids import uuid7
from darkroom.outbound import OutboundPolicy, RefusedTargetError
from darkroom.telemetry import metrics, names, tracing
from darkroom.telemetry.tracing import Attributes
from gateway.problems import client_disconnected, internal_error, problem_of
from gateway.receiving import ReceivedForm, invalid_field
from gateway.traces import CommitSpans, TraceContext

MAX_TAGS = 32
MAX_TAG_CHARACTERS = 64
MAX_EXTERNAL_ID_CHARACTERS = 256
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255

AT_ONCE = 2
"""Transactions of uploads: one that computes while the other waits for the disk. With more of them, fewer uploads meet
in each."""

FILES_TOGETHER = 32
"""Of all uploads in one transaction: naming them takes a fraction of a millisecond each."""

PATIENCE_S = 0.1
"""Longest that an upload waits for others' transactions, one of which may be waiting for a lock, while there are
connections left; a transaction takes a few milliseconds."""


@dataclass(frozen=True)
class UploadOptions:
    """What a client said about all files of one request."""

    lane: Lane = Lane.INTERACTIVE
    tags: tuple[str, ...] = ()
    external_id: str | None = None
    callback_url: str | None = None


def read_options(fields: Sequence[tuple[str, str]], outbound: OutboundPolicy) -> UploadOptions:
    """The form's fields besides its files; raises `invalid-field` and `unknown-field`."""
    lane, tags, external_id, callback_url = Lane.INTERACTIVE, dict[str, None](), None, None
    for name, value in fields:
        match name:
            case "lane":
                if value not in set(Lane):
                    lanes = ", ".join(Lane)
                    raise invalid_field(
                        name, f"is {value[:80]!r}", value=value[:80], limit=lanes, remedy=f"Send one of {lanes}."
                    )
                lane = Lane(value)
            case "tags":
                tags[_bounded(name, value, MAX_TAG_CHARACTERS)] = None
            case "external_id":
                external_id = _bounded(name, value, MAX_EXTERNAL_ID_CHARACTERS)
            case "callback_url":
                callback_url = _allowed_url(name, value, outbound)
            case _:
                raise PermanentError.of(
                    "unknown-field",
                    "The form has a field that is not known",
                    422,
                    f"The form field {name[:80]!r} is not known.",
                    value=name[:80],
                    limit="file, lane, tags, external_id, callback_url",
                    remedy="Leave it out.",
                )
    if len(tags) > MAX_TAGS:
        raise invalid_field(
            "tags",
            f"has {len(tags)} values and the limit is {MAX_TAGS}",
            value=len(tags),
            limit=MAX_TAGS,
            remedy="Send fewer tags.",
        )
    return UploadOptions(lane, tuple(tags), external_id, callback_url)


def _bounded(name: str, value: str, limit: int) -> str:
    if not 1 <= len(value) <= limit:
        raise invalid_field(
            name,
            f"has {len(value)} characters; it must have 1 to {limit}",
            value=len(value),
            limit=limit,
            remedy="Shorten it, or leave it out.",
        )
    return value


def _allowed_url(name: str, value: str, outbound: OutboundPolicy) -> str:
    try:
        outbound.check_url(value)
    except RefusedTargetError as error:
        raise invalid_field(
            name,
            str(error),
            value=value[:200],
            limit="https to the public internet",
            remedy="Send another URL, or name the network in DARKROOM_CALLBACK_ALLOWED_NETWORKS.",
        ) from error
    return value


def check_idempotency_key(key: str) -> str:
    """The key; raises `invalid-field` when it is not 1 to 255 printable ASCII characters."""
    if not (1 <= len(key) <= MAX_IDEMPOTENCY_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        raise invalid_field(
            "Idempotency-Key",
            f"must be 1 to {MAX_IDEMPOTENCY_KEY_CHARACTERS} printable ASCII characters",
            limit=MAX_IDEMPOTENCY_KEY_CHARACTERS,
            remedy="Use a UUID.",
        )
    return key


@contextmanager
def refusals_counted() -> Iterator[None]:
    """Counts the problem with which an upload is refused in the block, over either face."""
    try:
        yield
    except Exception as error:
        is_gone = isinstance(error, ClientDisconnect)
        problem = client_disconnected() if is_gone else problem_of(error) or internal_error()
        metrics.UPLOADS_REFUSED.labels(problem.slug).inc()
        raise


def fingerprint(form: ReceivedForm, options: UploadOptions) -> str:
    """What makes two requests the same: their files, in order, and everything said about them."""
    described = {
        "files": [[file.filename, file.sha256] for file in form.files],
        "lane": options.lane,
        "tags": options.tags,
        "external_id": options.external_id,
        # Only where there is one: keys of requests from before there were any still fit.
        **({"callback_url": options.callback_url} if options.callback_url is not None else {}),
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def new_ids(count: int, unix_ms: int, random_bits: Callable[[int], int]) -> list[UUID]:
    """That many version 7 UUIDs of one moment, rising."""
    return sorted(uuid7(unix_ms, random_bits(74)) for _ in range(count))


@dataclass(frozen=True)
class Accepted:
    """What an upload became: a batch and its images, in the order of upload."""

    batch: Row[Any]
    images: Sequence[Row[Any]]


@dataclass(eq=False)
class _Waiting:
    """A received form on its way into the database."""

    form: ReceivedForm
    options: UploadOptions
    trace: TraceContext
    idempotency_key: str | None
    is_alone: bool
    """Whether it may share no transaction."""
    answer: asyncio.Future[Accepted]
    context: Context
    """Of the call, whose span is the current one in it."""
    has_begun: bool = False

    def new_upload(self) -> uploads.Upload:
        batch_id, *image_ids = new_ids(1 + len(self.form.files), time.time_ns() // 1_000_000, secrets.randbits)
        return uploads.Upload(
            batch_id=batch_id,
            files=tuple(
                uploads.ReceivedFile(image_id, file.sha256, file.bytes, file.filename)
                for image_id, file in zip(image_ids, self.form.files, strict=True)
            ),
            lane=self.options.lane,
            tags=self.options.tags,
            external_id=self.options.external_id,
            callback_url=self.options.callback_url,
            traceparent=self.trace.traceparent,
            tracestate=self.trace.tracestate,
            trace_id=self.trace.trace_id,
        )

    def count(self) -> None:
        metrics.UPLOADS.labels(self.options.lane.value).inc(len(self.form.files))
        metrics.UPLOAD_BYTES.labels(self.options.lane.value).inc(sum(file.bytes for file in self.form.files))


class Acceptance:
    """Commits uploads: in threads, because SQLAlchemy's asyncio face adds a quarter to an upload's CPU.

    What comes while others are being committed waits for them, and then goes into one transaction: four together cost a
    third of four alone, here as in PostgreSQL. When something fails before the commit, each is tried again alone, to
    fail only for itself. For use in one event loop.
    """

    def __init__(self, engine: Engine, *, threads: int, is_gathering: bool) -> None:
        """`threads`: connections that uploads may take. Without `is_gathering` each goes alone, at once."""
        self.engine = engine
        self._threads = threads
        self._at_once = min(AT_ONCE, threads) if is_gathering else threads
        self._files_together = FILES_TOGETHER if is_gathering else 1
        self._limiter = CapacityLimiter(threads)
        self._waiting = deque[_Waiting]()
        self._transactions = set[asyncio.Task[None]]()

    async def accept(
        self, form: ReceivedForm, options: UploadOptions, trace: TraceContext, idempotency_key: str | None
    ) -> Accepted:
        """As `accept_form`."""
        loop = asyncio.get_running_loop()
        is_alone = idempotency_key is not None  # another request with the key may come first, and undo this one
        one = _Waiting(form, options, trace, idempotency_key, is_alone, loop.create_future(), copy_context())
        self._waiting.append(one)
        self._begin(self._at_once)
        if not one.has_begun:
            loop.call_later(PATIENCE_S, self._hurry, one)
        with CancelScope(shield=True):
            await asyncio.wait((one.answer,))
        return one.answer.result()

    def _hurry(self, one: _Waiting) -> None:
        if not one.has_begun:
            self._begin(self._threads)

    def _begin(self, at_once: int) -> None:
        while self._waiting and len(self._transactions) < at_once:
            # In a context of its own: it is part of no single call.
            transaction = asyncio.get_running_loop().create_task(self._commit(self._next()), context=Context())
            self._transactions.add(transaction)
            transaction.add_done_callback(self._end)

    def _end(self, transaction: asyncio.Task[None]) -> None:
        self._transactions.discard(transaction)
        self._begin(self._at_once)

    def _next(self) -> list[_Waiting]:
        """The one that waits longest, and those that can go with it: that have no original in common."""
        chosen, left = [self._waiting.popleft()], list[_Waiting]()
        shas = {file.sha256 for file in chosen[0].form.files}
        count = len(chosen[0].form.files)
        if not chosen[0].is_alone:
            for _ in range(min(len(self._waiting), self._files_together - count)):
                one = self._waiting.popleft()
                its = {file.sha256 for file in one.form.files}
                if one.is_alone or its & shas or count + len(one.form.files) > self._files_together:
                    left.append(one)
                else:
                    chosen.append(one)
                    shas |= its
                    count += len(one.form.files)
        self._waiting.extendleft(reversed(left))
        for one in chosen:
            one.has_begun = True
        return chosen

    async def _commit(self, together: list[_Waiting]) -> None:
        try:
            accepted = await run_sync(_accept, self.engine, together, limiter=self._limiter)
            for one, its in zip(together, accepted, strict=True):
                if not one.answer.done():
                    one.answer.set_result(its)
        except _NotTogetherError:
            for one in together:
                one.is_alone = True
            self._waiting.extendleft(reversed(together))
            self._begin(self._threads)
        except Exception as error:
            for one in together:
                if not one.answer.done():
                    one.answer.set_exception(error)
        except BaseException:
            for one in together:
                one.answer.cancel()
            raise


class _NotTogetherError(Exception):
    """Something came in the way of a transaction that several uploads shared; nothing of it is committed."""


async def accept_form(
    acceptance: Acceptance,
    form: ReceivedForm,
    options: UploadOptions,
    trace: TraceContext,
    idempotency_key: str | None = None,
) -> Accepted:
    """The batch that now stands for the form: its blobs are in place and its rows are committed.

    With a key that an equal request has used before, it is that request's batch and nothing is stored. Raises
    `idempotency-key-reused` when the request was another one. Who is cancelled meanwhile is so when it is over.
    """
    return await acceptance.accept(form, options, trace, idempotency_key)


def _accept(engine: Engine, together: Sequence[_Waiting]) -> Sequence[Accepted]:
    if len(together) > 1:
        return _accept_together(engine, together)
    (one,) = together
    return [one.context.run(_accept_alone, engine, one)]


def _accept_together(engine: Engine, together: Sequence[_Waiting]) -> Sequence[Accepted]:
    new = [one.new_upload() for one in together]
    with CommitSpans([one.context.run(get_current_span) for one in together]) as spans, engine.connect() as connection:
        try:
            known = uploads.lock_originals(connection, *new)
            _place_all(together, spans)
            rows = uploads.accept_together(connection, list(zip(new, spans.traceparents, strict=True)), known)
            for upload, span in zip(new, spans.each, strict=True):
                if span.is_recording() and (its := known & {file.sha256 for file in upload.files}):
                    _link(span, uploads.traces_of(connection, its))
            accepted = [
                Accepted(*its) if its is not None else _read(connection, upload.batch_id)
                for upload, its in zip(new, rows, strict=True)
            ]
        except Exception as error:
            raise _NotTogetherError from error
        connection.commit()
    for one in together:
        one.count()
    return accepted


def _accept_alone(engine: Engine, one: _Waiting) -> Accepted:
    key, wanted = one.idempotency_key, ""
    if key is not None:
        wanted = fingerprint(one.form, one.options)
        if earlier := _batch_of_key(engine, key, wanted):
            return earlier
    upload = one.new_upload()
    with tracing.step(names.COMMIT_UPLOAD), engine.connect() as connection:
        known = uploads.lock_originals(connection, upload)
        # Under the locks, which the sweeper takes too: what is in place now stays.
        _place(one.form)
        # None when a request with the same key was committed while this one was on its way.
        accepted = _insert(connection, upload, known, key, wanted)
        if accepted is not None:
            connection.commit()
            one.count()
            return accepted
        connection.rollback()
    if key is None or not (earlier := _batch_of_key(engine, key, wanted)):
        raise RuntimeError("an idempotency key was taken by a request that is not there")
    return earlier


def _insert(
    connection: Connection, upload: uploads.Upload, known: set[str], key: str | None, wanted: str
) -> Accepted | None:
    new = uploads.accept(connection, upload, known)
    if known and tracing.is_recording():
        _link(get_current_span(), uploads.traces_of(connection, known))
    if key is not None and not uploads.record_idempotent(connection, key, wanted, upload.batch_id):
        return None
    # Read before the commit: an answer that cannot be given must not leave an upload behind.
    return Accepted(*new) if new is not None else _read(connection, upload.batch_id)


def _link(span: Span, traceparents: Sequence[str]) -> None:
    """Shows in an upload's trace where its known photos are, or were, worked on."""
    for link in chain.from_iterable(map(tracing.link_to, traceparents)):
        span.add_link(link.context)


def _read(connection: Connection, batch_id: UUID) -> Accepted:
    batch = images.find_batch(connection, batch_id)
    if batch is None:
        raise RuntimeError(f"the batch {batch_id} is not there")
    return Accepted(batch, images.images_of_batch(connection, batch_id))


def _batch_of_key(engine: Engine, key: str, wanted: str) -> Accepted | None:
    with engine.connect() as connection:
        return _find_by_key(connection, key, wanted)


def _find_by_key(connection: Connection, key: str, wanted: str) -> Accepted | None:
    found = uploads.find_idempotent(connection, key)
    if found is None:
        return None
    used_for, batch_id = found
    if used_for != wanted:
        raise PermanentError.of(
            "idempotency-key-reused",
            "The idempotency key stands for another request",
            422,
            f"The key {key!r} was used for other files or other fields.",
            value=key,
            remedy="Use a new key for each new request.",
        )
    return _read(connection, batch_id)


def _place_all(together: Sequence[_Waiting], spans: CommitSpans) -> None:
    """Each in a thread of its own: one after the other, all would wait for the disk once for each folder."""

    def place(one: _Waiting, span: Span) -> None:
        with tracing.within(tracing.under(span)):
            _place(one.form)

    # Left only when the last of them has ended: until then the locks must hold.
    with ThreadPoolExecutor(len(together) - 1, "placing") as others:
        first, *rest = zip(together, spans.each, strict=True)
        placing = [others.submit(place, one, span) for one, span in rest]
        place(*first)
    for each in placing:
        each.result()


def _place(form: ReceivedForm) -> None:
    for file in form.files:
        key = original_key(file.sha256)
        attributes: Attributes = {names.BLOB_KEY: key, names.BLOB_BYTES: file.bytes, names.IMAGE_SHA256: file.sha256}
        with tracing.step(names.BLOB_PUT, attributes, kind=SpanKind.CLIENT):
            file.writer.place(key)
            file.writer.discard()  # of bytes that were there already, ours are left
    form.is_over = True
