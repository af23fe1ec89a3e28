"""What the calls take and answer, over REST and over gRPC. It is a contract: fields may be added, never changed."""

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)
from sqlalchemy import Row

from darkroom.contracts.base import Lane, ThumbnailSize
from darkroom.contracts.problems import Problem
from darkroom.database.dead_letters import Outcome
from darkroom.database.images import ImageFilter
from darkroom.workflow import task_ids
from gateway.receiving import invalid_field
from gateway.trace_models import TraceStoreStatus
from gateway.uploads import MAX_TAG_CHARACTERS, MAX_TAGS

Tag = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TAG_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]+$")]
Status = Literal["accepted", "processing", "ready", "failed"]


class Thumbnail(BaseModel):
    """One rendition: where it is, its size in pixels and in bytes."""

    url: str
    width: int
    height: int
    bytes: int


class Colour(BaseModel):
    """A dominant colour and its share of the picture in 0..1."""

    hex: str
    share: float


class Embedding(BaseModel):
    """A model that made a vector of the image, and the vector's length."""

    model: str
    dim: int


class Image(BaseModel):
    """One image. What is not known yet is null."""

    id: UUID
    status: Status
    sha256: str
    filename: str | None
    format: str | None
    bytes: int
    width: int | None
    height: int | None
    taken_at: str | None = Field(description="As the camera wrote it, with a UTC offset only where it wrote one.")
    tags: list[str]
    external_id: str | None
    lane: Lane
    thumbhash: str | None
    palette: list[Colour] | None
    thumbnails: dict[ThumbnailSize, Thumbnail]
    embeddings: list[Embedding]
    error: Problem | None
    attempts: int
    trace_id: str | None
    created_at: datetime
    ready_at: datetime | None
    batch_id: UUID
    duplicate: bool
    tasks: dict[str, UUID] = Field(description="The tasks of the latest dispatch by step; GET /v1/tasks/{id}.")

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """The image in a row of `images_query`."""
        status = row.state
        if status == "in_flight":
            status = "accepted" if row.original_status == "accepted" else "processing"
        return cls(
            id=row.id,
            status=status,
            sha256=row.sha256,
            filename=row.filename,
            format=row.format,
            bytes=row.bytes,
            width=row.width,
            height=row.height,
            taken_at=row.taken_at,
            tags=row.tags,
            external_id=row.external_id,
            lane=row.lane,
            thumbhash=row.thumbhash,
            palette=row.palette,
            thumbnails={
                size: Thumbnail(
                    url=f"/v1/images/{row.id}/thumbnails/{size}",
                    width=rendition["width"],
                    height=rendition["height"],
                    bytes=rendition["bytes"],
                )
                for size, rendition in (row.thumbnails or {}).items()
            },
            embeddings=row.embeddings or [],
            error=Problem.from_wire(row.error) if row.state == "failed" and row.error else None,
            attempts=row.attempts,
            trace_id=row.trace_id,
            created_at=row.created_at,
            ready_at=row.ready_at,
            batch_id=row.batch_id,
            duplicate=row.duplicate,
            tasks=task_ids(row.sha256, row.generation) if row.generation else {},
        )


class Batch(BaseModel):
    """One upload's counters: total = ready + failed + deleted + pending."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    total: int
    ready: int
    failed: int
    deleted: int
    pending: int
    created_at: datetime
    completed_at: datetime | None
    callback_url: str | None


class BatchWithImages(Batch):
    """A batch and those of its images that are not deleted, in the order of upload."""

    images: list[Image]


class CallbackDelivery(BaseModel):
    """One request to a callback URL, and how its last attempt ended."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID = Field(description="The webhook-id that the receiver gets, the same at every attempt.")
    type: str
    image_id: UUID | None
    url: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    created_at: datetime
    last_attempt_at: datetime | None
    last_status: int | None = Field(description="Of the last answer; null: there was none.")
    last_error: str | None
    next_attempt_at: datetime | None = Field(description="The earliest time of the next attempt; null when it is over.")
    finished_at: datetime | None

    @model_validator(mode="after")
    def _nothing_follows_the_end(self) -> Self:
        return self if self.state == "pending" else self.model_copy(update={"next_attempt_at": None})


class Callbacks(BaseModel):
    """Callbacks of one upload."""

    callbacks: list[CallbackDelivery]


class Uploaded(BaseModel):
    """What an upload became."""

    batch: Batch
    images: list[Image]


class ImageList(BaseModel):
    """One page, newest first; the token asks for the next and is null on the last."""

    images: list[Image]
    next_page_token: str | None


class ListQuery(BaseModel):
    """Which images to list."""

    model_config = ConfigDict(extra="forbid")

    status: Status | None = None
    tag: list[Tag] = Field(default=[], max_length=MAX_TAGS, description="Repeated: an image must have all of them.")
    limit: int = Field(50, ge=1, le=200)
    page_token: str | None = Field(None, max_length=64, description="From the page before.")

    @property
    def wanted(self) -> ImageFilter:
        """The same, for the database."""
        return ImageFilter(status=self.status, tags=tuple(self.tag))


