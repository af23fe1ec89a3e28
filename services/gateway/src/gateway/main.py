"""Starts the gateway: `darkroom-gateway`."""

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
from gateway.grpc.server import listening
from gateway.rest.app import create_app
from gateway.settings import GatewaySettings

GRACEFUL_SHUTDOWN_S = 20
"""Longest that requests and calls in flight may go on after SIGTERM: a 200 MB upload at 80 Mbit/s."""


class Server(uvicorn.Server):
    """Serves the application. When it is told to stop, gRPC drains at the same time and event streams end at once."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for requests and calls in flight, then ends the application."""
        self._app.state.gateway.events.close()  # they would never end alone
        if self._app.state.rpc is not None:
            self._app.state.rpc.begin_draining()  # its end is awaited by the application's
        await super().shutdown(sockets)


def main() -> None:
    """Serves REST and gRPC until SIGTERM or SIGINT; what is being answered is finished first."""
    try:
        settings = GatewaySettings()
        TracingSettings()
    except (ValidationError, ConfigurationError) as error:
        sys.exit(f"darkroom-gateway cannot start: {error}")
    configure_logs("gateway", settings)
    app = create_app(settings, partial(listening, grace_s=GRACEFUL_SHUTDOWN_S))
    config = uvicorn.Config(
        app,
        host=settings.http_host,
        port=settings.http_port,
        log_config=None,  # ours is in charge
        access_log=False,  # rest/app.py writes one line a request
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
    )
    server = Server(app, config)
    with suppress(KeyboardInterrupt):  # uvicorn has stopped in order, and raises it once more
        server.run()
    if not server.started:
        sys.exit("darkroom-gateway could not start; the log says why")


if __name__ == "__main__":
    main()
