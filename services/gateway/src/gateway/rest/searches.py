"""Searches by text, by a stored image and by an uploaded picture."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.receiving import FormLimits, received_form
from gateway.rest.dependencies import FromGateway
from gateway.rest.models import Hit, Image, SearchAnswer, SearchFilter, SearchRequest
from gateway.rest.problems import answers_with
from gateway.search import Found

router = APIRouter(prefix="/v1", tags=["search"])

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


class _PictureOptions(BaseModel):
    """The fields beside the picture; `filter` arrives as JSON text."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(10, ge=1, le=100)
    filter: SearchFilter = SearchFilter()


@router.post("/search", responses=answers_with(404, 409))
async def search(gateway: FromGateway, query: SearchRequest) -> SearchAnswer:
    """The ready images nearest to a text or to a stored image, which is not among them."""
    if query.text is not None:
        return _answer(await gateway.search.by_text(query.text, query.filter.wanted, query.limit))
    if query.image_id is not None:
        return _answer(await gateway.search.by_image(query.image_id, query.filter.wanted, query.limit))
    raise ValueError("SearchRequest lets only one of text and image_id be missing")


@router.post("/search:image", responses=answers_with(400, 413, 415, 507), openapi_extra=_PICTURE_FORM)
async def search_by_picture(request: Request, gateway: FromGateway) -> SearchAnswer:
    """The ready images nearest to an uploaded picture, which is not kept."""
    limits = FormLimits(1, gateway.settings.max_upload_bytes)
    body, content_type = request.stream(), request.headers.get("content-type")
    async with received_form(body, content_type, gateway.store, limits) as form:
        options = _read_options(form.fields)
        return _answer(await gateway.search.by_picture(form.files[0], options.filter.wanted, options.limit))


def _read_options(fields: Sequence[tuple[str, str]]) -> _PictureOptions:
    values: dict[str, object] = dict(fields)
    try:
        if (text := values.pop("filter", None)) is not None:
            values["filter"] = SearchFilter.model_validate_json(str(text))
        return _PictureOptions.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from error


def _answer(found: Found) -> SearchAnswer:
    return SearchAnswer(
        results=[Hit(image=Image.of(row), score=float(row.score)) for row in found.rows], model=found.model
    )
