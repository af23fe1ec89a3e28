"""Images and batches: upload, read, list, delete, retry."""

import secrets
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response

from darkroom.contracts.base import ThumbnailSize
from darkroom.contracts.keys import original_key
from gateway import library
from gateway.models import BatchWithImages, Callbacks, Image, ImageList, ListQuery, Uploaded
from gateway.pressure import Face
from gateway.receiving import FormLimits
from gateway.rest.blobs import Blob, serve
from gateway.rest.dependencies import FromGateway
from gateway.rest.problems import answers_with
from gateway.traces import trace_of_call
from gateway.uploads import accept_form, check_idempotency_key, read_options, refusals_counted

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
                        "callback_url": {"type": "string", "format": "uri", "maxLength": 2048},
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
    307: {"description": "Where the object store itself serves it, by DARKROOM_DIRECT_DOWNLOAD_S"},
    **answers_with(404, 410, 416),
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
    with refusals_counted():
        if idempotency_key is not None:
            check_idempotency_key(idempotency_key)
        limits = FormLimits(gateway.settings.max_upload_files, gateway.settings.max_upload_bytes)
        body, content_type = request.stream(), request.headers.get("content-type")
        async with (
            gateway.pressure.admitted(Face.REST, _content_length(request)),
            gateway.receiving.form(body, content_type, limits) as form,
        ):
            accepted = await accept_form(
                gateway.acceptance,
                form,
                read_options(form.fields, gateway.settings.outbound_policy),
                trace_of_call(traceparent, tracestate, secrets.randbits),
                idempotency_key,
            )
    gateway.wake()
    return library.uploaded(accepted)


def _content_length(request: Request) -> int:
    """What a request says of its size; 0 for one that comes in pieces."""
    said = request.headers.get("content-length", "")
    return int(said) if said.isascii() and said.isdigit() else 0


@router.get("/images", responses=answers_with())
async def list_images(gateway: FromGateway, query: Annotated[ListQuery, Query()]) -> ImageList:
    """Images, newest first."""
    return await library.list_images(gateway.engine, query)


@router.get("/images/{image_id}", responses=answers_with(404))
async def image(gateway: FromGateway, image_id: UUID) -> Image:
    """One image."""
    return Image.of(await library.find_image(gateway.engine, image_id))


@router.head("/images/{image_id}/original", include_in_schema=False)
@router.get("/images/{image_id}/original", responses=_PICTURE, response_class=Response)
async def original(request: Request, gateway: FromGateway, image_id: UUID) -> Response:
    """The bytes that were uploaded, to save as a file."""
    row = await library.find_image(gateway.engine, image_id)
    blob = Blob(original_key(row.sha256), row.sha256, is_download=True, filename=row.filename)
    async with library.mending(gateway.engine, gateway.wake, row):
        return await serve(request, gateway.store, blob, gateway.settings.direct_download_s)


@router.head("/images/{image_id}/thumbnails/{size}", include_in_schema=False)
@router.get("/images/{image_id}/thumbnails/{size}", responses=_PICTURE, response_class=Response)
async def thumbnail(request: Request, gateway: FromGateway, image_id: UUID, size: ThumbnailSize) -> Response:
    """A rendition of a ready image."""
    found = await library.find_thumbnail(gateway.engine, image_id, size)
    async with library.mending(gateway.engine, gateway.wake, found.image):
        return await serve(request, gateway.store, Blob(found.key, found.etag), gateway.settings.direct_download_s)


@router.delete("/images/{image_id}", status_code=204, responses=answers_with(404))
async def delete(gateway: FromGateway, image_id: UUID) -> None:
    """Deletes an image. Its pictures go when no other image has the same bytes, after a grace time."""
    await library.delete_image(gateway.engine, image_id)
    gateway.wake()


@router.post("/images/{image_id}:retry", status_code=202, responses=answers_with(404, 409))
async def retry(gateway: FromGateway, image_id: UUID) -> Image:
    """Sends a failed image through again, and with it every failed image of the same bytes."""
    retried = await library.retry_image(gateway.engine, image_id)
    gateway.wake()
    return retried


@router.get("/batches/{batch_id}", responses=answers_with(404))
async def batch(gateway: FromGateway, batch_id: UUID) -> BatchWithImages:
    """One upload's counters and images."""
    return await library.find_batch(gateway.engine, batch_id)


@router.get("/batches/{batch_id}/callbacks", responses=answers_with(404))
async def callbacks(
    gateway: FromGateway, batch_id: UUID, limit: Annotated[int, Query(ge=1, le=1000)] = 200
) -> Callbacks:
    """What was told to the upload's callback URL, and what could not be: those first that are not delivered."""
    return await library.list_callbacks(gateway.engine, batch_id, limit)
