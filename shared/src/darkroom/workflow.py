"""What is published to workers by names alone: `prepare | chord([thumbnails, embed], finalize)`, and hints."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from celery import Celery, chain, chord
from celery.canvas import Signature

from darkroom.celery_app import request
from darkroom.contracts.base import Lane, Sha256
from darkroom.contracts.keys import Recipe, proxy_key
from darkroom.contracts.messages import DeliverCallbacks, Embed, Finalize, Prepare, RecordEmbedding, Thumbnails
from darkroom.contracts.tasks import (
    DELIVER_CALLBACKS,
    EMBED,
    FINALIZE,
    PREPARE,
    RECORD_EMBEDDING,
    THUMBNAILS,
    TaskContract,
)
from darkroom.outbound import Host

_TASK_IDS = uuid.UUID("5d3bbf1c-6a40-4c4e-9a56-0f9f0a1f7d0b")

_STEPS: Mapping[str, TaskContract] = MappingProxyType(  # type: ignore[type-arg]
    {"prepare": PREPARE, "thumbnails": THUMBNAILS, "embed": EMBED, "finalize": FINALIZE}
)


@dataclass(frozen=True)
class Dispatch:
    """One sending of one original through the workflow."""

    sha256: Sha256
    generation: int
    lane: Lane
    recipe: Recipe


def task_ids(sha256: Sha256, generation: int) -> dict[str, str]:
    """The ids of one dispatch's tasks by step. They follow from their arguments, so anyone can name them."""
    return {step: str(uuid.uuid5(_TASK_IDS, f"{sha256}:{generation}:{step}")) for step in _STEPS}


def task_names() -> dict[str, str]:
    """The task's name for each step of `task_ids`."""
    return {step: contract.name for step, contract in _STEPS.items()}


def task_queues(lane: Lane) -> dict[str, str]:
    """The queue for each step of `task_ids`."""
    return {step: contract.queue_for(lane) for step, contract in _STEPS.items()}


def image_workflow(app: Celery, dispatch: Dispatch) -> Signature:
    """The canvas for one dispatch. Publishing it sends one message; the workers send the rest."""
    ids = task_ids(dispatch.sha256, dispatch.generation)
    sha256, generation, lane, recipe = dispatch.sha256, dispatch.generation, dispatch.lane, dispatch.recipe
    prepare = Prepare(sha256=sha256, generation=generation, lane=lane, recipe=recipe)
    thumbnails = Thumbnails(sha256=sha256, generation=generation, lane=lane, recipe=recipe)
    embed = Embed(sha256=sha256, generation=generation, lane=lane, proxy=proxy_key(sha256, recipe))
    finalize = Finalize(sha256=sha256, generation=generation, lane=lane, recipe=recipe)
    return chain(
        request(app, PREPARE, prepare, lane=lane, task_id=ids["prepare"]),
        chord(
            [
                request(app, THUMBNAILS, thumbnails, lane=lane, task_id=ids["thumbnails"]),
                request(app, EMBED, embed, lane=lane, task_id=ids["embed"]),
            ],
            request(app, FINALIZE, finalize, lane=lane, task_id=ids["finalize"], takes_result=True),
            app=app,
        ),
        app=app,
    )


def embedding_backfill(app: Celery, sha256: Sha256, recipe: Recipe, generation: int) -> Signature:
    """The canvas that gives a finished original a vector of the embedder's present model, on the bulk lane."""
    embed = Embed(sha256=sha256, generation=generation, lane=Lane.BULK, proxy=proxy_key(sha256, recipe))
    return chain(
        request(app, EMBED, embed, lane=Lane.BULK),
        request(app, RECORD_EMBEDDING, RecordEmbedding(sha256=sha256), takes_result=True),
        app=app,
    )


CALLBACK_HINT_EXPIRES_S = 60
"""A hint that waits longer is worth nothing: a job has given others since."""


def callback_hint(app: Celery, host: Host) -> Signature:
    """The call that has due callbacks to a host delivered; losing or repeating it costs time and nothing else."""
    message = DeliverCallbacks(host=host)
    return request(app, DELIVER_CALLBACKS, message, expires=CALLBACK_HINT_EXPIRES_S, ignore_result=True)
