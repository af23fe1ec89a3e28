"""Looking at dead letters, replaying and dropping them, with a real RabbitMQ behind the gateway."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import eventually
from gateway_outcomes import fail, waiting_messages
from gateway_pictures import picture
from gateway_serving import Served
from kombu import Connection
from sqlalchemy import Engine, select

from darkroom import topology
from darkroom.celery_app import create_app, request
from darkroom.contracts.messages import ModelReference, Prepare, RegisterModel
from darkroom.contracts.tasks import PREPARE, REGISTER_MODEL
from darkroom.database import dead_letters as rows
from darkroom.database.dead_letters import DeadLetter, Outcome
from darkroom.database.tables import originals, periodic_jobs
from darkroom.settings import BrokerSettings, TaskSettings
from scheduler.dead_letters import letter_in, letter_of

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]

REGISTRATION = RegisterModel(model=ModelReference(id="tiny@0123456789ab", source="bundled"), dim=4)


def keep(engine: Engine, letter: DeadLetter, outcome: Outcome = Outcome.KEPT, work: Any = None) -> int:
    """Leaves a row as the scheduler does."""
    with engine.begin() as connection:
        number = rows.record(connection, letter)
        assert number is not None
        rows.settle(connection, number, outcome, "nothing sends it again by itself", work)
        rows.show_counts(connection)
    return number


@pytest.fixture
def dead_registration(amqp_url: str, redis_url: str) -> Callable[[], DeadLetter]:
    """Publishes a task's message, has it die on the broker, and takes the letter."""
    app = create_app("test", BrokerSettings(broker_url=amqp_url, result_url=redis_url), TaskSettings())

    def die() -> DeadLetter:
        request(app, REGISTER_MODEL, REGISTRATION, expires=3600).apply_async()
        with Connection(amqp_url) as connection, connection.channel() as channel:
            alive = eventually(lambda: channel.basic_get("finalize"))
            channel.basic_reject(alive.delivery_tag, requeue=False)
            queue = topology.dead_letter_queue()(channel)
            return letter_in(eventually(lambda: queue.get(no_ack=True)))

    return die


