"""No queue without a consumer: a message that nobody takes is a photo that waits for ever."""

import pytest

from darkroom.contracts.base import Lane
from darkroom.settings import TaskSettings
from darkroom.topology import CONSUMED_BY, Node, queues_of
from darkroom.worker import WorkerOptions
from darkroom_cli.local import SERVICES
from thumbnailer.worker import options


def test_every_queue_has_exactly_one_node_and_every_node_a_queue() -> None:
    assert [queue for node in Node for queue in queues_of(node)] == list(CONSUMED_BY)
    assert set(CONSUMED_BY.values()) == set(Node)


def test_the_local_mode_runs_every_node() -> None:
    assert {service.name for service in SERVICES if service.is_worker} == {node.value for node in Node}


@pytest.mark.parametrize(("lane", "node"), [(Lane.INTERACTIVE, Node.THUMBNAILER), (Lane.BULK, Node.THUMBNAILER_BULK)])
def test_a_worker_is_started_on_the_queues_of_its_node(lane: Lane, node: Node) -> None:
    started: WorkerOptions = options(lane, 1, TaskSettings())
    assert started.for_celery()["queues"] == list(queues_of(node))
