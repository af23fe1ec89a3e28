"""One POST to a URL that a client gave: to an address that was checked, within a time limit, redirects not followed.

httpcore and not httpx, because it lets us make the connection: the name is looked up once, its addresses are checked,
and one of those is connected to. TLS and `Host` still go by the name. It reads no proxy settings either.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpcore

from darkroom.outbound import OutboundPolicy, RefusedTargetError, Target

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
"""From name and port to IP addresses; raises `OSError`."""


@dataclass(frozen=True)
class Answer:
    """What came back; `status` is None when nothing did, and `error` then says why."""

    status: int | None
    error: str | None = None
    retry_after: str | None = None
    """The header as it came."""


def resolve(name: str, port: int) -> list[str]:
    """The addresses of a name, each once, in the order of preference."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Poster:
    """Sends callbacks; threads share it. `timeout_s` is for the whole attempt."""

    def __init__(
        self, policy: OutboundPolicy, timeout_s: float, tls: ssl.SSLContext | None = None, look_up: Resolve = resolve
    ) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._tls = tls or ssl.create_default_context()  # the system's authorities, or those in SSL_CERT_FILE
        self._look_up = look_up

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """How the receiver answered. Its answer's body is not read; whatever goes wrong is told in the answer."""
        deadline = time.monotonic() + self._timeout_s
        try:
            target = self._policy.check_url(url)
            return self._post(target, body, headers, deadline)
        except RefusedTargetError as error:
            return Answer(None, f"the URL {error}; DARKROOM_CALLBACK_ALLOWED_NETWORKS may allow it")
        except httpcore.TimeoutException:
            return Answer(None, f"no answer within {self._timeout_s:g} s")
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            return Answer(None, str(error) or type(error).__name__)

    def _post(self, target: Target, body: bytes, headers: Mapping[str, str], deadline: float) -> Answer:
        scheme = b"https" if target.is_tls else b"http"
        url = httpcore.URL(scheme=scheme, host=target.host.encode(), port=target.port, target=target.path.encode())
        backend = _CheckedBackend(self._policy, target, deadline, self._look_up)
        with (
            httpcore.HTTPConnection(url.origin, ssl_context=self._tls, network_backend=backend) as connection,
            connection.stream("POST", url, headers=list(headers.items()), content=body) as response,
        ):
            return Answer(response.status, retry_after=_header(response.headers, b"retry-after"))


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), None)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.TimeoutException
    return left


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to nothing but addresses that were checked, and lets nothing outlast the deadline."""

    def __init__(self, policy: OutboundPolicy, target: Target, deadline: float, look_up: Resolve) -> None:
        self._policy = policy
        self._target = target
        self._deadline = deadline
        self._look_up = look_up
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        try:
            addresses = self._look_up(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name {host} cannot be looked up: {error}") from error
        failure: Exception = httpcore.ConnectError(f"the name {host} has no address")
        for address in addresses:
            try:
                self._policy.check_address(address, is_tls=self._target.is_tls)
                stream = self._sockets.connect_tcp(address, port, timeout=_left(self._deadline))
            except (RefusedTargetError, httpcore.ConnectError) as error:
                failure = error  # a name may have public and private addresses, and a public one that is down
            else:
                return _BoundedStream(stream, self._deadline)
        raise failure


class _BoundedStream(httpcore.NetworkStream):
    """A stream whose every step has only what is left of the time: an answer that drips does not last for ever."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _BoundedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