def alarm(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return connection.scalar(select(periodic_jobs.c.alarm).where(periodic_jobs.c.name == rows.JOB))


def slug(answer: httpx.Response) -> str:
    return str(answer.json()["type"]).rpartition("/")[2]


def test_a_kept_letter_is_replayed_once_as_it_was(
    serve: Serve, engine: Engine, amqp_url: str, redis_url: str, dead_registration: Callable[[], DeadLetter]
) -> None:
    gateway = serve(broker_url=amqp_url, result_url=redis_url)
    number = keep(engine, dead_registration())
    assert alarm(engine) == "1 dead letter waits for a person: `darkroom dead-letters list`"
    listed = gateway.http.get("/v1/dead-letters").json()
    assert (listed["supported"], listed["note"], listed["counts"]["kept"]) == (True, None, 1)
    [letter] = listed["dead_letters"]
    assert (letter["id"], letter["queue"], letter["task"]) == (number, "finalize", REGISTER_MODEL.name)
    assert (letter["reason"], letter["deaths"], letter["outcome"]) == ("rejected", 1, "kept")
    content = gateway.http.get(f"/v1/dead-letters/{number}").json()
    assert "tiny@0123456789ab" in content["body"]
    assert content["headers"]["x-death"][0]["queue"] == "finalize"

    for _ in range(2):
        answer = gateway.http.post(f"/v1/dead-letters/{number}:replay")
        assert (answer.status_code, answer.json()["outcome"]) == (202, "replayed")
        assert answer.json()["replayed_at"]
    [message] = waiting_messages(amqp_url, "finalize")
    assert message.payload[1]["message"] == REGISTRATION.to_wire()
    assert (message.headers["task"], message.headers["id"]) == (REGISTER_MODEL.name, letter["task_id"])
    assert message.headers["darkroom-replays"] == 1
    assert not {"x-death", "expires"} & message.headers.keys()
    assert alarm(engine) is None


def test_all_that_wait_are_replayed_or_dropped_at_once(
    serve: Serve, engine: Engine, amqp_url: str, redis_url: str, dead_registration: Callable[[], DeadLetter]
) -> None:
    gateway = serve(broker_url=amqp_url, result_url=redis_url)
    foreign = letter_of({}, "prepare", b"hello", {})
    numbers = [keep(engine, letter) for letter in (dead_registration(), foreign, dead_registration())]
    assert gateway.http.post("/v1/dead-letters:replay").json() == {"replayed": 2, "kept": 1}
    assert len(waiting_messages(amqp_url, "finalize")) == 2
    refused = gateway.http.post(f"/v1/dead-letters/{numbers[1]}:replay")
    assert (refused.status_code, slug(refused)) == (409, "dead-letter-not-replayable")
    kept = gateway.http.get("/v1/dead-letters", params={"outcome": "kept"}).json()
    assert [letter["id"] for letter in kept["dead_letters"]] == [numbers[1]]
    page = gateway.http.get("/v1/dead-letters", params={"limit": 2}).json()
    assert [letter["id"] for letter in page["dead_letters"]] == numbers[:0:-1]
    rest = gateway.http.get("/v1/dead-letters", params={"limit": 2, "page_token": page["next_page_token"]}).json()
    assert ([letter["id"] for letter in rest["dead_letters"]], rest["next_page_token"]) == (numbers[:1], None)
    assert [gateway.http.delete("/v1/dead-letters").json() for _ in range(2)] == [{"dropped": 1}, {"dropped": 0}]
    assert alarm(engine) is None
    assert [gateway.http.delete(f"/v1/dead-letters/{numbers[0]}").status_code for _ in range(2)] == [204, 404]
    assert slug(gateway.http.get(f"/v1/dead-letters/{numbers[0]}")) == "dead-letter-not-found"


def test_a_photos_work_is_dispatched_anew_and_never_sent_by_itself(
    serve: Serve, engine: Engine, amqp_url: str, redis_url: str
) -> None:
    gateway = serve(broker_url=amqp_url, result_url=redis_url)
    (image,) = gateway.accepted(picture(1))
    fail(engine, image["sha256"])
    work = Prepare(sha256=image["sha256"], generation=1, lane="interactive", recipe=gateway.parts.settings.recipe)
    letter = letter_of({"task": PREPARE.name, "id": "1"}, "prepare", b"", {})
    number = keep(engine, letter, Outcome.FAILED_IMAGE, work)
    answer = gateway.http.post(f"/v1/dead-letters/{number}:replay").json()
    assert (answer["outcome"], answer["cause"]) == ("replayed", "the photo is dispatched anew")
    assert gateway.http.get(f"/v1/images/{image['id']}").json()["status"] == "accepted"
    with engine.connect() as connection:
        assert connection.scalar(select(originals.c.dispatched_at)) is None
    assert waiting_messages(amqp_url, "prepare") == []
    again = letter_of({"task": PREPARE.name, "id": "2"}, "prepare", b"", {})
    refused = gateway.http.post(f"/v1/dead-letters/{keep(engine, again, Outcome.OBSOLETE, work)}:replay")
    assert (refused.status_code, slug(refused)) == (409, "dead-letter-not-replayable")


def test_a_letter_stays_while_the_broker_is_away(
    serve: Serve, engine: Engine, amqp_url: str, dead_registration: Callable[[], DeadLetter]
) -> None:
    gateway = serve()  # its broker is not there
    number = keep(engine, dead_registration())
    for path in (f"/v1/dead-letters/{number}:replay", "/v1/dead-letters:replay"):
        answer = gateway.http.post(path)
        assert (answer.status_code, slug(answer)) == (503, "broker-unavailable")
    assert gateway.http.get(f"/v1/dead-letters/{number}").json()["outcome"] == "kept"
    assert waiting_messages(amqp_url, "finalize") == []


def test_redis_says_that_it_has_no_dead_letters(serve: Serve, redis_url: str) -> None:
    listed = serve(broker_url=redis_url, result_url=redis_url).http.get("/v1/dead-letters").json()
    assert (listed["supported"], listed["dead_letters"]) == (False, [])
    assert listed["note"].startswith("Redis, the broker here, has no dead letters")
