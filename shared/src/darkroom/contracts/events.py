"""What happened to a photo, past tense, as rows first and as messages on `darkroom.events` second."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import Field

from darkroom.contracts.base import Message, Sha256
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
