"""What a week's uploads became, for the usage report."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select, text

from darkroom.contracts.base import Lane
from darkroom.contracts.problems import PROBLEM_TYPE_PREFIX
from darkroom.database.tables import images, originals


@dataclass(frozen=True)
class Speed:
    """How many photos of a lane got ready by work of their own, and their seconds from upload to ready."""

    photos: int
    p50_s: float
    p95_s: float


def count_uploaded(connection: Connection, start: datetime, end: datetime) -> dict[str, int]:
    """The images uploaded in a period by their state now: ready, failed, deleted, in_flight."""
    rows = connection.execute(
        select(images.c.state, func.count().label("images"))
        .where(images.c.created_at >= start, images.c.created_at < end)
        .group_by(images.c.state)
    )
    return dict.fromkeys(("ready", "failed", "deleted", "in_flight"), 0) | {row.state: row.images for row in rows}


def bytes_uploaded(connection: Connection, start: datetime, end: datetime) -> int:
    """Bytes of the originals that a period's uploads brought for the first time."""
    statement = select(func.coalesce(func.sum(originals.c.bytes), 0)).where(
        originals.c.created_at >= start, originals.c.created_at < end
    )
    return int(connection.scalar(statement) or 0)


def count_failures(connection: Connection, start: datetime, end: datetime) -> dict[str, int]:
    """The failed images of a period by the slug of their problem."""
    kind = originals.c.error["type"].astext
    rows = connection.execute(
        select(kind.label("type"), func.count().label("images"))
        .select_from(images.join(originals, originals.c.sha256 == images.c.sha256))
        .where(images.c.state == "failed", images.c.created_at >= start, images.c.created_at < end)
        .group_by(kind)
    )
    return {str(row.type).removeprefix(PROBLEM_TYPE_PREFIX): row.images for row in rows}


def speeds(connection: Connection, start: datetime, end: datetime) -> dict[Lane, Speed]:
    """How fast a period's photos got ready. Duplicates of finished ones, ready at once, would only flatter it."""
    seconds = func.extract("epoch", images.c.ready_at - images.c.created_at)
    rows = connection.execute(
        select(
            images.c.lane,
            func.count().label("photos"),
            func.percentile_cont(0.5).within_group(seconds).label("p50_s"),
            func.percentile_cont(0.95).within_group(seconds).label("p95_s"),
        )
        .where(
            images.c.state == "ready",
            images.c.ready_at > images.c.created_at,
            images.c.created_at >= start,
            images.c.created_at < end,
        )
        .group_by(images.c.lane)
    )
    return {Lane(row.lane): Speed(row.photos, float(row.p50_s), float(row.p95_s)) for row in rows}


def database_bytes(connection: Connection) -> int:
    """The size of the database with its indexes."""
    return int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)
