"""The thumbnailer's side of the contracts: load, call a pure function, store, answer."""

import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from opentelemetry.trace import Span
from PIL import Image
from pydantic import ValidationError

from darkroom import topology
from darkroom.celery_app import PUBLISH_OPTIONS, Delivery, bind, report_failure, report_loss
from darkroom.contracts import keys
from darkroom.contracts.base import BlobKey, Message, ThumbnailSize
from darkroom.contracts.events import ImagePrepared
from darkroom.contracts.messages import (
    Described,
    DescribedManifest,
    Fence,
    FenceAnswer,
    PaletteColour,
    Prepare,
    Prepared,
    PreparedManifest,
    PrepareQuery,
    QueryPrepared,
    Rendition,
    Thumbnails,
    Work,
)
from darkroom.contracts.tasks import FENCE, PREPARE, PREPARE_QUERY, THUMBNAILS
from darkroom.errors import BlobMissingError, DarkroomError, PermanentError, TransientError
from darkroom.fences import answered
from darkroom.storage import BlobStore
from darkroom.telemetry import names, tracing
from darkroom.telemetry.processing import TracedRequest
from darkroom.telemetry.publishing import publish_event
from darkroom.tries import TriesMarkers
from thumbnailer import decoding, describing, known_answer, rendering
from thumbnailer.decoding import Limits
from thumbnailer.problems import ran_out_of_memory, took_too_long, unforeseen

log = logging.getLogger(__name__)

ManifestT = TypeVar("ManifestT", bound=Message)


BUSY_SHARE = 0.1
"""Of a time limit must have been computed before it says anything of the picture. Beside nine others on one core a
process gets that much; one that was stopped, or whose machine was, has a few thousandths."""


class StalledError(TransientError):
    """A time limit was overrun, but hardly anything computed: the process was stopped, or its machine overloaded."""


class DamagedRenditionError(TransientError):
    """A picture that we rendered cannot be decoded. It will be rendered again from the original."""


@dataclass(frozen=True)
class Resources:
    """What a child process works with; built in the child, because connections do not survive a fork."""

    store: BlobStore
    tries: TriesMarkers
    limits: Limits
    soft_limit_s: int


