"""The sweeper: the only thing that removes blobs. Also forgets rows whose time is over."""

import logging
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice

from sqlalchemy import Engine

from darkroom.contracts import keys
from darkroom.contracts.base import BlobKey, ModelId, Sha256
from darkroom.contracts.messages import JobReport
from darkroom.database import callbacks, dead_letters, traces, upkeep, uploads, vectors
from darkroom.storage import INCOMING, BlobInfo, BlobStore
from scheduler.settings import SchedulerSettings

log = logging.getLogger(__name__)

QUERY_GRACE_S = 3600
"""A search picture is gone with its search, a probe's blob with it; this is for those whose process died."""

IDEMPOTENCY_EXPIRES = timedelta(hours=24)
"""How long a client may repeat a request under the same key."""

TASKS_EXPIRE = timedelta(days=30)
"""How long a task id is told from one that never was."""

EVENTS_EXPIRE = timedelta(days=7)
"""How far back a reader of events can resume."""

CALLBACKS_EXPIRE = timedelta(days=30)
"""How long it can be seen what became of a callback; one that could not even be tried for so long is given up."""

FENCES_EXPIRE = timedelta(days=1)
"""The reconciler looks back no further."""

FENCES_THIN_AFTER = timedelta(hours=1)
FENCES_KEPT_EVERY_S = 600
"""Of older fences one in ten minutes is enough: 46,000 a day become 3,000, read at every tick."""

DEAD_LETTERS_EXPIRE = timedelta(days=7)
"""Those that were dealt with: history, for who asks what happened last week."""

KEPT_LETTERS_EXPIRE = timedelta(days=90)
"""Those that waited for a person all the time."""

SWEPT_AT_ONCE = 1000
"""Originals marked in one transaction."""

_HASH_IN_KEY = re.compile(r"^(?:originals/../|derived/../|embeddings/[^/]+/)([0-9a-f]{64})(?:$|/|\.npy$)")


def sha256_in(key: BlobKey) -> Sha256 | None:
    """The original that a blob belongs to, by its key; None for anything that `contracts.keys` did not make."""
    found = _HASH_IN_KEY.match(key)
    return found.group(1) if found else None


def clean_up(engine: Engine, store: BlobStore, settings: SchedulerSettings, now_s: float) -> JobReport:
    """Sweeps what nothing refers to and forgets what is over. `now_s`: seconds since 1970, to compare blobs with."""
    swept = sweep_unreferenced(engine, store, settings.sweep_grace_s)
    orphans = sweep_orphans(engine, store, now_s - settings.orphan_grace_s)
    leftovers = sweep_by_age(store, f"{INCOMING}/", now_s - settings.orphan_grace_s)
    leftovers += sweep_by_age(store, "queries/", now_s - QUERY_GRACE_S)
    leftovers += sweep_by_age(store, "probes/", now_s - QUERY_GRACE_S)
    leftovers += sweep_backups(engine, store, settings.backups_kept, now_s - settings.orphan_grace_s)
    rows = forget_rows(engine, timedelta(hours=settings.trace_retention_h))
    return JobReport(
        summary=f"removed {swept} unreferenced originals, {orphans} orphaned blobs, {leftovers} leftovers, {rows} rows"
    )


def sweep_unreferenced(engine: Engine, store: BlobStore, grace_s: int) -> int:
    """Removes originals that nothing has referred to for that long, with all their blobs; returns how many."""
    count = 0
    while True:
        with engine.begin() as connection:
            before = upkeep.database_now(connection) - timedelta(seconds=grace_s)
            marked = upkeep.begin_sweep(connection, before, SWEPT_AT_ONCE)
            models = [model.id for model in vectors.all_models(connection)]
        swept = sum(sweep_original(engine, store, sha256, models) for sha256 in sorted(marked))
        count += swept
        if swept < SWEPT_AT_ONCE:
            return count


