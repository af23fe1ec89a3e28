"""A gateway in this process, on real servers, reached over real HTTP and gRPC."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from celery import Celery
from conftest import eventually
from fastapi import FastAPI
from gateway_workers import Call, calls

from darkroom.celery_app import bound_publishing
from darkroom.contracts.tasks import TaskContract
from darkroom_cli.servers import ChildProcess
from darkroom_cli.servers.ports import reserve_port
from gateway.bootstrap import Gateway
from gateway.grpc.server import listening
from gateway.main import Server
from gateway.rest.app import create_app
from gateway.rest.protocol import BoundedHttpProtocol
from gateway.settings import GatewaySettings

DECLARED_ELSEWHERE = {404, 405}
"""Answers to paths and methods that are not there, which OpenAPI has no place for."""

PATIENCE_S = 60
"""For servers that are well: on a busy machine they may stand still for seconds."""


def publish_patiently(app: Celery) -> None:
    """As `bound_publishing`, with room."""
    bound_publishing(app)
    waits = {"connect_retries_timeout", "read_timeout", "write_timeout", "socket_timeout", "socket_connect_timeout"}
    options = app.conf.broker_transport_options
    app.conf.broker_transport_options = options | dict.fromkeys(waits & options.keys(), PATIENCE_S)
    app.conf.broker_connection_timeout = PATIENCE_S


@dataclass(frozen=True)
class Served:
    """A running gateway: its URL, a client on it, and its parts."""

    url: str
    http: httpx.Client
    app: FastAPI

    @property
    def parts(self) -> Gateway:
        """What it consists of."""
        return self.app.state.gateway

    @property
    def grpc_target(self) -> str:
        """Where its gRPC face listens."""
        return f"127.0.0.1:{self.app.state.rpc.port}"

    def upload(self, *contents: bytes, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """The answer to an upload of these files, named `photo-0.jpg` and so on."""
        files = [("file", (f"photo-{n}.jpg", content)) for n, content in enumerate(contents)]
        return self.http.post("/v1/images", files=files, data=fields, headers=headers)

    def accepted(self, *contents: bytes, **fields: Any) -> list[dict[str, Any]]:
        """The images of an upload, which must be accepted."""
        answer = self.upload(*contents, **fields)
        assert answer.status_code == 202, answer.text
        return answer.json()["images"]


def peak_bytes(pid: int) -> int:
    """The largest resident size of a process since `reset_peak_bytes`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def reset_peak_bytes(pid: int) -> int:
    """The resident size now, from which the peak counts again."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_bytes(pid)


@contextmanager
def stop_and_go(pid: int) -> Iterator[None]:
    """The process runs for 20 ms of every 70, as on a machine that is too small."""
    is_over = threading.Event()

    def hold_up() -> None:
        while not is_over.wait(0.02):
            os.kill(pid, signal.SIGSTOP)
            is_over.wait(0.05)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def serving(settings: GatewaySettings) -> Iterator[Served]:
    """A gateway under uvicorn in a thread, gRPC beside REST. Every answer is compared with what OpenAPI declares."""
    app = create_app(settings, partial(listening, grace_s=5))
    port = reserve_port()
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, http=BoundedHttpProtocol, log_config=None, timeout_graceful_shutdown=5
    )
    server = Server(app, config)
    thread = threading.Thread(target=server.run, name="uvicorn", daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: server.started or not thread.is_alive())
        with httpx.Client(base_url=url, timeout=1.5 * PATIENCE_S, event_hooks={"response": [declared_by(app)]}) as http:
            yield Served(url, http, app)
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def declared_by(app: FastAPI) -> Callable[[httpx.Response], None]:
    """Fails a test whose answer has a status or a media type that OpenAPI does not declare for its route."""
    document = app.openapi()

    def check(response: httpx.Response) -> None:
        method = response.request.method.lower().replace("head", "get")
        path = response.request.url.path
        for template, operations in document["paths"].items():
            if matches(template, path) and method in operations:
                declared = operations[method]["responses"]
                assert str(response.status_code) in declared, f"{method} {path}: {response.status_code} is undeclared"
                return
        assert response.status_code in DECLARED_ELSEWHERE or not path.startswith("/v1"), f"{method} {path}"

    return check


def matches(template: str, path: str) -> bool:
    """Whether a path is one of an OpenAPI path template."""
    wanted, found = template.replace(":", "/:").split("/"), path.replace(":", "/:").split("/")
    return len(wanted) == len(found) and all(w == f or w.startswith("{") for w, f in zip(wanted, found, strict=True))


@dataclass(frozen=True)
class Workers:
    """The stand-ins of `gateway_workers.py`, in a process of their own."""

    process: ChildProcess
    noted: Path

    def calls(self, contract: TaskContract[Any, Any]) -> list[Call]:
        """Every run of a task."""
        return [call for call in calls(self.noted) if call.task == contract.name]
