"""How work on an original ends: ready, failed, deleted, or asked for again. Every transition of an image is here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, case, func, insert, select, text, update

from darkroom.contracts.base import Sha256
from darkroom.contracts.events import EventType
from darkroom.contracts.messages import DescribedManifest, PreparedManifest
from darkroom.contracts.problems import Problem, original_missing
from darkroom.database import callbacks
from darkroom.database.tables import batches, events, images, originals


@dataclass(frozen=True)
class Artefacts:
    """What finalize found in the blob store."""

    prepared: PreparedManifest
    described: DescribedManifest
    recipe: str


def mark_ready(connection: Connection, sha256: Sha256, artefacts: Artefacts) -> bool:
    """Finishes an original and its images; false when there was nothing to do.

    Success counts from any generation, because the artefacts are there. A deleted image is never revived.
    """
    original = _lock(connection, sha256)
    if original is None or original.status in ("ready", "sweeping"):
        return False
    prepared, described = artefacts.prepared, artefacts.described
    renditions = {"large": prepared.large, "medium": described.medium, "small": described.small}
    connection.execute(
        update(originals)
        .where(originals.c.sha256 == sha256)
        .values(
            status="ready",
            recipe=artefacts.recipe,
            format=prepared.format,
            width=prepared.width,
            height=prepared.height,
            taken_at=prepared.taken_at.isoformat() if prepared.taken_at else None,
            thumbhash=described.thumbhash,
            palette=[colour.model_dump() for colour in described.palette],
            perceptual_hash=int.from_bytes(bytes.fromhex(described.perceptual_hash), signed=True),
            thumbnails={size: rendition.model_dump() for size, rendition in renditions.items()},
            error=None,
            ready_at=func.coalesce(originals.c.ready_at, func.now()),
            checked_at=func.now(),
        )
    )
    _move(connection, _images_of(connection, sha256, "in_flight", "failed"), "ready")
    return True


def mark_failed(connection: Connection, sha256: Sha256, generation: int, problem: Problem) -> bool:
    """Fails an original and its images for a cause; false when an older dispatch says so, or the work is over.

    Images that are ready are those of an original that is being rebuilt: they fail with it.
    """
    original = _lock(connection, sha256)
    if original is None or original.status not in ("accepted", "processing") or original.generation != generation:
        return False
    error = problem.model_dump(mode="json", exclude_none=True)
    connection.execute(
        update(originals)
        .where(originals.c.sha256 == sha256)
        .values(status="failed", error=error, attempts=originals.c.attempts + 1)
    )
    _move(connection, _images_of(connection, sha256, "in_flight", "ready"), "failed", error)
    return True


def rebuild(connection: Connection, shas: Sequence[Sha256]) -> int:
    """Has finished originals worked on again, because blobs of them are gone; returns how many.

    Their images stay ready and are found meanwhile: no counter moves and no event is written, unless the work fails.
    What is still in the store is skipped.
    """
    statement = text(
        """
        WITH broken AS (
            SELECT sha256 FROM originals
            WHERE sha256 = ANY(:shas) AND status = 'ready' AND unreferenced_at IS NULL
            ORDER BY sha256 FOR UPDATE
        )
        UPDATE originals SET status = 'accepted', generation = generation + 1, dispatched_at = NULL, lease_until = NULL,
            not_before = now(), losses = 0
        FROM broken WHERE originals.sha256 = broken.sha256
        """
    )
    return connection.execute(statement, {"shas": list(shas)}).rowcount


def lose_original(connection: Connection, sha256: Sha256) -> bool:
    """Fails a finished original whose uploaded bytes are gone; false when it is not finished."""
    if not rebuild(connection, [sha256]):
        return False
    generation = connection.scalar(select(originals.c.generation).where(originals.c.sha256 == sha256))
    return generation is not None and mark_failed(connection, sha256, generation, original_missing())


def bring_back(connection: Connection, shas: Sequence[Sha256]) -> None:
    """Sends originals through again that failed because their bytes were gone, and that were uploaded once more."""
    is_gone = originals.c.error["type"].astext == original_missing().type
    found = select(originals.c.sha256).where(originals.c.sha256.in_(shas), originals.c.status == "failed", is_gone)
    for sha256 in sorted(connection.scalars(found)):
        _begin_anew(connection, sha256)
        _move(connection, _images_of(connection, sha256, "failed"), "in_flight")


def delete_image(connection: Connection, image_id: UUID) -> bool:
    """Leaves a tombstone; false when there is no such image. The blobs are the sweeper's."""
    sha256 = connection.scalar(select(images.c.sha256).where(images.c.id == image_id))
    if sha256 is None:
        return False
    _lock(connection, sha256)
    image = connection.execute(select(images).where(images.c.id == image_id, images.c.state != "deleted")).one_or_none()
    if image is None:
        return False
    _move(connection, [image], "deleted")
    still_referred = select(images.c.id).where(images.c.sha256 == sha256, images.c.state != "deleted").exists()
    connection.execute(
        update(originals).where(originals.c.sha256 == sha256, ~still_referred).values(unreferenced_at=func.now())
    )
    return True


