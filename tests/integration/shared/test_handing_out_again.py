"""What a killed worker held comes back on Redis, also when it was killed while it gave back what another had held."""

import pytest
from conftest import eventually
from kombu.transport.redis import Mutex

from darkroom import topology
from darkroom.celery_app import create_app
from darkroom.settings import BrokerSettings, TaskSettings


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_worker_that_is_killed_while_it_hands_out_again_holds_nobody_up(broker_url: str, redis_url: str) -> None:
    app = create_app("test", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    app.conf.broker_transport_options |= {"visibility_timeout": 1}
    with app.connection() as connection, connection.channel() as channel, connection.channel() as another:
        queue = topology.task_queue("embed")(channel)
        queue.declare()
        connection.Producer(channel).publish({"n": 1}, exchange=topology.TASKS, routing_key="embed")
        assert queue.get() is not None, "held, and never acknowledged"
        dead = Mutex(channel.client, channel.qos.unacked_mutex_key, channel.qos.unacked_mutex_expire)
        dead.__enter__()

        def comes_back() -> bool:
            another.qos.restore_visible(interval=1)
            return queue(another).get() is not None

        channel.client.persist(channel.qos.unacked_mutex_key)  # however long we take
        assert not comes_back(), "the lock is held"
        channel.client.expire(channel.qos.unacked_mutex_key, channel.qos.unacked_mutex_expire)
        eventually(comes_back, within_s=60)
    app.close()
