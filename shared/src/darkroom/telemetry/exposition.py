"""`/metrics`: Prometheus' text, by a small server of a worker's or beat's own; the gateway has a route for it."""

import logging
import os
from functools import cache
from typing import Any

from celery.signals import worker_process_init
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from darkroom.errors import ConfigurationError
from darkroom.settings import MetricsSettings

log = logging.getLogger(__name__)

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def render(registry: CollectorRegistry) -> bytes:
    """The metrics of a registry and those of this process: CPU, memory, files, garbage collections."""
    return generate_latest(_with_process(registry))


def serve(registry: CollectorRegistry, settings: MetricsSettings) -> int | None:
    """Answers at the settings' address from a thread; returns the port, or None where metrics are off.

    Raises `ConfigurationError` when it cannot listen there.
    """
    if settings.metrics_port is None:
        return None
    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, _with_process(registry))
    except OSError as error:
        raise ConfigurationError(
            f"metrics cannot be served on port {settings.metrics_port} of {settings.metrics_host} ({error.strerror}): "
            "give each process a DARKROOM_METRICS_PORT of its own, 0 for any that is free, or leave it blank"
        ) from error

    owner = os.getpid()

    def let_go(**_: Any) -> None:
        if os.getpid() != owner:  # the solo pool says it of the process itself
            # A child that outlives its killed parent would keep the port from the next one.
            server.socket.close()

    worker_process_init.connect(let_go, weak=False)
    log.info("metrics.listening", extra={"host": settings.metrics_host, "port": server.server_port})
    return int(server.server_port)


@cache
def _with_process(registry: CollectorRegistry) -> CollectorRegistry:
    together = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=together)
    together.register(registry)
    return together
