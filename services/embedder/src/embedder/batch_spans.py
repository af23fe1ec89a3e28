"""One batch in the traces of all whom it computes for: it links to every member, and every member to it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN

from darkroom.telemetry import names, tracing
from darkroom.telemetry.tracing import Attributes

if TYPE_CHECKING:
    from embedder.embedding import Job, Outcome


class BatchSpans:
    """The batch's own span, the current one in the block, and one for each member in that member's trace."""

    def __init__(self, jobs: "Sequence[Job]") -> None:
        links = [link for job in jobs if job.span.is_recording() for link in tracing.link(job.span)]
        count: Attributes = {names.MESSAGING_BATCH_COUNT: len(jobs)}
        self._batch = tracing.begin(names.BATCH, count, context=Context(), links=links) if links else INVALID_SPAN
        about: Attributes = {names.BATCH_SIZE: len(jobs), names.IS_SHARED: True}
        self.jobs = [
            replace(
                job, span=tracing.begin_under(job.span, names.COMPUTE_BATCH, about, links=tracing.link(self._batch))
            )
            for job in jobs
        ]
        """The same jobs; what is done for one of them alone belongs under its span."""
        self._current = ExitStack()

    def __enter__(self) -> Self:
        self._current.enter_context(tracing.within(tracing.under(self._batch)))
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._current.close()
        for span in (*(job.span for job in self.jobs), self._batch):
            if error is not None:
                tracing.fail(span, error)
            span.end()

    def show(self, outcomes: "Sequence[Outcome]") -> None:
        """Shows whose outcome is an error."""
        for job, outcome in zip(self.jobs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                tracing.fail(job.span, outcome)


@contextmanager
def forward(model: str, jobs: "Sequence[Job]") -> Iterator[None]:
    """The block is a pass through the model: work of the batch, shown in each member's trace with the same times."""
    about: Attributes = {names.MODEL: model, names.BATCH_SIZE: len(jobs)}
    begun_ns = tracing.now_ns()
    with tracing.step(names.FORWARD, about) as span:
        yield
    ended_ns, links = tracing.now_ns(), tracing.link(span)
    for job in jobs:
        tracing.record_under(job.span, names.FORWARD, begun_ns, ended_ns, {**about, names.IS_SHARED: True}, links=links)
