"""Images and batches: upload, read, list, delete, retry."""

import secrets
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy import Row

from darkroom.contracts.base import ThumbnailSize
from darkroom.contracts.keys import original_key
from darkroom.database import images, outcomes
from darkroom.errors import PermanentError
from gateway.bootstrap import Gateway
from gateway.receiving import FormLimits, received_form
from gateway.rest.blobs import Blob, serve
from gateway.rest.dependencies import FromGateway
from gateway.rest.models import (
    Batch,
    BatchWithImages,
    Image,
    ImageList,
    ListQuery,
    Uploaded,
    page_token,
    read_page_token,
)
from gateway.rest.problems import answers_with
from gateway.search import image_not_found
from gateway.traces import continue_trace
from gateway.uploads import accept_form, check_idempotency_key, read_options

router = APIRouter(prefix="/v1", tags=["images"])

_UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
                        "lane": {"type": "string", "enum": ["interactive", "bulk"], "default": "interactive"},
                        "tags": {"type": "array", "items": {"type": "string", "maxLength": 64}, "maxItems": 32},
                        "external_id": {"type": "string", "maxLength": 256},
                    },
                },
                "encoding": {"tags": {"style": "form", "explode": True}},
            }
        },
    }
}

_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole picture", "content": {"image/*": {}}},
    206: {"description": "The asked range of it", "content": {"image/*": {}}},
    304: {"description": "The client has it already"},
    **answers_with(404, 416),
}


@router.post(
    "/images", status_code=202, responses=answers_with(400, 413, 415, 507), openapi_extra=_UPLOAD_FORM, name="upload"
)
async def upload(
    request: Request,
    gateway: FromGateway,
    idempotency_key: Annotated[str | None, Header(description="The same key and form: the same answer.")] = None,
    traceparent: Annotated[str | None, Header(description="W3C trace context to go on with.")] = None,
    tracestate: Annotated[str | None, Header()] = None,
) -> Uploaded:
    """Takes pictures: all of them or, when one is refused, none. The answer means that they cannot be lost."""
    if idempotency_key is not None:
        check_idempotency_key(idempotency_key)
    limits = FormLimits(gateway.settings.max_upload_files, gateway.settings.max_upload_bytes)
    body, content_type = request.stream(), request.headers.get("content-type")
    async with received_form(body, content_type, gateway.store, limits) as form:
        accepted = await accept_form(
            gateway.engine,
            form,
            read_options(form.fields),
            continue_trace(traceparent, tracestate, secrets.randbits),
            idempotency_key,
        )
    gateway.wake()
    return Uploaded(batch=Batch.model_validate(accepted.batch), images=[Image.of(row) for row in accepted.images])


@router.get("/images", responses=answers_with())
async def list_images(gateway: FromGateway, query: Annotated[ListQuery, Query()]) -> ImageList:
    """Images, newest first."""
    before = read_page_token(query.page_token)
    async with gateway.engine.connect() as connection:
        rows = await connection.run_sync(images.list_images, query.wanted, query.limit, before)
    return ImageList(images=[Image.of(row) for row in rows], next_page_token=page_token(rows, query.limit))


@router.get("/images/{image_id}", responses=answers_with(404))
async def image(gateway: FromGateway, image_id: UUID) -> Image:
    """One image."""
    return Image.of(await _image(gateway, image_id))


@router.head("/images/{image_id}/original", include_in_schema=False)
@router.get("/images/{image_id}/original", responses=_PICTURE, response_class=Response)
async def original(request: Request, gateway: FromGateway, image_id: UUID) -> Response:
    """The bytes that were uploaded, to save as a file."""
    row = await _image(gateway, image_id)
    blob = Blob(original_key(row.sha256), row.sha256, is_download=True, filename=row.filename)
    return await serve(request, gateway.store, blob)


@router.head("/images/{image_id}/thumbnails/{size}", include_in_schema=False)
@router.get("/images/{image_id}/thumbnails/{size}", responses=_PICTURE, response_class=Response)
async def thumbnail(request: Request, gateway: FromGateway, image_id: UUID, size: ThumbnailSize) -> Response:
    """A rendition of a ready image."""
    row = await _image(gateway, image_id)
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
    return await serve(request, gateway.store, Blob(rendition["key"], f"{row.sha256}-{row.recipe}-{size}"))


@router.delete("/images/{image_id}", status_code=204, responses=answers_with(404))
async def delete(gateway: FromGateway, image_id: UUID) -> None:
    """Deletes an image. Its pictures go when no other image has the same bytes, after a grace time."""
    if not await _tombstone(gateway, image_id):
        raise image_not_found(image_id)
    gateway.wake()


@router.post("/images/{image_id}:retry", status_code=202, responses=answers_with(404, 409))
async def retry(gateway: FromGateway, image_id: UUID) -> Image:
    """Sends a failed image through again, and with it every failed image of the same bytes."""
    async with gateway.engine.begin() as connection:
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
    gateway.wake()
    return Image.of(await _image(gateway, image_id))


@router.get("/batches/{batch_id}", responses=answers_with(404))
async def batch(gateway: FromGateway, batch_id: UUID) -> BatchWithImages:
    """One upload's counters and images."""
    async with gateway.engine.connect() as connection:
        found = await connection.run_sync(images.find_batch, batch_id)
        rows = await connection.run_sync(images.images_of_batch, batch_id)
    if found is None:
        raise PermanentError.of(
            "batch-not-found",
            "There is no such batch",
            404,
            f"No batch has the id {batch_id}.",
            value=str(batch_id),
            remedy="Take batch_id from an image.",
        )
    counters = Batch.model_validate(found).model_dump()
    return BatchWithImages(**counters, images=[Image.of(row) for row in rows])


async def _tombstone(gateway: Gateway, image_id: UUID) -> bool:
    async with gateway.engine.begin() as connection:
        return await connection.run_sync(outcomes.delete_image, image_id)


async def _image(gateway: Gateway, image_id: UUID) -> Row[Any]:
    async with gateway.engine.connect() as connection:
        row = await connection.run_sync(images.find_image, image_id)
    if row is None:
        raise image_not_found(image_id)
    return row
