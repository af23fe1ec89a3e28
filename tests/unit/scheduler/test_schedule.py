"""When the periodic jobs are due."""

from copy import copy
from datetime import UTC, datetime, timedelta

import pytest

from darkroom.contracts.tasks import ALL
from darkroom.topology import CONSUMED_BY
from scheduler.schedule import JOBS, PeriodicJob
from scheduler.worker import maintenance_options

BY_NAME = {job.name: job for job in JOBS}


def is_due(job: PeriodicJob, last: datetime, now: datetime) -> bool:
    when = copy(job.when)  # the jobs are the whole process's: their clock must go on
    when.nowfun = lambda: now
    return bool(when.is_due(last).is_due)


@pytest.mark.parametrize(
    ("name", "last", "now", "expected"),
    [
        ("reconcile", "2026-05-04 12:00:00", "2026-05-04 12:00:04", False),
        ("reconcile", "2026-05-04 12:00:00", "2026-05-04 12:00:05", True),
        ("hint_callbacks", "2026-05-04 12:00:00", "2026-05-04 12:00:14", False),
        ("hint_callbacks", "2026-05-04 12:00:00", "2026-05-04 12:00:15", True),
        ("clean_up", "2026-05-04 12:00:01", "2026-05-04 12:29:59", False),
        ("clean_up", "2026-05-04 12:00:01", "2026-05-04 12:30:00", True),
        ("back_up", "2026-05-04 00:00:01", "2026-05-04 23:59:59", False),
        ("back_up", "2026-05-04 00:00:01", "2026-05-05 00:00:00", True),
        ("back_up", "2026-05-01 00:00:01", "2026-05-04 09:13:00", True),  # the machine was off at midnight
        ("report_usage", "2026-05-04 07:30:01", "2026-05-11 07:29:59", False),
        ("report_usage", "2026-05-04 07:30:01", "2026-05-11 07:30:00", True),  # Mondays
        ("audit_ledger", "2026-05-04 03:20:01", "2026-05-05 03:19:59", False),
        ("audit_ledger", "2026-05-04 03:20:01", "2026-05-05 03:20:00", True),
        ("back_up", "2000-01-01 00:00:00", "2026-05-04 09:13:00", True),  # never run
    ],
)
def test_a_job_is_due_at_its_time_in_utc(name: str, last: str, now: str, expected: bool) -> None:
    moments = [datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in (last, now)]
    assert is_due(BY_NAME[name], *moments) is expected


def test_every_job_has_a_contract_and_a_queue() -> None:
    assert all(job.contract in ALL and job.contract.queue in CONSUMED_BY for job in JOBS)
    assert len(BY_NAME) == len(JOBS)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("reconcile", "2026-05-04 12:00:00"),
        ("hint_callbacks", "2026-05-04 12:00:00"),
        ("clean_up", "2026-05-04 12:30:00"),
        ("back_up", "2026-05-04 00:00:00"),
        ("report_usage", "2026-05-04 07:30:00"),
        ("audit_ledger", "2026-05-04 03:20:00"),
    ],
)
def test_a_message_expires_before_its_job_is_due_again(name: str, sent: str) -> None:
    """Otherwise they would pile up while the worker is stopped."""
    moment, job = datetime.fromisoformat(sent).replace(tzinfo=UTC), BY_NAME[name]
    assert not is_due(job, moment, moment + timedelta(seconds=job.expires_s - 1))


def test_the_reconciler_has_a_slot_whatever_else_runs() -> None:
    assert maintenance_options().concurrency >= sum(job.contract.queue == "maintenance" for job in JOBS)
