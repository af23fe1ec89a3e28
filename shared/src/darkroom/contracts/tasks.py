"""Every task as one object: its name, its queue for each lane, its argument and result models.

Caller and worker import the same object, so a rename cannot break one of them unseen.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from darkroom.contracts import messages as m
from darkroom.contracts.base import Lane, Message

ArgumentsT = TypeVar("ArgumentsT", bound=Message)
ResultT = TypeVar("ResultT", bound=Message)


@dataclass(frozen=True)
class TaskContract(Generic[ArgumentsT, ResultT]):
    """What caller and worker agree on about one task."""

    name: str
    queue: str
    arguments: type[ArgumentsT]
    result: type[ResultT]
    has_lanes: bool = False

    def queue_for(self, lane: Lane) -> str:
        """The queue for a lane; bulk work of a task with lanes has a queue of its own."""
        return f"{self.queue}.bulk" if self.has_lanes and lane is Lane.BULK else self.queue


PREPARE = TaskContract("thumbnailer.prepare", "prepare", m.Prepare, m.Prepared, has_lanes=True)
THUMBNAILS = TaskContract("thumbnailer.thumbnails", "thumbnails", m.Thumbnails, m.Described, has_lanes=True)
PREPARE_QUERY = TaskContract("thumbnailer.prepare_query", "prepare.query", m.PrepareQuery, m.QueryPrepared)

EMBED = TaskContract("embedder.embed", "embed", m.Embed, m.Embedded, has_lanes=True)
EMBED_TEXT = TaskContract("embedder.embed_text", "embed.query", m.EmbedText, m.QueryVector)
EMBED_PICTURE = TaskContract("embedder.embed_picture", "embed.query", m.EmbedPicture, m.QueryVector)

FINALIZE = TaskContract("scheduler.finalize", "finalize", m.Finalize, m.Nothing, has_lanes=True)
RECORD_FAILURE = TaskContract("scheduler.record_failure", "finalize", m.RecordFailure, m.Nothing, has_lanes=True)
RECORD_LOSS = TaskContract("scheduler.record_loss", "finalize", m.RecordLoss, m.Nothing, has_lanes=True)
RECORD_EMBEDDING = TaskContract("scheduler.record_embedding", "finalize.bulk", m.RecordEmbedding, m.Nothing)
REGISTER_MODEL = TaskContract("scheduler.register_model", "finalize", m.RegisterModel, m.Nothing)
RETURN_FENCE = TaskContract("scheduler.return_fence", "finalize", m.Fence, m.Nothing)

FENCE = TaskContract("darkroom.fence", "finalize", m.Fence, m.FenceAnswer)
"""Registered in every worker and sent to each work queue by name; `queue` here is only its default."""

PROBE = TaskContract("darkroom.probe", "finalize", m.Probe, m.Probed)
"""The same: a synthetic task that a person sends."""

RECONCILE = TaskContract("scheduler.reconcile", "maintenance", m.Nothing, m.JobReport)
CHECK_BLOBS = TaskContract("scheduler.check_blobs", "maintenance", m.Nothing, m.JobReport)
CLEAN_UP = TaskContract("scheduler.clean_up", "maintenance", m.Nothing, m.JobReport)
BACK_UP = TaskContract("scheduler.back_up", "maintenance", m.Nothing, m.JobReport)
REPORT_USAGE = TaskContract("scheduler.report_usage", "maintenance", m.Nothing, m.JobReport)
AUDIT_LEDGER = TaskContract("scheduler.audit_ledger", "maintenance", m.Nothing, m.JobReport)

DELIVER_CALLBACKS = TaskContract("scheduler.deliver_callbacks", "callbacks", m.DeliverCallbacks, m.Nothing)
HINT_CALLBACKS = TaskContract("scheduler.hint_callbacks", "callbacks", m.Nothing, m.JobReport)

ALL: tuple[TaskContract, ...] = (  # type: ignore[type-arg]
    PREPARE,
    THUMBNAILS,
    PREPARE_QUERY,
    EMBED,
    EMBED_TEXT,
    EMBED_PICTURE,
    FINALIZE,
    RECORD_FAILURE,
    RECORD_LOSS,
    RECORD_EMBEDDING,
    REGISTER_MODEL,
    RETURN_FENCE,
    FENCE,
    PROBE,
    RECONCILE,
    CHECK_BLOBS,
    CLEAN_UP,
    BACK_UP,
    REPORT_USAGE,
    AUDIT_LEDGER,
    DELIVER_CALLBACKS,
    HINT_CALLBACKS,
)
