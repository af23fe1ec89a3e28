"""The options that decide a message's fate, and what `bind` makes of a task's errors: no broker involved."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Retry

from darkroom import celery_app, topology
from darkroom.celery_app import Delivery, bind, bound_publishing, create_app
from darkroom.contracts.base import Lane
from darkroom.contracts.keys import Recipe
from darkroom.contracts.messages import Fence, Nothing, Prepare, Prepared, RecordFailure, Work
from darkroom.contracts.tasks import FENCE, PREPARE
from darkroom.errors import PermanentError, TransientError
from darkroom.redis_broker import TRANSPORT
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.workflow import Dispatch, embedding_backfill, image_workflow, task_ids

SHA256 = "ab" * 32
MESSAGE = Prepare(sha256=SHA256, generation=3, lane=Lane.BULK, recipe=Recipe.current())
REFUSED = PermanentError.of("image-corrupt", "Damaged", 422, "It is damaged.")


def app_for(broker: str = "amqp", **tasks: Any) -> Celery:
    # Port 1: whoever connects to anything fails.
    url = f"{broker}://127.0.0.1:1//" if broker == "amqp" else "redis://127.0.0.1:1/0"
    settings = BrokerSettings(broker_url=url, result_url="redis://127.0.0.1:1/0")
    return create_app("unit", settings, TaskSettings(**tasks))


@pytest.fixture
def app() -> Iterator[Celery]:
    with app_for() as app:
        yield app


def test_a_join_outlives_the_results_of_its_parts(app: Celery) -> None:
    # Chord keys live `result_expires` unless `result_chord_expires` is set: a longer backlog would lose every join.
    assert app.conf.result_chord_expires == 7 * 86_400
    assert app.conf.result_expires == 3600


def test_a_message_is_kept_until_its_work_is_done(app: Celery) -> None:
    assert app.conf.task_acks_late is True
    assert app.conf.task_reject_on_worker_lost is True
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.broker_transport_options["confirm_publish"] is True


def test_only_json_is_read_and_written(app: Celery) -> None:
    assert app.conf.accept_content == ["json"]
    assert (app.conf.task_serializer, app.conf.result_serializer) == ("json", "json")
    assert app.conf.result_accept_content in (None, ["json"])


def test_a_misspelt_queue_is_an_error(app: Celery) -> None:
    with pytest.raises(KeyError):
        app.amqp.queues["prepair"]


def test_redis_hands_a_message_back_only_after_the_longest_task(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_for("redis", task_soft_limit_s=80, task_hard_limit_s=90)

    assert app.conf.broker_transport_options["visibility_timeout"] > 90


@pytest.mark.parametrize(("scheme", "transport"), [("redis", TRANSPORT), ("rediss", None), ("amqp", None)])
def test_only_plain_redis_is_spoken_to_in_our_way(scheme: str, transport: str | None) -> None:
    # For `rediss://`, kombu knows by the scheme alone that it must encrypt.
    settings = BrokerSettings(broker_url=f"{scheme}://127.0.0.1:1/0", result_url="redis://127.0.0.1:1/0")
    with create_app("unit", settings, TaskSettings()) as app:
        assert app.conf.broker_transport == transport


def test_every_queue_hangs_on_a_topic_exchange() -> None:
    # On a direct exchange a task with a countdown blocks its worker.
    assert {queue.exchange.type for queue in topology.task_queues()} == {"topic"}
    assert {exchange.type for exchange in (topology.TASKS, topology.EVENTS, topology.DEAD)} == {"topic"}


def test_bounded_publishing_keeps_confirms_and_never_waits_for_ever() -> None:
    app = app_for()
    bound_publishing(app)

    options = app.conf.broker_transport_options
    assert options["confirm_publish"] is True
    assert {"max_retries", "connect_retries_timeout", "read_timeout", "write_timeout"} <= set(options)
    assert app.conf.redis_socket_timeout <= 2


def test_bounded_publishing_keeps_the_visibility_timeout_on_redis() -> None:
    app = app_for("redis")
    bound_publishing(app)

    options = app.conf.broker_transport_options
    assert options["visibility_timeout"] == 60
    assert {"socket_timeout", "socket_connect_timeout"} <= set(options)


def test_the_number_of_retries_is_the_setting_s() -> None:
    for retries in (0, 1, 7):
        with app_for(task_max_retries=retries) as app:
            assert bind(app, FENCE, lambda message, delivery: Nothing()).max_retries == retries


class Published:
    """Stands in for the publishing of failures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures: list[RecordFailure] = []
        monkeypatch.setattr(celery_app, "report_failure", self._report)

    def _report(self, app: Celery, work: Work, error: PermanentError) -> None:
        self.failures.append(
            RecordFailure(sha256=work.sha256, generation=work.generation, lane=work.lane, problem=error.problem)
        )


