"""What comes over HTTP besides pictures, far beyond its bounds: refused, and in hardly any memory."""

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pkgutil import iter_modules

import httpx
import pytest
from conftest import eventually
from fastapi.routing import APIRoute
from gateway_serving import peak_bytes, reset_peak_bytes

import gateway.rest
from darkroom_cli.servers import ChildProcess, reserve_port
from gateway.rest.bodies import JsonRoute

MEBIBYTE = 2**20
SENT_BYTES = 64 * MEBIBYTE
HELD_BYTES = 32 * MEBIBYTE

GET = b"GET /v1/ledger HTTP/1.1\r\nHost: darkroom\r\n"
UPLOAD = b"POST /v1/images HTTP/1.1\r\nHost: darkroom\r\nContent-Type: multipart/form-data; boundary=b\r\n"
CHUNKED = UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n"
SEARCH = b"POST /v1/search HTTP/1.1\r\nHost: darkroom\r\nContent-Type: application/json\r\n"

HOSTILE: dict[str, tuple[bytes, bytes, set[int]]] = {
    "a body of JSON": (SEARCH + b"Content-Length: 99999999\r\n\r\n", b"[" * MEBIBYTE, {413}),
    "JSON in chunks": (
        SEARCH + b"Transfer-Encoding: chunked\r\n\r\n",
        b"100000\r\n" + b" " * MEBIBYTE + b"\r\n",
        {413},
    ),
    "headers": (GET, b"a: b\r\n" * 175_000, {431}),
    "one header": (GET + b"X-Long: ", b"x" * MEBIBYTE, {431}),
    "a path": (b"GET /v1/", b"x" * MEBIBYTE, {431}),
    "headers behind a body": (CHUNKED + b"0\r\n", b"a: b\r\n" * 175_000, {422, 431}),
    "the length of a chunk": (CHUNKED + b"5;", b"x" * MEBIBYTE, {431}),
    "headers of a part": (UPLOAD + b"Content-Length: 99999999\r\n\r\n--b\r\nX-Long: ", b"x" * MEBIBYTE, {400}),
    "requests that wait": (b"", (GET + b"\r\n") * 25_000, {400}),
}
"""The beginning of each, what comes without end, and how it may be answered, if the client hears anything."""


@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_nothing_that_is_sent_besides_pictures_fills_the_gateways_memory(
    spawn: Callable[..., ChildProcess], subtests: pytest.Subtests
) -> None:
    port = reserve_port()
    process = spawn("darkroom-gateway", DARKROOM_HTTP_PORT=str(port), DARKROOM_MIN_FREE_BYTES="0")

    def is_alive() -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        return False

    eventually(is_alive, within_s=90)
    for name, (beginning, endless, statuses) in HOSTILE.items():
        with subtests.test(name):
            before = reset_peak_bytes(process.pid)
            # Whoever is cut off while it sends may lose the answer with the connection.
            assert statuses_after(port, beginning, endless) <= statuses
            eventually(is_alive, within_s=60)
            assert peak_bytes(process.pid) - before < HELD_BYTES


def statuses_after(port: int, beginning: bytes, endless: bytes) -> set[int]:
    """The distinct status codes that a client hears which sends this, up to `SENT_BYTES`, and only then listens."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with suppress(OSError):
            connection.sendall(beginning)
            for _ in range(SENT_BYTES // len(endless)):
                connection.sendall(endless)
            connection.shutdown(socket.SHUT_WR)
        heard = b""
        with suppress(OSError):
            while piece := connection.recv(MEBIBYTE):
                heard += piece
    answers = re.findall(rb"HTTP/1\.1 (\d+)", heard)
    return set(map(int, answers)) - {200}


def test_every_call_that_takes_json_bounds_it() -> None:
    modules = [import_module(f"gateway.rest.{module.name}") for module in iter_modules(gateway.rest.__path__)]
    routes = [route for module in modules if hasattr(module, "router") for route in module.router.routes]
    reading = [route for route in routes if isinstance(route, APIRoute) and route.body_field is not None]
    assert len(reading) >= 2
    assert [route.path for route in reading if not isinstance(route, JsonRoute)] == []
