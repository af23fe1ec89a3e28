"""Starts the gateway: `darkroom-gateway`."""

import asyncio
import gc
import signal
import socket
import sys
from contextlib import suppress
from functools import partial

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from darkroom.errors import ConfigurationError
from darkroom.logs import configure_logs
from darkroom.settings import TracingSettings
from gateway.bootstrap import Gateway
from gateway.grpc.server import listening
from gateway.rest.app import create_app
from gateway.rest.protocol import BoundedHttpProtocol
from gateway.settings import GatewaySettings

ANSWER_S = 2
"""For the answers to uploads that outlast the grace time; what is still in flight after it is cut off."""

HELD_UP_S = 10
"""The libraries' own cuts come so much later: who was held up when the grace time ended can still answer then."""


class Server(uvicorn.Server):
    """Serves the application. When it is told to stop, gRPC drains at the same time and event streams end at once.

    Uploads whose clients have not sent everything within the grace time are told to come back.
    """

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for requests and calls in flight, then ends the application."""
        gateway: Gateway = self._app.state.gateway
        gateway.events.close()  # they would never end alone
        if self._app.state.rpc is not None:
            self._app.state.rpc.begin_draining()  # its end is awaited by the application's
        asyncio.get_running_loop().call_later(gateway.settings.shutdown_grace_s, self._hand_back)
        await super().shutdown(sockets)

    def _hand_back(self) -> None:
        self._app.state.gateway.receiving.end()
        # From now on, however late it is: with a moment of its own, the cut would come before any answer.
        asyncio.get_running_loop().call_later(ANSWER_S, self._cut)

    def _cut(self) -> None:
        if self._app.state.rpc is not None:
            self._app.state.rpc.cut()
        for task in self.server_state.tasks:
            task.cancel()
        # As after uvicorn's own cut, nobody waits for them.
        self.server_state.tasks.clear()
        self.server_state.connections.clear()


def main() -> None:
    """Serves REST and gRPC until SIGTERM or SIGINT; what is being answered is finished first."""
    try:
        settings = GatewaySettings()
        TracingSettings()
    except (ValidationError, ConfigurationError) as error:
        sys.exit(f"darkroom-gateway cannot start: {error}")
    configure_logs("gateway", settings)
    # uvicorn raises a signal once more when it has stopped in order, and the default would end us with an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cut_after_s = settings.shutdown_grace_s + ANSWER_S + HELD_UP_S
    app = create_app(settings, partial(listening, grace_s=cut_after_s))
    config = uvicorn.Config(
        app,
        host=settings.http_host,
        port=settings.http_port,
        http=BoundedHttpProtocol,
        log_config=None,  # ours is in charge
        access_log=False,  # rest/app.py writes one line a request
        server_header=False,
        timeout_graceful_shutdown=cut_after_s,
    )
    server = Server(app, config)
    # The modules and their hundreds of thousands of objects stay to the end: not to be gone through time and again.
    gc.collect()
    gc.freeze()
    with suppress(KeyboardInterrupt):  # likewise
        server.run()
    if not server.started:
        sys.exit("darkroom-gateway could not start; the log says why")


if __name__ == "__main__":
    main()
