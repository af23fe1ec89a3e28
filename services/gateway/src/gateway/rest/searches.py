"""Searches by text, by a stored image and by an uploaded picture."""

from collections.abc import Sequence

from fastapi import APIRouter, Request

from gateway import library
from gateway.models import PictureSearch, SearchAnswer, SearchFilter, SearchRequest
from gateway.problems import read, read_json
from gateway.receiving import FormLimits
from gateway.rest.bodies import JsonRoute
from gateway.rest.dependencies import FromGateway
from gateway.rest.problems import answers_with

router = APIRouter(prefix="/v1", tags=["search"], route_class=JsonRoute)

_PICTURE_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 10},
                        "filter": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "description": "As in POST /v1/search.",
                        },
                    },
                }
            }
        },
    }
}


@router.post("/search", responses=answers_with(400, 404, 409, 413))
async def search(gateway: FromGateway, query: SearchRequest) -> SearchAnswer:
    """The ready images nearest to a text or to a stored image, which is not among them."""
    return await library.search(gateway.search, query)


@router.post("/search:image", responses=answers_with(400, 413, 415, 507), openapi_extra=_PICTURE_FORM)
async def search_by_picture(request: Request, gateway: FromGateway) -> SearchAnswer:
    """The ready images nearest to an uploaded picture, which is not kept."""
    limits = FormLimits(1, gateway.settings.max_upload_bytes)
    body, content_type = request.stream(), request.headers.get("content-type")
    async with gateway.receiving.form(body, content_type, limits) as form:
        return await library.search_by_picture(gateway.search, form.files[0], _read_fields(form.fields))


def _read_fields(fields: Sequence[tuple[str, str]]) -> PictureSearch:
    values: dict[str, object] = dict(fields)
    if (text := values.pop("filter", None)) is not None:
        values["filter"] = read_json(SearchFilter, str(text))
    return read(PictureSearch, values)