def sweep_original(engine: Engine, store: BlobStore, sha256: Sha256, models: Iterable[ModelId]) -> bool:
    """Removes one marked original and its blobs under its lock; false when an upload has claimed it meanwhile."""
    with engine.begin() as connection:
        if not upkeep.lock_swept(connection, sha256):
            return False
        for key in (*(keys.embedding_key(model, sha256) for model in models), keys.original_key(sha256)):
            store.delete(key)
        for blob in list(store.walk(keys.derived_prefix(sha256))):
            store.delete(blob.key)
        upkeep.remove_swept(connection, sha256)
    return True


def sweep_orphans(engine: Engine, store: BlobStore, written_before_s: float) -> int:
    """Removes old blobs of originals that have no row; returns how many."""
    count = 0
    for prefix in ("originals/", "derived/", "embeddings/"):
        old = (blob for blob in store.walk(prefix) if blob.modified_s < written_before_s)
        for chunk in _chunks(old, SWEPT_AT_ONCE):
            by_hash: dict[Sha256, list[BlobKey]] = {}
            for blob in chunk:
                sha256 = sha256_in(blob.key)
                if sha256 is not None:
                    by_hash.setdefault(sha256, []).append(blob.key)
            with engine.begin() as connection:
                known = upkeep.known_originals(connection, list(by_hash))
            for sha256 in sorted(by_hash.keys() - known):
                count += _sweep_orphan(engine, store, sha256, by_hash[sha256])
    return count


def _sweep_orphan(engine: Engine, store: BlobStore, sha256: Sha256, blobs: list[BlobKey]) -> int:
    with engine.begin() as connection:
        if not upkeep.claim_orphan(connection, sha256):
            return 0
        for key in blobs:
            store.delete(key)
        upkeep.remove_swept(connection, sha256)
    log.info("retention.orphan_swept", extra={"sha256": sha256, "blobs": len(blobs)})
    return len(blobs)


def sweep_by_age(store: BlobStore, prefix: str, written_before_s: float) -> int:
    """Removes the blobs under a prefix that are older; returns how many."""
    old = [blob for blob in store.walk(prefix) if blob.modified_s < written_before_s]
    for blob in old:
        store.delete(blob.key)
    return len(old)


def sweep_backups(engine: Engine, store: BlobStore, kept: int, written_before_s: float) -> int:
    """Removes all but the newest backups, and old blobs of backups that were never finished; returns how many."""
    with engine.begin() as connection:
        outdated = upkeep.backups_beyond(connection, kept)
        known = upkeep.known_backups(connection)
    for key in outdated:
        store.delete(key)  # before its row: a row without a blob is found again, a blob without a row only by age
        with engine.begin() as connection:
            upkeep.forget_backup(connection, key)
    unfinished = [
        blob.key for blob in store.walk("backups/") if blob.key not in known and blob.modified_s < written_before_s
    ]
    for key in unfinished:
        store.delete(key)
    return len(outdated) + len(unfinished)


def forget_rows(engine: Engine, traces_expire: timedelta) -> int:
    """Removes rows whose time is over; returns how many."""
    with engine.begin() as connection:
        now = upkeep.database_now(connection)
        count = uploads.forget_idempotent(connection, now - IDEMPOTENCY_EXPIRES)
        count += upkeep.forget_tasks(connection, now - TASKS_EXPIRE)
        count += upkeep.forget_events(connection, now - EVENTS_EXPIRE)
        count += traces.forget_rows(connection, now - traces_expire)
        count += callbacks.forget_callbacks(connection, now - CALLBACKS_EXPIRE)
        count += upkeep.forget_fences(connection, now - FENCES_EXPIRE)
        count += upkeep.thin_fences(connection, now - FENCES_THIN_AFTER, FENCES_KEPT_EVERY_S)
        letters = dead_letters.forget(connection, now - DEAD_LETTERS_EXPIRE, now - KEPT_LETTERS_EXPIRE)
        if letters:
            dead_letters.show_counts(connection)
    return count + letters


def _chunks(blobs: Iterator[BlobInfo], size: int) -> Iterator[list[BlobInfo]]:
    while chunk := list(islice(blobs, size)):
        yield chunk
