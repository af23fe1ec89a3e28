"""A worker's options: what its pool would ignore is refused, and Celery is given all others."""

import argparse
import logging

import pytest
from celery.concurrency.prefork import TaskPool
from celery.worker import WorkController
from pydantic import SecretStr

from darkroom.celery_app import create_app
from darkroom.errors import ConfigurationError
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.topology import CONSUMED_BY, Node, queues_of
from darkroom.worker import WorkerOptions, add_worker_arguments, with_arguments

ONLY_PREFORK = ("max_tasks_per_child", "max_memory_per_child_kib", "soft_time_limit_s", "time_limit_s")


@pytest.mark.parametrize("pool", ["solo", "threads"])
@pytest.mark.parametrize("option", ONLY_PREFORK)
def test_an_option_that_its_pool_would_ignore_is_refused_with_a_remedy(pool: str, option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"the {pool} pool ignores {option}: use watchdog_s"):
        WorkerOptions(Node.FINALIZE, pool, concurrency=1, **{option: 5})  # type: ignore[arg-type]


def test_prefork_refuses_a_watchdog_because_it_has_time_limits() -> None:
    with pytest.raises(ConfigurationError, match="time_limit_s"):
        WorkerOptions(Node.THUMBNAILER, "prefork", concurrency=2, watchdog_s=5)


def test_solo_runs_one_task_at_a_time() -> None:
    with pytest.raises(ConfigurationError, match="not 2"):
        WorkerOptions(Node.EMBEDDER, "solo", concurrency=2)


def test_celery_is_given_every_option() -> None:
    given = WorkerOptions(
        Node.THUMBNAILER,
        "prefork",
        concurrency=3,
        prefetch_multiplier=1,
        max_tasks_per_child=500,
        max_memory_per_child_kib=600_000,
        soft_time_limit_s=25,
        time_limit_s=30,
    ).for_celery()

    assert given.pop("hostname").startswith("thumbnailer@")
    assert given == {
        "queues": ["prepare", "prepare.query", "thumbnails"],
        "pool": "prefork",
        "concurrency": 3,
        "prefetch_multiplier": 1,
        "optimization": "fair",
        "max_tasks_per_child": 500,
        "max_memory_per_child": 600_000,
        "soft_time_limit": 25,
        "time_limit": 30,
        "without_gossip": True,
        "without_mingle": True,
        "loglevel": logging.INFO,
    }


def test_a_worker_obeys_every_option_that_it_is_given() -> None:
    options = WorkerOptions(
        Node.THUMBNAILER,
        "prefork",
        concurrency=3,
        prefetch_multiplier=2,
        max_tasks_per_child=500,
        max_memory_per_child_kib=600_000,
        soft_time_limit_s=25,
        time_limit_s=30,
    )
    broker = BrokerSettings(broker_url=SecretStr("memory://"), result_url=SecretStr("redis://127.0.0.1:1/0"))
    worker = WorkController(app=create_app("thumbnailer", broker, TaskSettings()), **options.for_celery())

    assert (worker.pool_cls, worker.concurrency, worker.optimization) == (TaskPool, 3, "fair")
    assert (worker.max_tasks_per_child, worker.max_memory_per_child) == (500, 600_000)
    assert (worker.soft_time_limit, worker.time_limit, worker.prefetch_multiplier) == (25, 30, 2)
    assert worker.hostname.startswith("thumbnailer@")
    assert sorted(worker.app.amqp.queues.consume_from) == ["prepare", "prepare.query", "thumbnails"]


def test_an_option_that_was_not_given_is_left_to_celery() -> None:
    given = WorkerOptions(Node.FINALIZE, "threads", concurrency=4, watchdog_s=60).for_celery()

    assert not [each for each in given if each.startswith(("max_", "soft_", "time_"))]


def test_the_nodes_share_the_queues_out_without_rest() -> None:
    shared_out = [queue for node in Node for queue in queues_of(node)]

    assert sorted(shared_out) == sorted(CONSUMED_BY)


def test_no_node_takes_work_of_both_lanes_where_bulk_could_fill_its_slots() -> None:
    for node in (Node.THUMBNAILER, Node.THUMBNAILER_BULK):
        assert len({queue.endswith(".bulk") for queue in queues_of(node)}) == 1


THUMBNAILER = WorkerOptions(Node.THUMBNAILER, "prefork", concurrency=2, max_tasks_per_child=500)


def given(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_worker_arguments(parser)
    return parser.parse_args(arguments)


def test_a_command_without_arguments_changes_nothing() -> None:
    assert with_arguments(THUMBNAILER, given()) == THUMBNAILER


def test_the_numbers_of_a_command_count() -> None:
    shown = given("--concurrency=5", "--prefetch-multiplier=2", "--max-tasks-per-child=9", "--max-memory-per-child=7")

    options = with_arguments(THUMBNAILER, shown)

    assert (options.concurrency, options.prefetch_multiplier) == (5, 2)
    assert (options.max_tasks_per_child, options.max_memory_per_child_kib) == (9, 7)


def test_a_command_may_say_what_cannot_be_otherwise() -> None:
    shown = given("--queues=prepare,prepare.query,thumbnails", "--pool=prefork", "-Ofair")

    assert with_arguments(THUMBNAILER, shown) == THUMBNAILER


@pytest.mark.parametrize("argument", ["--queues=prepare,embed", "--pool=threads"])
def test_a_command_that_says_otherwise_is_refused(argument: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{argument}: thumbnailer has "):
        with_arguments(THUMBNAILER, given(argument))


def test_a_command_cannot_give_what_the_pool_ignores() -> None:
    with pytest.raises(ConfigurationError, match="the solo pool ignores max_tasks_per_child"):
        with_arguments(WorkerOptions(Node.EMBEDDER, "solo", concurrency=1), given("--max-tasks-per-child=5"))
