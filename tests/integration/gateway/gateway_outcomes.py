"""What the workers leave behind, without them: messages that wait, and finished originals."""

from typing import Any

from gateway_pictures import DIM, MODEL_ID
from kombu import Connection
from sqlalchemy import Engine

from darkroom import topology
from darkroom.contracts import keys
from darkroom.contracts.base import ThumbnailSize
from darkroom.contracts.messages import DescribedManifest, ModelReference, PreparedManifest, RegisterModel, Rendition
from darkroom.contracts.problems import problem
from darkroom.database.outcomes import Artefacts, mark_failed, mark_ready
from darkroom.database.vectors import register_model, store_vector
from darkroom.storage import BlobStore


def waiting_messages(broker_url: str, queue: str) -> list[Any]:
    """Takes every message off a queue."""
    taken = []
    with Connection(broker_url) as connection:
        simple = connection.SimpleQueue(topology.task_queue(queue))
        while True:
            try:
                message = simple.get_nowait()  # the broker itself says when there is no more
            except simple.Empty:
                simple.close()
                return taken
            message.ack()
            taken.append(message)


def dispatched_hashes(broker_url: str, queue: str = "prepare") -> list[str]:
    """The hash in each message that waits in a queue, taken off it."""
    return [message.payload[1]["message"]["sha256"] for message in waiting_messages(broker_url, queue)]


def make_active(engine: Engine, model_id: str = MODEL_ID) -> None:
    """Registers a model; the first one is active."""
    with engine.begin() as connection:
        register_model(connection, RegisterModel(model=ModelReference(id=model_id, source="test"), dim=DIM))


def finish(engine: Engine, store: BlobStore, sha256: str, vector: list[float] | None = None) -> None:
    """Ends the work on an original: artefacts in the store, rows, and a vector if given."""
    recipe = keys.Recipe.current()
    renditions = {}
    for size in ThumbnailSize:
        data = b"RIFF\x00\x00\x00\x00WEBP" + size.value.encode() * 100
        key = keys.thumbnail_key(sha256, recipe, size)
        store.put(key, data)
        renditions[size] = Rendition(key=key, width=16, height=12, bytes=len(data))
    prepared = PreparedManifest(
        sha256=sha256,
        format="JPEG",
        width=1600,
        height=1200,
        frames=1,
        has_alpha=False,
        large=renditions[ThumbnailSize.LARGE],
        proxy=Rendition(key=keys.proxy_key(sha256, recipe), width=768, height=576, bytes=1),
    )
    described = DescribedManifest(
        sha256=sha256,
        medium=renditions[ThumbnailSize.MEDIUM],
        small=renditions[ThumbnailSize.SMALL],
        thumbhash="AAAA",
        palette=(),
        perceptual_hash="0" * 16,
    )
    if vector is not None:
        make_active(engine)
    with engine.begin() as connection:
        if vector is not None:
            store_vector(connection, MODEL_ID, sha256, vector)
        assert mark_ready(connection, sha256, Artefacts(prepared, described, recipe.slug))


def fail(engine: Engine, sha256: str, generation: int = 0) -> None:
    """Fails an original for a cause."""
    with engine.begin() as connection:
        cause = problem("image-corrupt", "The file is damaged", 422, "It is damaged.", remedy="Send another.")
        assert mark_failed(connection, sha256, generation, cause)
