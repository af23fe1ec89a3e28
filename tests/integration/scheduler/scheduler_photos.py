"""Photos in every state that the scheduler meets, made without the other services."""

import hashlib
import io
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import Engine, select, text

from darkroom.contracts import keys
from darkroom.contracts.base import Lane, OutputFormat, ThumbnailSize
from darkroom.contracts.keys import Recipe
from darkroom.contracts.messages import (
    DescribedManifest,
    Embedded,
    Finalize,
    ModelReference,
    PreparedManifest,
    RegisterModel,
    Rendition,
)
from darkroom.contracts.problems import problem
from darkroom.database import dispatch, outcomes, uploads, vectors
from darkroom.database.tables import events, images, originals
from darkroom.ids import uuid7
from darkroom.storage import BlobStore

RECIPE = Recipe.current(OutputFormat.WEBP)
MODEL = "tiny@0123456789ab"
DIM = 4
PROBLEM = problem("image-truncated", "The picture ends too early", 422, "It has 10 of 20 bytes.")

_numbers = iter(range(1, 1_000_000))


@dataclass(frozen=True)
class Photo:
    """One uploaded image."""

    sha256: str
    image_id: UUID
    batch_id: UUID


def new_id() -> UUID:
    """An id as the gateway makes them."""
    return uuid7(time.time_ns() // 1_000_000, next(_numbers))


def upload(
    engine: Engine, store: BlobStore, content: str, lane: Lane = Lane.INTERACTIVE, callback_url: str | None = None
) -> Photo:
    """Uploads one photo as the gateway does, up to the answer."""
    data = content.encode()
    photo = Photo(hashlib.sha256(data).hexdigest(), new_id(), new_id())
    received = uploads.ReceivedFile(photo.image_id, photo.sha256, len(data), f"{content}.jpg")
    request = uploads.Upload(photo.batch_id, (received,), lane, callback_url=callback_url)
    with engine.begin() as connection:
        known = uploads.lock_originals(connection, request)
        store.put(keys.original_key(photo.sha256), data)
        uploads.accept(connection, request, known)
    return photo


def dispatch_all(engine: Engine) -> dict[str, int]:
    """Leases and stamps whatever waits, as if it was published; the generation of each by hash."""
    with engine.begin() as connection:
        leased = dispatch.lease(connection, 1000, 60)
        dispatch.stamp(connection, leased)
    return {one.sha256: one.generation for one in leased}


def register_model(engine: Engine, model: str = MODEL, dim: int = DIM) -> str:
    """Registers a model; returns its state."""
    registration = RegisterModel(model=ModelReference(id=model, source="bundled"), dim=dim)
    with engine.begin() as connection:
        return vectors.register_model(connection, registration)


def leave_pictures(store: BlobStore, sha256: str) -> None:
    """What prepare and thumbnails leave."""
    sizes = {ThumbnailSize.LARGE: 40, ThumbnailSize.MEDIUM: 30, ThumbnailSize.SMALL: 20}
    made = {size: _rendition(store, keys.thumbnail_key(sha256, RECIPE, size), length) for size, length in sizes.items()}
    prepared = PreparedManifest(
        sha256=sha256,
        format="jpeg",
        width=8,
        height=6,
        frames=1,
        has_alpha=False,
        taken_at=None,
        large=made[ThumbnailSize.LARGE],
        proxy=_rendition(store, keys.proxy_key(sha256, RECIPE), 50),
    )
    described = DescribedManifest(
        sha256=sha256,
        medium=made[ThumbnailSize.MEDIUM],
        small=made[ThumbnailSize.SMALL],
        thumbhash="abcd",
        palette=(),
        perceptual_hash="ffffffffffffffff",
    )
    store.put(keys.prepared_key(sha256, RECIPE), prepared.model_dump_json().encode())
    store.put(keys.described_key(sha256, RECIPE), described.model_dump_json().encode())


def leave_vector(store: BlobStore, sha256: str, model: str = MODEL, dim: int = DIM) -> Embedded:
    """What embed leaves, and its answer."""
    vector = np.random.default_rng(int(sha256[:8], 16)).normal(size=dim)
    file = io.BytesIO()
    np.save(file, (vector / np.linalg.norm(vector)).astype(np.float16))
    key = keys.embedding_key(model, sha256)
    store.put(key, file.getvalue())
    return Embedded(model=model, dim=dim, vector=key)


def leave_everything(store: BlobStore, sha256: str, model: str = MODEL) -> list[dict[str, Any]]:
    """All artefacts of a photo; returns the header's results as finalize gets them."""
    leave_pictures(store, sha256)
    embedded = leave_vector(store, sha256, model)
    return [{"manifest": keys.described_key(sha256, RECIPE)}, embedded.to_wire()]


def finalize_message(sha256: str, generation: int = 1, lane: Lane = Lane.INTERACTIVE) -> Finalize:
    """The body of the chord."""
    return Finalize(sha256=sha256, generation=generation, lane=lane, recipe=RECIPE)


def fail(engine: Engine, sha256: str, generation: int = 1) -> bool:
    """Records a permanent failure."""
    with engine.begin() as connection:
        return outcomes.mark_failed(connection, sha256, generation, PROBLEM)


def state_of(engine: Engine, photo: Photo) -> str:
    """The image's state."""
    with engine.connect() as connection:
        return str(connection.scalar(select(images.c.state).where(images.c.id == photo.image_id)))


def original_of(engine: Engine, sha256: str) -> Any:
    """The original's row, or None."""
    with engine.connect() as connection:
        return connection.execute(select(originals).where(originals.c.sha256 == sha256)).one_or_none()


def events_of(engine: Engine, photo: Photo) -> list[str]:
    """The types of an image's events and of its batch's, in order."""
    with engine.connect() as connection:
        rows = connection.scalars(
            select(events.c.type).where(events.c.batch_id == photo.batch_id).order_by(events.c.row_id)
        )
        return list(rows)


def run_sql(engine: Engine, statement: str, **parameters: Any) -> None:
    """Anything behind the system's back."""
    with engine.begin() as connection:
        connection.execute(text(statement), parameters)


def _rendition(store: BlobStore, key: str, length: int) -> Rendition:
    store.put(key, b"x" * length)
    return Rendition(key=key, width=8, height=6, bytes=length)
