"""What the gRPC calls take and answer, from and to what both faces have in common (`gateway.models`)."""

import json
from collections.abc import Iterable
from datetime import UTC
from typing import Any, Protocol

from google.protobuf.json_format import Parse
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value
from pydantic import JsonValue

from darkroom.contracts.events import Event
from darkroom.contracts.problems import Problem
from darkroom.rpc.v1 import darkroom_pb2 as pb
from gateway import models


class Enum(Protocol):
    """A generated enum."""

    def Name(self, number: int) -> str:  # noqa: N802
        """The name of a value; raises ValueError for a number that has none."""

    def Value(self, name: str) -> Any:  # noqa: N802
        """The value of a name."""


def word(enum: Enum, number: int) -> str | None:
    """A value's word on the REST face, such as `bulk`; None: unspecified. Unknown numbers stay digits."""
    if number == 0:
        return None
    try:
        return enum.Name(number).removeprefix(_prefix(enum)).lower()
    except ValueError:
        return str(number)


def _prefix(enum: Enum) -> str:
    return enum.Name(0).removesuffix("UNSPECIFIED")


def _value(enum: Enum, word: str) -> Any:
    return enum.Value(_prefix(enum) + word.upper())


def given(message: Message, *names: str) -> dict[str, Any]:
    """Those of the fields that are set."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def upload_fields(metadata: pb.UploadMetadata) -> list[tuple[str, str]]:
    """The form fields that say the same."""
    lane = word(pb.Lane, metadata.lane)
    return [
        *([("lane", lane)] if lane is not None else []),
        *(("tags", tag) for tag in metadata.tags),
        *given(metadata, "external_id", "callback_url").items(),
    ]


def list_values(request: pb.ListImagesRequest) -> dict[str, Any]:
    """The values of a `ListQuery`."""
    return {
        "status": word(pb.ImageStatus, request.status),
        "tag": list(request.tags),
        **given(request, "limit", "page_token"),
    }


def search_values(request: pb.SearchRequest) -> dict[str, Any]:
    """The values of a `SearchRequest`."""
    return {**given(request, "text", "image_id", "limit"), "filter": _filter_values(request.filter)}


def picture_search_values(metadata: pb.SearchImageMetadata) -> dict[str, Any]:
    """The values of a `PictureSearch`."""
    return {**given(metadata, "limit"), "filter": _filter_values(metadata.filter)}


def _filter_values(wanted: pb.SearchFilter) -> dict[str, Any]:
    created_after = wanted.created_after.ToDatetime(UTC) if wanted.HasField("created_after") else None
    return {"tags": list(wanted.tags), "lane": word(pb.Lane, wanted.lane), "created_after": created_after}


def image(shown: models.Image) -> pb.Image:
    """The message of an image."""
    return pb.Image(
        id=str(shown.id),
        status=_value(pb.ImageStatus, shown.status),
        sha256=shown.sha256,
        filename=shown.filename,
        format=shown.format,
        bytes=shown.bytes,
        width=shown.width,
        height=shown.height,
        taken_at=shown.taken_at,
        tags=shown.tags,
        external_id=shown.external_id,
        lane=_value(pb.Lane, shown.lane),
        thumbhash=shown.thumbhash,
        palette=[pb.Colour(hex=colour.hex, share=colour.share) for colour in shown.palette or ()],
        thumbnails={
            size: pb.Thumbnail(url=one.url, width=one.width, height=one.height, bytes=one.bytes)
            for size, one in shown.thumbnails.items()
        },
        embeddings=[pb.Embedding(model=one.model, dim=one.dim) for one in shown.embeddings],
        error=problem(shown.error) if shown.error else None,
        attempts=shown.attempts,
        trace_id=shown.trace_id,
        created_at=shown.created_at,
        ready_at=shown.ready_at,
        batch_id=str(shown.batch_id),
        duplicate=shown.duplicate,
        tasks={step: str(task_id) for step, task_id in shown.tasks.items()},
    )


def problem(shown: Problem) -> pb.Problem:
    """The message of a problem."""
    return pb.Problem(
        type=shown.type,
        title=shown.title,
        status=shown.status,
        detail=shown.detail,
        value=_json(shown.value),
        limit=_json(shown.limit),
        remedy=shown.remedy,
        file=shown.file,
    )


def batch(shown: models.Batch) -> pb.Batch:
    """The message of a batch."""
    return pb.Batch(
        id=str(shown.id),
        total=shown.total,
        ready=shown.ready,
        failed=shown.failed,
        deleted=shown.deleted,
        pending=shown.pending,
        created_at=shown.created_at,
        completed_at=shown.completed_at,
        callback_url=shown.callback_url,
    )


def images(shown: Iterable[models.Image]) -> list[pb.Image]:
    """The messages of several images."""
    return [image(one) for one in shown]


def search_answer(found: models.SearchAnswer) -> pb.SearchResponse:
    """The message of a search's answer."""
    results = [pb.Hit(image=image(hit.image), score=hit.score) for hit in found.results]
    return pb.SearchResponse(results=results, model=found.model)


def task(shown: models.Task) -> pb.Task:
    """The message of a task."""
    return pb.Task(
        task_id=str(shown.task_id),
        name=shown.name,
        state=_value(pb.TaskState, shown.state),
        result=_json(shown.result),
        error=pb.TaskError(type=shown.error.type, message=shown.error.message) if shown.error else None,
        progress=pb.Progress(**shown.progress.model_dump()) if shown.progress else None,
        queue=shown.queue,
        worker=shown.worker,
        issued_at=shown.issued_at,
        started_at=shown.started_at,
        finished_at=shown.finished_at,
    )


def probe_values(request: pb.RunProbeRequest) -> dict[str, Any]:
    """The values of a `ProbeRequest`."""
    words = {"service": word(pb.ProbedService, request.service), "lane": word(pb.Lane, request.lane)}
    return {name: value for name, value in words.items() if value is not None} | given(
        request, "seconds", "countdown_seconds", "expires_seconds", "cause"
    )


def event(shown: Event) -> pb.Event:
    """The message of an event."""
    return pb.Event(
        id=shown.id,
        type=shown.type,
        occurred_at=shown.occurred_at,
        batch_id=str(shown.batch_id),
        image_id=str(shown.image_id) if shown.image_id else None,
        sha256=shown.sha256,
        problem=problem(shown.problem) if shown.problem else None,
        trace_id=shown.trace_id,
    )


def ledger(shown: models.Ledger) -> pb.Ledger:
    """The message of the ledger."""
    return pb.Ledger(**shown.model_dump())


def _json(value: JsonValue) -> Value | None:
    # What is null is unset, as every other value that is not there.
    if value is None:
        return None
    message = Value()
    Parse(json.dumps(value), message)
    return message