def retry_image(connection: Connection, image_id: UUID) -> str | None:
    """Sends a failed image's original through again; returns the state that it was in, or None if there is none.

    Anything but `failed` is left as it is. Every failed image of the same original goes along.
    """
    sha256 = connection.scalar(select(images.c.sha256).where(images.c.id == image_id))
    if sha256 is None:
        return None
    _lock(connection, sha256)
    state = connection.scalar(select(images.c.state).where(images.c.id == image_id))
    if state == "failed":
        retry_original(connection, sha256)
    return None if state == "deleted" else state


def retry_original(connection: Connection, sha256: Sha256) -> bool:
    """Sends a failed original through again, with every failed image of it; false when there is none."""
    _lock(connection, sha256)
    failed = _images_of(connection, sha256, "failed")
    if failed:
        _begin_anew(connection, sha256)
        _move(connection, failed, "in_flight")
    return bool(failed)


def send_again(connection: Connection, shas: Sequence[Sha256], dispatched_before: datetime, backoff_s: int) -> int:
    """Clears the dispatch stamp of originals that were lost by the infrastructure; returns how many.

    Only those still unfinished and not dispatched anew since are touched. They wait 0 s the first time, then
    `backoff_s`, twice that and so on up to a minute, so that no storm of losses delays its end by more; there is no cap
    on how often.
    """
    statement = text(
        """
        WITH lost AS (
            SELECT sha256 FROM originals
            WHERE sha256 = ANY(:shas) AND status IN ('accepted', 'processing') AND dispatched_at < :before
            ORDER BY sha256 FOR UPDATE
        )
        UPDATE originals SET dispatched_at = NULL, lease_until = NULL, losses = losses + 1, not_before = now()
            + make_interval(secs => CASE losses WHEN 0 THEN 0 ELSE least(60, :backoff_s * 2 ^ (losses - 1)) END)
        FROM lost WHERE originals.sha256 = lost.sha256
        """
    )
    parameters = {"shas": list(shas), "before": dispatched_before, "backoff_s": backoff_s}
    return connection.execute(statement, parameters).rowcount


def _begin_anew(connection: Connection, sha256: Sha256) -> None:
    connection.execute(
        update(originals)
        .where(originals.c.sha256 == sha256)
        .values(
            status="accepted",
            # The failure that was tried again may be delivered once more: it must be of an older generation by then.
            generation=originals.c.generation + 1,
            dispatched_at=None,
            lease_until=None,
            not_before=func.now(),
            error=None,
            losses=0,
        )
    )


def _lock(connection: Connection, sha256: Sha256) -> Row[Any] | None:
    """The original's row, held until the transaction ends. Every transition of its images happens under this lock."""
    return connection.execute(select(originals).where(originals.c.sha256 == sha256).with_for_update()).one_or_none()


def _images_of(connection: Connection, sha256: Sha256, *states: str) -> Sequence[Row[Any]]:
    return connection.execute(select(images).where(images.c.sha256 == sha256, images.c.state.in_(states))).all()


_BATCH_COLUMN = {"in_flight": "pending", "ready": "ready", "failed": "failed", "deleted": "deleted"}
_EVENT = {"ready": EventType.IMAGE_READY, "failed": EventType.IMAGE_FAILED, "deleted": EventType.IMAGE_DELETED}


def _move(connection: Connection, moved: Sequence[Row[Any]], state: str, error: dict[str, Any] | None = None) -> None:
    """Moves images to a state, their batches' counters with them, and writes events and callbacks.

    The trigger moves the ledger. The transition that brings a batch's `pending` to 0 completes it.
    """
    if not moved:
        return
    steps = Counter((image.batch_id, image.state) for image in moved)
    completed, callback_urls = list[UUID](), dict[UUID, str]()
    for batch_id in sorted({image.batch_id for image in moved}):
        change: Counter[str] = Counter()
        for (of_batch, old_state), count in steps.items():
            if of_batch == batch_id:
                change[_BATCH_COLUMN[old_state]] -= count
                change[_BATCH_COLUMN[state]] += count
        pending = batches.c.pending + change["pending"]
        last_completed = func.now() if change["pending"] < 0 else batches.c.completed_at
        batch = connection.execute(
            update(batches)
            .where(batches.c.id == batch_id)
            .values({column: batches.c[column] + count for column, count in change.items()})
            .values(completed_at=case((pending > 0, None), else_=last_completed))
            .returning(batches.c.pending, batches.c.callback_url)
        ).one()
        if batch.callback_url is not None:
            callback_urls[batch_id] = batch.callback_url
        if batch.pending == 0 and change["pending"] < 0:
            completed.append(batch_id)
    moments = {"ready": {"ready_at": func.now()}, "deleted": {"deleted_at": func.now()}}.get(state, {})
    connection.execute(
        update(images).where(images.c.id.in_([image.id for image in moved])).values(state=state, **moments)
    )
    happened: list[dict[str, Any]] = [
        {"batch_id": image.batch_id, "image_id": image.id, "sha256": image.sha256, "trace_id": image.trace_id}
        | {"type": _EVENT[state].value, "problem": error}
        for image in moved
        if state in _EVENT
    ]
    happened += [
        {"batch_id": batch_id, "image_id": None, "sha256": None, "trace_id": None}
        | {"type": EventType.BATCH_COMPLETED.value, "problem": None}
        for batch_id in completed
    ]
    if happened:
        connection.execute(insert(events), happened)
    if callback_urls:
        callbacks.record(connection, happened, callback_urls)
