"""`docs/metrics.md`, the alarms and the code name the same metrics."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from darkroom.telemetry import metrics
from scheduler.schedule import JOBS

ROOT = Path(__file__).parents[2]
PROCESSES = {"gateway": metrics.GATEWAY, "workers": metrics.WORKER, "beat": metrics.BEAT}
UNITS = ("_seconds", "_bytes", "_total")
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"][0]["rules"]


def declared() -> list[MetricWrapperBase]:
    return [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]


def families(registry: CollectorRegistry) -> Iterator[tuple[str, str, str]]:
    """Name as it is scraped, type and meaning of each metric of a registry."""
    for family in registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        yield family.name + suffix, family.type, family.documentation


def rows() -> list[tuple[str, ...]]:
    lines = (ROOT / "docs/metrics.md").read_text().splitlines()
    return [
        tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| `darkroom_")
    ]


def test_every_metric_is_documented_as_it_is_declared_and_no_other() -> None:
    labels = {next(iter(each.describe())).name: each._labelnames for each in declared()}
    expected = [
        (f"`{name}`", kind, ", ".join(labels[name.removesuffix("_total")]) or "none", meaning)
        for registry in PROCESSES.values()
        for name, kind, meaning in families(registry)
    ]
    assert len(expected) > 30
    assert rows() == expected


def test_every_metric_is_in_the_registry_of_one_kind_of_process() -> None:
    registered = [name for registry in PROCESSES.values() for name, _, _ in families(registry)]
    assert len(registered) == len(set(registered)) == len(declared())


@pytest.mark.parametrize("metric", declared(), ids=lambda metric: str(metric._name))
def test_a_metrics_name_says_its_unit_as_prometheus_asks(metric: MetricWrapperBase) -> None:
    [family] = metric.describe()
    assert re.fullmatch(r"darkroom_[a-z_]+", family.name)
    assert family.documentation.endswith(".")
    assert not any(unit in family.name for unit in ("_ms", "_millis", "_kb", "_percent"))
    if "timestamp" in family.name:
        assert family.name.endswith("_timestamp_seconds")
    if family.type == "histogram":
        assert family.name.endswith((*UNITS, "_size"))
    assert not set(metric._labelnames) & {"job", "instance", "service", "le"}, "Prometheus has labels of these names"


def test_the_alarms_know_the_metrics_and_their_labels() -> None:
    known = {next(iter(each.describe())).name: set(each._labelnames) for each in declared()}
    for alert in ALERTS:
        assert set(alert["annotations"]) == {"summary", "description"}
        used = re.findall(r"(darkroom_\w+)(?:\{([^}]*)\})?", alert["expr"])
        assert used or "up{" in alert["expr"]
        for name, matchers in used:
            family = re.sub(r"_(total|count|sum|bucket)$", "", name)
            assert family in known, f"{alert['alert']}: {name}"
            assert set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\"", matchers)) <= known[family], alert["alert"]


def test_a_periodic_job_that_does_not_run_raises_an_alarm() -> None:
    [alert] = [alert for alert in ALERTS if alert["alert"] == "DarkroomJobNotRun"]
    watched = "|".join(re.findall(r'periodic_job=~?"([^"]+)"', alert["expr"])).split("|")
    assert sorted(watched) == sorted(job.name for job in JOBS)


def test_prometheus_scrapes_every_service_of_the_compose_file() -> None:
    configuration = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    scraped = {name for job in configuration["scrape_configs"] for name in job["dns_sd_configs"][0]["names"]}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ours = {name for name, service in services.items() if "darkroom-" in service.get("image", "")}
    once = {name for name in ours if services[name].get("restart") == "on-failure"}
    assert ours - once <= scraped
    for job in configuration["scrape_configs"]:
        assert job["relabel_configs"] == [{"target_label": "service", "replacement": job["job_name"]}]
