"""Searches by text, by a stored image and by a picture, on real brokers with stand-ins for the workers."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from conftest import eventually
from gateway_outcomes import finish, make_active, waiting_messages
from gateway_pictures import MODEL_ID, picture
from gateway_serving import Served, Workers
from gateway_workers import ALIEN, BROKEN, FAILING
from redis import Redis
from sqlalchemy import Engine

from darkroom.contracts.tasks import EMBED_PICTURE, EMBED_TEXT, PREPARE_QUERY
from darkroom_cli.servers.ports import reserve_port

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]
StartWorkers = Callable[..., Workers]

VECTORS = {"red": [1.0, 0.0, 0.0], "pink": [0.8, 0.6, 0.0], "green": [0.28, 0.96, 0.0], "blue": [0.0, 0.0, 1.0]}
"""A text is embedded as red, a picture as green."""


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"]).rpartition("/")[2]


def library(gateway: Served, engine: Engine) -> dict[str, str]:
    """The ids of four finished photos by the colour that they stand for."""
    made = {}
    for seed, (colour, vector) in enumerate(VECTORS.items()):
        lane = "bulk" if colour == "pink" else "interactive"
        (image,) = gateway.accepted(picture(seed), tags=[colour, "colour"], lane=lane)
        finish(engine, gateway.parts.store, image["sha256"], vector)
        made[colour] = image["id"]
    return made


def search(gateway: Served, **query: Any) -> httpx.Response:
    return gateway.http.post("/v1/search", json=query)


def found(answer: httpx.Response) -> list[str]:
    """The colours found, best first."""
    assert answer.status_code == 200, answer.text
    return [hit["image"]["tags"][0] for hit in answer.json()["results"]]


def test_a_text_finds_the_nearest_photos(
    serve: Serve, start_workers: StartWorkers, engine: Engine, broker_url: str, redis_url: str
) -> None:
    gateway = serve(broker_url=broker_url, result_url=redis_url)
    workers = start_workers(broker_url, redis_url)
    library(gateway, engine)
    answer = search(gateway, text="  something red  ")
    assert found(answer) == ["red", "pink", "green", "blue"]
    assert answer.json()["model"] == MODEL_ID
    scores = [hit["score"] for hit in answer.json()["results"]]
    assert scores == pytest.approx([1.0, 0.8, 0.28, 0.0], abs=0.001)
    (call,) = workers.calls(EMBED_TEXT)
    assert (call.routing_key, call.message["text"]) == ("embed.query", "something red")
    assert call.message["model"] == {"id": MODEL_ID, "source": "test"}
    with Redis.from_url(redis_url) as redis:
        assert redis.keys("celery-task-meta-*") == [], "a query's vector is not kept"

    picture_answer = gateway.http.post("/v1/search:image", files=[("file", ("q.jpg", picture(9)))], data={"limit": "2"})
    assert found(picture_answer) == ["green", "pink"]
    (prepare,), (embed,) = workers.calls(PREPARE_QUERY), workers.calls(EMBED_PICTURE)
    assert (prepare.routing_key, embed.routing_key) == ("prepare.query", "embed.query")
    assert embed.message["proxy"] == prepare.message["proxy"]


def test_searches_are_narrowed_limited_and_checked(
    serve: Serve, start_workers: StartWorkers, engine: Engine, redis_url: str, subtests: pytest.Subtests
) -> None:
    gateway = serve(broker_url=redis_url, result_url=redis_url)
    start_workers(redis_url, redis_url)
    ids = library(gateway, engine)
    now = datetime.now(UTC)
    narrowed = {
        "limit": ({"limit": 2}, ["red", "pink"]),
        "a tag": ({"filter": {"tags": ["blue"]}}, ["blue"]),
        "two tags": ({"filter": {"tags": ["colour", "pink"]}}, ["pink"]),
        "tags that no photo has": ({"filter": {"tags": ["red", "blue"]}}, []),
        "a lane": ({"filter": {"lane": "bulk"}}, ["pink"]),
        "an age": ({"filter": {"created_after": (now + timedelta(hours=1)).isoformat()}}, []),
        "no filter": ({"filter": {}}, ["red", "pink", "green", "blue"]),
    }
    for case, (options, expected) in narrowed.items():
        with subtests.test(case):
            assert found(search(gateway, text="red", **options)) == expected
    with subtests.test("a picture's filter"):
        form = {"filter": '{"tags": ["pink"]}', "limit": "1"}
        answer = gateway.http.post("/v1/search:image", files=[("file", ("q.jpg", picture(9)))], data=form)
        assert found(answer) == ["pink"]

    refused = {
        "nothing asked": {},
        "two questions": {"text": "a", "image_id": ids["red"]},
        "a blank text": {"text": "  "},
        "a long text": {"text": "x" * 2001},
        "limit 0": {"text": "a", "limit": 0},
        "limit 101": {"text": "a", "limit": 101},
        "an unknown field": {"text": "a", "model": "x"},
        "an unknown filter": {"text": "a", "filter": {"colour": "red"}},
        "an unknown lane": {"text": "a", "filter": {"lane": "fast"}},
        "a time without a zone": {"text": "a", "filter": {"created_after": "2026-01-01T00:00:00"}},
        "no UUID": {"image_id": "red"},
    }
    for case, query in refused.items():
        with subtests.test(case):
            answer = search(gateway, **query)
            assert (answer.status_code, slug(answer)) == (422, "invalid-request")
    forms: dict[str, dict[str, str]] = {
        "a form's limit": {"limit": "0"},
        "a form's filter": {"filter": "{"},
        "an unknown form field": {"text": "a"},
    }
    for case, form in forms.items():
        with subtests.test(case):
            answer = gateway.http.post("/v1/search:image", files=[("file", ("q.jpg", picture(9)))], data=form)
            assert (answer.status_code, slug(answer)) == (422, "invalid-request")


def test_a_stored_image_finds_its_neighbours_without_any_worker(gateway: Served, engine: Engine) -> None:
    ids = library(gateway, engine)
    (twin,) = gateway.accepted(picture(0), tags=["twin"])
    answer = search(gateway, image_id=ids["red"])
    assert found(answer) == ["twin", "pink", "green", "blue"]
    assert ids["red"] not in {hit["image"]["id"] for hit in answer.json()["results"]}
    assert found(search(gateway, image_id=ids["red"], limit=1)) == ["twin"]
    assert found(search(gateway, image_id=twin["id"], limit=1)) == ["red"]

    (waiting,) = gateway.accepted(picture(50))
    refused = search(gateway, image_id=waiting["id"])
    assert (refused.status_code, slug(refused)) == (409, "image-not-ready")
    missing = search(gateway, image_id=str(uuid.uuid4()))
    assert (missing.status_code, slug(missing)) == (404, "image-not-found")


def test_a_search_picture_is_gone_at_the_end_whatever_happens(
    serve: Serve, start_workers: StartWorkers, engine: Engine, redis_url: str
) -> None:
    gateway = serve(broker_url=redis_url, result_url=redis_url)
    impatient = serve(broker_url=redis_url, result_url=redis_url, search_timeout_ms=1000)
    root = gateway.parts.store.root  # type: ignore[attr-defined]

    def left() -> list[Any]:
        return [path for folder in ("queries", "incoming") for path in (root / folder).rglob("*") if path.is_file()]

    def ask(content: bytes, served: Served = gateway) -> httpx.Response:
        return served.http.post("/v1/search:image", files=[("file", ("q.jpg", content))])

    without_model = ask(picture(1))
    assert (without_model.status_code, slug(without_model), left()) == (503, "model-not-ready", [])
    make_active(engine)
    without_worker = ask(picture(1), impatient)
    assert (without_worker.status_code, slug(without_worker), left()) == (503, "search-timeout", [])
    start_workers(redis_url, redis_url)
    assert (ask(picture(1)).status_code, left()) == (200, [])
    broken = ask(picture(1) + BROKEN)
    assert (broken.status_code, slug(broken), left()) == (422, "image-corrupt", [])
    two = gateway.http.post("/v1/search:image", files=[("file", ("a.jpg", picture(n))) for n in range(2)])
    assert (two.status_code, slug(two), left()) == (413, "too-many-files", [])
    alien = ask(b"<html>" * 10)
    assert (alien.status_code, slug(alien), left()) == (415, "unsupported-format", [])


def test_a_search_that_cannot_be_answered_is_503(
    serve: Serve, start_workers: StartWorkers, engine: Engine, amqp_url: str, redis_url: str
) -> None:
    nobody = reserve_port()
    no_broker = serve(broker_url=f"amqp://guest:guest@127.0.0.1:{nobody}//", result_url=redis_url)
    no_redis = serve(broker_url=amqp_url)
    gateway = serve(broker_url=amqp_url, result_url=redis_url)
    impatient = serve(broker_url=amqp_url, result_url=redis_url, search_timeout_ms=1000)

    def problem(served: Served, text: str) -> str:
        answer = search(served, text=text)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        return slug(answer)

    assert problem(gateway, "red") == "model-not-ready"
    make_active(engine)
    assert problem(no_broker, "red") == "search-unavailable"
    assert problem(no_redis, "red") == "search-unavailable"
    assert problem(impatient, "red") == "search-timeout"
    assert eventually(lambda: waiting_messages(amqp_url, "embed.query") == []), "what nobody waits for has expired"
    start_workers(amqp_url, redis_url)
    assert search(gateway, text="red").status_code == 200
    assert problem(gateway, FAILING) == "search-failed"
    assert problem(gateway, ALIEN) == "search-failed"