def page_token(rows: Sequence[Row[Any]], limit: int) -> str | None:
    """The token of the page after these rows; none when they do not fill theirs."""
    if len(rows) < limit:
        return None
    last: UUID = rows[-1].id
    return base64.urlsafe_b64encode(last.bytes).rstrip(b"=").decode()


def read_page_token(token: str | None) -> UUID | None:
    """The id before which a page begins; raises `invalid-field` for what is no token of ours."""
    if token is None:
        return None
    try:
        return UUID(bytes=base64.b64decode(token + "==", altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        remedy = "Send the next_page_token of the page before, or none."
        raise invalid_field("page_token", "is not one of ours", value=token, remedy=remedy) from error


class SearchFilter(BaseModel):
    """Which images a search may find."""

    model_config = ConfigDict(extra="forbid")

    tags: list[Tag] = Field(default=[], max_length=MAX_TAGS, description="An image must have all of them.")
    lane: Lane | None = None
    created_after: AwareDatetime | None = None

    @property
    def wanted(self) -> ImageFilter:
        """The same, for the database."""
        return ImageFilter(tags=tuple(self.tags), lane=self.lane, created_after=self.created_after)


class SearchRequest(BaseModel):
    """A search by text or by a stored image: exactly one of them."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)] | None = None
    image_id: UUID | None = None
    limit: int = Field(10, ge=1, le=100)
    filter: SearchFilter = SearchFilter()

    @model_validator(mode="after")
    def _exactly_one_query(self) -> Self:
        if (self.text is None) == (self.image_id is None):
            raise ValueError("give exactly one of text and image_id")
        return self


class PictureSearch(BaseModel):
    """What may be said beside an uploaded picture to search by."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(10, ge=1, le=100)
    filter: SearchFilter = SearchFilter()


class Hit(BaseModel):
    """One found image; the score is the cosine of query and picture, in -1..1."""

    image: Image
    score: float


class SearchAnswer(BaseModel):
    """The best first, and the model that compared."""

    results: list[Hit]
    model: str


class Ledger(BaseModel):
    """accepted = ready + failed + deleted + in_flight, both sides counted on their own."""

    accepted: int
    ready: int
    failed: int
    deleted: int
    in_flight: int


class TaskError(BaseModel):
    """How a task failed, or why it is tried again or never was."""

    type: str
    message: str


class Progress(BaseModel):
    """How far a running task is: `done` of `total`."""

    done: float
    total: float
    unit: str | None = None


class Task(BaseModel):
    """One task: its state in Celery's words, and what came of it. What is not known, or not yet, is null."""

    task_id: UUID
    name: str
    state: Literal["PENDING", "STARTED", "PROGRESS", "RETRY", "SUCCESS", "FAILURE", "REVOKED"]
    result: JsonValue = None
    progress: Progress | None = Field(None, description="While the state is PROGRESS.")
    error: TaskError | None = None
    queue: str | None = None
    worker: str | None = Field(None, description="Celery's name of the process that took it last.")
    issued_at: datetime
    started_at: datetime | None = Field(None, description="When it was last begun, by the worker's clock.")
    finished_at: datetime | None = None


class ProbedService(StrEnum):
    """Whose queue a probe goes through."""

    THUMBNAILER = "thumbnailer"
    EMBEDDER = "embedder"
    SCHEDULER = "scheduler"


class ProbeRequest(BaseModel):
    """A task to send through a queue."""

    model_config = ConfigDict(extra="forbid")

    service: ProbedService = ProbedService.THUMBNAILER
    lane: Lane = Field(Lane.INTERACTIVE, description="The scheduler's queue carries both.")
    seconds: float = Field(
        1, gt=0, allow_inf_nan=False, description="How long `cpu` and `slow` last, up to DARKROOM_PROBE_MAX_S."
    )
    countdown_seconds: int = Field(0, ge=0, description="How long it waits before it may begin: whole seconds.")
    expires_seconds: int = Field(600, ge=1, description="When nobody has taken it by then, nobody will.")
    cause: str | None = Field(None, min_length=1, max_length=200, description="What `fail` fails with.")

    @field_validator("countdown_seconds", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError("must be a whole number: the broker cannot delay by fractions of a second")
        return value

    @model_validator(mode="after")
    def _begins_before_it_expires(self) -> Self:
        if self.countdown_seconds >= self.expires_seconds:
            raise ValueError("expires_seconds must be above countdown_seconds, or the task never runs")
        return self


class ProbeAccepted(BaseModel):
    """The task to ask for."""

    task_id: UUID


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Uploads are accepted. The other fields are for information: uploads need neither broker nor Redis nor model."""

    ready: Literal[True] = True
    database: Literal[True] = True
    storage: Literal[True] = True
    broker: bool
    results: bool
    model: str | None = Field(description="The model that searches use; null until an embedder has registered one.")
    photo_ready: bool = Field(description="Whether a photo could be taken through now, as far as the gateway can see.")


class Job(BaseModel):
    """A periodic job's last run."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    scheduled_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    succeeded_at: datetime | None
    summary: str | None
    alarm: str | None


class Model(BaseModel):
    """A model, and how many of all finished originals have its vector."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    source: str
    dim: int
    state: Literal["filling", "active", "retired"]
    covered: int
    total: int
    registered_at: datetime
    seen_at: datetime
    activated_at: datetime | None


class DispatcherStatus(BaseModel):
    """What waits for dispatch in all gateways, and how this one's dispatcher stands."""

    enabled: bool
    connected: bool
    waiting: int
    oldest_wait_s: float | None
    backfills: int


class CallbackStatus(BaseModel):
    """Callbacks that wait, those of them that have failed at least once, and those that were given up lately."""

    model_config = ConfigDict(from_attributes=True)

    pending: int
    failing: int
    failed: int


class UploadStatus(BaseModel):
    """Whether uploads are taken: `refusal` is the problem that they are answered with, or null.

    `free_bytes` is the room in the blob store, null where it grows as needed.
    """

    refusal: Problem | None
    free_bytes: int | None


class StoreStatus(BaseModel):
    """How far behind the rolling check of the blob store is: seconds since the photo was seen whole that waits longest.

    Null when there is no finished photo.
    """

    oldest_check_s: float | None


class SystemStatus(BaseModel):
    """The state of the whole system."""

    version: str
    ledger: Ledger
    dispatcher: DispatcherStatus
    callbacks: CallbackStatus
    store: StoreStatus
    uploads: UploadStatus
    models: list[Model]
    jobs: list[Job]
    traces: TraceStoreStatus | None = Field(description="Null where this gateway keeps no traces.")


class Report(BaseModel):
    """A usage report of one period."""

    model_config = ConfigDict(from_attributes=True)

    period_start: datetime
    period_end: datetime
    created_at: datetime
    report: dict[str, JsonValue]


class Reports(BaseModel):
    """Newest first."""

    reports: list[Report]


class DeadLetter(BaseModel):
    """A message that no worker could take, and what became of it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    queue: str | None = Field(description="Where it died.")
    task: str | None
    task_id: str | None
    sha256: str | None = Field(description="The photo that it was about; null when it was about none.")
    generation: int | None
    reason: str = Field(description="The broker's word: rejected, delivery_limit, expired, maxlen.")
    deaths: int
    outcome: Outcome
    cause: str = Field(description="Why that became of it.")
    received_at: datetime
    replayed_at: datetime | None
    body_bytes: int


class DeadLetterContent(DeadLetter):
    """A dead letter with what it says; the body up to 64 KiB, the headers null when they were longer than that."""

    content_type: str | None
    headers: dict[str, JsonValue] | None
    body: str


class DeadLetterList(BaseModel):
    """One page, newest first; the token asks for the next and is null on the last."""

    supported: bool = Field(description="Whether the broker has dead letters at all; `note` says why not.")
    note: str | None
    counts: dict[Outcome, int] = Field(description="How many are held, by outcome.")
    dead_letters: list[DeadLetter]
    next_page_token: str | None


class Replayed(BaseModel):
    """How many dead letters were replayed, and how many could not be."""

    replayed: int
    kept: int


class Dropped(BaseModel):
    """How many dead letters were dropped."""

    dropped: int


class Probe(BaseModel):
    """How a queue stands by the fences that go through it with a known question."""

    state: Literal["ok", "late", "wrong", "unknown"]
    text: str


class Queue(BaseModel):
    """One task queue. A figure is null when nothing is known of it: `unknown` of the whole answer says why."""

    name: str
    node: str = Field(description="The kind of worker that takes from it.")
    depth: int | None = Field(description="Messages that wait for a worker.")
    oldest_age_s: float | None = Field(
        description="Wait of the last fence, or of the one on its way if longer; null where no fence goes through."
    )
    consumers: int | None = Field(description="Workers that take from it.")
    in_hand: int | None = Field(description="Messages that workers hold, being worked on or next.")
    rate_per_s: float | None = Field(description="Messages done in a second, over the last minute.")
    probe: Probe | None


class DeadLetterQueue(BaseModel):
    """Where messages end that no worker could take; `depth` of them are not read yet, `kept` wait for a person."""

    name: str
    node: str
    supported: bool = Field(description="Whether the broker has dead letters at all; `note` says why not.")
    note: str | None
    depth: int | None
    consumers: int | None
    kept: int | None


class Worker(BaseModel):
    """A worker that is there; `handled` since it started."""

    name: str
    node: str
    pool: str
    concurrency: int
    queues: list[str]
    in_hand: int
    handled: int


class QueueOverview(BaseModel):
    """How every queue stands."""

    measured_at: datetime
    broker: Literal["rabbitmq", "redis"]
    queues: list[Queue]
    dead_letters: DeadLetterQueue
    workers: list[Worker]
    unknown: dict[str, str] = Field(
        description="Why a figure is null in every queue, by its name; empty when all is well."
    )
