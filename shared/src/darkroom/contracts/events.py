"""What happened to a photo, past tense, as rows first and as messages on `darkroom.events` second."""

from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import Field

from darkroom.contracts.base import Message, Sha256
from darkroom.contracts.messages import Generation
from darkroom.contracts.problems import Problem


class EventType(StrEnum):
    """The event's name is its routing key."""

    IMAGE_ACCEPTED = "image.accepted"
    IMAGE_READY = "image.ready"
    IMAGE_FAILED = "image.failed"
    IMAGE_DELETED = "image.deleted"
    BATCH_COMPLETED = "batch.completed"


class Event(Message):
    """One event. `id` rises in the order of publication, at times by more than 1; one that was seen may be dropped."""

    version: int = 1
    id: int = Field(ge=1)
    type: EventType
    occurred_at: datetime
    batch_id: UUID
    image_id: UUID | None = None
    sha256: Sha256 | None = None
    problem: Problem | None = None
    trace_id: str | None = None


class ImagePrepared(Message):
    """A live hint from the thumbnailer, which knows bytes and no images: `large` is there, the rest is on its way.

    No row stands behind it: it has no number, is in no stream, may come twice or not at all.
    """

    version: int = 1
    type: Literal["image.prepared"] = "image.prepared"
    occurred_at: datetime
    sha256: Sha256
    generation: Generation
