"""How much of each lane the finalize worker holds."""

from dataclasses import replace

import pytest

from darkroom.settings import TaskSettings
from darkroom.topology import Node, queues_of
from scheduler.worker import finalize_options, finalize_windows


@pytest.mark.parametrize(("threads", "of_bulk"), [(1, 1), (2, 1), (4, 2), (9, 4)])
def test_bulk_never_holds_more_than_half_of_the_threads(threads: int, of_bulk: int) -> None:
    options = replace(finalize_options(threads, TaskSettings()), prefetch_multiplier=4)
    assert finalize_windows(options) == {"finalize": 4 * threads, "finalize.bulk": of_bulk}


def test_every_queue_of_the_worker_has_a_window() -> None:
    assert set(finalize_windows(finalize_options(0, TaskSettings()))) == set(queues_of(Node.FINALIZE))
