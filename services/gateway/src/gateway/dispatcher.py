"""The only place that starts workflows: leases what waits, publishes it, and stamps what the broker confirmed."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from celery import Celery
from celery.canvas import Signature
from sqlalchemy import Engine

from darkroom.celery_app import PUBLISH_OPTIONS
from darkroom.contracts.base import Lane
from darkroom.contracts.keys import Recipe
from darkroom.database import dispatch
from darkroom.database.dispatch import Leased, LeasedBackfill
from darkroom.telemetry import tracing
from darkroom.workflow import Dispatch, embedding_backfill, image_workflow
from gateway.broker import BrokerLink
from gateway.traces import DispatchSpans

log = logging.getLogger(__name__)

CHANNEL = "darkroom_dispatch"
"""Notified by whoever clears a dispatch stamp."""

POLL_S = 1.0
"""How late a dispatch may be that nobody told us of."""

MAX_PAUSE_S = 5.0
"""Between two attempts while the broker or the database is away: how long after their return work goes on."""

LeasedT = TypeVar("LeasedT", Leased, LeasedBackfill)


class Dispatcher:
    """Runs in a thread of its own; any number of them, in any number of processes, share the work.

    With a `lane`, it sends photos of that lane alone. One for interactive photos beside one for everything: a batch of
    bulk takes a quarter of a second to publish, and a photo that was uploaded meanwhile must not wait for its end.
    """

    def __init__(
        self,
        engine: Engine,
        app: Celery,
        link: BrokerLink,
        recipe: Recipe,
        *,
        batch: int,
        lease_s: float,
        lane: Lane | None = None,
    ) -> None:
        self._engine = engine
        self._app = app
        self._link = link
        self._recipe = recipe
        self._batch = batch
        self._lease_s = lease_s
        self._lane = lane
        self._stop = threading.Event()
        self.bell = threading.Event()
        """Set it to have the dispatcher look at once."""

    def run(self, stop: threading.Event) -> None:
        """Dispatches until `stop` is set (ring the bell as well); outlives every outage of broker and database."""
        failures, self._stop = 0, stop
        while not stop.is_set():
            self.bell.clear()
            try:
                is_idle = not self.dispatch_once()
                if is_idle and self._lane is None:  # what no bell told of, and the broker's state, are its to find
                    self._link.check()
                failures = 0
            except Exception as error:  # a thread that ends would end all dispatching, silently
                failures += 1
                pause_s = min(MAX_PAUSE_S, 0.1 * 2**failures)
                log.warning("dispatcher.pause", extra={"error": repr(error), "pause_s": pause_s})
                stop.wait(pause_s)
                continue
            if is_idle:
                self.bell.wait(POLL_S if self._lane is None else None)

    def dispatch_once(self) -> int:
        """Dispatches one batch, backfills only when no photo waits; returns how many. Raises what stopped it."""
        if not self._link.is_connected:
            self._link.check()  # a lease without a broker would only use up generations and task ids
        deadline = time.monotonic() + self._lease_s / 2
        begun_ns = tracing.now_ns()
        with self._engine.begin() as connection:
            leased = dispatch.lease(connection, self._batch, self._lease_s, self._lane)
        if leased:
            with DispatchSpans(leased, begun_ns) as spans:
                return self._dispatch_originals(leased, deadline, spans)
        if self._lane is not None:
            return 0
        with self._engine.begin() as connection:
            backfills = dispatch.lease_backfills(connection, self._batch, self._lease_s)
        if backfills:
            return self._dispatch_backfills(backfills, deadline)
        return 0

    def _dispatch_originals(self, leased: Sequence[Leased], deadline: float, spans: DispatchSpans) -> int:
        published, failure = self._publish(leased, self._workflow, deadline, spans.of)
        with spans.shared_transaction(published), self._engine.begin() as connection:
            dispatch.stamp(connection, published, spans.traceparents)
        for one in published:
            log.info("dispatcher.dispatched", extra={"sha256": one.sha256, "generation": one.generation})
        with self._engine.begin() as connection:
            # At once: what holds us back is the pause above, and another gateway may have a broker that works.
            dispatch.release(connection, leased[len(published) :], 0)
        if failure is not None:
            raise failure
        return len(published)

    def _dispatch_backfills(self, leased: Sequence[LeasedBackfill], deadline: float) -> int:
        published, failure = self._publish(leased, self._backfill, deadline)
        with self._engine.begin() as connection:
            dispatch.stamp_backfills(connection, published)
        if failure is not None:
            raise failure
        return len(published)

    def _publish(
        self,
        leased: Sequence[LeasedT],
        canvas: Callable[[LeasedT], Signature],
        deadline: float,
        traced: Callable[[LeasedT], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> tuple[Sequence[LeasedT], Exception | None]:
        """Those that the broker confirmed, a first part of `leased`, and what came in the way of the others."""
        count = 0
        try:
            with self._link.connection() as connection:
                for one in leased:
                    # A slow broker, or our end: stop long before another dispatcher may take the rest.
                    if time.monotonic() > deadline or self._stop.is_set():
                        break
                    with traced(one):
                        canvas(one).apply_async(connection=connection, **PUBLISH_OPTIONS)
                    count += 1
        except Exception as error:
            return leased[:count], error
        return leased[:count], None

    def _workflow(self, one: Leased) -> Signature:
        return image_workflow(self._app, Dispatch(one.sha256, one.generation, one.lane, self._recipe))

    def _backfill(self, one: LeasedBackfill) -> Signature:
        return embedding_backfill(self._app, one.sha256, Recipe.from_slug(one.recipe), one.generation)
