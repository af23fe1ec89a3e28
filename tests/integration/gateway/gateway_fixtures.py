"""The fixtures of the gateway's tests, loaded as a plugin by each of their modules."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway_faces import Face, GrpcFace, RestFace
from gateway_pictures import picture
from gateway_serving import PATIENCE_S, Served, Workers, publish_patiently, serving

from darkroom.celery_app import PUBLISH_OPTIONS
from darkroom_cli.servers import ChildProcess
from darkroom_cli.servers.ports import reserve_port
from gateway.settings import GatewaySettings


@pytest.fixture
def settings_with(database_url: str, blob_url: str) -> Callable[..., GatewaySettings]:
    """Settings of a gateway on this test's database and store, without a broker and Redis unless given."""

    def make(**changes: Any) -> GatewaySettings:
        nobody = f"127.0.0.1:{reserve_port()}"
        given = {
            "database_url": database_url,
            "database_pool_size": 5,
            "blob_url": blob_url,
            "broker_url": f"amqp://guest:guest@{nobody}//",
            "result_url": f"redis://{nobody}/0",
            "grpc_port": 0,
            "dispatcher_enabled": False,
            "relay_enabled": False,
            "search_timeout_ms": PATIENCE_S * 1000,
        }
        return GatewaySettings(**(given | changes))

    return make


@pytest.fixture
def impatience() -> None:
    """Asked for by tests of how long the gateway waits for a part of the house before it says that it is away."""


@pytest.fixture
def patience(request: pytest.FixtureRequest) -> Iterator[None]:
    """In all other tests it waits longer: on a busy machine, a server that is well may stand still for seconds."""
    with pytest.MonkeyPatch.context() as patch:  # a test may undo its own
        if "impatience" not in request.fixturenames:
            patch.setattr("gateway.bootstrap.bound_publishing", publish_patiently)
            for option in ("timeout", "confirm_timeout"):
                patch.setitem(PUBLISH_OPTIONS, option, PATIENCE_S)
            for module in ("figures", "pressure", "queues", "rest.system", "tasks"):
                patch.setattr(f"gateway.{module}.ANSWER_S", PATIENCE_S)
        yield


@pytest.fixture
def serve(settings_with: Callable[..., GatewaySettings], patience: None) -> Iterator[Callable[..., Served]]:
    """Starts a gateway with these settings changed."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(serving(settings_with(**changes)))


@pytest.fixture
def gateway(serve: Callable[..., Served]) -> Served:
    """A gateway whose broker and Redis are down, as far as it can tell."""
    return serve()


@pytest.fixture(params=["rest", "grpc"])
def face_of(request: pytest.FixtureRequest) -> Iterator[Callable[[Served], Face]]:
    """Each of the two faces of a gateway in turn."""
    with ExitStack() as channels:
        yield (
            lambda gateway: (
                RestFace(gateway)
                if request.param == "rest"
                else GrpcFace(channels.enter_context(grpc.insecure_channel(gateway.grpc_target)))
            )
        )


@pytest.fixture
def photo() -> bytes:
    """The bytes of a picture, as far as the gateway looks at it."""
    return picture(0)


@pytest.fixture
def start_workers(blob_url: str, tmp_path: Path) -> Iterator[Callable[..., Workers]]:
    """Starts stand-ins on a broker and a result store, for all queues or some."""
    with ExitStack() as stack:

        def start(broker_url: str, result_url: str, *queues: str) -> Workers:
            noted = tmp_path / "calls.jsonl"
            env = os.environ | {
                "DARKROOM_BROKER_URL": broker_url,
                "DARKROOM_RESULT_URL": result_url,
                "DARKROOM_BLOB_URL": blob_url,
                "DARKROOM_TEST_CALLS": str(noted),
                "DARKROOM_TEST_QUEUES": ",".join(queues),
            }
            log = tmp_path / "workers.log"
            process = ChildProcess(
                [sys.executable, str(Path(__file__).with_name("gateway_workers.py"))], log=log, env=env
            )
            process.start()
            stack.callback(lambda: print(process.log_tail(40)))
            stack.callback(process.stop)
            return Workers(process, noted)

        yield start
