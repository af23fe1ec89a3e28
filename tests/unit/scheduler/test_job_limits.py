"""How long a periodic job may take."""

import pytest

from darkroom.settings import BrokerSettings, TaskSettings
from scheduler.schedule import JOBS, PeriodicJob
from scheduler.tasks import RECONCILE_LIMIT_S
from scheduler.worker import JOB_LIMIT_S, JOB_SOFT_LIMIT_S, create_maintenance

BROKER = BrokerSettings(broker_url="redis://nowhere", result_url="redis://nowhere")


@pytest.mark.parametrize("job", [job for job in JOBS if job.contract.queue == "maintenance"], ids=lambda job: job.name)
def test_a_job_has_its_own_limits_and_not_those_of_a_photo(job: PeriodicJob) -> None:
    task = create_maintenance(BROKER, TaskSettings()).tasks[job.contract.name]
    expected = (
        (RECONCILE_LIMIT_S - 5, RECONCILE_LIMIT_S) if job.name == "reconcile" else (JOB_SOFT_LIMIT_S, JOB_LIMIT_S)
    )
    assert (task.soft_time_limit, task.time_limit) == expected
