"""How a worker process begins, on a real RabbitMQ."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import eventually
from kombu import Connection

from darkroom import topology
from darkroom_cli.servers import ChildProcess


@pytest.mark.parametrize("broker_url", ["rabbitmq"], indirect=True)
def test_the_first_worker_on_an_empty_broker_declares_every_queue_and_can_delay_messages(
    broker_url: str, spawn: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    with Connection(broker_url) as connection, connection.channel() as channel:
        for queue in topology.CONSUMED_BY:
            channel.queue_delete(queue)
    heartbeat = tmp_path / "heartbeat"

    spawn("darkroom-thumbnailer", DARKROOM_HEARTBEAT_FILE=str(heartbeat), DARKROOM_WORKER_CONCURRENCY="1")

    eventually(heartbeat.exists, within_s=60)
    with Connection(broker_url) as connection, connection.channel() as channel:
        for queue in topology.CONSUMED_BY:
            channel.queue_declare(queue, passive=True)
    assert "delayed_delivery" not in (tmp_path / "0-darkroom-thumbnailer.log").read_text()
