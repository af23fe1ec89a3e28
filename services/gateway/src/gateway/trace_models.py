"""What the calls about traces answer: a contract, as `models.py` is."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field


class TraceStoreStatus(BaseModel):
    """Spans since this gateway started. What was received is stored, dropped or on its way; rejected had no ids."""

    model_config = ConfigDict(from_attributes=True)

    received: int
    stored: int
    dropped: int
    rejected: int


class TraceLink(BaseModel):
    """Another span that a span refers to."""

    trace_id: str
    span_id: str


class TraceEvent(BaseModel):
    """Something that happened at one moment of a span."""

    name: str
    at_ms: float
    attributes: dict[str, Any]


class TraceSpan(BaseModel):
    """One span. Times are milliseconds; starts count from the start of the trace."""

    id: str
    trace_id: str
    parent_id: str | None = Field(description="As recorded; it may be missing here, as a client's own span is.")
    depth: int = Field(description="Level in the tree, from 0: with the order of the list, that is the tree.")
    name: str
    category: Literal["work", "wait", "batch"] = Field(
        description="wait: nothing is done for the photo; batch: work for several photos, in a trace of its own."
    )
    kind: Literal["internal", "server", "client", "producer", "consumer"]
    service: str
    start_ms: float
    duration_ms: float = Field(description="Until now for one that is open.")
    is_open: bool = Field(description="Goes on, as follows from its neighbours: only what has ended is recorded.")
    is_orphan: bool = Field(description="Its parent has not arrived, and was not the client's.")
    status: Literal["unset", "ok", "error"]
    message: str | None
    retry: int | None = Field(description="Which retry of its task it belongs to, from 1.")
    is_redelivered: bool
    members: int | None = Field(description="Requests that a batch computed together.")
    clock_shift_ms: float = Field(description="By how much it was moved: its machine's clock was behind its parent's.")
    attributes: dict[str, Any]
    events: list[TraceEvent]
    links: list[TraceLink]


class TracePart(BaseModel):
    """A piece of the total, without overlap: who worked, or where the photo waited while nobody did."""

    category: Literal["work", "wait", "gap"]
    name: str = Field(description="The service that worked, what was waited for, or nothing.")
    start_ms: float
    duration_ms: float


class TraceSummary(BaseModel):
    """What a trace comes to. Waits and works of branches side by side are all counted; `parts` add up to the total."""

    total_ms: float
    waited_ms: dict[str, float] = Field(
        description="By queue; `dispatch`, `batch` and `turn` are waits outside of queues."
    )
    held_back_ms: float = Field(description="On purpose, before a retry.")
    worked_ms: dict[str, float] = Field(description="By service.")
    retries: int
    redeliveries: int
    dispatches: int
    errors: int
    parts: list[TracePart]


class Trace(BaseModel):
    """What belongs to one image in one trace, in the order of the tree."""

    trace_id: str
    role: Literal["upload", "original"] = Field(
        description="original: the trace of an earlier upload of the same bytes, whose work this image shares."
    )
    started_at: datetime
    summary: TraceSummary
    spans: list[TraceSpan]


class ImageTrace(BaseModel):
    """One image's way from the call to its end: its own trace and, of a duplicate, the original's too."""

    image_id: UUID
    filename: str | None
    sha256: str
    status: Literal["accepted", "processing", "ready", "failed"]
    is_growing: bool = Field(description="Spans may still arrive: services send what has ended every few seconds.")
    is_cut: bool = Field(description="There are more spans than one answer holds.")
    traces: list[Trace]
