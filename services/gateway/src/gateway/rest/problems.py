"""The one place that turns errors into HTTP answers: `application/problem+json`, whatever went wrong."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from darkroom.contracts.problems import Problem, problem
from gateway import problems
from gateway.errors import RateLimitedError, retry_after_s

MEDIA_TYPE = "application/problem+json"


class ProblemResponse(JSONResponse):
    """A problem document."""

    media_type = MEDIA_TYPE

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        seconds = retry_after_s(problem)
        retry = {} if seconds is None else {"Retry-After": str(seconds)}
        super().__init__(
            problem.model_dump(mode="json", exclude_none=True),
            problem.status,
            {"Cache-Control": "no-store", **retry, **(headers or {})},
        )


def answers_with(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of problem answers, to go into a route's `responses`."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": _DESCRIPTIONS[status], "content": {MEDIA_TYPE: schema}}
        for status in (*statuses, *_EVERYWHERE)
    }


_EVERYWHERE = (422, 500, 503)

_DESCRIPTIONS = {
    400: "The request's body cannot be read",
    404: "There is nothing under this id",
    409: "The image's state does not allow it",
    410: "It was there, and its time is over",
    413: "Too large or too many",
    415: "Not of a supported type",
    416: "The range lies outside of the picture",
    422: "A value cannot be accepted",
    429: "Too many; try again after the seconds in Retry-After",
    500: "An error in Darkroom",
    503: "A part of Darkroom is away; try again after the seconds in Retry-After",
    507: "The disk is full",
}


def install(app: FastAPI) -> None:
    """Makes every error of this application a problem document."""
    for kind in problems.FORESEEN:
        app.add_exception_handler(kind, _foreseen)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _disconnected)


def _foreseen(request: Request, error: Exception) -> ProblemResponse:
    found = problems.problem_of(error)
    if found is None:
        raise error
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, RateLimitedError) else None
    return ProblemResponse(found, headers)


def _invalid_request(request: Request, error: Exception) -> ProblemResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    return ProblemResponse(problems.invalid_request([(f["loc"], f["msg"]) for f in error.errors()]).problem)


def _http(request: Request, error: Exception) -> ProblemResponse:
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path[:200]
    match error.status_code:
        case 404:
            slug, title, detail = "no-such-path", "There is nothing at this path", f"{path} is not a path of this API."
        case 405:
            slug, title = "method-not-allowed", "The path does not know this method"
            detail = f"{path} cannot be asked with {request.method}."
        case _:
            slug, title, detail = "malformed-request", "The request cannot be read", str(error.detail)[:200]
    return ProblemResponse(
        problem(slug, title, error.status_code, detail, remedy="GET /docs lists what there is."), error.headers
    )


def _disconnected(request: Request, error: Exception) -> ProblemResponse:
    return ProblemResponse(problems.client_disconnected())


def internal_error() -> ProblemResponse:
    """The answer to what no handler knows."""
    return ProblemResponse(problems.internal_error())
