"""HTTP/1.1 as uvicorn reads it, which by itself would keep headers and waiting requests without end."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of one request's line and headers, and of what follows its body. Browsers send 1 to 4 KB; 60 MB took 1.2 GB."""

MAX_PIPELINED = 32
"""Requests that wait on one connection for the one before them; hardly a client sends a second."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 36\r\nconnection: close\r\n\r\n"
    b"The request's headers exceed 64 KiB."
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Ends a connection on which more comes than may: 431 for headers, 400 for requests sent ahead of answers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        """Received since the last headers, body or message was complete: what the parser may hold, to one read."""

    def data_received(self, data: bytes) -> None:
        """Takes the next bytes in."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError(f"more than {MAX_PIPELINED} requests wait on one connection")
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The request can be answered."""
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of its body is here."""
        self._head_bytes = 0
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.body:
                # As it came: uvicorn would copy it into a buffer, and out of it again.
                cycle.body, body = body, b""  # type: ignore[assignment]
            elif isinstance(cycle.body, bytes):
                cycle.body = bytearray(cycle.body)  # which grows without being copied whole
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it is here."""
        self._head_bytes = 0
        super().on_message_complete()
