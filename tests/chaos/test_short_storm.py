"""The short form of the chaos suite: on each broker every kind of fault once, under 300 uploads."""

import tempfile
from pathlib import Path

import pytest
from run_storm import BROKERS, short_form, weather


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("broker", BROKERS)
def test_after_a_storm_nothing_is_lost_and_nothing_is_wrong(broker: str) -> None:
    # Not in pytest's own folder: the path of a socket in it would be too long.
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as folder:
        report = weather(short_form(broker), Path(folder))
    print(report.as_markdown())
    assert report.verdict.faults == []
