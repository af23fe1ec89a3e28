"""The embedder's side of the contracts. What is risky or slow is in embedding.py; a body only takes its outcome."""

from typing import Any

from celery import Celery

from darkroom.celery_app import Delivery, bind
from darkroom.contracts.messages import Embed, EmbedPicture, EmbedText, Fence, FenceAnswer
from darkroom.contracts.tasks import EMBED, EMBED_PICTURE, EMBED_TEXT, FENCE
from embedder.embedding import Job
from embedder.strategy import MicroBatches

BATCHED = (EMBED, EMBED_TEXT, EMBED_PICTURE)


def register(app: Celery, batches: MicroBatches) -> None:
    """Binds the tasks; they get their outcomes from `batches`."""

    def outcome_of(message: Embed | EmbedText | EmbedPicture, delivery: Delivery) -> Any:
        """Answers with the vector that a batch gave this request, or raises its error."""
        outcome = batches.take_outcome(Job(delivery.task_id, message))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def pass_fence(message: Fence, delivery: Delivery) -> FenceAnswer:
        """Answers the known question of the embedder's queues."""
        return batches.take_answer(delivery.task_id)

    bind(app, EMBED, outcome_of, Strategy=batches)
    bind(app, EMBED_TEXT, outcome_of, Strategy=batches)
    bind(app, EMBED_PICTURE, outcome_of, Strategy=batches)
    bind(app, FENCE, pass_fence, Strategy=batches)
