"""One batch of requests computed: pictures and texts in, a result or an error for each out. Knows no Celery."""

import base64
import io
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import INVALID_SPAN, Span

from darkroom.contracts.keys import embedding_key
from darkroom.contracts.messages import Embed, Embedded, EmbedPicture, EmbedText, ModelReference, QueryVector
from darkroom.errors import BlobMissingError, ConfigurationError, DarkroomError, PermanentError, TransientError
from darkroom.storage import BlobStore
from darkroom.telemetry import names, tracing
from darkroom.tries import TriesMarkers
from embedder.batch_spans import BatchSpans, forward
from embedder.model import ClipModel
from embedder.preprocessing import Pixels

log = logging.getLogger(__name__)

NORM_TOLERANCE = 0.01
"""Of the length of a vector that is kept; the scheduler takes the same."""

InputT = TypeVar("InputT")

Vector = NDArray[np.float32]
Outcome = Embedded | QueryVector | Exception
"""What a request's task body returns, or raises."""


@dataclass(frozen=True)
class Job:
    """One request: its task's id, its message, and the span of what is done for it alone."""

    task_id: str
    message: Embed | EmbedText | EmbedPicture
    span: Span = field(default=INVALID_SPAN, compare=False, repr=False)


class DamagedProxyError(TransientError):
    """A photo's proxy cannot be decoded. It was removed, so that the photo is prepared again from its original."""


class ModelBroken(Exception):  # noqa: N818 (a state of the process, not of a request)
    """The model fails on a picture that cannot be at fault: only a new process helps."""


class Models:
    """The worker's own model, and at most one other that searches still use while ours is being filled."""

    def __init__(self, own: ClipModel, load: Callable[[str], ClipModel]) -> None:
        self.own = own
        self._load = load
        self._other: ClipModel | None = None

    def get(self, reference: ModelReference) -> ClipModel:
        """The model of a query, loaded if need be; raises `PermanentError` when it is not what it was."""
        if reference.id == self.own.reference.id:
            return self.own
        if self._other is None or self._other.reference.id != reference.id:
            self._other = None  # two models are in memory, never three
            begun = time.perf_counter()
            try:
                other = self._load(reference.source)
            except ConfigurationError as error:
                raise _model_unavailable(reference, str(error)) from error
            log.info(
                "embedder.other_model_loaded",
                extra={"model": other.reference.id, "seconds": round(time.perf_counter() - begun, 3)},
            )
            if other.reference.id != reference.id:
                raise _model_unavailable(reference, f"what lies there now is {other.reference.id}")
            self._other = other
        return self._other


