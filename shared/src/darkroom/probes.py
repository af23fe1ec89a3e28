"""What a probe does in the worker that takes it: a synthetic task with a result that can be checked."""

import hashlib
import time
from collections.abc import Callable, Iterator
from functools import partial

from celery import Celery

from darkroom.celery_app import Delivery, bind
from darkroom.contracts.keys import probe_key
from darkroom.contracts.messages import Probe, Probed, ProbeKind
from darkroom.contracts.tasks import PROBE
from darkroom.errors import PermanentError, TransientError
from darkroom.storage import BlobStore

PROGRESS_EVERY_S = 0.5
"""A write to Redis each; a person sees no more."""

BLOB_BYTES = 256 * 1024
"""As much as a thumbnail `large`."""


def register_probe(app: Celery, open_store: Callable[[], BlobStore]) -> None:
    """Has a worker take probes; `open_store()` is called in the process that runs one."""
    # Not tried again: that it fails now is what somebody wants to know.
    bind(app, PROBE, lambda message, delivery: run_probe(message, delivery, open_store), max_retries=0)


def run_probe(message: Probe, delivery: Delivery, open_store: Callable[[], BlobStore]) -> Probed:
    """Does what the kind says. Raises the permanent problem `probe-failed` for `fail`, and what the store raises."""
    begun = time.monotonic()
    done = partial(Probed, kind=message.kind, queue=message.queue)
    match message.kind:
        case ProbeKind.ADD:
            return done(terms=message.terms, sum=sum(message.terms))
        case ProbeKind.CPU:
            rounds = sum(_burn(pause_s) for pause_s in _steps(message.seconds, begun, delivery))
            return done(seconds=_since(begun), rounds=rounds)
        case ProbeKind.SLOW:
            for pause_s in _steps(message.seconds, begun, delivery):
                time.sleep(pause_s)
            return done(seconds=_since(begun))
        case ProbeKind.IO:
            write_s, read_s = _write_and_read(open_store(), delivery.task_id)
            return done(bytes=BLOB_BYTES, write_s=write_s, read_s=read_s)
    raise PermanentError.of(
        "probe-failed", "The probe failed, as it was asked to", 500, message.cause or "It was asked to fail."
    )


def _steps(seconds: float, begun: float, delivery: Delivery) -> Iterator[float]:
    """Cuts a time into pieces, and reports the progress after each."""
    while (left_s := begun + seconds - time.monotonic()) > 0:
        yield min(PROGRESS_EVERY_S, left_s)
        delivery.report_progress(min(time.monotonic() - begun, seconds), seconds, "s")


def _burn(seconds: float) -> int:
    """Computes for so long; returns how many rounds of hashing 64 KiB that were."""
    data, rounds, until = bytes(65_536), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        hashlib.sha256(data).digest()
        rounds += 1
    return rounds


def _write_and_read(store: BlobStore, task_id: str) -> tuple[float, float]:
    """Seconds that writing a blob and reading it took; it is removed whatever happens."""
    key, data = probe_key(task_id), hashlib.shake_128(task_id.encode()).digest(BLOB_BYTES)
    begun = time.monotonic()
    try:
        store.put(key, data)
        written = time.monotonic()
        if store.get(key) != data:
            raise TransientError(f"the blob store gave back other bytes than were written under {key}")
        return round(written - begun, 4), _since(written)
    finally:
        store.delete(key)


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 4)
