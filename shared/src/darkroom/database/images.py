"""Reading what became of uploads: images, batches, the ledger, issued tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, func, select
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData

from darkroom.contracts.base import Lane
from darkroom.database.tables import batches, embeddings, images, ledger, models, originals, tasks

_COLUMNS = (
    images.c.id,
    images.c.sha256,
    images.c.batch_id,
    images.c.state,
    images.c.lane,
    images.c.filename,
    images.c.tags,
    images.c.external_id,
    images.c.duplicate,
    images.c.trace_id,
    images.c.created_at,
    images.c.ready_at,
    originals.c.status.label("original_status"),
    originals.c.bytes,
    originals.c.generation,
    originals.c.attempts,
    originals.c.recipe,
    originals.c.format,
    originals.c.width,
    originals.c.height,
    originals.c.taken_at,
    originals.c.thumbhash,
    originals.c.palette,
    originals.c.thumbnails,
    originals.c.error,
    select(func.jsonb_agg(func.jsonb_build_object("model", models.c.id, "dim", models.c.dim)))
    .select_from(embeddings.join(models, models.c.id == embeddings.c.model_id))
    .where(embeddings.c.sha256 == images.c.sha256)
    .scalar_subquery()
    .label("embeddings"),
)


def images_query() -> Select[Any]:
    """Every image that is not deleted, with what is known of its original."""
    return (
        select(*_COLUMNS)
        .select_from(images.join(originals, originals.c.sha256 == images.c.sha256))
        .where(images.c.state != "deleted")
    )


_IMAGE = SimpleResultMetaData([column.key for column in _COLUMNS])
_BATCH = SimpleResultMetaData(batches.c.keys())


def rows_of_new(
    batch: Mapping[str, Any], images_of_it: Sequence[Mapping[str, Any]]
) -> tuple[Row[Any], Sequence[Row[Any]]]:
    """What `find_batch` and `images_of_batch` would read of rows that this transaction has inserted, without asking.

    Fields that are left out are null.
    """
    return _rows(_BATCH, [batch])[0], _rows(_IMAGE, images_of_it)


def _rows(fields: SimpleResultMetaData, values: Sequence[Mapping[str, Any]]) -> Sequence[Row[Any]]:
    read: IteratorResult[*tuple[Any, ...]] = IteratorResult(
        fields, iter([tuple(map(each.get, fields.keys)) for each in values])
    )
    return read.all()


def find_image(connection: Connection, image_id: UUID) -> Row[Any] | None:
    """One image; none when it never was or is deleted."""
    return connection.execute(images_query().where(images.c.id == image_id)).one_or_none()


def find_images(connection: Connection, image_ids: Sequence[UUID]) -> dict[UUID, Row[Any]]:
    """Several images by id; those that are gone are missing."""
    rows = connection.execute(images_query().where(images.c.id.in_(image_ids)))
    return {row.id: row for row in rows}


@dataclass(frozen=True)
class ImageFilter:
    """Which images a list or a search is about; None: all."""

    status: str | None = None
    tags: tuple[str, ...] = ()
    lane: Lane | None = None
    created_after: datetime | None = None


def filtered(query: Select[Any], wanted: ImageFilter) -> Select[Any]:
    """The query (over `images_query`) narrowed to what is wanted. An image must have all the tags."""
    if wanted.status in ("ready", "failed"):
        query = query.where(images.c.state == wanted.status)
    elif wanted.status is not None:
        query = query.where(images.c.state == "in_flight", originals.c.status == wanted.status)
    if wanted.tags:
        query = query.where(images.c.tags.contains(list(wanted.tags)))
    if wanted.lane is not None:
        query = query.where(images.c.lane == wanted.lane.value)
    if wanted.created_after is not None:
        query = query.where(images.c.created_at > wanted.created_after)
    return query


def list_images(connection: Connection, wanted: ImageFilter, limit: int, before: UUID | None) -> Sequence[Row[Any]]:
    """Up to `limit` images, newest first, older than `before`. Ids are version 7, so their order is that of time."""
    query = filtered(images_query(), wanted)
    if before is not None:
        query = query.where(images.c.id < before)
    return connection.execute(query.order_by(images.c.id.desc()).limit(limit)).all()


def images_of_batch(connection: Connection, batch_id: UUID) -> Sequence[Row[Any]]:
    """The images of a batch that are not deleted, in the order of upload."""
    return connection.execute(images_query().where(images.c.batch_id == batch_id).order_by(images.c.id)).all()


def find_batch(connection: Connection, batch_id: UUID) -> Row[Any] | None:
    """One batch's counters."""
    return connection.execute(select(batches).where(batches.c.id == batch_id)).one_or_none()


LEDGER_COLUMNS = ("accepted", "ready", "failed", "deleted", "in_flight")


def read_ledger(connection: Connection) -> dict[str, int]:
    """The counters, added up in one snapshot: accepted, ready, failed, deleted, in_flight."""
    row = connection.execute(select(*(func.sum(ledger.c[name]).label(name) for name in LEDGER_COLUMNS))).one()
    return {name: int(getattr(row, name)) for name in LEDGER_COLUMNS}


def count_images(connection: Connection) -> dict[str, int]:
    """The same figures as `read_ledger`, counted from the image rows: slow, for the nightly comparison."""
    rows = connection.execute(select(images.c.state, func.count().label("images")).group_by(images.c.state)).all()
    counts = dict.fromkeys(LEDGER_COLUMNS, 0) | {row.state: row.images for row in rows}
    return counts | {"accepted": sum(row.images for row in rows)}


def find_task(connection: Connection, task_id: UUID) -> Row[Any] | None:
    """When a task id was issued, for which task and original, and how that original stands."""
    return connection.execute(
        select(tasks, originals.c.status.label("original_status"))
        .select_from(tasks.outerjoin(originals, originals.c.sha256 == tasks.c.sha256))
        .where(tasks.c.id == task_id)
    ).one_or_none()
