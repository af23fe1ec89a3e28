"""Where a process serves its metrics, and what is in them besides its own."""

import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from darkroom.errors import ConfigurationError
from darkroom.settings import MetricsSettings
from darkroom.telemetry import exposition


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("darkroom_test_total", "A test.", registry=registry).inc(3)
    return registry


def test_without_a_port_nothing_is_served(registry: CollectorRegistry) -> None:
    assert exposition.serve(registry, MetricsSettings(metrics_port=None)) is None


def test_any_free_port_is_served_on_loopback(registry: CollectorRegistry) -> None:
    port = exposition.serve(registry, MetricsSettings(metrics_port=0))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert [sample.value for sample in families["darkroom_test"].samples] == [3]
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "python_info"} <= set(families)


def test_a_port_in_use_is_a_wrong_setting_that_says_so(registry: CollectorRegistry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 .*DARKROOM_METRICS_PORT of its own"):
            exposition.serve(registry, MetricsSettings(metrics_port=port))


def test_the_gateway_renders_the_same(registry: CollectorRegistry) -> None:
    text = exposition.render(registry).decode()
    assert "darkroom_test_total 3.0\n" in text
    assert "_created" not in text
