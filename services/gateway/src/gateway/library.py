"""What can be asked of the photos and done to them: the calls of both faces, without what is particular to either."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom.contracts.base import BlobKey, ThumbnailSize
from darkroom.contracts.problems import original_missing
from darkroom.database import callbacks, images, outcomes
from darkroom.errors import BlobMissingError, PermanentError
from gateway.models import (
    Batch,
    BatchWithImages,
    CallbackDelivery,
    Callbacks,
    Hit,
    Image,
    ImageList,
    Ledger,
    ListQuery,
    PictureSearch,
    SearchAnswer,
    SearchRequest,
    Uploaded,
    page_token,
    read_page_token,
)
from gateway.receiving import SyncedFile
from gateway.search import Found, Search, image_not_found
from gateway.uploads import Accepted

log = logging.getLogger(__name__)


def uploaded(accepted: Accepted) -> Uploaded:
    """The answer to an upload."""
    return Uploaded(batch=Batch.model_validate(accepted.batch), images=[Image.of(row) for row in accepted.images])


async def find_image(engine: AsyncEngine, image_id: UUID) -> Row[Any]:
    """The row of one image; raises `image-not-found`."""
    async with engine.connect() as connection:
        row = await connection.run_sync(images.find_image, image_id)
    if row is None:
        raise image_not_found(image_id)
    return row


async def list_images(engine: AsyncEngine, query: ListQuery) -> ImageList:
    """A page of images, newest first; raises `invalid-field` for a page token that is not ours."""
    before = read_page_token(query.page_token)
    async with engine.connect() as connection:
        rows = await connection.run_sync(images.list_images, query.wanted, query.limit, before)
    return ImageList(images=[Image.of(row) for row in rows], next_page_token=page_token(rows, query.limit))


@dataclass(frozen=True)
class Rendition:
    """Where a thumbnail lies, the name that its content will have for ever, and the image that it is of."""

    key: BlobKey
    etag: str
    image: Row[Any]


@asynccontextmanager
async def mending(engine: AsyncEngine, wake: Callable[[], None], image: Row[Any]) -> AsyncIterator[None]:
    """Has a finished image's blobs made again when the block finds one missing, and wakes the dispatcher.

    Raises what the block raises, and `original-missing` for an image that has failed: nothing will bring the blob back.
    """
    try:
        yield
    except BlobMissingError as missing:
        if image.state == "failed":
            raise PermanentError(original_missing()) from missing
        async with engine.begin() as connection:
            is_begun = await connection.run_sync(outcomes.rebuild, [image.sha256])
        log.warning("library.blob_missing", extra={"key": missing.key, "is_rebuilt": bool(is_begun)})
        wake()
        raise


async def find_thumbnail(engine: AsyncEngine, image_id: UUID, size: ThumbnailSize) -> Rendition:
    """A rendition of a ready image; raises `image-not-found` and `thumbnail-not-ready`."""
    row = await find_image(engine, image_id)
    rendition = (row.thumbnails or {}).get(size)
    if rendition is None:
        raise PermanentError.of(
            "thumbnail-not-ready",
            "The image has no thumbnails yet",
            404,
            f"The image {image_id} is {row.state.replace('_', ' ')} and has no thumbnail {size}.",
            value=str(image_id),
            remedy="Ask again when its status is ready.",
        )
    return Rendition(rendition["key"], f"{row.sha256}-{row.recipe}-{size}", row)


async def delete_image(engine: AsyncEngine, image_id: UUID) -> None:
    """Deletes an image; its pictures are left to the sweeper. Raises `image-not-found`."""
    async with engine.begin() as connection:
        is_deleted = await connection.run_sync(outcomes.delete_image, image_id)
    if not is_deleted:
        raise image_not_found(image_id)


async def retry_image(engine: AsyncEngine, image_id: UUID) -> Image:
    """Has a failed image, and every failed one of the same bytes, dispatched again.

    Raises `image-not-found` and `image-not-failed`.
    """
    async with engine.begin() as connection:
        state = await connection.run_sync(outcomes.retry_image, image_id)
    if state is None:
        raise image_not_found(image_id)
    if state != "failed":
        raise PermanentError.of(
            "image-not-failed",
            "The image has not failed",
            409,
            f"The image {image_id} is {state.replace('_', ' ')}; only a failed one can be retried.",
            value=state,
            limit="failed",
            remedy="Leave it: an image in flight is sent again by itself when it was lost.",
        )
    return Image.of(await find_image(engine, image_id))


async def find_batch(engine: AsyncEngine, batch_id: UUID) -> BatchWithImages:
    """One upload's counters and images; raises `batch-not-found`."""
    async with engine.connect() as connection:
        found = await connection.run_sync(images.find_batch, batch_id)
        rows = await connection.run_sync(images.images_of_batch, batch_id)
    if found is None:
        raise _batch_not_found(batch_id)
    counters = Batch.model_validate(found).model_dump()
    return BatchWithImages(**counters, images=[Image.of(row) for row in rows])


async def list_callbacks(engine: AsyncEngine, batch_id: UUID, limit: int) -> Callbacks:
    """An upload's callbacks, those first that are not delivered; raises `batch-not-found`."""
    async with engine.connect() as connection:
        found = await connection.run_sync(images.find_batch, batch_id)
        rows = await connection.run_sync(callbacks.callbacks_of_batch, batch_id, limit)
    if found is None:
        raise _batch_not_found(batch_id)
    return Callbacks(callbacks=[CallbackDelivery.model_validate(row) for row in rows])


def _batch_not_found(batch_id: UUID) -> PermanentError:
    return PermanentError.of(
        "batch-not-found",
        "There is no such batch",
        404,
        f"No batch has the id {batch_id}.",
        value=str(batch_id),
        remedy="Take batch_id from an image.",
    )


async def read_ledger(engine: AsyncEngine) -> Ledger:
    """How many images were accepted, and what became of them."""
    async with engine.connect() as connection:
        return Ledger(**await connection.run_sync(images.read_ledger))


async def search(searching: Search, query: SearchRequest) -> SearchAnswer:
    """The ready images nearest to a text or to a stored image; raises what `Search` raises."""
    if query.text is not None:
        return _answer(await searching.by_text(query.text, query.filter.wanted, query.limit))
    if query.image_id is not None:
        return _answer(await searching.by_image(query.image_id, query.filter.wanted, query.limit))
    raise ValueError("SearchRequest lets only one of text and image_id be missing")


async def search_by_picture(searching: Search, picture: SyncedFile, asked: PictureSearch) -> SearchAnswer:
    """The ready images nearest to an uploaded picture; raises what `Search` raises."""
    return _answer(await searching.by_picture(picture, asked.filter.wanted, asked.limit))


def _answer(found: Found) -> SearchAnswer:
    return SearchAnswer(
        results=[Hit(image=Image.of(row), score=float(row.score)) for row in found.rows], model=found.model
    )
