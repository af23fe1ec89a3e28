"""Probes through the real workers' queues, on both brokers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import eventually
from gateway_faces import RestFace
from gateway_serving import Served

from darkroom_cli.servers import ChildProcess

pytest_plugins = ["gateway_fixtures"]

Json = dict[str, Any]
Spawn = Callable[..., ChildProcess]


@pytest.fixture
def gateway(serve: Callable[..., Served], broker_url: str, redis_url: str) -> Served:
    return serve(broker_url=broker_url, result_url=redis_url)


@pytest.fixture
def face(gateway: Served) -> RestFace:
    return RestFace(gateway)


def in_state(face: RestFace, task_id: str, *states: str) -> Json:
    return eventually(lambda: (task := face.task(task_id))["state"] in states and task, within_s=90)


def test_every_kind_of_probe_goes_through_a_worker_and_tells_what_came_of_it(
    face: RestFace, spawn: Spawn, blob_url: str
) -> None:
    waiting = face.probe("add")
    expired = face.probe("add", expires_seconds=1)
    assert face.task(waiting)["state"] == "PENDING"
    revoked = in_state(face, expired, "REVOKED")
    assert revoked["error"] == {"type": "TaskRevokedError", "message": "expired"}

    worker = spawn("darkroom-thumbnailer", DARKROOM_WORKER_CONCURRENCY="1")
    added = in_state(face, waiting, "SUCCESS", "FAILURE")
    assert added["result"]["sum"] == sum(added["result"]["terms"])
    assert (added["name"], added["queue"], added["result"]["queue"]) == ("darkroom.probe", "prepare", "prepare")
    assert added["worker"].startswith("thumbnailer@")
    assert added["issued_at"] <= added["started_at"] <= added["finished_at"]
    assert face.task(expired)["state"] == "REVOKED"

    def seen_at_work() -> Json:
        """a probe that goes on when it is looked at: one may have ended while we were held up"""
        found = in_state(face, face.probe("slow", seconds=4), "PROGRESS", "SUCCESS", "FAILURE")
        assert found["state"] != "FAILURE"
        return found if found["state"] == "PROGRESS" and found["progress"]["done"] < 4 else {}

    running = eventually(seen_at_work)
    slow = running["task_id"]
    assert (running["state"], running["result"], running["finished_at"]) == ("PROGRESS", None, None)
    assert running["progress"]["total"] == 4 and running["progress"]["done"] > 0
    behind = {kind: face.probe(kind) for kind in ("cpu", "io")}
    fails = face.probe("fail", cause="as planned")
    later = face.probe("add", countdown_seconds=1)
    ended = in_state(face, slow, "SUCCESS", "FAILURE")
    assert (ended["state"], ended["progress"], ended["result"]["kind"]) == ("SUCCESS", None, "slow")
    ended_behind = {kind: in_state(face, task_id, "SUCCESS", "FAILURE") for kind, task_id in behind.items()}
    assert ended_behind["cpu"]["result"]["rounds"] > 0
    assert ended_behind["io"]["result"]["bytes"] == 262144
    assert not [path for path in Path(httpx.URL(blob_url).path, "probes").rglob("*") if path.is_file()]
    assert in_state(face, fails, "FAILURE", "SUCCESS")["error"] == {"type": "PermanentError", "message": "as planned"}
    assert in_state(face, later, "SUCCESS", "FAILURE")["state"] == "SUCCESS"

    worker.stop()
    held = face.probe("add")
    assert face.task(held)["state"] == "PENDING"
    worker.start()
    assert in_state(face, held, "SUCCESS", "FAILURE")["state"] == "SUCCESS"
