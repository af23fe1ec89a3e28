"""The one place that turns errors into answers: `application/problem+json`, whatever went wrong."""

import errno
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg.errors import UndefinedColumn, UndefinedTable
from pydantic import JsonValue
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from darkroom.contracts.problems import Problem, problem
from darkroom.errors import BlobMissingError, PermanentError
from gateway.errors import RETRY_AFTER_S, UnavailableError

MEDIA_TYPE = "application/problem+json"
MAX_FAULTS = 10


class ProblemResponse(JSONResponse):
    """A problem document."""

    media_type = MEDIA_TYPE

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        retry = {"Retry-After": str(RETRY_AFTER_S)} if problem.status == 503 else {}
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
    500: "An error in Darkroom",
    503: "A part of Darkroom is away; try again after the seconds in Retry-After",
    507: "The disk is full",
}


def install(app: FastAPI) -> None:
    """Makes every error of this application a problem document."""
    handlers = {
        PermanentError: _own,
        UnavailableError: _own,
        BlobMissingError: _blob_missing,
        RequestValidationError: _invalid_request,
        HTTPException: _http,
        DBAPIError: _database,
        PoolTimeoutError: _database,
        OSError: _storage,
        ClientDisconnect: _disconnected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _own(request: Request, error: Exception) -> ProblemResponse:
    if not isinstance(error, PermanentError | UnavailableError):
        raise error
    return ProblemResponse(error.problem)


def _blob_missing(request: Request, error: Exception) -> ProblemResponse:
    return ProblemResponse(
        problem(
            "blob-missing",
            "A picture is missing from the store",
            503,
            "The row says that this picture is there, and the blob store does not have it.",
            remedy="Try again; if it stays so, restore the blob store, or upload the photo again.",
        )
    )


def _invalid_request(request: Request, error: Exception) -> ProblemResponse:
    faults: list[JsonValue] = []
    if isinstance(error, RequestValidationError):
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()[:MAX_FAULTS]
        ]
    return ProblemResponse(
        problem(
            "invalid-request",
            "The request has a value that cannot be accepted",
            422,
            "; ".join(map(str, faults)),
            value=faults,
            remedy="GET /openapi.json describes every field.",
        )
    )


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


def _database(request: Request, error: Exception) -> ProblemResponse:
    is_away = isinstance(error, OperationalError | InterfaceError | PoolTimeoutError)
    if isinstance(error, DBAPIError):
        is_away |= error.connection_invalidated or isinstance(error.orig, UndefinedTable | UndefinedColumn)
    if not is_away:
        raise error
    return ProblemResponse(database_away())


def database_away() -> Problem:
    """PostgreSQL does not answer, or is not migrated."""
    return problem(
        "database-unavailable",
        "The database is away",
        503,
        "PostgreSQL does not answer, or has not been migrated.",
        remedy="Send the same request again, with the same Idempotency-Key if it is an upload.",
    )


def results_away() -> Problem:
    """Redis does not answer."""
    return problem(
        "results-unavailable",
        "The result store is away",
        503,
        "Redis, which holds the results of tasks, does not answer.",
        remedy="Try again; uploads go on being accepted meanwhile.",
    )


def _storage(request: Request, error: Exception) -> ProblemResponse:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ProblemResponse(storage_full())
    return ProblemResponse(storage_away())


def storage_full() -> Problem:
    """The blob store has no room left."""
    return problem(
        "storage-full",
        "The blob store is full",
        507,
        "There is no room for this upload; nothing of it was stored.",
        remedy="Make room or enlarge the disk, then send the request again.",
    )


def storage_away() -> Problem:
    """The blob store cannot be read or written."""
    return problem(
        "storage-unavailable",
        "The blob store is away",
        503,
        "The blob store cannot be read or written.",
        remedy="Send the same request again.",
    )


def _disconnected(request: Request, error: Exception) -> ProblemResponse:
    return ProblemResponse(  # nobody reads it, but the log shows why the request ended
        problem("client-disconnected", "The client hung up", 400, "The client hung up before its request was complete.")
    )


def internal_error() -> ProblemResponse:
    """The answer to what no handler knows: nothing of the cause, which the log has."""
    return ProblemResponse(
        problem(
            "internal-error",
            "An error in Darkroom",
            500,
            "Something went wrong that should not; the gateway's log has the cause.",
            remedy="Try again, and report it if it stays so.",
        )
    )
