"""Keeps spans in the database: written by a thread of its own, so that no upload ever waits for a trace."""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from anyio import CapacityLimiter
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from darkroom.database import traces
from darkroom.database.traces import TraceRow
from gateway.otlp import rows_of
from gateway.problems import problem_of

log = logging.getLogger(__name__)

WRITE_AT_ONCE = 200
"""Rows in one transaction: its fixed cost is then small, and a failed one loses little."""

PAUSE_S = 1.0
"""Before rows are tried again while the database is away."""


@dataclass
class Counters:
    """Spans since the process started. What was received is stored, dropped or still queued."""

    received: int = 0
    stored: int = 0
    dropped: int = 0
    rejected: int = 0
    """Without valid ids."""


@dataclass(frozen=True)
class Kept:
    """What became of one export: how many of its spans will be written, and how many not, for which reason."""

    spans: int
    refused: int
    reason: str | None = None


class TraceStore:
    """A bounded queue of compressed rows and the thread that writes them."""

    def __init__(self, engine: Engine, queue_bytes: int) -> None:
        self._engine = engine
        self._queue_bytes = queue_bytes
        self._rows = deque[TraceRow]()
        self._bytes = 0
        self._counters = Counters()
        self._changed = threading.Condition()
        self.limiter = CapacityLimiter(1)
        """For `keep` in a thread: one export at a time, and none in the threads that uploads need."""

    def counters(self) -> Counters:
        """The counters as they are now."""
        with self._changed:
            return Counters(**asdict(self._counters))

    def keep(self, export: bytes) -> Kept:
        """Queues the spans of an export; drops and counts what finds no room. From any thread; never waits.

        Raises `MalformedExportError`.
        """
        rows, rejected = rows_of(export)
        dropped = 0
        with self._changed:
            for row in rows:
                if self._bytes + len(row.payload) > self._queue_bytes:
                    dropped += row.spans
                    continue
                self._rows.append(row)
                self._bytes += len(row.payload)
            received = sum(row.spans for row in rows)
            self._counters.received += received
            self._counters.rejected += rejected
            self._counters.dropped += dropped
            self._changed.notify()
        reasons = []
        if rejected:
            reasons.append(f"{rejected} spans have no valid trace id and span id")
        if dropped:
            log.warning("traces.dropped", extra={"spans": dropped, "queue_bytes": self._queue_bytes})
            reasons.append(
                f"{dropped} spans were dropped: {self._queue_bytes} bytes wait to be written already "
                "(DARKROOM_TRACE_QUEUE_BYTES); the database is away or too slow"
            )
        return Kept(received - dropped, rejected + dropped, "; ".join(reasons) or None)

    def run(self, stop: threading.Event) -> None:
        """Writes until `stop` is set (call `wake` as well), and then what is left, as far as the database takes it."""
        while rows := self._take(stop):
            while not self._is_done_with(rows):
                if stop.wait(PAUSE_S):
                    self._give_up(rows)
                    return

    def wake(self) -> None:
        """Has the thread look at `stop`."""
        with self._changed:
            self._changed.notify()

    def _take(self, stop: threading.Event) -> list[TraceRow]:
        """The next rows, as soon as there are some; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows or stop.is_set())
            rows = [self._rows.popleft() for _ in range(min(WRITE_AT_ONCE, len(self._rows)))]
            self._bytes -= sum(len(row.payload) for row in rows)
            return rows

    def _is_done_with(self, rows: list[TraceRow]) -> bool:
        """Whether the rows are written, or such that another try would not write them either."""
        spans = sum(row.spans for row in rows)
        try:
            with self._engine.begin() as connection:
                traces.add_rows(connection, rows)
        except SQLAlchemyError as error:
            if problem_of(error) is not None:  # the database is away
                log.warning("traces.waiting", extra={"error": str(error), "spans": spans})
                return False
            log.exception("traces.not_written", extra={"spans": spans})
            with self._changed:
                self._counters.dropped += spans
            return True
        with self._changed:
            self._counters.stored += spans
        return True

    def _give_up(self, rows: list[TraceRow]) -> None:
        with self._changed:
            left = sum(row.spans for row in [*rows, *self._rows])
            self._rows.clear()
            self._bytes = 0
            self._counters.dropped += left
        log.warning("traces.dropped", extra={"spans": left})


class StoreExporter(SpanExporter):
    """Brings this process's own spans to its store, without a detour over the network."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Queues the spans."""
        self._store.keep(encode_spans(spans).SerializeToString())
        return SpanExportResult.SUCCESS
