"""What the local mode would start, and with which environment."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from darkroom import topology
from darkroom_cli.local import (
    SERVICES,
    Endpoints,
    LocalOptions,
    is_url,
    scrape_targets,
    service_environment,
    shell_environment,
    webhook_secret,
    without_password,
)
from scheduler.signing import read_keys

ENDPOINTS = Endpoints(
    "postgresql+psycopg://darkroom@/darkroom?host=/tmp/s",
    "redis://:p@127.0.0.1:1/0",
    "amqp://b",
    "file:///b",
    Path("/pg"),
    "whsec_b3Vycw==",
)
OPTIONS = LocalOptions(Path("data"), http_port=8123, grpc_port=8124, workers=3)


def environment_of(name: str, inherited: dict[str, str] | None = None) -> dict[str, str]:
    service = next(service for service in SERVICES if service.name == name)
    return service_environment(service, OPTIONS, ENDPOINTS, inherited or {})


def test_every_declared_queue_has_a_worker():
    workers = {service.name for service in SERVICES if service.is_worker}
    assert {node.value for node in topology.CONSUMED_BY.values()} == workers


@pytest.mark.parametrize("name", ["thumbnailer", "thumbnailer-bulk", "embedder"])
def test_a_worker_that_sees_photos_cannot_reach_the_database(name):
    inherited = {"DARKROOM_DATABASE_URL": "postgresql://theirs", "DARKROOM_DATABASE_POOL_SIZE": "3"}
    environment = environment_of(name, inherited)
    assert "DARKROOM_DATABASE_URL" not in environment
    assert "postgresql" not in " ".join(environment.values())


@pytest.mark.parametrize("name", ["gateway", "finalize", "maintenance", "callbacks", "beat"])
def test_the_others_have_the_local_database(name):
    environment = environment_of(name, {"DARKROOM_DATABASE_URL": "postgresql://theirs"})
    assert environment["DARKROOM_DATABASE_URL"] == ENDPOINTS.database_url
    assert environment["DARKROOM_PG_BIN_DIR"] == "/pg"


def test_what_the_user_has_set_is_passed_on_but_never_leads_elsewhere():
    inherited = {"DARKROOM_MODEL": "/models/clip", "DARKROOM_BROKER_URL": "amqp://theirs", "HOME": "/home/me"}
    environment = environment_of("embedder", inherited)
    assert environment["DARKROOM_MODEL"] == "/models/clip"
    assert environment["HOME"] == "/home/me"
    assert environment["DARKROOM_BROKER_URL"] == "amqp://b"


def test_the_port_and_the_slots_are_as_asked_for():
    assert environment_of("gateway")["DARKROOM_HTTP_PORT"] == "8123"
    assert environment_of("gateway")["DARKROOM_HTTP_HOST"] == "127.0.0.1"
    assert environment_of("gateway")["DARKROOM_GRPC_PORT"] == "8124"
    assert environment_of("gateway")["DARKROOM_GRPC_HOST"] == "127.0.0.1"
    assert environment_of("thumbnailer-bulk")["DARKROOM_WORKER_CONCURRENCY"] == "3"
    assert "DARKROOM_WORKER_CONCURRENCY" not in environment_of("finalize")


def test_spans_go_to_the_gateway_which_keeps_them():
    for service in SERVICES:
        assert environment_of(service.name)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:8123/otlp"
    assert environment_of("gateway")["DARKROOM_TRACE_STORE_ENABLED"] == "true"
    assert "DARKROOM_TRACE_STORE_ENABLED" not in environment_of("thumbnailer")


@pytest.mark.parametrize(
    "decided",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4318"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://jaeger:4318/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SDK_DISABLED": "true"},
    ],
)
def test_whoever_has_decided_where_spans_go_is_left_alone(decided):
    environment = environment_of("gateway", decided)
    assert {name: value for name, value in environment.items() if name.startswith("OTEL_")} == decided
    assert "DARKROOM_TRACE_STORE_ENABLED" not in environment


def test_a_store_can_be_switched_off_alone():
    assert (
        environment_of("gateway", {"DARKROOM_TRACE_STORE_ENABLED": "false"})["DARKROOM_TRACE_STORE_ENABLED"] == "false"
    )


def test_the_gateway_ends_after_those_that_send_it_spans():
    assert [service.name for service in SERVICES if service.is_needed_to_the_end] == ["gateway"]


def test_only_the_callbacks_worker_gets_the_secret_and_the_users_own_goes_first():
    inherited = {"DARKROOM_WEBHOOK_SECRET": "whsec_dGhlaXJz"}
    for service in SERVICES:
        is_told = service.name == "callbacks"
        found = environment_of(service.name).get("DARKROOM_WEBHOOK_SECRET")
        assert found == (ENDPOINTS.webhook_secret if is_told else None)
        assert environment_of(service.name, inherited).get("DARKROOM_WEBHOOK_SECRET") == (
            "whsec_dGhlaXJz" if is_told else None
        )


def test_a_secret_is_made_once_and_is_ours_alone(tmp_path):
    secret = webhook_secret(tmp_path)
    assert webhook_secret(tmp_path) == secret
    assert webhook_secret(tmp_path / "other") != secret
    assert (tmp_path / "webhook-secret").stat().st_mode & 0o777 == 0o600
    assert len(read_keys(secret)[0]) == 32


def test_every_process_has_a_heartbeat_of_its_own():
    files = {environment_of(service.name)["DARKROOM_HEARTBEAT_FILE"] for service in SERVICES}
    assert len(files) == len(SERVICES)
    assert all(Path(file).is_absolute() for file in files)


def test_a_shell_reads_the_addresses_back_as_they_are():
    endpoints = replace(ENDPOINTS, broker_url="amqp://u:it's $1@b")
    lines = shell_environment(endpoints) + 'printf "%s\\n" "$DARKROOM_BROKER_URL" "$DARKROOM_RESULT_URL"'
    said = subprocess.run(["sh", "-c", lines], capture_output=True, text=True, check=True, env={})
    assert said.stdout.splitlines() == [endpoints.broker_url, endpoints.result_url]


def test_prometheus_is_told_where_every_service_answers():
    targets = json.loads(scrape_targets(OPTIONS, {"beat": 20_001}))
    assert targets == [
        {"targets": ["127.0.0.1:8123"], "labels": {"service": "gateway"}},
        {"targets": ["127.0.0.1:20001"], "labels": {"service": "beat"}},
    ]


@pytest.mark.parametrize(
    ("broker", "expected"),
    [("amqp://u:p@h:5672//", True), ("amqps://h", True), ("redis://h", True), ("kafka://h", False), ("rabbit", False)],
)
def test_a_broker_is_known_by_its_scheme(broker, expected):
    assert is_url(broker) is expected


def test_a_password_is_never_shown():
    assert without_password("amqp://darkroom:s3cret@host:5672//") == "amqp://darkroom:***@host:5672//"
    assert without_password("amqp://host:5672//") == "amqp://host:5672//"
