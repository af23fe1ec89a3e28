"""The worker's parts that need neither a model nor a broker."""

import os

import pytest

from darkroom import topology
from darkroom.celery_app import create_app
from darkroom.consumers import QueueConsumers
from darkroom.contracts.base import Lane
from darkroom.contracts.messages import Embed, FenceAnswer, ModelReference, RegisterModel
from darkroom.settings import BrokerSettings, TaskSettings
from embedder.batching import Buffer, Sizes
from embedder.embedding import Job
from embedder.strategy import MicroBatches
from embedder.worker import REGISTER_RETRY_S, announce, create_embedder, default_threads, options

SIZES = Sizes(batch=16, query=4, interactive=32, bulk=32)
MEMORY = BrokerSettings(broker_url="memory://", result_url="cache+memory://")
REGISTRATION = RegisterModel(model=ModelReference(id="tiny@0123456789ab", source="bundled"), dim=192)


def no_answer(task_id):
    return FenceAnswer()


class FakeConsumer:
    """Remembers what its timer was given."""

    def __init__(self):
        self.timer = self
        self.calls = []

    def call_after(self, delay_s, function, arguments):
        self.calls.append((delay_s, function, arguments))


@pytest.fixture
def app():
    return create_app("embedder", MEMORY, TaskSettings())


def registrations(app):
    with app.connection_for_read() as connection, connection.channel() as channel:
        found = []
        while message := topology.task_queue("finalize")(channel).get():
            found.append(message.payload[1]["message"])
            message.ack()
        return found


def test_a_warm_model_is_announced_to_the_scheduler_once(app):
    registrations(app)
    consumer = FakeConsumer()
    announce(app, REGISTRATION, consumer)
    assert registrations(app) == [REGISTRATION.to_wire()]
    assert consumer.calls == []


def test_an_announcement_that_fails_is_tried_again(app, monkeypatch):
    registrations(app)
    consumer = FakeConsumer()
    with monkeypatch.context() as patch:
        patch.setattr(app, "connection_for_write", lambda: (_ for _ in ()).throw(ConnectionRefusedError()))
        announce(app, REGISTRATION, consumer)
    ((delay_s, function, arguments),) = consumer.calls
    assert delay_s == REGISTER_RETRY_S
    assert registrations(app) == []
    function(*arguments)
    assert registrations(app) == [REGISTRATION.to_wire()]


def test_every_queue_of_the_node_has_a_window():
    app = create_embedder(MEMORY, TaskSettings(), SIZES, 10, compute=list, answer=no_answer)
    queues = topology.queues_of(topology.Node.EMBEDDER)
    with app.connection_for_read() as connection:
        consumers = app.amqp.TaskConsumer(connection, queues=[topology.task_queue(name) for name in queues])
    assert isinstance(consumers, QueueConsumers)
    assert {queue.name for queue in consumers.queues} == set(queues)


def test_the_worker_is_solo_with_a_watchdog():
    assert (options(TaskSettings()).pool, options(TaskSettings()).watchdog_s) == ("solo", 30)


def test_a_request_that_was_in_no_batch_is_computed_alone():
    job = Job("1", Embed(sha256="0" * 64, generation=1, lane=Lane.BULK, proxy="derived/proxy.jpg"))
    computed = []

    def compute(jobs):
        computed.append(list(jobs))
        return ["outcome"]

    assert MicroBatches([], Buffer(SIZES, 0.01), compute, no_answer).take_outcome(job) == "outcome"
    assert computed == [[job]]


def test_only_a_model_that_is_worth_it_is_computed_on_several_cores():
    assert default_threads("bundled") == 1
    assert default_threads("openai/clip-vit-base-patch32") == len(os.sched_getaffinity(0))
