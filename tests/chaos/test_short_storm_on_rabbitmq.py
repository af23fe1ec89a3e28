"""The short form of the chaos suite on RabbitMQ: every kind of fault once, under 300 uploads."""

import pytest
from run_storm import judged_short_form


@pytest.mark.timeout(1500)
def test_after_a_storm_nothing_is_lost_and_nothing_is_wrong() -> None:
    report = judged_short_form("rabbitmq")
    print(report.as_markdown())
    assert report.verdict.faults == []