class Photo:
    """The three tasks on pictures. One instance a child process."""

    def __init__(self, resources: Resources) -> None:
        self._store = resources.store
        self._tries = resources.tries
        self._limits = resources.limits
        self._soft_limit_s = resources.soft_limit_s

    def prepare(self, message: Prepare, delivery: Delivery) -> Prepared:
        """Decodes an original once and leaves `large`, `proxy` and a manifest; skips what is there already."""
        manifest_key = keys.prepared_key(message.sha256, message.recipe)
        original_key = keys.original_key(message.sha256)
        manifest = self._read_manifest(manifest_key, PreparedManifest)
        if manifest is not None and self._all_there(manifest.large, manifest.proxy):
            self._store.info(original_key)  # raises: a photo without its bytes is never ready
            return Prepared(manifest=manifest_key)
        file = io.BytesIO(self._store.get(original_key))
        with self._tries.guard(delivery.task_id), within_time(self._soft_limit_s):
            photo = self._decode(file)
            with encoding("large"):
                large = rendering.render_large(photo, message.recipe.output)
            with encoding("proxy"):
                proxy = rendering.render_proxy(photo)
        large_key = keys.thumbnail_key(message.sha256, message.recipe, ThumbnailSize.LARGE)
        manifest = PreparedManifest(
            sha256=message.sha256,
            format=photo.format,
            width=photo.width,
            height=photo.height,
            frames=photo.frames,
            has_alpha=photo.has_alpha,
            taken_at=photo.taken_at,
            large=self._keep(large_key, large),
            proxy=self._keep(keys.proxy_key(message.sha256, message.recipe), proxy),
        )
        self._store.put(manifest_key, manifest.model_dump_json().encode())
        return Prepared(manifest=manifest_key)

    def thumbnails(self, message: Thumbnails, delivery: Delivery) -> Described:
        """Renders `medium` and `small` and describes the picture; skips what is there already."""
        manifest_key = keys.described_key(message.sha256, message.recipe)
        manifest = self._read_manifest(manifest_key, DescribedManifest)
        if manifest is not None and self._all_there(manifest.medium, manifest.small):
            return Described(manifest=manifest_key)
        large_key = keys.thumbnail_key(message.sha256, message.recipe, ThumbnailSize.LARGE)
        large, proxy = self._store.get(large_key), self._store.get(keys.proxy_key(message.sha256, message.recipe))
        with self._tries.guard(delivery.task_id), within_time(self._soft_limit_s):
            with tracing.step(names.DECODE):
                source = self._opened(message, proxy, large)
            with encoding("medium"):
                medium = rendering.render_medium(source, message.recipe.output)
            with encoding("small"):
                small = rendering.render_small(source, message.recipe.output)
            with tracing.step(names.DESCRIBE):
                swatches = describing.palette(source)
                thumbhash, perceptual_hash = describing.thumbhash(source), describing.perceptual_hash(source)
        manifest = DescribedManifest(
            sha256=message.sha256,
            medium=self._keep(keys.thumbnail_key(message.sha256, message.recipe, ThumbnailSize.MEDIUM), medium),
            small=self._keep(keys.thumbnail_key(message.sha256, message.recipe, ThumbnailSize.SMALL), small),
            thumbhash=thumbhash,
            palette=tuple(PaletteColour(hex=swatch.colour, share=swatch.permille / 1000) for swatch in swatches),
            perceptual_hash=perceptual_hash,
        )
        self._store.put(manifest_key, manifest.model_dump_json().encode())
        return Described(manifest=manifest_key)

    def prepare_query(self, message: PrepareQuery, delivery: Delivery) -> QueryPrepared:
        """Decodes a search picture to a proxy; what is wrong with it is an answer, not an error."""
        file = io.BytesIO(self._store.get(message.source))
        try:
            with self._tries.guard(delivery.task_id), within_time(self._soft_limit_s):
                photo = self._decode(file)
                with encoding("proxy"):
                    proxy = rendering.render_proxy(photo)
        except PermanentError as error:
            return QueryPrepared(problem=error.problem)
        self._store.put(message.proxy, proxy.data)
        return QueryPrepared()

    def pass_fence(self, message: Fence, delivery: Delivery) -> FenceAnswer:
        """Answers the known question of the thumbnailer's queues."""
        return answered(delivery.task_id, self._tries, known_answer.answer)

    def _opened(self, message: Thumbnails, proxy: bytes, large: bytes) -> Image.Image:
        """What `prepare` left; raises `DamagedRenditionError` when it cannot be decoded."""
        try:
            return rendering.thumbnail_source(proxy, large)
        except (OSError, SyntaxError, ValueError) as error:
            # What is damaged is our copy, not the photo: without a manifest, the next dispatch prepares it again.
            self._store.delete(keys.prepared_key(message.sha256, message.recipe))
            raise DamagedRenditionError(f"`large` or the proxy of {message.sha256} is damaged: {error}") from error

    def _decode(self, file: io.BytesIO) -> decoding.Photo:
        """The photo; its file, which may be as large as all that is made of it, is used up."""
        with tracing.step(names.DECODE):
            return decoding.decode(file, self._limits)

    def _keep(self, key: BlobKey, rendition: rendering.Rendition) -> Rendition:
        self._store.put(key, rendition.data)
        return Rendition(key=key, width=rendition.width, height=rendition.height, bytes=len(rendition.data))

    def _all_there(self, *renditions: Rendition) -> bool:
        try:
            return all(self._store.info(each.key).bytes == each.bytes for each in renditions)
        except BlobMissingError:
            return False

    def _read_manifest(self, key: BlobKey, model: type[ManifestT]) -> ManifestT | None:
        """The manifest, or None where there is none that can be read: then the work is done again."""
        try:
            return model.from_json(self._store.get(key))
        except (BlobMissingError, ValidationError):
            return None


def encoding(size: str) -> AbstractContextManager[Span]:
    """A span around the making of one rendition."""
    return tracing.step(f"{names.ENCODE} {size}")


