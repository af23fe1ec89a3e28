"""How a worker process begins, and how it ends without a broker."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import eventually
from cuttable_proxy import CuttableProxy
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
