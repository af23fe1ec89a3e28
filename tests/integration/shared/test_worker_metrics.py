"""A worker's and beat's metrics are there when their servers are not."""

import urllib.request
from collections.abc import Callable

import pytest
from conftest import eventually
from prometheus_client.parser import text_string_to_metric_families

from darkroom_cli.servers import ChildProcess, release_port, reserve_port

pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


@pytest.mark.parametrize(
    ("command", "gauge"), [("finalize", "darkroom_worker_connected"), ("beat", "darkroom_beat_leading")]
)
def test_they_answer_with_broker_and_database_away(
    spawn: Callable[..., ChildProcess], command: str, gauge: str
) -> None:
    nobody, port = reserve_port(), reserve_port()
    spawn(
        "darkroom-scheduler",
        command,
        DARKROOM_METRICS_PORT=str(port),
        DARKROOM_BROKER_URL=f"redis://127.0.0.1:{nobody}/0",
        DARKROOM_DATABASE_URL=f"postgresql+psycopg://x@127.0.0.1:{nobody}/x",
    )

    def scraped() -> dict[str, float]:
        """it answers"""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                families = text_string_to_metric_families(answer.read().decode())
                return {sample.name: sample.value for family in families for sample in family.samples}
        except OSError:
            return {}

    found = eventually(scraped, within_s=60)
    assert found[gauge] == 0
    # Counted in hundredths: a process that has just started may have used none, and its answers will.
    eventually(lambda: scraped().get("process_cpu_seconds_total", 0) > 0)
    for reserved in (nobody, port):
        release_port(reserved)