@contextmanager
def within_time(limit_s: int) -> Iterator[None]:
    """Turns whatever ends the work on a picture's bytes into a problem of that picture.

    Nothing in here touches a server or a disk, so the next try would end the same way: Celery's soft time limit, which
    strikes between two steps of a decoder, a lack of memory, and errors that nobody has foreseen. But the limit counts
    the whole task: where waiting for a server used up most of it, or the process stood still, a `TransientError` has
    it tried again.
    """
    begun, computed_before_s = time.monotonic(), time.process_time()
    try:
        yield
    except SoftTimeLimitExceeded as late:
        spent_s = time.monotonic() - begun
        if spent_s < limit_s / 2:
            raise TransientError(f"of {limit_s} s the picture had {spent_s:.1f}, servers the rest") from late
        raise too_late(limit_s, time.process_time() - computed_before_s) from late
    except DarkroomError:
        raise
    except MemoryError as error:
        raise ran_out_of_memory() from error
    except Exception as error:
        log.exception("picture.unforeseen")
        raise unforeseen(error) from error


def too_late(limit_s: int, computed_s: float | None) -> PermanentError | StalledError:
    """What a time limit that was overrun says, after so many seconds of computing; None: not known how many."""
    if computed_s is not None and computed_s < BUSY_SHARE * limit_s:
        return StalledError(f"{computed_s:.1f} s of the {limit_s} s were computed: the process stood still")
    return took_too_long(limit_s)


def computed_s(pid: int) -> float | None:
    """Seconds that a process has computed since it began; None where it is gone, or the system does not tell."""
    try:
        # Behind the program's name in brackets, which may hold anything, user and system time are at 11 and 12.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class PhotoRequest(TracedRequest):
    """A request whose photo fails when its child had to be killed for overrunning the hard time limit.

    That happens inside a decoder's C code, which the soft limit cannot interrupt. The parent process tells. Of a child
    that was killed while it waited for a server, the reconciler finds the work.
    """

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        self.computed_before_s = computed_s(pid)
        super().on_accepted(pid, time_accepted)

    def on_timeout(self, soft: bool, timeout: int) -> None:
        message = self.kwargs.get("message", {})
        try:
            # Before the message is acknowledged: should we end in between, it is delivered and told again.
            if not soft and "generation" in message and is_at_work(self.app.conf.darkroom_tries, self.id):
                with tracing.within(self.trace_context):
                    self._tell(Work.from_wire(message), timeout)
        finally:
            super().on_timeout(soft, timeout)

    def _tell(self, work: Work, limit_s: int) -> None:
        now_s = None if self.worker_pid is None else computed_s(self.worker_pid)
        before_s = getattr(self, "computed_before_s", None)
        error = too_late(limit_s, None if now_s is None or before_s is None else now_s - before_s)
        if isinstance(error, PermanentError):
            report_failure(self.app, work, error)
        else:
            report_loss(self.app, work, error)


def is_at_work(tries: TriesMarkers, task_id: str) -> bool:
    """Whether a task was busy with its picture's bytes when its process ended; if nobody can tell, it was not."""
    try:
        return bool(tries.unfinished(task_id)[0])
    except TransientError:
        return False


def register(app: Celery, photo: Callable[[], Photo]) -> None:
    """Binds the tasks; `photo()` is called in the child that runs one."""
    on_photos: dict[str, Any] = {"Request": "thumbnailer.tasks:PhotoRequest"}

    def prepare(message: Prepare, delivery: Delivery) -> Prepared:
        """Prepares a photo and tells who listens."""
        prepared = photo().prepare(message, delivery)
        hint(app, ImagePrepared(occurred_at=datetime.now(UTC), sha256=message.sha256, generation=message.generation))
        return prepared

    bind(app, PREPARE, prepare, **on_photos)
    bind(app, THUMBNAILS, lambda message, delivery: photo().thumbnails(message, delivery), **on_photos)
    bind(app, PREPARE_QUERY, lambda message, delivery: photo().prepare_query(message, delivery))
    bind(app, FENCE, lambda message, delivery: photo().pass_fence(message, delivery))


def hint(app: Celery, event: ImagePrepared) -> None:
    """Publishes a hint, once. It may be lost: a photo does not wait for it and does not fail by it."""
    try:
        with app.producer_or_acquire() as producer:
            about = {names.IMAGE_SHA256: event.sha256}
            options = {"exchange": topology.EVENTS.name, **PUBLISH_OPTIONS}
            publish_event(producer, event.to_wire(), event.type, about, **options)
    except Exception as error:  # whatever the transport raises
        log.info("thumbnailer.hint_lost", extra={"sha256": event.sha256, "error": repr(error)})
