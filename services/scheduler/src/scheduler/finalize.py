"""The last step: what the workers left is checked in the blob store, and only then it is true."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection, Engine

from darkroom.contracts import keys
from darkroom.contracts.base import BlobKey, Message, ModelId, Sha256
from darkroom.contracts.keys import Recipe
from darkroom.contracts.messages import DescribedManifest, Embedded, Finalize, PreparedManifest, Rendition
from darkroom.database import outcomes, vectors
from darkroom.database.outcomes import Artefacts
from darkroom.errors import TransientError
from darkroom.storage import BlobStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

ManifestT = TypeVar("ManifestT", PreparedManifest, DescribedManifest)

NORM_TOLERANCE = 0.01
"""Of a unit vector's length. Rounding 2,048 components to float16 moves it by less than 0.001."""


class UnusableArtefactError(TransientError):
    """An artefact is there and is not what it should be. Tried again, then left to the reconciler."""


class UnknownModelError(TransientError):
    """A vector of a model that has not registered yet: its message may be on the way."""


def check_vector(data: bytes, dim: int) -> NDArray[np.float16]:
    """The vector in a NumPy file: float16, shape (dim,), finite, L2 norm 1.

    Raises `UnusableArtefactError` for anything else.
    """
    import numpy as np  # 6 MB in each process of the scheduler, of which one needs it

    try:
        vector = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UnusableArtefactError(f"the vector cannot be read: {error}") from error
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float16 or vector.shape != (dim,):
        found = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise UnusableArtefactError(f"the vector is {found}; it must be float16 ({dim},)")
    norm = float(np.linalg.norm(vector.astype(np.float32)))
    if not abs(norm - 1) <= NORM_TOLERANCE:  # also false for a norm that is not a number
        raise UnusableArtefactError(f"the vector has the length {norm}; it must be 1")
    return vector


def load_artefacts(store: BlobStore, sha256: Sha256, recipe: Recipe) -> Artefacts:
    """Both manifests, when every artefact that they name lies in the store with the stated size.

    Raises `BlobMissingError` or `UnusableArtefactError`.
    """
    prepared = _load_manifest(store, keys.prepared_key(sha256, recipe), PreparedManifest, sha256)
    described = _load_manifest(store, keys.described_key(sha256, recipe), DescribedManifest, sha256)
    for rendition in (prepared.large, prepared.proxy, described.medium, described.small):
        _check_size(store, rendition)
    return Artefacts(prepared, described, recipe.slug)


def load_vector(store: BlobStore, embedded: Embedded) -> list[float]:
    """The vector that an embedder left. Raises `BlobMissingError` or `UnusableArtefactError`."""
    return [float(component) for component in check_vector(store.get(embedded.vector), embedded.dim)]


def embedded_among(results: object) -> Embedded:
    """The embedder's answer among the header's results. Raises `UnusableArtefactError` when there is none."""
    answers: Sequence[Any] = results if isinstance(results, list) else [results]
    for answer in answers:
        if isinstance(answer, dict) and "vector" in answer:
            return _parse(Embedded, answer)
    raise UnusableArtefactError(f"the embedder's answer is not among the results {results!r}")


def finish(engine: Engine, store: BlobStore, message: Finalize, results: object) -> bool:
    """Makes an original ready when everything of it is there; false when there was nothing to do any more.

    Rows, vector and events are one transaction. Raises a `TransientError` that says what is missing.
    """
    artefacts = load_artefacts(store, message.sha256, message.recipe)
    embedded = embedded_among(results)
    vector = load_vector(store, embedded)
    with engine.begin() as connection:
        # First, because it locks the original: two that are finishing it would otherwise wait for each other.
        is_changed = outcomes.mark_ready(connection, message.sha256, artefacts)
        _store_vector(connection, embedded.model, message.sha256, vector)
    return is_changed


def add_vector(engine: Engine, store: BlobStore, sha256: Sha256, result: object) -> None:
    """Stores the vector of a backfill. Raises a `TransientError` that says what is missing."""
    embedded = embedded_among(result)
    vector = load_vector(store, embedded)
    with engine.begin() as connection:
        _store_vector(connection, embedded.model, sha256, vector)


def _store_vector(connection: Connection, model: ModelId, sha256: Sha256, vector: Sequence[float]) -> None:
    if not vectors.store_vector(connection, model, sha256, vector) and not vectors.knows_model(connection, model):
        raise UnknownModelError(f"the model {model} has not registered")


def _load_manifest(store: BlobStore, key: BlobKey, model: type[ManifestT], sha256: Sha256) -> ManifestT:
    try:
        manifest = model.from_json(store.get(key))
    except ValidationError as error:
        raise UnusableArtefactError(f"{key} cannot be read: {error}") from error
    if manifest.sha256 != sha256:
        raise UnusableArtefactError(f"{key} is about {manifest.sha256}")
    return manifest


def _check_size(store: BlobStore, rendition: Rendition) -> None:
    size = store.info(rendition.key).bytes
    if size != rendition.bytes:
        raise UnusableArtefactError(f"{rendition.key} has {size} bytes; it must have {rendition.bytes}")


MessageT = TypeVar("MessageT", bound=Message)


def _parse(model: type[MessageT], payload: dict[str, Any]) -> MessageT:
    try:
        return model.from_wire(payload)
    except ValidationError as error:
        raise UnusableArtefactError(f"{payload!r} is no {model.__name__}: {error}") from error
