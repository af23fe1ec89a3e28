"""Whether the store still has what the rows promise. What is gone is made again; what cannot be, fails with a cause."""

import logging
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import Engine

from darkroom.contracts.base import Sha256
from darkroom.contracts.keys import Recipe, original_key
from darkroom.contracts.messages import JobReport
from darkroom.database import outcomes, recovery
from darkroom.database.recovery import Expected
from darkroom.errors import BlobMissingError, TransientError
from darkroom.storage import BlobStore
from scheduler.finalize import UnusableArtefactError, check_vector, load_artefacts
from scheduler.notifying import DISPATCH, EVENTS, notify

log = logging.getLogger(__name__)

BLOBS_OF_A_PHOTO = 8
"""Looked at for each: the original, four pictures, two manifests, a vector."""

SAMPLE = 10
"""Other originals that are looked for before one is given up."""


class Condition(Enum):
    """How much of an original the store has."""

    WHOLE = "whole"
    BROKEN = "broken"
    """An artefact is gone or damaged; it can be made again."""
    LOST = "lost"
    """The original's own bytes are gone or cut."""


class StoreAwayError(TransientError):
    """The store has nothing of what it should: it is not mounted, or it is another one. Nothing is concluded."""


def condition_of(store: BlobStore, expected: Expected) -> Condition:
    """Looks at every blob of one original: sizes and manifests, and of the vector its length and norm.

    Raises `OSError` when the store cannot be read.
    """
    try:
        if store.info(original_key(expected.sha256)).bytes != expected.bytes:
            return Condition.LOST
    except BlobMissingError:
        return Condition.LOST
    try:
        if expected.recipe is not None:
            load_artefacts(store, expected.sha256, Recipe.from_slug(expected.recipe))
        if expected.vector is not None:
            check_vector(store.get(expected.vector), expected.dim)
    except (BlobMissingError, UnusableArtefactError):
        return Condition.BROKEN
    return Condition.WHOLE


def check_blobs(engine: Engine, store: BlobStore, photos: int) -> JobReport:
    """Looks at the `photos` finished originals that were not looked at for the longest time, and mends."""
    with engine.begin() as connection:
        expected = recovery.least_recently_checked(connection, photos)
    found: dict[Condition, list[Sha256]] = {condition: [] for condition in Condition}
    for one in expected:
        found[condition_of(store, one)].append(one.sha256)
    whole, broken, lost = (found[condition] for condition in Condition)
    summary = f"checked {len(expected)} photos: {len(broken)} to rebuild, {len(lost)} without their original"
    try:
        if lost:
            require_store(engine, store, lost[0])
    except StoreAwayError as error:
        return JobReport(summary=summary, alarm=str(error))
    with engine.begin() as connection:
        rebuilt = outcomes.rebuild(connection, broken)
    failed = sum(_lose(engine, sha256) for sha256 in sorted(lost))
    with engine.begin() as connection:
        recovery.mark_checked(connection, whole)
    if rebuilt:
        log.warning("checking.rebuilt", extra={"originals": rebuilt, "broken": broken[:10]})
        notify(engine, DISPATCH)
    if failed:
        log.error("checking.lost", extra={"originals": failed, "lost": lost[:10]})
        notify(engine, EVENTS)
    return JobReport(summary=summary)


def is_lost(engine: Engine, store: BlobStore, sha256: Sha256) -> bool:
    """Whether an original's bytes are gone from the store. Raises `StoreAwayError` when the rest seems gone too."""
    if store.exists(original_key(sha256)):
        return False
    require_store(engine, store, sha256)
    return True


def require_store(engine: Engine, store: BlobStore, lost: Sha256) -> None:
    """Raises `StoreAwayError` when none of some other originals is in the store either."""
    with engine.begin() as connection:
        others = recovery.other_originals(connection, lost, SAMPLE)
    if others and not any(store.exists(original_key(other)) for other in others):
        raise StoreAwayError(
            f"the store has neither the original {lost} nor any of {len(others)} others: is it mounted?"
        )


@dataclass(frozen=True)
class Pace:
    """How fast the store is gone through."""

    blobs_per_s: int
    every_s: int

    @property
    def photos(self) -> int:
        """How many photos one turn looks at."""
        return -(-self.blobs_per_s * self.every_s // BLOBS_OF_A_PHOTO)


def _lose(engine: Engine, sha256: Sha256) -> bool:
    with engine.begin() as connection:
        return outcomes.lose_original(connection, sha256)
