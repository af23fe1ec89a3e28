"""Why a picture was refused for good: the next try would meet the same bytes."""

from __future__ import annotations

from darkroom.contracts.problems import problem
from darkroom.errors import PermanentError

UNPROCESSABLE = 422


class PictureProblem(PermanentError):  # noqa: N818 (it becomes a problem document, and is named as that)
    """The picture itself is at fault: its sender has to be told, and another try is useless.

    `problem.detail` says it in a sentence about this picture, with the value and the limit; `remedy` says what to do.
    `value` and `limit` are None where it is not one of measure.
    """

    def __init__(
        self,
        slug: str,
        title: str,
        fault: str,
        remedy: str,
        *,
        value: int | str | None = None,
        limit: int | str | None = None,
        status: int = UNPROCESSABLE,
    ) -> None:
        detail = f"{fault[0].upper()}{fault[1:]}."
        super().__init__(problem(slug, title, status, detail, value=value, limit=limit, remedy=f"{remedy}."))

    @property
    def slug(self) -> str:
        """The stable last part of the problem's type, such as `image-truncated`."""
        return self.problem.slug


def too_large(file_bytes: int, limit: int) -> PictureProblem:
    return PictureProblem(
        "image-too-large",
        "The file has too many bytes",
        f"The file has {file_bytes} bytes and the limit is {limit}",
        "Send a smaller or more strongly compressed file",
        value=file_bytes,
        limit=limit,
        status=413,
    )


def too_many_pixels(width: int, height: int, limit: int) -> PictureProblem:
    return PictureProblem(
        "too-many-pixels",
        "The picture has too many pixels",
        f"The picture is {width} x {height} = {width * height} pixels and the limit is {limit}",
        "Scale it down before sending it",
        value=width * height,
        limit=limit,
    )


def side_too_long(width: int, height: int, limit: int) -> PictureProblem:
    return PictureProblem(
        "image-side-too-long",
        "A side of the picture is too long",
        f"The picture is {width} x {height} pixels and no side may exceed {limit}",
        "Scale it down or cut it into parts",
        value=max(width, height),
        limit=limit,
    )


def too_many_frames(frames: int, limit: int) -> PictureProblem:
    return PictureProblem(
        "too-many-frames",
        "The file has too many frames or pages",
        f"The file has at least {frames} frames or pages and the limit is {limit}",
        "Send fewer frames, or the one that matters as a picture of its own",
        value=frames,
        limit=limit,
    )


def too_many_scans(scans: int, limit: int) -> PictureProblem:
    return PictureProblem(
        "too-many-scans",
        "The JPEG has too many scans",
        f"The JPEG has {scans} scans, each a pass over the whole picture, and the limit is {limit}",
        "Save it again as an ordinary JPEG",
        value=scans,
        limit=limit,
    )


def unsupported(found: str, supported: str) -> PictureProblem:
    return PictureProblem(
        "unsupported-format",
        "The file is not a picture in a supported format",
        f"The file starts with {found}, which is none of {supported}",
        "Convert it to one of these formats",
        value=found,
        limit=supported,
        status=415,
    )


def truncated(picture_format: str, fault: str) -> PictureProblem:
    return PictureProblem(
        "image-truncated",
        "The file ends too early",
        f"The {picture_format} file is truncated: {fault}",
        "Send the complete file again",
    )


def corrupt(picture_format: str, fault: str) -> PictureProblem:
    return PictureProblem(
        "image-corrupt",
        "The file is damaged",
        f"The {picture_format} file cannot be decoded: {fault}",
        "Open it in an image editor and save it again, or send another copy",
    )


def needs_too_much_memory(limit: int) -> PictureProblem:
    """Decoding asked for more than the ceiling, or for more than the machine had."""
    return PictureProblem(
        "image-needs-too-much-memory",
        "The picture needs more memory than a worker has",
        f"Decoding it needs more memory than there is, or than the limit of {limit} bytes",
        "Scale it down, or save it as a baseline JPEG, which is decoded at reduced size; or raise "
        "DARKROOM_DECODE_MEMORY_BYTES",
        limit=limit,
    )


def took_too_long(limit_s: int) -> PictureProblem:
    """Decoding or rendering overran its time limit."""
    return PictureProblem(
        "image-took-too-long",
        "The picture takes too long",
        f"working on it took more than {limit_s} s",
        "Export the picture again with fewer pixels or a simpler format, or raise DARKROOM_TASK_HARD_LIMIT_S",
        value=limit_s,
        limit=limit_s,
    )


def ran_out_of_memory() -> PictureProblem:
    """Rendering or describing a decoded picture took more memory than there was."""
    return PictureProblem(
        "image-needs-too-much-memory",
        "The picture needs more memory than a worker has",
        "Working on it ran out of memory",
        "Scale it down",
    )


def unforeseen(error: Exception) -> PictureProblem:
    """Nobody expected this error: a fault of ours, for this picture alone."""
    return PictureProblem(
        "image-not-processable",
        "The picture cannot be processed",
        f"Working on it failed with {type(error).__name__}: {error}",
        "Export it again from an image editor, and report this: it is a fault of Darkroom",
        status=500,
    )
