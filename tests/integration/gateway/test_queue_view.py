"""How the queues stand, on real brokers with a real worker."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import eventually
from gateway_serving import Served
from kombu import Connection
from sqlalchemy import Engine, text

from darkroom import topology
from darkroom.celery_app import create_app, request
from darkroom.contracts.messages import Fence, FenceAnswer, Verdict
from darkroom.contracts.tasks import FENCE
from darkroom.database import upkeep
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom_cli.servers import ChildProcess
from darkroom_cli.servers.ports import reserve_port

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]


def put_fences(broker_url: str, redis_url: str, queue: str, count: int) -> None:
    """Messages that any worker handles at once."""
    app = create_app("test", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    with app.connection_for_write() as connection:
        for _ in range(count):
            fence = Fence(number=1, queue=queue)
            request(app, FENCE, fence, queue=queue, ignore_result=True).apply_async(connection=connection)


def queue_of(overview: dict[str, Any], name: str) -> dict[str, Any]:
    [queue] = [one for one in overview["queues"] if one["name"] == name]
    return queue


def test_every_queue_shows_what_waits_and_who_works(
    serve: Serve, spawn: Callable[..., ChildProcess], engine: Engine, broker_url: str, redis_url: str
) -> None:
    gateway = serve(broker_url=broker_url, result_url=redis_url)

    def overview() -> dict[str, Any]:
        return gateway.http.get("/v1/queues").json()

    first = overview()
    assert {one["name"]: one["node"] for one in first["queues"]} == {
        name: node.value for name, node in topology.CONSUMED_BY.items()
    }
    assert first["unknown"] == {}
    assert {(one["depth"], one["consumers"], one["in_hand"], one["rate_per_s"]) for one in first["queues"]} == {
        (0, 0, 0, 0)
    }
    assert {(one["oldest_age_s"], one["probe"]) for one in first["queues"]} == {(None, None)}

    put_fences(broker_url, redis_url, "embed", 3)
    with engine.begin() as connection:
        upkeep.send_fence(connection, "embed")
        upkeep.return_fence(connection, upkeep.send_fence(connection, "prepare"), FenceAnswer(verdict=Verdict.OK))
        connection.execute(text("UPDATE fences SET sent_at = sent_at - interval '3 minutes'"))
        upkeep.send_fence(connection, "prepare")  # so young that it says nothing of what is before it
    embed = eventually(lambda: (found := queue_of(overview(), "embed"))["depth"] == 3 and found)
    assert (embed["consumers"], embed["rate_per_s"], embed["probe"]["state"]) == (0, 0, "late")
    assert 180 <= embed["oldest_age_s"] < 300
    prepare = queue_of(overview(), "prepare")
    assert (180 <= prepare["oldest_age_s"] < 300, prepare["probe"]["state"]) == (True, "ok")

    worker = spawn("darkroom-scheduler", "finalize")
    eventually(lambda: queue_of(overview(), "finalize")["consumers"] == 1, within_s=90)
    put_fences(broker_url, redis_url, "finalize", 5)
    busy = eventually(lambda: (found := overview())["workers"] and found["workers"][0]["handled"] == 5 and found)
    finalize = queue_of(busy, "finalize")
    assert (finalize["depth"], finalize["in_hand"]) == (0, 0)
    assert 0 < finalize["rate_per_s"] <= 2.5
    [present] = busy["workers"]
    assert present["name"].startswith("finalize@")
    assert (present["node"], present["queues"]) == ("finalize", ["finalize", "finalize.bulk"])
    worker.stop()
    eventually(lambda: overview()["workers"] == [] and queue_of(overview(), "finalize")["consumers"] == 0)


def test_dead_letters_are_among_them_where_the_broker_has_any(serve: Serve, broker_url: str, redis_url: str) -> None:
    told = serve(broker_url=broker_url, result_url=redis_url).http.get("/v1/queues").json()
    dead = told["dead_letters"]
    if told["broker"] == "redis":
        assert (dead["supported"], dead["depth"], dead["consumers"]) == (False, None, None)
        assert "has no dead letters" in dead["note"]
    else:
        assert (dead["supported"], dead["depth"], dead["consumers"], dead["note"]) == (True, 0, 0, None)
    assert dead["kept"] == 0


def test_what_is_away_is_null_and_said(serve: Serve, broker_url: str, redis_url: str) -> None:
    nobody = f"postgresql+psycopg://x@127.0.0.1:{reserve_port()}/x"
    only_database = serve().http.get("/v1/queues").json()
    assert set(only_database["unknown"]) == {"depth", "consumers", "in_hand", "rate_per_s"}
    assert only_database["unknown"]["depth"].startswith("the broker does not answer (")
    embed = queue_of(only_database, "embed")
    assert (embed["depth"], embed["consumers"], embed["rate_per_s"]) == (None, None, None)

    only_broker = serve(broker_url=broker_url, database_url=nobody).http.get("/v1/queues").json()
    embed = queue_of(only_broker, "embed")
    assert embed["depth"] == 0
    assert only_broker["unknown"]["oldest_age_s"] == "the database does not answer (OperationalError)"
    has_consumers = broker_url.startswith("amqp")  # it counts them itself
    assert embed["consumers"] == (0 if has_consumers else None)
    assert ("consumers" in only_broker["unknown"]) is not has_consumers

    nothing = serve(database_url=nobody).http.get("/v1/queues")
    assert (nothing.status_code, nothing.json()["type"].rpartition("/")[2]) == (503, "queues-unknown")


def test_a_removed_queue_and_a_cut_connection_are_seen_past(
    serve: Serve, amqp_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.queues.FRESH_S", 0)
    gateway = serve(broker_url=amqp_url, result_url=redis_url)
    assert gateway.http.get("/v1/queues").json()["unknown"] == {}
    with Connection(amqp_url) as connection, connection.channel() as channel:
        channel.queue_delete("embed.query")
    told = gateway.http.get("/v1/queues").json()
    assert (told["unknown"], queue_of(told, "embed.query")["depth"]) == ({}, 0)


def test_many_pollers_are_one_measurement(
    serve: Serve, amqp_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.queues.FRESH_S", 3600)
    gateway = serve(broker_url=amqp_url, result_url=redis_url)

    async def poll() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            return await asyncio.gather(*(client.get("/v1/queues") for _ in range(40)))

    answers = asyncio.run(poll())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["measured_at"] for answer in answers}) == 1
