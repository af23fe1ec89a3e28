"""Exchanges, queues and who consumes them, as data. Nothing else in the system names a queue's arguments."""

import re
from dataclasses import dataclass
from enum import StrEnum

from kombu import Exchange, Queue

TASKS = Exchange("darkroom.tasks", type="topic", durable=True)
"""A topic exchange even though every key is exact: on a direct one, a task with a countdown blocks its worker."""

EVENTS = Exchange("darkroom.events", type="topic", durable=True)
DEAD = Exchange("darkroom.dead", type="topic", durable=True)

DELIVERY_LIMIT = 20
"""The net under the tries markers, which act after three deliveries. Restarts of a worker count here too."""


class Node(StrEnum):
    """A worker process of one kind. Its name is the first half of its Celery node name."""

    THUMBNAILER = "thumbnailer"
    THUMBNAILER_BULK = "thumbnailer-bulk"
    EMBEDDER = "embedder"
    FINALIZE = "finalize"
    MAINTENANCE = "maintenance"
    CALLBACKS = "callbacks"


CONSUMED_BY: dict[str, Node] = {
    # One node for each lane: an interactive photo finds a free slot even when bulk fills its own, and the bulk node
    # runs at a lower CPU priority, so both may have a slot for every core.
    "prepare": Node.THUMBNAILER,
    "prepare.query": Node.THUMBNAILER,
    "thumbnails": Node.THUMBNAILER,
    "prepare.bulk": Node.THUMBNAILER_BULK,
    "thumbnails.bulk": Node.THUMBNAILER_BULK,
    "embed": Node.EMBEDDER,
    "embed.bulk": Node.EMBEDDER,
    "embed.query": Node.EMBEDDER,
    "finalize": Node.FINALIZE,
    "finalize.bulk": Node.FINALIZE,
    "maintenance": Node.MAINTENANCE,
    "callbacks": Node.CALLBACKS,
}
"""Each task queue and the node that takes from it."""

DEAD_LETTERS = "dead-letters"
"""Read by a plain kombu consumer: a Celery consumer would reject for good what it does not know."""


def queues_of(node: Node) -> tuple[str, ...]:
    """The queues that a node consumes, in the order of declaration."""
    return tuple(queue for queue, consumer in CONSUMED_BY.items() if consumer is node)


_DELAY = re.compile(r"^(?:[01]\.){28}")
"""What delayed delivery puts before a key: the seconds, bit by bit."""


def queue_of_key(routing_key: str) -> str | None:
    """The task queue that a message with this key was meant for, also after a countdown; None for a key of others."""
    name = _DELAY.sub("", routing_key)
    return name if name in CONSUMED_BY else None


def task_queue(name: str, *, declare: bool = True) -> Queue:
    """A durable quorum queue of `darkroom.tasks`, bound under its own name. Redis ignores the arguments.

    Without `declare` it is only used: Celery and kombu leave it as somebody else has declared it.
    """
    return Queue(
        name,
        TASKS,
        routing_key=name,
        durable=True,
        no_declare=not declare,
        queue_arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": DEAD.name,
            # At-most-once, the default, drops a dead letter when the broker stops at the wrong moment.
            "x-dead-letter-strategy": "at-least-once",
            # What at-least-once asks for: refuse new messages instead of dropping the oldest.
            "x-overflow": "reject-publish",
        },
    )


def task_queues(*, declare: bool = True) -> tuple[Queue, ...]:
    """Every task queue. Publishers declare all of them too: delayed delivery binds what it knows."""
    return tuple(task_queue(name, declare=declare) for name in CONSUMED_BY)


def dead_letter_queue(*, declare: bool = True) -> Queue:
    """Where every rejected or too often delivered message ends."""
    return Queue(
        DEAD_LETTERS,
        DEAD,
        routing_key="#",
        durable=True,
        no_declare=not declare,
        queue_arguments={"x-queue-type": "quorum"},
    )


@dataclass(frozen=True)
class WorkflowStage:
    """One step of a photo's way: the queue of each lane that carries it."""

    interactive: str
    bulk: str


STAGES: tuple[tuple[WorkflowStage, ...], ...] = (
    (WorkflowStage("prepare", "prepare.bulk"),),
    (WorkflowStage("thumbnails", "thumbnails.bulk"), WorkflowStage("embed", "embed.bulk")),
    (WorkflowStage("finalize", "finalize.bulk"),),
)
"""The workflow's steps in order; those in one group run side by side. The reconciler's fences follow it."""
