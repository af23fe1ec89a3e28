"""The gRPC server: in the gateway's own process and event loop, beside REST."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1.health_pb2 import DESCRIPTOR as HEALTH
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from darkroom.errors import ConfigurationError
from darkroom.rpc.v1.darkroom_pb2 import DESCRIPTOR
from darkroom.rpc.v1.darkroom_pb2_grpc import add_DarkroomServicer_to_server
from gateway.bootstrap import Gateway
from gateway.grpc.health import Health
from gateway.grpc.problems import Answers
from gateway.grpc.service import DarkroomService

log = logging.getLogger(__name__)

SERVICE = DESCRIPTOR.services_by_name["Darkroom"].full_name

MAX_MESSAGE_BYTES = 4 * 2**20
"""Either way. A chunk should have 256 KiB; the longest answer, 200 images, has about 400 KiB."""

READ_AHEAD_BYTES = 4 * 2**20
"""What an upload may have in memory before it is read. Over 100 ms of network it allows 40 MB/s."""

LEAVING_S = 1.0
"""For clients to hear that they should go elsewhere, before their connections end."""

ATTENTIVE_S, TICK_S = 0.25, 0.05
"""In the end of it nothing may have held us up, by more than a tick: what called meanwhile is not answered yet."""

IN_USE_S = 60.0
"""Who has called within that time may still be connected, and call again."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Two gateways on one port would share its calls by chance: the second one must fail instead.
    ("grpc.so_reuseport", 0),
    # gRPC's own estimate of what the network holds grows without end when the process, and not the network, is what
    # is slow: a gateway that was held up now and then took 143 MB of an upload of 200 into memory.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", READ_AHEAD_BYTES),
    # A client that vanished without a word is found out after a minute and a half.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients may ping every 10 s, to keep a load balancer's connection open; more often is taken for an attack.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class RpcServer:
    """One listening server; made and ended in the event loop that serves it."""

    def __init__(self, gateway: Gateway, grace_s: float) -> None:
        self._grace_s = grace_s
        self._health = Health(SERVICE)
        self._ending: asyncio.Task[None] | None = None
        self._cutting: asyncio.Task[None] | None = None
        self._answers = Answers(SERVICE)
        self._server = grpc.aio.server(interceptors=(self._answers,), options=_OPTIONS)
        add_DarkroomServicer_to_server(DarkroomService(gateway), self._server)
        add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, HEALTH.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        host, port = gateway.settings.grpc_host, gateway.settings.grpc_port
        try:
            self.port = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise ConfigurationError(
                f"gRPC cannot listen on port {port} of {host}: end what listens there, or set DARKROOM_GRPC_PORT"
            ) from error

    async def start(self) -> None:
        """Serves from now on."""
        await self._server.start()
        log.info("grpc.listening", extra={"port": self.port})

    def begin_draining(self) -> None:
        """Refuses new calls from now on, and cuts off those in flight after the grace time. Health says NOT_SERVING."""
        if self._ending is None:
            self._health.drain()
            self._answers.refuse()
            self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        # A call that arrives in the very moment of gRPC's own stop ends as CANCELLED, without a word to its client. So
        # whoever calls now and then is sent away by us, first.
        begun = time.monotonic()
        if self._answers.idle_s < IN_USE_S:
            await self._send_away(begun)
        await self._server.stop(max(0.0, begun + self._grace_s - time.monotonic()))

    async def _send_away(self, begun: float) -> None:
        attentive_since = now = begun
        while now < begun + LEAVING_S or attentive_since + ATTENTIVE_S > now < begun + self._grace_s:
            await asyncio.sleep(TICK_S)
            before, now = now, time.monotonic()
            if now - before > 2 * TICK_S:
                attentive_since = now

    def cut(self) -> None:
        """Ends the calls in flight before the grace time is over."""
        self._cutting = asyncio.ensure_future(self._server.stop(None))

    async def drain(self) -> None:
        """Begins it if it has not begun, and returns when the last call has ended."""
        self.begin_draining()
        if self._ending is not None:
            await self._ending


@asynccontextmanager
async def listening(gateway: Gateway, grace_s: float) -> AsyncIterator[RpcServer]:
    """A server that listens inside the block."""
    server = RpcServer(gateway, grace_s)
    await server.start()
    try:
        yield server
    finally:
        await server.drain()