class Embedding:
    """Computes batches. One at a time; any thread."""

    def __init__(
        self,
        models: Models,
        store: BlobStore,
        tries: TriesMarkers,
        *,
        helpers: int = 4,
        watch: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    ) -> None:
        self._models = models
        self._store = store
        self._tries = tries
        # Decoding leaves the interpreter free, and writing waits for the disk: 16 vectors in 4 ms instead of 15.
        self._helpers = ThreadPoolExecutor(helpers, "embedding-helper")
        self._watch = watch

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The outcome of each job, in order. Raises `ModelBroken` when none of them is to blame.

        What has been tried before and did not end is computed after the others and by itself, so that it can harm
        nobody; a photo that already ran by itself and did not end is not touched again.
        """
        with BatchSpans(jobs) as spans:
            outcomes = self._run(spans.jobs)
            spans.show(outcomes)
        return outcomes

    def _run(self, jobs: Sequence[Job]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        for number, job in enumerate(jobs):
            if isinstance(job.message, Embed) and (existing := self._existing(job, job.message)):
                outcomes[number] = existing
        missing = [number for number in range(len(jobs)) if number not in outcomes]
        try:
            unfinished = self._tries.unfinished(*(jobs[number].task_id for number in missing))
            together = [number for number, tries in zip(missing, unfinished, strict=True) if tries == 0]
            outcomes |= zip(together, self._together([jobs[number] for number in together]), strict=True)
        except TransientError as error:  # the markers cannot be kept: nothing may be tried
            return [outcomes.get(number, error) for number in range(len(jobs))]
        for number in missing:
            if number not in outcomes:
                outcomes[number] = self._alone(jobs[number])
        return [outcomes[number] for number in range(len(jobs))]

    def _together(self, jobs: list[Job]) -> list[Outcome]:
        if not jobs:
            return []
        task_ids = [job.task_id for job in jobs]
        self._tries.begin_together(*task_ids)
        try:
            return self._compute(jobs)
        finally:
            self._tries.end(*task_ids)

    def _alone(self, job: Job) -> Outcome:
        log.info("embedder.alone", extra={"task_id": job.task_id})
        try:
            with self._tries.guard(job.task_id):
                return self._compute([job])[0]
        except DarkroomError as error:
            return error

    def _compute(self, jobs: list[Job]) -> list[Outcome]:
        """Groups jobs by model and by picture or text, so that each group is one pass through a network."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for number, job in enumerate(jobs):
            groups.setdefault((self._reference(job).id, isinstance(job.message, EmbedText)), []).append(number)
        outcomes: dict[int, Outcome] = {}
        for (_, is_text), numbers in groups.items():
            members = [jobs[number] for number in numbers]
            try:
                model = self._models.get(self._reference(members[0]))
            except PermanentError as error:
                outcomes |= dict.fromkeys(numbers, error)
                continue
            with self._watch(f"batch of {len(members)}"):
                vectors = _texts(model, members) if is_text else self._pictures(model, members)
            kept = self._helpers.map(partial(self._keep, model), members, vectors)
            outcomes |= zip(numbers, kept, strict=True)
        return [outcomes[number] for number in range(len(jobs))]

    def _reference(self, job: Job) -> ModelReference:
        return self._models.own.reference if isinstance(job.message, Embed) else job.message.model

    def _pictures(self, model: ClipModel, jobs: list[Job]) -> list[Vector | Exception]:
        inputs = list(self._helpers.map(partial(self._pixels, model), jobs))
        pixels = [each for each in inputs if not isinstance(each, Exception)]
        readable = [job for job, each in zip(jobs, inputs, strict=True) if not isinstance(each, Exception)]
        with forward(model.reference.id, readable):
            vectors = iter(_one_by_one_on_error(model, model.embed_pictures, pixels))
        return [each if isinstance(each, Exception) else next(vectors) for each in inputs]

    def _pixels(self, model: ClipModel, job: Job) -> Pixels | Exception:
        if isinstance(job.message, EmbedText):
            raise TypeError(f"{job.message!r} has no picture")
        try:
            with tracing.within(tracing.under(job.span)):
                data = self._store.get(job.message.proxy)
                with tracing.step(names.PREPROCESS):
                    return self._preprocessed(model, job.message, data)
        except (DarkroomError, OSError) as error:
            return error

    def _preprocessed(self, model: ClipModel, message: Embed | EmbedPicture, data: bytes) -> Pixels:
        try:
            return model.preprocessing.pixels(data)
        except PermanentError as error:
            if isinstance(message, EmbedPicture):
                raise
            # What is damaged is our copy, not the photo: without it, the next dispatch prepares another.
            self._store.delete(message.proxy)
            raise DamagedProxyError(str(error)) from error

    def _existing(self, job: Job, message: Embed) -> Embedded | None:
        """What an earlier delivery left, if it can be read."""
        own = self._models.own
        key = embedding_key(own.reference.id, message.sha256)
        try:
            with tracing.within(tracing.under(job.span)):
                data = self._store.get(key)
            vector = np.load(io.BytesIO(data), allow_pickle=False)
        except (BlobMissingError, OSError, ValueError, EOFError):
            return None
        if vector.shape != (own.dim,) or vector.dtype != np.float16:
            return None
        if not abs(float(np.linalg.norm(vector.astype(np.float32))) - 1) <= NORM_TOLERANCE:  # also one of NaN
            return None
        return Embedded(model=own.reference.id, dim=own.dim, vector=key)

    def _keep(self, model: ClipModel, job: Job, vector: Vector | Exception) -> Outcome:
        """Stores a photo's vector; answers a query's."""
        if isinstance(vector, Exception):
            return vector
        halves = vector.astype("<f2")
        if not isinstance(job.message, Embed):
            return QueryVector(model=model.reference.id, vector=base64.b64encode(halves.tobytes()).decode())
        key = embedding_key(model.reference.id, job.message.sha256)
        file = io.BytesIO()
        np.save(file, halves, allow_pickle=False)
        try:
            with tracing.within(tracing.under(job.span)):
                self._store.put(key, file.getvalue())
        except OSError as error:
            return error
        return Embedded(model=model.reference.id, dim=model.dim, vector=key)


def _texts(model: ClipModel, jobs: list[Job]) -> list[Vector | Exception]:
    texts = [job.message.text for job in jobs if isinstance(job.message, EmbedText)]
    with forward(model.reference.id, jobs):
        return _one_by_one_on_error(model, model.embed_texts, texts)


def _one_by_one_on_error(
    model: ClipModel, embed: Callable[[Sequence[InputT]], NDArray[np.float32]], inputs: Sequence[InputT]
) -> list[Vector | Exception]:
    """One pass over all inputs; when it fails, one for each, so that an error hits only what caused it."""
    if not inputs:
        return []
    try:
        vectors = embed(inputs)
    except Exception as error:  # whatever a network raises: memory, kernels, shapes
        failure = repr(error)  # and no more than that: the traceback would keep the failed batch's memory
    else:
        return [vector if np.isfinite(vector).all() else _not_embeddable() for vector in vectors]
    if len(inputs) > 1:
        log.warning("embedder.batch_failed", extra={"size": len(inputs), "error": failure})
        return [_one_by_one_on_error(model, embed, [each])[0] for each in inputs]
    if not model.works():
        raise ModelBroken(failure)
    return [TransientError(f"the model failed on this input: {failure}")]


def _not_embeddable() -> PermanentError:
    return PermanentError.of(
        "not-embeddable",
        "The model gives no vector",
        422,
        "The embedding model answered with numbers that are not finite.",
        remedy="Set DARKROOM_MODEL_DTYPE=float32 and retry the image: a lower precision overflows in some models.",
    )


def _model_unavailable(reference: ModelReference, reason: str) -> PermanentError:
    return PermanentError.of(
        "model-unavailable",
        "The model that searches use cannot be loaded",
        503,
        f"The embedder cannot load {reference.id} from {reference.source}: {reason}.",
        value=reference.id,
        remedy="Make that model available again, or activate the one that the embedder runs with.",
    )
