"""What the gateway says of callbacks, and whom it tells that some are due."""

import json
import uuid
from collections.abc import Callable

from conftest import eventually
from gateway_outcomes import fail
from gateway_pictures import picture
from gateway_serving import Served
from kombu import Connection
from sqlalchemy import Engine

from darkroom.celery_app import declare_topology
from darkroom.database import callbacks, dispatch
from darkroom.database.callbacks import Settlement
from darkroom.outbound import Host
from darkroom.topology import task_queue

pytest_plugins = ["gateway_fixtures"]

URL = "https://hooks.example.org/darkroom"


def failed_batch(gateway: Served, engine: Engine, seed: int = 1) -> str:
    """An upload that has two callbacks to deliver."""
    (image,) = gateway.accepted(picture(seed), callback_url=URL)
    with engine.begin() as connection:
        dispatch.lease(connection, 1, 60)
    fail(engine, image["sha256"], generation=1)
    return str(image["batch_id"])


def test_anyone_can_see_what_was_delivered_and_why_not(gateway: Served, engine: Engine) -> None:
    batch_id = failed_batch(gateway, engine)
    before = gateway.http.get(f"/v1/batches/{batch_id}/callbacks").json()["callbacks"]
    assert [(one["state"], one["attempts"], one["url"]) for one in before] == [("pending", 0, URL)] * 2
    with engine.begin() as connection:
        first, second = (callbacks.claim(connection, Host("hooks.example.org"), 2, 60) for _ in range(2))
        assert first is not None
        assert second is not None
        callbacks.settle(connection, first, Settlement("delivered", 204, None))
        callbacks.settle(connection, second, Settlement("pending", 500, "the receiver answered 500", again_in_s=60))
    waiting, delivered = gateway.http.get(f"/v1/batches/{batch_id}/callbacks").json()["callbacks"]
    assert (waiting["id"], waiting["state"], waiting["last_status"]) == (str(second.id), "pending", 500)
    assert waiting["last_error"] == "the receiver answered 500"
    assert waiting["next_attempt_at"] > waiting["last_attempt_at"]
    assert (delivered["state"], delivered["last_status"], delivered["next_attempt_at"]) == ("delivered", 204, None)
    assert delivered["finished_at"]
    assert {waiting["type"], delivered["type"]} == {"image.failed", "batch.completed"}
    assert gateway.http.get("/v1/status").json()["callbacks"] == {"pending": 1, "failing": 1, "failed": 0}
    shown = gateway.http.get(f"/v1/batches/{batch_id}/callbacks", params={"limit": 1}).json()["callbacks"]
    assert [one["id"] for one in shown] == [waiting["id"]]


def test_a_batch_that_is_not_there_has_no_callbacks(gateway: Served) -> None:
    answer = gateway.http.get(f"/v1/batches/{uuid.uuid4()}/callbacks")
    assert answer.status_code == 404
    assert answer.json()["type"].endswith("/batch-not-found")


def test_a_callback_to_a_named_network_is_accepted_over_http(serve: Callable[..., Served]) -> None:
    gateway = serve(callback_allowed_networks="127.0.0.0/8 10.0.0.0/8")
    gateway.accepted(picture(1), callback_url="http://127.0.0.1:9000/hook")
    refused = gateway.upload(picture(1), callback_url="http://192.168.0.1/")
    assert refused.status_code == 422
    problem = refused.json()
    assert "192.168.0.1, which is not on the public internet" in problem["detail"]
    assert "DARKROOM_CALLBACK_ALLOWED_NETWORKS" in problem["remedy"]


def test_the_same_key_with_another_callback_is_another_request(gateway: Served) -> None:
    headers = {"Idempotency-Key": "one"}
    first = gateway.upload(picture(1), headers=headers, callback_url=URL).json()
    assert gateway.upload(picture(1), headers=headers, callback_url=URL).json() == first
    for fields in ({"callback_url": URL + "/other"}, {}):
        answer = gateway.upload(picture(1), headers=headers, **fields)
        assert answer.json()["type"].endswith("/idempotency-key-reused")


def test_the_relay_hints_at_callbacks_that_are_due(
    serve: Callable[..., Served], engine: Engine, broker_url: str, redis_url: str
) -> None:
    with Connection(broker_url) as connection:
        declare_topology(connection)
        gateway = serve(broker_url=broker_url, result_url=redis_url, relay_enabled=True)
        failed_batch(gateway, engine)
        with connection.SimpleQueue(task_queue("callbacks")) as queue:
            message = eventually(lambda: queue.get(timeout=60))
            assert message.headers["task"] == "scheduler.deliver_callbacks"
            _, keywords, _ = json.loads(message.body)
            assert keywords["message"] == {"host": "hooks.example.org"}
            assert message.headers["expires"]
            message.ack()
