"""Receivers of callbacks on loopback: one that answers as it is told to, and a hundred that never answer."""

import base64
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The webhook-id."""
        return self.headers["webhook-id"]

    def verified(self) -> Any:
        """The body, when its signature is right."""
        return Webhook(SECRET).verify(self.body, dict(self.headers))


@dataclass
class Receiver:
    """An HTTP server. `answers`: the status of the next answers, then 200; HANG holds the request until `release`."""

    port: int
    answers: list[int] = field(default_factory=list)
    answer_headers: dict[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook"


HANG = 0


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = receiver.answers.pop(0) if receiver.answers else 200
            receiver.received.append(Received(self.path, headers, body))
            if status == HANG:
                receiver.release.wait()
                return
            self.send_response(status)
            for name, value in receiver.answer_headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.release.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextmanager
def hanging_hosts(count: int) -> Iterator[list[str]]:
    """URLs of that many hosts whose kernel takes every connection and whose process never reads from one."""
    with ExitStack() as stack:
        urls = []
        for number in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind((f"127.0.1.{number + 1}", 0))
            listener.listen(128)
            urls.append("http://{}:{}/hook".format(*listener.getsockname()))
        yield urls
