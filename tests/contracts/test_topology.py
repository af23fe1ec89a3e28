"""Exchanges and queues are contracts with brokers that hold messages during an upgrade."""

import json
from pathlib import Path

import pytest
from kombu import Connection

from darkroom import topology
from darkroom.celery_app import declare_topology
from darkroom.contracts.base import Lane
from darkroom.contracts.tasks import ALL, FENCE

GOLDEN = Path(__file__).parent / "golden" / "topology.json"


def test_exchanges_and_queues_are_what_they_always_were() -> None:
    actual = {
        "exchanges": {each.name: each.type for each in (topology.TASKS, topology.EVENTS, topology.DEAD)},
        "queues": {
            each.name: {
                "exchange": each.exchange.name,
                "routing_key": each.routing_key,
                "arguments": each.queue_arguments,
            }
            for each in (*topology.task_queues(), topology.dead_letter_queue())
        },
    }
    assert actual == json.loads(GOLDEN.read_text())


def test_every_task_goes_to_a_declared_queue_on_every_lane() -> None:
    for task in ALL:
        for lane in Lane:
            assert task.queue_for(lane) in topology.CONSUMED_BY


def test_every_declared_queue_gets_some_task() -> None:
    used = {task.queue_for(lane) for task in ALL for lane in Lane}
    assert used == set(topology.CONSUMED_BY)


def test_every_stage_of_the_workflow_is_a_declared_queue_of_each_lane() -> None:
    for group in topology.STAGES:
        for stage in group:
            assert {stage.interactive, stage.bulk} <= set(topology.CONSUMED_BY)
    assert FENCE.queue in topology.CONSUMED_BY


def test_declaring_twice_is_harmless_on_both_brokers(broker_url: str) -> None:
    with Connection(broker_url) as connection:
        declare_topology(connection)
        declare_topology(connection)
        for queue in topology.task_queues():
            producer = connection.Producer()
            producer.publish({"n": 1}, exchange=topology.TASKS, routing_key=queue.name)
            with connection.SimpleQueue(queue) as reader:
                message = reader.get(timeout=5)
                assert message.payload == {"n": 1}
                message.ack()
                # Not `qsize`: an empty queue does not exist on Redis.
                with pytest.raises(reader.Empty):
                    reader.get(block=False)
