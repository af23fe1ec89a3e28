"""Models, their vectors, and nearest neighbours."""

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import ColumnElement, Connection, Row, Select, cast, func, literal_column, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from darkroom.contracts.base import ModelId, Sha256
from darkroom.contracts.messages import RegisterModel
from darkroom.database.images import ImageFilter, filtered, images_query
from darkroom.database.tables import backfills, embeddings, images, models, originals

EXACT_WITHIN = 5_000
"""Of up to so many tagged images every distance is computed: a few ms, less than walking the index past all others."""

EF_SEARCH, FILTERED_EF_SEARCH = 100, 200
"""How many candidates a walk of the index keeps. Of 100,000 vectors, 10 that one in 10 passes are among the 100 nearest
at best: 100 found 0.95 of them, 200 and twice as many as asked for 0.99, for 5 ms more."""
SPARE = 2
"""How many times what is asked for a filtered walk collects: what is nearer may come later."""


def register_model(connection: Connection, registration: RegisterModel) -> str:
    """Makes a model known, with an index of its own; returns its state.

    The first model is active at once. A later one is `filling` until every finished original has its vector.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('darkroom.models'))"))
    has_active = connection.scalar(select(func.count()).select_from(models).where(models.c.state == "active"))
    connection.execute(
        upsert(models)
        .values(
            id=registration.model.id,
            source=registration.model.source,
            dim=registration.dim,
            state="filling" if has_active else "active",
            activated_at=None if has_active else func.now(),
        )
        .on_conflict_do_update(
            index_elements=["id"],
            set_={
                "source": registration.model.source,
                "seen_at": func.now(),
                # The one that an operator started again is wanted again.
                "state": text("CASE models.state WHEN 'retired' THEN 'filling' ELSE models.state END"),
            },
        )
    )
    _ensure_index(connection, registration.model.id, registration.dim)
    return str(connection.scalar(select(models.c.state).where(models.c.id == registration.model.id)))


def _ensure_index(connection: Connection, model_id: ModelId, dim: int) -> None:
    if not re.fullmatch(r"[a-z0-9._-]+@[0-9a-f]{12}", model_id):
        raise ValueError(f"{model_id!r} is not a model id")
    name = f"embeddings_hnsw_{model_id[-12:]}"
    connection.execute(
        text(
            f"CREATE INDEX IF NOT EXISTS {name} ON embeddings USING hnsw ((vector::halfvec({int(dim)})) "
            f"halfvec_cosine_ops) WHERE model_id = '{model_id}'"
        )
    )


def all_models(connection: Connection) -> Sequence[Row[Any]]:
    """Every model with its state, and how many of all finished originals have its vector: `covered` of `total`."""
    covered = select(func.count()).where(embeddings.c.model_id == models.c.id).scalar_subquery()
    total = select(func.count()).where(originals.c.status == "ready").scalar_subquery()
    return connection.execute(
        select(models, covered.label("covered"), total.label("total")).order_by(models.c.registered_at)
    ).all()


def active_model(connection: Connection) -> Row[Any] | None:
    """The model that searches use."""
    return connection.execute(select(models).where(models.c.state == "active")).one_or_none()


def filling_model(connection: Connection) -> Row[Any] | None:
    """The model that takes over when its vectors are complete; the one seen last, if there are several."""
    return connection.execute(
        select(models).where(models.c.state == "filling").order_by(models.c.seen_at.desc()).limit(1)
    ).one_or_none()


def present_model(connection: Connection) -> Row[Any] | None:
    """The model of the embedder that started last: the only one whose vectors can be made now."""
    return connection.execute(select(models).order_by(models.c.seen_at.desc()).limit(1)).one_or_none()


def knows_model(connection: Connection, model_id: ModelId) -> bool:
    """Whether this model has registered."""
    return connection.scalar(select(models.c.id).where(models.c.id == model_id)) is not None


def forget_backfills_except(connection: Connection, model_id: ModelId) -> int:
    """Removes what was planned for models that no embedder holds any more; returns how many."""
    return connection.execute(backfills.delete().where(backfills.c.model_id != model_id)).rowcount


def stubborn_backfills(connection: Connection, sent_at_least: int) -> int:
    """How many backfills were sent that often without getting a vector."""
    return int(
        connection.scalar(select(func.count()).select_from(backfills).where(backfills.c.generation >= sent_at_least))
        or 0
    )


def plan_backfill(connection: Connection, model_id: ModelId, limit: int) -> int:
    """Fills the backfill of a model up to `limit` finished originals; returns how many in all still lack its vector."""
    connection.execute(
        text(
            """
            INSERT INTO backfills (model_id, sha256)
            SELECT :model, o.sha256 FROM originals o
            WHERE o.status = 'ready' AND o.unreferenced_at IS NULL
              AND NOT EXISTS (SELECT FROM embeddings e WHERE e.model_id = :model AND e.sha256 = o.sha256)
              AND NOT EXISTS (SELECT FROM backfills b WHERE b.model_id = :model AND b.sha256 = o.sha256)
            LIMIT greatest(0, :limit - (SELECT count(*) FROM backfills WHERE model_id = :model))
            ON CONFLICT DO NOTHING
            """
        ),
        {"model": model_id, "limit": limit},
    )
    return int(
        connection.scalar(
            text(
                """
                SELECT count(*) FROM originals o
                WHERE o.status = 'ready' AND o.unreferenced_at IS NULL
                  AND NOT EXISTS (SELECT FROM embeddings e WHERE e.model_id = :model AND e.sha256 = o.sha256)
                """
            ),
            {"model": model_id},
        )
        or 0
    )


def activate_model(connection: Connection, model_id: ModelId) -> None:
    """Makes searches use this model; the one before keeps its vectors. Raises `LookupError` for an unknown model."""
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('darkroom.models'))"))
    connection.execute(update(models).where(models.c.state == "active").values(state="retired"))
    activation = update(models).where(models.c.id == model_id).values(state="active", activated_at=func.now())
    if connection.execute(activation).rowcount != 1:
        raise LookupError(f"no model {model_id!r} was ever registered")


def store_vector(connection: Connection, model_id: ModelId, sha256: Sha256, vector: Sequence[float]) -> bool:
    """Writes one vector, shape (dim,), L2 norm 1; false when the original or the model is unknown."""
    # Locked as the foreign key will do: taken only after the insert, it could wait in a ring with another writer.
    known = connection.scalar(
        select(originals.c.sha256)
        .where(originals.c.sha256 == sha256, originals.c.status != "sweeping")
        .where(select(models.c.id).where(models.c.id == model_id).exists())
        .with_for_update(read=True, key_share=True)
    )
    if known is None:
        return False
    is_filled = backfills.delete().where(backfills.c.model_id == model_id, backfills.c.sha256 == sha256)
    statement = upsert(embeddings).values(model_id=model_id, sha256=sha256, vector=list(vector))
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["model_id", "sha256"], set_={"vector": statement.excluded.vector}
        ).add_cte(is_filled.cte("filled"))
    )
    return True


def vector_of_image(connection: Connection, model_id: ModelId, image_id: UUID) -> list[float] | None:
    """The vector that a model gave an image, or None when it has none yet."""
    found = connection.scalar(
        select(embeddings.c.vector)
        .join(images, images.c.sha256 == embeddings.c.sha256)
        .where(images.c.id == image_id, images.c.state != "deleted", embeddings.c.model_id == model_id)
    )
    return None if found is None else [float(component) for component in found]


def nearest(
    connection: Connection, model: Row[Any], vector: Sequence[float], wanted: ImageFilter, limit: int
) -> Sequence[Row[Any]]:
    """The ready images nearest to a vector, best first; `score` is the cosine similarity in -1..1."""
    column: ColumnElement[Any]
    if wanted.tags and _are_few(connection, wanted.tags):
        # Without the cast that the index was made with: the planner cannot take it.
        column = embeddings.c.vector
        candidates = limit
    else:
        # Without it, a filter that keeps few rows finds fewer than asked for. Strict order would drop what comes late.
        connection.execute(text("SET LOCAL hnsw.iterative_scan = relaxed_order"))
        is_filtered = wanted != ImageFilter()
        connection.execute(text(f"SET LOCAL hnsw.ef_search = {FILTERED_EF_SEARCH if is_filtered else EF_SEARCH}"))
        column = cast(embeddings.c.vector, HALFVEC(model.dim))
        candidates = SPARE * limit if is_filtered else limit
    distance = column.cosine_distance(list(vector))
    # First which, then what is known of them: details of every candidate would cost more than the distances. As a
    # table of its own, because the planner takes the relaxed order of the index for a strict one.
    best = (
        filtered(select(images.c.id, distance.label("distance")), wanted)
        .join(embeddings, embeddings.c.sha256 == images.c.sha256)
        # A literal: the index is partial, and the planner must see that it fits.
        .where(images.c.state == "ready", embeddings.c.model_id == literal_column(f"'{model.id}'"))
        .order_by(distance)
        .limit(candidates)
        .cte("best")
        .prefix_with("MATERIALIZED")
    )
    query = (
        images_query()
        .add_columns((literal_column("1") - best.c.distance).label("score"))
        .join(best, best.c.id == images.c.id)
        .order_by(best.c.distance)
        .limit(limit)
    )
    return connection.execute(query).all()


def _are_few(connection: Connection, tags: Sequence[str]) -> bool:
    """Whether at most `EXACT_WITHIN` images have all the tags; stops counting there."""
    tagged: Select[Any] = (
        select(literal_column("1"))
        .where(images.c.tags.contains(list(tags)), images.c.state != "deleted")
        .limit(EXACT_WITHIN + 1)
    )
    return int(connection.scalar(select(func.count()).select_from(tagged.subquery())) or 0) <= EXACT_WITHIN
