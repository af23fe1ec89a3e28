"""Starts the gateway: `darkroom-gateway`."""

import sys

import uvicorn
from pydantic import ValidationError

from darkroom.errors import ConfigurationError
from darkroom.logs import configure_logs
from gateway.rest.app import create_app
from gateway.settings import GatewaySettings

GRACEFUL_SHUTDOWN_S = 20
"""Longest that requests in flight may go on after SIGTERM: a 200 MB upload at 80 Mbit/s."""


def main() -> None:
    """Serves until SIGTERM or SIGINT; requests that are being answered are finished first."""
    try:
        settings = GatewaySettings()
    except (ValidationError, ConfigurationError) as error:
        sys.exit(f"darkroom-gateway cannot start: {error}")
    configure_logs("gateway", settings)
    uvicorn.run(
        create_app(settings),
        host=settings.http_host,
        port=settings.http_port,
        log_config=None,  # ours is in charge
        access_log=False,  # rest/app.py writes one line a request
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
    )


if __name__ == "__main__":
    main()
