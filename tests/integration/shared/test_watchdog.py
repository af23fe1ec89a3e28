"""Solo and threads know no time limits: the watchdog ends the process, and the message is worked on by the next one."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import eventually

from darkroom.celery_app import create_app, request
from darkroom.contracts.base import Lane
from darkroom.contracts.keys import Recipe
from darkroom.contracts.messages import Prepare
from darkroom.contracts.tasks import PREPARE
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom_cli.servers import ChildProcess

WORKER = Path(__file__).with_name("watched_worker.py")
MESSAGE = Prepare(sha256="a" * 64, generation=1, lane=Lane.INTERACTIVE, recipe=Recipe.current())


@pytest.fixture
def worker(request: pytest.FixtureRequest, service_env: dict[str, str], tmp_path: Path) -> Iterator[ChildProcess]:
    """A worker of the pool in the parameter."""
    env = service_env | {"DARKROOM_TEST_HUNG": str(tmp_path / "hung")}
    log = tmp_path / "worker.log"
    child = ChildProcess([sys.executable, str(WORKER), request.param], log=log, env=env, grace_s=20)
    child.start()
    yield child
    child.stop()
    print(log.read_text()[-5000:])


@pytest.mark.parametrize("broker_url", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("worker", ["solo", "threads"], indirect=True)
def test_a_worker_that_hangs_is_ended_and_its_message_is_done_by_the_next(
    worker: ChildProcess, broker_url: str, redis_url: str
) -> None:
    app = create_app("test", BrokerSettings(broker_url=broker_url, result_url=redis_url), TaskSettings())
    result = request(app, PREPARE, MESSAGE).apply_async()

    eventually(lambda: not worker.is_running, within_s=60)
    [told] = [line for line in worker.log_tail().splitlines() if "worker.watchdog" in line]
    assert any(stack[0].endswith(" prepare") for stack in json.loads(told)["stacks"].values()), "it says what hung"

    def is_done() -> bool:
        worker.start()  # as its supervisor does, unless it runs
        return bool(result.ready())

    eventually(is_done, within_s=60)
    assert result.get() == {"manifest": "done"}
    app.close()
