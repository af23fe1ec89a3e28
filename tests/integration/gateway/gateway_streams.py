"""A client for server-sent events on one plain connection, so that a thousand of them are cheap."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass
class Stream:
    """A response that may go on for ever. `last_id` is what a browser would come back with."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int
    headers: dict[str, str]
    last_id: str | None = None
    is_complete: bool = False
    """Whether the server ended the response as it should; false after a cut."""

    @classmethod
    async def open(cls, url: str, path: str, last_id: str | int | None = None, buffer_bytes: int | None = None) -> Self:
        """Asks, and reads the answer up to its body."""
        parts = urlsplit(url)
        raw = socket.socket()
        if buffer_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (parts.hostname, parts.port))
        reader, writer = await asyncio.open_connection(sock=raw)
        last = "" if last_id is None else f"Last-Event-ID: {last_id}\r\n"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{last}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        return cls(reader, writer, int(head[0].split()[1]), headers, None if last_id is None else str(last_id))

    async def lines(self) -> AsyncIterator[str]:
        """The body's lines. Each chunk of the transfer ends at the end of a line, and its own marks end with CR LF."""
        while line := await self.reader.readline():
            if not line.endswith(b"\n"):
                return
            if line == b"0\r\n":
                self.is_complete = True
                return
            if not line.endswith(b"\r\n"):
                yield line.decode()[:-1]

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The `data` of each event."""
        fields: dict[str, str] = {}
        async for line in self.lines():
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
                continue
            self.last_id = fields.get("id", self.last_id)
            if "data" in fields:
                event = json.loads(fields["data"])
                assert (fields["id"], fields["event"]) == (str(event["id"]), event["type"])
                yield event
            fields = {}

    async def take(self, count: int) -> list[int]:
        """The ids of the next events; fewer when the stream ends."""
        ids: list[int] = []
        if count:
            async for event in self.events():
                ids.append(event["id"])
                if len(ids) == count:
                    break
        return ids

    def close(self) -> None:
        """Hangs up."""
        self.writer.transport.abort()
