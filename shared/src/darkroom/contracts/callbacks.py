"""What a callback's body says: `type`, `timestamp` and `data`, as Standard Webhooks 1.0 wants it."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import Field

from darkroom.contracts.base import Lane, Message, Sha256, ThumbnailSize
from darkroom.contracts.events import EventType
from darkroom.contracts.problems import Problem


class CallbackImage(Message):
    """The image as it was at that moment. Width and height in pixels, upright; thumbnails are paths on the gateway."""

    id: UUID
    filename: str | None = None
    external_id: str | None = None
    tags: tuple[str, ...] = ()
    lane: Lane
    bytes: int
    duplicate: bool
    format: str | None = None
    width: int | None = None
    height: int | None = None
    thumbhash: str | None = None
    thumbnails: dict[ThumbnailSize, str] = Field(default_factory=dict)


class CallbackBatch(Message):
    """The upload's counters: total = ready + failed + deleted."""

    id: UUID
    total: int
    ready: int
    failed: int
    deleted: int


class CallbackData(Message):
    """The fields of the event that have the same name there, and the image or the batch that it is about."""

    version: int = 1
    batch_id: UUID
    image_id: UUID | None = None
    sha256: Sha256 | None = None
    problem: Problem | None = None
    trace_id: str | None = None
    image: CallbackImage | None = None
    batch: CallbackBatch | None = None


class Callback(Message):
    """One callback's body. `timestamp` is when it happened; the time of sending is in the header."""

    type: Literal[EventType.IMAGE_READY, EventType.IMAGE_FAILED, EventType.BATCH_COMPLETED]
    timestamp: datetime
    data: CallbackData
