"""The periodic jobs as data. Times are UTC."""

from dataclasses import dataclass

from celery.schedules import BaseSchedule, crontab, schedule

from darkroom.contracts.messages import JobReport, Nothing
from darkroom.contracts.tasks import (
    AUDIT_LEDGER,
    BACK_UP,
    CHECK_BLOBS,
    CLEAN_UP,
    HINT_CALLBACKS,
    RECONCILE,
    REPORT_USAGE,
    TaskContract,
)


@dataclass(frozen=True)
class PeriodicJob:
    """One job, when it is due, and after how many seconds a message that nobody took is worth nothing any more.

    A job that has never run is due at once: that `pg_dump` is missing shows in the first minute, not at midnight.
    """

    contract: TaskContract[Nothing, JobReport]
    when: BaseSchedule
    expires_s: int

    @property
    def name(self) -> str:
        """The name of its row in `periodic_jobs`, such as `back_up`."""
        return job_name(self.contract)


def job_name(contract: TaskContract[Nothing, JobReport]) -> str:
    """What a job is called in `periodic_jobs`."""
    return contract.name.rpartition(".")[2]


RECONCILE_EVERY_S = 5
"""A loss is found after up to four of these and three deadlines: 90 s by default."""
CHECK_BLOBS_EVERY_S = 30
HINT_CALLBACKS_EVERY_S = 15
"""How late a callback can be whose hint was lost, and how exactly its next attempt is on time."""

JOBS: tuple[PeriodicJob, ...] = (
    # Each expires before its next turn comes: after a long stop of the worker one message runs, not a thousand.
    PeriodicJob(RECONCILE, schedule(RECONCILE_EVERY_S), expires_s=RECONCILE_EVERY_S),
    PeriodicJob(CHECK_BLOBS, schedule(CHECK_BLOBS_EVERY_S), expires_s=CHECK_BLOBS_EVERY_S),
    PeriodicJob(HINT_CALLBACKS, schedule(HINT_CALLBACKS_EVERY_S), expires_s=HINT_CALLBACKS_EVERY_S),
    PeriodicJob(CLEAN_UP, crontab(minute="*/30"), expires_s=1800),
    PeriodicJob(BACK_UP, crontab(hour="0", minute="0"), expires_s=43_200),
    PeriodicJob(REPORT_USAGE, crontab(day_of_week="mon", hour="7", minute="30"), expires_s=86_400),
    PeriodicJob(AUDIT_LEDGER, crontab(hour="3", minute="20"), expires_s=43_200),
)
