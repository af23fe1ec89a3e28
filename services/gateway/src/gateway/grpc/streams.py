"""Pictures that a client streams: first what it says about one, then the bytes."""

from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

from darkroom.errors import PermanentError
from darkroom.rpc.v1 import darkroom_pb2 as pb
from gateway.multipart import Event, PartBegins, PartData, PartEnds
from gateway.receiving import FILE_FIELD

RequestT = TypeVar("RequestT", pb.UploadImageRequest, pb.SearchImageRequest)


async def first_message(requests: AsyncIterator[RequestT]) -> RequestT:
    """The message with the metadata; raises `malformed-stream` when the stream begins with another, or with none."""
    async for request in requests:
        if request.WhichOneof("part") == "metadata":
            return request
        raise malformed("the first message has no metadata")
    raise malformed("it has no message")


async def parts(
    fields: Iterable[tuple[str, str]], filename: str | None, requests: AsyncIterator[RequestT]
) -> AsyncIterator[Event]:
    """The parts of the form that says the same, its file from the rest of the stream; raises `malformed-stream`.

    A message is asked for when the one before is written: what is not read yet waits at the client.
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
    yield PartEnds()


def malformed(fault: str) -> PermanentError:
    """The messages do not come as agreed."""
    return PermanentError.of(
        "malformed-stream",
        "The stream of messages is malformed",
        400,
        f"The stream cannot be read: {fault}.",
        remedy="Send one message with `metadata`, then the picture's bytes in messages with `chunk`.",
    )
