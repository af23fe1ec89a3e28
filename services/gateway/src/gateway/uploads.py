"""Accepting uploads: when the answer is sent, every byte and one row for each photo are on stable storage."""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any
from uuid import UUID

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from opentelemetry.trace import SpanKind, get_current_span
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
from gateway.traces import TraceContext

MAX_TAGS = 32
MAX_TAG_CHARACTERS = 64
MAX_EXTERNAL_ID_CHARACTERS = 256
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255


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


@dataclass(frozen=True)
class Acceptance:
    """Where uploads are committed: in threads, because SQLAlchemy's asyncio face adds a quarter to an upload's CPU.

    `limiter` has one token for each connection that uploads may take: what waits for one waits in the event loop.
    """

    engine: Engine
    limiter: CapacityLimiter


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
    work = partial(_accept_form, acceptance.engine, form, options, trace, idempotency_key)
    return await run_sync(work, limiter=acceptance.limiter)


def _accept_form(
    engine: Engine, form: ReceivedForm, options: UploadOptions, trace: TraceContext, idempotency_key: str | None
) -> Accepted:
    wanted = fingerprint(form, options)
    if idempotency_key is not None and (earlier := _batch_of_key(engine, idempotency_key, wanted)):
        return earlier
    batch_id, *image_ids = new_ids(1 + len(form.files), time.time_ns() // 1_000_000, secrets.randbits)
    upload = uploads.Upload(
        batch_id=batch_id,
        files=tuple(
            uploads.ReceivedFile(image_id, file.sha256, file.bytes, file.filename)
            for image_id, file in zip(image_ids, form.files, strict=True)
        ),
        lane=options.lane,
        tags=options.tags,
        external_id=options.external_id,
        callback_url=options.callback_url,
        traceparent=trace.traceparent,
        tracestate=trace.tracestate,
        trace_id=trace.trace_id,
    )
    with tracing.step(names.COMMIT_UPLOAD), engine.connect() as connection:
        known = uploads.lock_originals(connection, upload)
        # Under the locks, which the sweeper takes too: what is in place now stays.
        _place(form)
        # None when a request with the same key was committed while this one was on its way.
        accepted = _accept(connection, upload, known, idempotency_key, wanted)
        if accepted is not None:
            connection.commit()
            metrics.UPLOADS.labels(options.lane.value).inc(len(form.files))
            metrics.UPLOAD_BYTES.labels(options.lane.value).inc(sum(file.bytes for file in form.files))
            return accepted
        connection.rollback()
    if idempotency_key is None or not (earlier := _batch_of_key(engine, idempotency_key, wanted)):
        raise RuntimeError("an idempotency key was taken by a request that is not there")
    return earlier


def _accept(
    connection: Connection, upload: uploads.Upload, known: set[str], key: str | None, wanted: str
) -> Accepted | None:
    new = uploads.accept(connection, upload, known)
    if known and tracing.is_recording():
        _link_to(uploads.traces_of(connection, known))
    if key is not None and not uploads.record_idempotent(connection, key, wanted, upload.batch_id):
        return None
    # Read before the commit: an answer that cannot be given must not leave an upload behind.
    return Accepted(*new) if new is not None else _read(connection, upload.batch_id)


def _link_to(traceparents: Sequence[str]) -> None:
    """Shows in this upload's trace where its known photos are, or were, worked on."""
    for link in chain.from_iterable(map(tracing.link_to, traceparents)):
        get_current_span().add_link(link.context)


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


def _place(form: ReceivedForm) -> None:
    for file in form.files:
        key = original_key(file.sha256)
        attributes: Attributes = {names.BLOB_KEY: key, names.BLOB_BYTES: file.bytes, names.IMAGE_SHA256: file.sha256}
        with tracing.step(names.BLOB_PUT, attributes, kind=SpanKind.CLIENT):
            file.writer.place(key)
            file.writer.discard()  # of bytes that were there already, ours are left
    form.is_over = True
