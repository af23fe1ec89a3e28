"""RFC 9457 problem details: the one form that an error takes in rows, messages and answers."""

from pydantic import Field, JsonValue

from darkroom.contracts.base import Message

PROBLEM_TYPE_PREFIX = "https://darkroom.example/problems/"
"""A name, not an address: `.example` is reserved and never resolves. docs/problems.md describes each."""


class Problem(Message):
    """What was wrong, the value, the limit and the remedy."""

    type: str = Field(pattern=r"^https://darkroom\.example/problems/[a-z0-9-]+$")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    value: JsonValue = None
    limit: JsonValue = None
    remedy: str | None = None
    file: str | None = None

    @property
    def slug(self) -> str:
        """The stable last part of `type`, such as `image-too-large`."""
        return self.type.removeprefix(PROBLEM_TYPE_PREFIX)


def original_missing() -> Problem:
    """The store has lost the uploaded bytes. An upload of the same bytes brings every image of them back."""
    return problem(
        "original-missing",
        "The photo's bytes are gone",
        410,
        "The blob store no longer has the bytes that were uploaded.",
        remedy="Upload the photo again, or restore the blob store and retry the image.",
    )


def problem(
    slug: str,
    title: str,
    status: int,
    detail: str,
    *,
    value: JsonValue = None,
    limit: JsonValue = None,
    remedy: str | None = None,
    file: str | None = None,
) -> Problem:
    """A problem whose type is named by `slug`."""
    return Problem(
        type=PROBLEM_TYPE_PREFIX + slug,
        title=title,
        status=status,
        detail=detail,
        value=value,
        limit=limit,
        remedy=remedy,
        file=file,
    )
