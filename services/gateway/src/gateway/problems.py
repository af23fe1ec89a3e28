"""The one place that says which problem an error is, whatever went wrong and over whichever face it is told."""

import errno
from collections.abc import Sequence
from typing import TypeVar

from psycopg.errors import UndefinedColumn, UndefinedTable
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from darkroom.contracts.problems import Problem, problem
from darkroom.errors import BlobMissingError, PermanentError
from gateway.errors import InvalidFieldsError, UnavailableError

MAX_FAULTS = 10

FORESEEN = (PermanentError, UnavailableError, BlobMissingError, DBAPIError, PoolTimeoutError, OSError)
"""The errors of which `problem_of` may know the problem."""

ModelT = TypeVar("ModelT", bound=BaseModel)


def problem_of(error: BaseException) -> Problem | None:
    """What a client is told about an error; none for one that should not have happened."""
    match error:
        case PermanentError() | UnavailableError():
            return error.problem
        case BlobMissingError():
            return blob_missing()
        case DBAPIError() | PoolTimeoutError():
            return database_away() if _is_away(error) else None
        case OSError():
            return storage_full() if error.errno in (errno.ENOSPC, errno.EDQUOT) else storage_away()
    return None


def _is_away(error: DBAPIError | PoolTimeoutError) -> bool:
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return True
    return error.connection_invalidated or isinstance(error.orig, UndefinedTable | UndefinedColumn)


def read(model: type[ModelT], values: object) -> ModelT:
    """The values as a request; raises `invalid-request` when one of them cannot be accepted."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _unfit(error) from error


def read_json(model: type[ModelT], text: str) -> ModelT:
    """The same for values that are JSON text."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise _unfit(error) from error


def _unfit(error: ValidationError) -> InvalidFieldsError:
    return invalid_request([(fault["loc"], fault["msg"]) for fault in error.errors()])


def invalid_request(faults: Sequence[tuple[Sequence[int | str], str]]) -> InvalidFieldsError:
    """Values do not fit the schema; each fault is a path to the value and what is wrong with it."""
    told = [(".".join(map(str, path)), fault) for path, fault in faults[:MAX_FAULTS]]
    return InvalidFieldsError(
        problem(
            "invalid-request",
            "The request has a value that cannot be accepted",
            422,
            "; ".join(f"{path}: {fault}" for path, fault in told),
            value=[f"{path}: {fault}" for path, fault in told],
            remedy="GET /openapi.json describes every field.",
        ),
        told,
    )


def blob_missing() -> Problem:
    """A row promises bytes that are not in the store."""
    return problem(
        "blob-missing",
        "A picture is missing from the store",
        503,
        "The row says that this picture is there, and the blob store does not have it. It is being made again.",
        remedy="Ask again after the seconds in Retry-After. When the photo itself is gone, it fails: upload it again.",
    )


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


def broker_away(cause: BaseException) -> UnavailableError:
    """The broker does not take a message."""
    return UnavailableError.of(
        "broker-unavailable",
        "The broker is away",
        f"The message broker does not answer ({type(cause).__name__}).",
        remedy="Try again; uploads go on being accepted meanwhile.",
    )


def gateway_stopping() -> UnavailableError:
    """This gateway ends; another one, or the same after its restart, goes on."""
    return UnavailableError.of(
        "gateway-stopping",
        "The gateway is stopping",
        "This gateway was told to stop: it finishes what it has, and takes in nothing more.",
        remedy="Send the same request again, with the same Idempotency-Key if it is an upload; follow events from the "
        "last number that was seen.",
    )


def storage_full(free_bytes: int | None = None, kept_free_bytes: int | None = None) -> Problem:
    """The blob store has no room left, or only what is kept free."""
    found = f" It has {free_bytes} bytes left and {kept_free_bytes} are kept free." if free_bytes is not None else ""
    return problem(
        "storage-full",
        "The blob store is full",
        507,
        f"There is no room for this upload; nothing of it was stored.{found}",
        value=free_bytes,
        limit=kept_free_bytes,
        remedy="Make room or enlarge the disk, then send the request again; DARKROOM_MIN_FREE_BYTES stay free.",
    )


def backlog_full(in_flight: int, limit: int) -> Problem:
    """More waits to be worked on than may."""
    return problem(
        "backlog-full",
        "Too many images wait to be worked on",
        503,
        f"{in_flight} images are in flight and the limit is {limit}; nothing of this request was stored.",
        value=in_flight,
        limit=limit,
        remedy="Send the same request again later; add workers, or raise DARKROOM_MAX_BACKLOG.",
    )


def too_many_uploads(limit: int, setting: str) -> Problem:
    """As many uploads are being received as may be."""
    return problem(
        "too-many-uploads",
        "Too many uploads come at once",
        503,
        f"{limit} uploads are being received and that is the limit; nothing of this one was stored.",
        value=limit,
        limit=limit,
        remedy=f"Send the same request again later; add gateways, or raise {setting} if they have the memory.",
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


def client_disconnected() -> Problem:
    """Nobody reads it, but the log shows why the request ended."""
    return problem(
        "client-disconnected", "The client hung up", 400, "The client hung up before its request was complete."
    )


def internal_error() -> Problem:
    """What is told of an error that nobody foresaw: nothing of the cause, which the log has."""
    return problem(
        "internal-error",
        "An error in Darkroom",
        500,
        "Something went wrong that should not; the gateway's log has the cause.",
        remedy="Try again, and report it if it stays so.",
    )
