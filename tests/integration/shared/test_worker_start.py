"""How a worker process begins, and how it ends: without a broker, and with a message on its way."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from conftest import eventually
from cuttable_proxy import CuttableProxy
from kombu import Connection, Message

from darkroom import topology
from darkroom.worker import HandBack
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


def test_a_worker_whose_broker_has_gone_ends_when_it_is_told_to(
    broker_url: str, spawn: Callable[..., ChildProcess]
) -> None:
    broker = urlsplit(broker_url)
    proxy = CuttableProxy(broker.hostname or "", broker.port or 0)
    through_proxy = broker_url.replace(f":{broker.port}/", f":{proxy.port}/")
    worker = spawn("darkroom-scheduler", "finalize", DARKROOM_BROKER_URL=through_proxy)
    eventually(lambda: " ready." in worker.log_tail(1000), within_s=60)
    proxy.close()
    eventually(lambda: "Trying again in" in worker.log_tail(1000), within_s=60)

    os.kill(worker.pid or 0, signal.SIGTERM)

    eventually(lambda: not worker.is_running, within_s=40)  # the grace period of docker-compose.yml
    assert worker.exit_status == 0


def test_what_redis_hands_out_to_a_worker_that_stops_goes_back_to_its_queue(redis_url: str) -> None:
    queue = topology.task_queue("prepare")
    with Connection(redis_url) as publisher, Connection(redis_url) as connection:
        consumer = connection.Consumer([queue], on_message=Message.ack)
        consumer.consume()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)  # the call is on its way, and answered by the first message
        consumer.cancel()
        publisher.Producer().publish({"n": 1}, exchange=topology.TASKS, routing_key="prepare")

        HandBack(None).stop(SimpleNamespace(task_consumer=consumer, connection=connection))

        connection.close()
        assert publisher.SimpleQueue(queue).get(timeout=60).payload == {"n": 1}
