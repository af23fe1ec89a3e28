"""What the rolling check of the blob store and a restore read and write."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from darkroom.contracts.base import BlobKey, ModelId, Sha256
from darkroom.contracts.keys import embedding_key
from darkroom.database.tables import backups, embeddings, fences, images, models, originals


@dataclass(frozen=True)
class Expected:
    """What must be in the store for one original; `recipe` is None until it is finished.

    `vector` and `dim` are of the model that the embedder holds now: the only one whose vectors can be made again.
    """

    sha256: Sha256
    bytes: int
    recipe: str | None
    vector: BlobKey | None = None
    dim: int = 0


def least_recently_checked(connection: Connection, limit: int) -> list[Expected]:
    """Up to `limit` finished originals whose blobs were not looked at for the longest time."""
    rows = connection.execute(
        select(originals.c.sha256, originals.c.bytes, originals.c.recipe)
        .where(originals.c.status == "ready", originals.c.unreferenced_at.is_(None))
        .order_by(originals.c.checked_at.nulls_first())
        .limit(limit)
    ).all()
    return _with_vectors(connection, [Expected(row.sha256, row.bytes, row.recipe) for row in rows])


def expected_after(connection: Connection, sha256: str, limit: int) -> list[Expected]:
    """Up to `limit` originals that anything refers to, in the order of their hashes, from behind `sha256` on."""
    rows = connection.execute(
        select(originals.c.sha256, originals.c.bytes, originals.c.recipe, originals.c.status)
        .where(originals.c.sha256 > sha256, originals.c.unreferenced_at.is_(None))
        .order_by(originals.c.sha256)
        .limit(limit)
    ).all()
    recipes = {row.sha256: row.recipe if row.status == "ready" else None for row in rows}
    return _with_vectors(connection, [Expected(row.sha256, row.bytes, recipes[row.sha256]) for row in rows])


def model_ids(connection: Connection) -> list[ModelId]:
    """Every model that ever registered."""
    return list(connection.scalars(select(models.c.id)))


def _with_vectors(connection: Connection, found: list[Expected]) -> list[Expected]:
    present = connection.execute(select(models).order_by(models.c.seen_at.desc()).limit(1)).one_or_none()
    if present is None:
        return found
    shas = [one.sha256 for one in found if one.recipe is not None]
    model: ModelId = present.id
    has_vector = set(
        connection.scalars(
            select(embeddings.c.sha256).where(embeddings.c.model_id == model, embeddings.c.sha256.in_(shas))
        )
    )
    return [
        Expected(one.sha256, one.bytes, one.recipe, embedding_key(model, one.sha256), present.dim)
        if one.sha256 in has_vector
        else one
        for one in found
    ]


def mark_checked(connection: Connection, shas: Sequence[Sha256]) -> None:
    """Records that everything of these originals was there just now."""
    # In one order, so that two that check and an upload cannot wait for each other in a ring.
    locked = select(originals.c.sha256).where(originals.c.sha256.in_(shas)).order_by(originals.c.sha256)
    still = list(connection.scalars(locked.with_for_update()))
    connection.execute(update(originals).where(originals.c.sha256.in_(still)).values(checked_at=func.now()))


def oldest_check_s(connection: Connection) -> float | None:
    """Seconds since the finished original that waits longest was checked, or finished; None when there is none."""
    last = (
        select(func.coalesce(originals.c.checked_at, originals.c.ready_at))
        .where(originals.c.status == "ready", originals.c.unreferenced_at.is_(None))
        .order_by(originals.c.checked_at.nulls_first())
        .limit(1)
        .scalar_subquery()
    )
    age = connection.scalar(select(func.extract("epoch", func.now() - last)))
    return None if age is None else max(0.0, float(age))


def other_originals(connection: Connection, sha256: Sha256, limit: int) -> list[Sha256]:
    """Up to `limit` other originals whose bytes must be in the store, the newest first."""
    return list(
        connection.scalars(
            select(originals.c.sha256)
            .where(
                originals.c.sha256 != sha256,
                originals.c.status.in_(["accepted", "processing", "ready"]),
                originals.c.unreferenced_at.is_(None),
            )
            .order_by(originals.c.created_at.desc())
            .limit(limit)
        )
    )


def foreign_tables(connection: Connection, ours: Sequence[str]) -> list[str]:
    """The tables of this database that are not among `ours`, and belong to no extension."""
    return [name for name in _tables(connection) if name not in ours]


def has_photos(connection: Connection) -> bool:
    """Whether any image was ever uploaded to this database."""
    if "images" not in _tables(connection):
        return False
    return connection.scalar(select(images.c.id).limit(1)) is not None


def _tables(connection: Connection) -> list[str]:
    statement = text(
        """
        SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
          AND n.nspname NOT LIKE 'pg\\_%'
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
        ORDER BY c.relname
        """
    )
    return list(connection.scalars(statement))


def other_sessions(connection: Connection) -> int:
    """How many other sessions of our account are connected to this database: services that still run."""
    statement = text(
        """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename = current_user
          AND backend_type = 'client backend'
        """
    )
    return int(connection.scalar(statement) or 0)


def drop_everything(connection: Connection) -> None:
    """Drops our tables and functions. Extensions stay: whoever restores may not be allowed to make them again."""
    connection.execute(
        text(
            """
            DO $$
            DECLARE
                one record;
            BEGIN
                FOR one IN SELECT c.oid::regclass AS name FROM pg_class c
                    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
                LOOP
                    EXECUTE format('DROP TABLE IF EXISTS %s CASCADE', one.name);
                END LOOP;
                FOR one IN SELECT p.oid::regprocedure AS name FROM pg_proc p
                    WHERE p.pronamespace = 'public'::regnamespace
                      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
                LOOP
                    EXECUTE format('DROP ROUTINE IF EXISTS %s CASCADE', one.name);
                END LOOP;
            END $$
            """
        )
    )


GENERATIONS_AHEAD = 1000
EVENTS_AHEAD = 1_000_000


def begin_again(connection: Connection) -> int:
    """Has a restored database go on from where the backup left it; returns how many originals are unfinished.

    What was under way is dispatched afresh, because its messages are with another broker or gone. Generations and the
    numbers of events begin above anything that was given out between the backup and the restore: a message that waits
    somewhere still is of an older dispatch, and a reader of events that resumes misses nothing that is to come.
    """
    connection.execute(
        text(
            "UPDATE originals SET generation = generation + :ahead, dispatched_at = NULL, lease_until = NULL, "
            "not_before = now(), losses = 0 WHERE status IN ('accepted', 'processing')"
        ),
        {"ahead": GENERATIONS_AHEAD},
    )
    connection.execute(text("UPDATE backfills SET lease_until = NULL, dispatched_at = NULL"))
    connection.execute(text("SELECT setval('event_ids', nextval('event_ids') + :ahead)"), {"ahead": EVENTS_AHEAD})
    connection.execute(delete(fences))
    unfinished = select(func.count()).where(originals.c.status.in_(["accepted", "processing"]))
    return int(connection.scalar(unfinished) or 0)


def know_backup(connection: Connection, key: BlobKey, size: int, sha256: str, made_at: datetime) -> None:
    """Records a backup that lies in the store without a row, so that it is kept as long as the others."""
    row = upsert(backups).values(key=key, bytes=size, sha256=sha256, created_at=made_at)
    connection.execute(row.on_conflict_do_nothing())


def forget_backups_except(connection: Connection, keys: Sequence[BlobKey]) -> None:
    """Removes the rows of backups that are not in the store."""
    connection.execute(delete(backups).where(backups.c.key.not_in(keys)))
