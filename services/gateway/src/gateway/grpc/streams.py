"""Pictures that a client streams: first what it says about one, then the bytes."""

from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

import grpc

from darkroom.errors import PermanentError
from darkroom.rpc.v1 import darkroom_pb2 as pb
from gateway.multipart import Event, PartBegins, PartData, PartEnds
from gateway.problems import client_disconnected
from gateway.receiving import FILE_FIELD

Context = grpc.aio.ServicerContext[Any, Any]

RequestT = TypeVar("RequestT", pb.UploadImageRequest, pb.SearchImageRequest)


async def first_message(requests: AsyncIterator[RequestT]) -> RequestT:
    """The message with the metadata; raises `malformed-stream` when the stream begins with another, or with none."""
    async for request in requests:
        if request.WhichOneof("part") == "metadata":
            return request
        raise malformed("the first message has no metadata")
    raise malformed("it has no message")


async def parts(
    fields: Iterable[tuple[str, str]], filename: str | None, requests: AsyncIterator[RequestT], context: Context
) -> AsyncIterator[Event]:
    """The parts of the form that says the same, its file from the rest of the stream.

    A message is asked for when the one before is written: what is not read yet waits at the client. Raises
    `malformed-stream`, and `client-disconnected` when the stream was cut.
    """
    for name, value in fields:
        yield PartBegins(name, None)
        yield PartData(value.encode())
        yield PartEnds()
    yield PartBegins(FILE_FIELD, filename)
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise malformed("a message after the first has no chunk")
        yield PartData(request.chunk)
    await _check_open(context)
    yield PartEnds()


async def _check_open(context: Context) -> None:
    """A cancelled stream ends just like a complete one; but only on an open one can an answer begin."""
    try:
        await context.send_initial_metadata(())
    except grpc.aio.BaseError as error:
        raise PermanentError(client_disconnected()) from error


def malformed(fault: str) -> PermanentError:
    """The messages do not come as agreed."""
    return PermanentError.of(
        "malformed-stream",
        "The stream of messages is malformed",
        400,
        f"The stream cannot be read: {fault}.",
        remedy="Send one message with `metadata`, then the picture's bytes in messages with `chunk`.",
    )
