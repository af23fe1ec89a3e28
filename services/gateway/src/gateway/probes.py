"""Sending a probe: a synthetic task through a real queue, limited in length and in number by settings."""

import asyncio
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom import topology
from darkroom.celery_app import PUBLISH_OPTIONS, request
from darkroom.contracts.messages import Probe, ProbeKind
from darkroom.contracts.problems import problem
from darkroom.contracts.tasks import EMBED, FINALIZE, PREPARE, PROBE, TaskContract
from darkroom.database import probes
from gateway.broker import BrokerLink
from gateway.errors import RateLimitedError, UnavailableError
from gateway.models import ProbedService, ProbeRequest
from gateway.receiving import invalid_field
from gateway.settings import GatewaySettings

PROBED: dict[ProbedService, TaskContract[Any, Any]] = {
    ProbedService.THUMBNAILER: PREPARE,
    ProbedService.EMBEDDER: EMBED,
    ProbedService.SCHEDULER: FINALIZE,
}
"""The task whose queues carry a service's probes."""

EMBEDDER_MAX_S = 2.0
"""A probe runs on the embedder's loop, which takes no message and answers no search meanwhile."""


class Probes:
    """Publishes probes from a thread of its own, which a broker that hangs holds up for seconds."""

    def __init__(self, engine: AsyncEngine, app: Celery, link: BrokerLink, settings: GatewaySettings) -> None:
        self._engine = engine
        self._app = app
        self._link = link
        self._settings = settings
        self._publisher = ThreadPoolExecutor(1, "probe-publisher")

    def close(self) -> None:
        """Ends the publishing thread and its connection."""
        self._publisher.shutdown(wait=True, cancel_futures=True)
        self._link.close()

    async def send(self, kind: ProbeKind, asked: ProbeRequest) -> uuid.UUID:
        """Sends a probe and returns its task's id, which is recorded before the broker sees it.

        Raises `invalid-field` for a time that is not allowed, `too-many-probes`, and `probe-not-sent` while the broker
        is away: then nothing of it stays.
        """
        self._check(asked)
        task_id = uuid.uuid4()
        queue = PROBED[asked.service].queue_for(asked.lane)
        limit = self._settings.probes_per_minute
        async with self._engine.begin() as connection:
            wait_s = await connection.run_sync(probes.issue, task_id, queue, asked.expires_seconds, limit)
        if wait_s is not None:
            raise _too_many(limit, wait_s)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._publisher, self._publish, task_id, kind, queue, asked)
        except UnavailableError:
            async with self._engine.begin() as connection:
                await connection.run_sync(probes.withdraw, task_id)
            raise
        return task_id

    def _check(self, asked: ProbeRequest) -> None:
        limits = {
            # A message that waits for its time at a worker is delivered again by Redis after the hard limit and 30 s.
            "countdown_seconds": (asked.countdown_seconds, self._settings.task_hard_limit_s),
            "expires_seconds": (asked.expires_seconds, self._settings.result_expires_s),
            "seconds": (asked.seconds, self._longest_s(asked.service)),
        }
        for name, (value, limit) in limits.items():
            if value > limit:
                raise invalid_field(
                    name,
                    f"is {value:g}, and for the {asked.service} at most {limit:g} are allowed",
                    value=f"{value:g}",
                    limit=f"{limit:g}",
                    remedy=f"Send at most {limit:g}.",
                )

    def _longest_s(self, service: ProbedService) -> float:
        # Below the soft limit, which would end it as a photo that takes too long.
        longest_s = min(self._settings.probe_max_s, self._settings.task_soft_limit_s - 1)
        return min(longest_s, EMBEDDER_MAX_S) if service is ProbedService.EMBEDDER else longest_s

    def _publish(self, task_id: uuid.UUID, kind: ProbeKind, queue: str, asked: ProbeRequest) -> None:
        terms = (random.randrange(1000), random.randrange(1000))  # noqa: S311 (something to add, not a secret)
        probe = Probe(kind=kind, queue=queue, seconds=asked.seconds, terms=terms, cause=asked.cause)
        try:
            with self._link.connection() as connection:
                if asked.countdown_seconds:
                    _declare_delayed_delivery(connection, queue)
                request(self._app, PROBE, probe, queue=queue, task_id=str(task_id)).apply_async(
                    connection=connection,
                    countdown=asked.countdown_seconds or None,
                    expires=asked.expires_seconds,
                    **PUBLISH_OPTIONS,
                )
        except Exception as error:  # whatever the transport raises
            raise UnavailableError.of(
                "probe-not-sent",
                "The probe could not be sent",
                f"The broker does not take the probe ({type(error).__name__}); nothing of it is left.",
                remedy="Try again when the broker is back: GET /readyz says when.",
            ) from error


def _declare_delayed_delivery(connection: Connection, queue: str) -> None:
    """What RabbitMQ needs for a countdown; workers declare it too, but none may have run yet."""
    if connection.transport.driver_type == "amqp":
        declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
        bind_queue_to_native_delayed_delivery_exchange(connection, topology.task_queue(queue))


def _too_many(limit: int, wait_s: float) -> RateLimitedError:
    limited = problem(
        "too-many-probes",
        "Too many probes were sent",
        429,
        f"All gateways together send at most {limit} probes in a minute (DARKROOM_PROBES_PER_MINUTE).",
        limit=limit,
        remedy="Wait for the seconds in Retry-After, or raise the limit.",
    )
    return RateLimitedError(limited, wait_s)
