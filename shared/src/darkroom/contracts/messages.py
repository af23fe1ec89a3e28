"""The arguments and results of every task. Golden JSON in tests/contracts fixes each on the wire."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from darkroom.contracts.base import BlobKey, Lane, Message, ModelId, Sha256
from darkroom.contracts.keys import Recipe
from darkroom.contracts.problems import Problem

Generation = Annotated[int, Field(ge=1)]
"""Which dispatch of an original a message belongs to; failures of an older one are ignored."""


class Work(Message):
    """Which original, which dispatch of it, and on which lane. Every step of the workflow carries it."""

    sha256: Sha256
    generation: Generation
    lane: Lane


class Prepare(Work):
    """Decode the original once; leave `large`, `proxy` and a manifest."""

    recipe: Recipe


class Prepared(Message):
    """The manifest that `prepare` left. Deterministic, as every result inside a chord must be."""

    manifest: BlobKey


class Thumbnails(Work):
    """Render `medium` and `small` and describe the picture, from what `prepare` left."""

    recipe: Recipe


class Described(Message):
    """The manifest that `thumbnails` left."""

    manifest: BlobKey


class Embed(Work):
    """Embed the proxy with the model that the embedder holds."""

    proxy: BlobKey


class Embedded(Message):
    """Which model made the vector, its length, and where it lies."""

    model: ModelId
    dim: int = Field(ge=1)
    vector: BlobKey


class Finalize(Work):
    """Check that every artefact exists, then write rows, vectors and the event. Called with the header's results."""

    recipe: Recipe


class RecordFailure(Work):
    """A permanent failure, published before the task raises, so that the cause is never only in a log."""

    problem: Problem


class RecordLoss(Work):
    """A step has used up its tries without the photo being at fault: it is to be dispatched again."""

    cause: str = Field(max_length=500)


class RecordEmbedding(Message):
    """A vector made later, by a backfill for a new model. Called with the `Embedded` before it."""

    sha256: Sha256


class ModelReference(Message):
    """A model by its exact id and by where it was loaded from: a local folder or a hub id."""

    id: ModelId
    source: str


class RegisterModel(Message):
    """Sent by an embedder when its model is warm."""

    model: ModelReference
    dim: int = Field(ge=1)


class EmbedText(Message):
    """A search text to embed with one given model, which may be the one that is being replaced."""

    text: str = Field(max_length=2000)
    model: ModelReference


class EmbedPicture(Message):
    """A search picture, already decoded to a proxy."""

    proxy: BlobKey
    model: ModelReference


class QueryVector(Message):
    """The query's vector: base64 of little-endian float16, shape (dim,), L2 norm 1."""

    model: ModelId
    vector: str


class PrepareQuery(Message):
    """Decode an uploaded search picture to a proxy."""

    source: BlobKey
    proxy: BlobKey


class QueryPrepared(Message):
    """The proxy is there, or this is why it is not."""

    problem: Problem | None = None


class Fence(Message):
    """A marker through one queue: when it comes back, everything published before it has been taken off that queue."""

    number: int = Field(ge=1)
    queue: str


class Verdict(StrEnum):
    """Whether an answer is the known one."""

    OK = "ok"
    WRONG = "wrong"


class FenceAnswer(Message):
    """What a worker computed of the known question that every fence of its queues carries.

    Without a verdict it computed nothing; the fence proves what it proves all the same.
    """

    verdict: Verdict | None = None
    answer: str | None = Field(None, max_length=500)
    """A sentence with the figures that were compared."""


class ProbeKind(StrEnum):
    """What a probe does."""

    ADD = "add"
    CPU = "cpu"
    IO = "io"
    FAIL = "fail"
    SLOW = "slow"


class Probe(Message):
    """A task that somebody sends through a queue to see how it does. Kinds use what they need of the fields."""

    kind: ProbeKind
    queue: str
    seconds: float = Field(1, gt=0, allow_inf_nan=False)
    terms: tuple[int, int] = (1, 1)
    cause: str | None = None


class Probed(Message):
    """What a probe did. `sum` is that of `terms`; `rounds` are hashes of 64 KiB."""

    kind: ProbeKind
    queue: str
    terms: tuple[int, int] | None = None
    sum: int | None = None
    seconds: float | None = Field(None, ge=0)
    rounds: int | None = Field(None, ge=0)
    bytes: int | None = Field(None, ge=1)
    write_s: float | None = Field(None, ge=0)
    read_s: float | None = Field(None, ge=0)


class DeliverCallbacks(Message):
    """A hint that callbacks to this host are due; the rows say which, and without the hint they are found as well."""

    host: str


class Rendition(Message):
    """One encoded picture in the store."""

    key: BlobKey
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    bytes: int = Field(ge=1)


class PreparedManifest(Message):
    """What `prepare` learnt and left; a blob, not a message. Width and height: the original's, upright, in pixels."""

    sha256: Sha256
    format: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    frames: int = Field(ge=1)
    has_alpha: bool
    taken_at: datetime | None = None
    large: Rendition
    proxy: Rendition


class PaletteColour(Message):
    """A dominant colour as `#rrggbb` and its share of the picture in 0..1."""

    hex: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
    share: float = Field(ge=0, le=1)


class DescribedManifest(Message):
    """What `thumbnails` learnt and left; a blob, not a message."""

    sha256: Sha256
    medium: Rendition
    small: Rendition
    thumbhash: str
    palette: tuple[PaletteColour, ...]
    perceptual_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Nothing(Message):
    """No arguments, or no result worth keeping."""


class JobReport(Message):
    """What a periodic job did, for `darkroom status`. An alarm is a sentence for a person."""

    summary: str
    alarm: str | None = None


class QueueWork(Message):
    """What one worker has to do with one queue since it started: `rate_per_s` is of the last minute."""

    handled: int = Field(ge=0)
    in_hand: int = Field(ge=0)
    rate_per_s: float = Field(ge=0)


class WorkerPresence(Message):
    """What a worker says of itself every few seconds, in the result store; a worker that is gone says nothing."""

    name: str
    """As Celery's tools call it, such as `embedder@host`."""
    node: str
    pool: str
    concurrency: int = Field(ge=0)
    queues: dict[str, QueueWork]
    """Those that it consumes."""