def raising(error: BaseException) -> Any:
    def function(message: Prepare, delivery: Delivery) -> Prepared:
        raise error

    return function


def test_a_permanent_error_is_reported_once_and_then_raised(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    published = Published(monkeypatch)
    task = bind(app, PREPARE, raising(REFUSED))

    with pytest.raises(PermanentError):
        task.run(message=MESSAGE.to_wire())

    [failure] = published.failures
    assert (failure.sha256, failure.generation, failure.lane) == (SHA256, 3, Lane.BULK)
    assert failure.problem == REFUSED.problem


def test_a_permanent_error_without_an_original_fails_nobody(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    published = Published(monkeypatch)
    task = bind(app, FENCE, raising(REFUSED))

    with pytest.raises(PermanentError):
        task.run(message=Fence(number=1, queue="prepare").to_wire())

    assert published.failures == []


@pytest.mark.parametrize("error", [TransientError("away"), ConnectionResetError(), OSError(28, "No space left")])
def test_an_outage_is_tried_again_in_whole_seconds_and_fails_nobody(
    app: Celery, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    published = Published(monkeypatch)
    task = bind(app, PREPARE, raising(error))
    waited: list[float] = []
    queues: list[str] = []

    def retry(*, exc: Exception, countdown: float, queue: str) -> Retry:
        waited.append(countdown)
        queues.append(queue)
        return Retry(exc=exc)

    monkeypatch.setattr(task, "retry", retry)

    with pytest.raises(Retry):
        task.run(message=MESSAGE.to_wire())

    assert published.failures == []
    assert [type(each) for each in waited] == [int]
    assert waited[0] >= 1
    # Named, or else Celery sends a message with a countdown to the default queue.
    assert queues == ["prepare.bulk"]


def test_a_field_that_a_newer_sender_added_is_ignored(app: Celery) -> None:
    seen: list[Prepare] = []

    def function(message: Prepare, delivery: Delivery) -> Prepared:
        seen.append(message)
        return Prepared(manifest="derived/x")

    task = bind(app, PREPARE, function)

    assert task.run(message=MESSAGE.to_wire() | {"added_later": 1}) == {"manifest": "derived/x"}
    assert seen == [MESSAGE]


def test_a_body_of_a_chord_gets_the_results_of_the_parts(app: Celery) -> None:
    def function(message: Fence, delivery: Delivery) -> Nothing:
        assert delivery.previous == [{"manifest": "a"}, {"manifest": "b"}]
        return Nothing()

    task = bind(app, FENCE, function)

    task.run([{"manifest": "a"}, {"manifest": "b"}], message=Fence(number=1, queue="prepare").to_wire())


def test_the_ids_of_a_dispatch_s_tasks_follow_from_original_and_generation() -> None:
    dispatches = list(itertools.product(("ab" * 32, "cd" * 32), (1, 2)))

    ids = [task_id for dispatch in dispatches for task_id in task_ids(*dispatch).values()]

    assert len(set(ids)) == len(ids)
    assert [task_ids(*dispatch) for dispatch in dispatches] == [task_ids(*dispatch) for dispatch in dispatches]


@pytest.mark.parametrize("lane", Lane)
def test_the_canvas_of_a_photo_names_every_queue_of_its_lane(app: Celery, lane: Lane) -> None:
    canvas = image_workflow(app, Dispatch(SHA256, 2, lane, Recipe.current()))
    ids = task_ids(SHA256, 2)
    prepare, chord = canvas.tasks
    header = {part.options["task_id"]: part.options["routing_key"] for part in chord.tasks}
    suffix = ".bulk" if lane is Lane.BULK else ""

    assert (prepare.options["task_id"], prepare.options["routing_key"]) == (ids["prepare"], f"prepare{suffix}")
    assert header == {ids["thumbnails"]: f"thumbnails{suffix}", ids["embed"]: f"embed{suffix}"}
    assert chord.body.options["task_id"] == ids["finalize"]
    assert chord.body.options["routing_key"] == f"finalize{suffix}"
    # The parts ignore what came before them; only finalize takes the header's results.
    assert all(part.immutable for part in chord.tasks)
    assert not chord.body.immutable


def test_the_same_dispatch_makes_the_same_messages(app: Celery) -> None:
    dispatch = Dispatch(SHA256, 2, Lane.INTERACTIVE, Recipe.current())

    first, second = (image_workflow(app, dispatch) for _ in range(2))

    assert [task.kwargs for task in first.tasks[:1]] == [task.kwargs for task in second.tasks[:1]]
    assert [part.kwargs for part in first.tasks[1].tasks] == [part.kwargs for part in second.tasks[1].tasks]


def test_a_backfill_goes_on_the_bulk_lane(app: Celery) -> None:
    embed, record = embedding_backfill(app, SHA256, Recipe.current(), 1).tasks

    assert embed.options["routing_key"] == "embed.bulk"
    assert record.options["routing_key"] == "finalize.bulk"
