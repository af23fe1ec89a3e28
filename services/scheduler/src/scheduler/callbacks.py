"""Delivers callbacks: takes one row after the other, sends it, writes down what came of it. docs/callbacks.md."""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy import Engine

from darkroom.celery_app import PUBLISH_OPTIONS, Delivery
from darkroom.contracts.messages import DeliverCallbacks, JobReport, Nothing
from darkroom.database import callbacks
from darkroom.database.callbacks import Claimed, Settlement
from darkroom.outbound import Host
from darkroom.workflow import callback_hint
from scheduler.posting import Answer, Poster
from scheduler.publishing import fresh_connection
from scheduler.signing import signed_headers

log = logging.getLogger(__name__)

FIRST_WAIT_S = 5
GROWTH = 3
LONGEST_WAIT_S = 8 * 3600
JITTER = 0.2
"""Share of a wait by which it may be longer: a thousand callbacks that failed together do not come back together."""

LONGEST_RETRY_AFTER_S = 86_400
"""A receiver that asks for more is asked again after a day."""

LONGEST_PAUSE_S = 300
"""Of a host that does not answer: how late its callbacks can be after its return."""

TURN_S = 10
"""After this long a host's callbacks go to the end of the queue, behind those of the others."""

LEASE_MARGIN_S = 60
"""Beyond an attempt's time limit: for a resolver that hangs, and for writing down what came of it."""


HEADERS = {"content-type": "application/json", "user-agent": "darkroom"}


@dataclass(frozen=True)
class RetryPolicy:
    """How often a callback is sent."""

    attempts: int

    def settlement(self, claimed: Claimed, answer: Answer, now: datetime, jitter: float) -> Settlement:
        """What follows from an answer; `jitter` in 0..1.

        2xx is success and 410 the end; anything else is tried again, as is silence, which gives the host a pause.
        """
        if answer.status is not None and 200 <= answer.status < 300:
            return Settlement("delivered", answer.status, None)
        error = answer.error or f"the receiver answered {answer.status}"
        if answer.status == 410:
            return Settlement("failed", 410, f"{error}: it wants no more at this URL", is_gone=True)
        if answer.status is not None and 300 <= answer.status < 400:
            error += "; redirects are not followed"
        pause_s = 0
        if answer.status is None:
            pause_s = spread(min(FIRST_WAIT_S * 2**claimed.host_failures, LONGEST_PAUSE_S), jitter)
        wanted_s = retry_after_s(answer.retry_after, now)
        if answer.status in (429, 503) and wanted_s:
            pause_s = min(wanted_s, LONGEST_PAUSE_S)
        if claimed.attempt >= self.attempts:
            return Settlement("failed", answer.status, f"{error}; given up", pause_host_s=pause_s)
        again_in_s = max(wait_s(claimed.attempt, jitter), wanted_s)
        return Settlement("pending", answer.status, error, again_in_s=again_in_s, pause_host_s=pause_s)


def wait_s(attempt: int, jitter: float) -> int:
    """Whole seconds after the failure of an attempt (1 for the first): 5, 15, 45 … up to 8 h, and jitter."""
    return spread(min(FIRST_WAIT_S * GROWTH ** min(attempt - 1, 20), LONGEST_WAIT_S), jitter)


def spread(seconds: float, jitter: float) -> int:
    """That many seconds and a share more by `jitter` in 0..1, whole."""
    return round(seconds * (1 + JITTER * jitter))


def retry_after_s(header: str | None, now: datetime) -> int:
    """The seconds that a `Retry-After` asks for, at most a day; 0 for none and for what cannot be read."""
    if header is None:
        return 0
    if header.isascii() and header.isdigit():
        return min(int(header[:10]), LONGEST_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return 0
    wanted = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    return round(min(max(wanted, 0), LONGEST_RETRY_AFTER_S))


@dataclass(frozen=True)
class Delivering:
    """What the callbacks worker does. Its methods run side by side in threads."""

    engine: Engine
    publisher: Celery
    """An application that is bound to fail fast when the broker hangs."""
    poster: Poster
    keys: Sequence[bytes]
    policy: RetryPolicy
    host_limit: int
    lease_s: float

    def deliver(self, message: DeliverCallbacks, delivery: Delivery) -> Nothing:
        """Sends a host's due callbacks, one after the other, until none is left or its turn is over.

        Calls for help when there are more and the host has shown that it answers.
        """
        host, until_s = Host(message.host), time.monotonic() + TURN_S
        has_helper = False
        while claimed := self._claim(host):
            has_answered = self._send(claimed)
            is_over = time.monotonic() > until_s
            if claimed.has_more and (is_over or (has_answered and not has_helper)):
                self._hint([host])
                has_helper = True
            if is_over:
                break
        return Nothing()

    def hint_at_due(self) -> JobReport:
        """Gives a hint for each host with due callbacks: for those whose hint was lost, and for further attempts."""
        with self.engine.begin() as connection:
            hosts = callbacks.due_hosts(connection)
            counts = callbacks.count_callbacks(connection)
        self._hint(hosts)
        return JobReport(
            summary=f"{counts.pending} waiting, {counts.failing} of them failing, {counts.failed} given up in 30 days"
        )

    def _claim(self, host: Host) -> Claimed | None:
        with self.engine.begin() as connection:
            return callbacks.claim(connection, host, self.host_limit, self.lease_s)

    def _send(self, claimed: Claimed) -> bool:
        body = claimed.body.encode()
        headers = signed_headers(self.keys, claimed.id, int(time.time()), body)
        answer = self.poster.post(claimed.url, body, headers | HEADERS)
        settlement = self.policy.settlement(claimed, answer, datetime.now(UTC), random.random())  # noqa: S311 (jitter)
        with self.engine.begin() as connection:
            callbacks.settle(connection, claimed, settlement)
        log.log(
            logging.INFO if settlement.state == "delivered" else logging.WARNING,
            "callbacks.attempted",
            extra={
                "callback": str(claimed.id),
                "host": claimed.host,
                "attempt": claimed.attempt,
                "state": settlement.state,
                "status": settlement.status,
                "error": settlement.error,
            },
        )
        return answer.status is not None

    def _hint(self, hosts: Sequence[Host]) -> None:
        if not hosts:
            return
        try:
            with fresh_connection(self.publisher) as broker:
                for host in hosts:
                    callback_hint(self.publisher, host).apply_async(connection=broker, **PUBLISH_OPTIONS)
        except (KombuError, RedisError, OSError) as error:
            log.warning("callbacks.no_hint", extra={"error": repr(error)})  # the job gives another
