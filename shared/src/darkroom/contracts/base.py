"""The two kinds of model that cross a process boundary, and the closed sets and ids in them."""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, StringConstraints

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of an original's bytes, 64 lower-case hex digits. It names the original, its work and its artefacts."""

BlobKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][A-Za-z0-9._@/-]*$", max_length=512)]
"""Where a blob lies in the store, made only by `darkroom.contracts.keys`."""

ModelId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9._-]+@[0-9a-f]{12}$", max_length=128)]
"""`slug@hash`: a readable name and 12 hex digits over weights, preprocessing and proxy recipe."""


class Lane(StrEnum):
    """Interactive work never waits behind bulk work: each lane has queues of its own."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class ThumbnailSize(StrEnum):
    """The renditions that a client can ask for, by the longest side that they may have."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"

    @property
    def max_side_px(self) -> int:
        """Longest side in pixels; a smaller original is never enlarged."""
        return {"small": 256, "medium": 768, "large": 1600}[self.value]


class OutputFormat(StrEnum):
    """What thumbnails are encoded as."""

    WEBP = "webp"
    JPEG = "jpeg"
    AVIF = "avif"

    @property
    def media_type(self) -> str:
        """The `Content-Type` of a blob in this format."""
        return f"image/{self.value}"


class Frozen(BaseModel):
    """A value that cannot change and refuses fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Frozen):
    """What travels through a queue: ids and blob keys, never bytes.

    A sender cannot build one with an unknown field. A receiver ignores fields that it does not know yet, so that a
    newer sender may add an optional one during a rolling upgrade. Any other change is a new task name.
    """

    @classmethod
    def from_wire(cls, payload: dict[str, Any]) -> Self:
        """The message in a decoded JSON object; raises `pydantic.ValidationError` when a known field is wrong."""
        return cls.model_validate(payload, extra="ignore")

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """The same from what is stored as JSON text; raises `pydantic.ValidationError` for what is no JSON too."""
        return cls.model_validate_json(text, extra="ignore")

    def to_wire(self) -> dict[str, Any]:
        """A JSON-compatible object without the fields that are None. Defaults are sent: a later one may differ."""
        return self.model_dump(mode="json", exclude_none=True)
