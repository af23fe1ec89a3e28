"""The steps of a photo's life as the services take them, each in a transaction of its own."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, Row, text

from darkroom.contracts.base import Lane
from darkroom.contracts.keys import Recipe, described_key
from darkroom.contracts.messages import DescribedManifest, PaletteColour, PreparedManifest, Rendition
from darkroom.contracts.problems import Problem, problem
from darkroom.database import dispatch, images, outcomes, upkeep, uploads
from darkroom.database.dispatch import Leased
from darkroom.database.outcomes import Artefacts
from darkroom.database.uploads import ReceivedFile, Upload
from darkroom.ids import uuid7

DAMAGED: Problem = problem("image-corrupt", "Damaged", 422, "The file is damaged.", remedy="Send another copy.")

_numbers = itertools.count(1)


def new_id() -> UUID:
    """An id that is later than all before it."""
    return uuid7(next(_numbers), 0)


def sha(name: object) -> str:
    """The hash of a photo by a name of its own."""
    return hashlib.sha256(str(name).encode()).hexdigest()


def an_upload(*shas: str, lane: Lane = Lane.INTERACTIVE, tags: Sequence[str] = ()) -> Upload:
    """One request with these files, not yet accepted."""
    files = tuple(ReceivedFile(new_id(), sha256, 1000, f"{sha256[:6]}.jpg") for sha256 in shas)
    return Upload(
        batch_id=new_id(), files=files, lane=lane, tags=tuple(tags), trace_id="0af7651916cd43dd8448eb211c80319c"
    )


def accept(engine: Engine, *shas: str, lane: Lane = Lane.INTERACTIVE, tags: Sequence[str] = ()) -> Upload:
    """Accepts one request, as the gateway does."""
    upload = an_upload(*shas, lane=lane, tags=tags)
    with engine.begin() as connection:
        uploads.accept(connection, upload, uploads.lock_originals(connection, upload))
    return upload


def send(engine: Engine, limit: int = 100) -> list[Leased]:
    """Leases, publishes (to nobody) and stamps what waits, as the dispatcher does."""
    with engine.begin() as connection:
        leased = dispatch.lease(connection, limit, lease_s=60)
    with engine.begin() as connection:
        dispatch.stamp(connection, leased)
    return leased


def artefacts(sha256: str) -> Artefacts:
    """What finalize finds for a photo."""
    recipe = Recipe.current()
    rendition = Rendition(key=described_key(sha256, recipe), width=10, height=8, bytes=100)
    return Artefacts(
        PreparedManifest(
            sha256=sha256,
            format="JPEG",
            width=40,
            height=32,
            frames=1,
            has_alpha=False,
            large=rendition,
            proxy=rendition,
        ),
        DescribedManifest(
            sha256=sha256,
            medium=rendition,
            small=rendition,
            thumbhash="1QcSHQRnh493V4dIh4eXh1h4kJUI",
            palette=(PaletteColour(hex="#ff0000", share=1),),
            perceptual_hash="ffffffffffffffff",
        ),
        recipe.slug,
    )


def finish(engine: Engine, sha256: str) -> bool:
    """Finalizes a photo."""
    with engine.begin() as connection:
        return outcomes.mark_ready(connection, sha256, artefacts(sha256))


def fail(engine: Engine, sha256: str, generation: int = 1) -> bool:
    """Records a permanent failure."""
    with engine.begin() as connection:
        return outcomes.mark_failed(connection, sha256, generation, DAMAGED)


def delete(engine: Engine, image_id: UUID) -> bool:
    """Deletes an image."""
    with engine.begin() as connection:
        return outcomes.delete_image(connection, image_id)


def retry(engine: Engine, image_id: UUID) -> str | None:
    """Asks for a failed image again."""
    with engine.begin() as connection:
        return outcomes.retry_image(connection, image_id)


def original(engine: Engine, sha256: str) -> Row[Any]:
    """The original's row."""
    return rows(engine, "SELECT * FROM originals WHERE sha256 = :sha256", sha256=sha256)[0]


def state(engine: Engine, image_id: UUID) -> str:
    """An image's state, deleted ones too."""
    return str(rows(engine, "SELECT state FROM images WHERE id = :id", id=image_id)[0].state)


def batch(engine: Engine, batch_id: UUID) -> dict[str, int]:
    """A batch's counters."""
    with engine.connect() as connection:
        found = images.find_batch(connection, batch_id)
    assert found is not None
    return {name: getattr(found, name) for name in ("total", "ready", "failed", "deleted", "pending")}


def ledger(engine: Engine) -> dict[str, int]:
    """The ledger in one snapshot."""
    with engine.connect() as connection:
        return images.read_ledger(connection)


def adds_up(counts: dict[str, int]) -> bool:
    """Invariant 2 of the design."""
    return counts["accepted"] == counts["ready"] + counts["failed"] + counts["deleted"] + counts["in_flight"]


def event_types(engine: Engine, image_id: UUID | None = None) -> list[str]:
    """The events in the order of their rows: of one image, or of all batches."""
    where = "image_id = :id" if image_id else "image_id IS NULL AND CAST(:id AS uuid) IS NULL"
    return [row.type for row in rows(engine, f"SELECT type FROM events WHERE {where} ORDER BY row_id", id=image_id)]


def sweep(engine: Engine) -> list[str]:
    """Marks every original without a referrer, whatever its age."""
    with engine.begin() as connection:
        later = upkeep.database_now(connection) + timedelta(seconds=1)
        return upkeep.begin_sweep(connection, later, 100)


def rows(engine: Engine, sql: str, **parameters: object) -> Sequence[Row[Any]]:
    """The rows of a query."""
    with engine.connect() as connection:
        return connection.execute(text(sql), parameters).all()


def run(engine: Engine, sql: str, **parameters: object) -> None:
    """One statement in a transaction of its own."""
    with engine.begin() as connection:
        connection.execute(text(sql), parameters)


def together(*works: Callable[[], object]) -> list[BaseException]:
    """Runs these side by side, all begun before any goes on; returns what they raised."""
    start, errors = threading.Barrier(len(works)), []

    def begin(work: Callable[[], object]) -> None:
        try:
            start.wait()
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=begin, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def waits_for_lock(engine: Engine) -> Callable[[], bool]:
    """A check for `eventually`: some other connection of this database waits for a lock."""

    def check() -> bool:
        """another transaction waits for a lock"""
        with engine.connect() as connection:
            return bool(_blocked(connection))

    return check


def _blocked(connection: Connection) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return int(connection.scalar(text(query)) or 0)
