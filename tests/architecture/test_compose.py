"""docker-compose.yml and the images say what the code says, and keep what they promise."""

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import embedder.worker
import scheduler.worker
import thumbnailer.worker
from darkroom.contracts.base import Lane
from darkroom.settings import LimitSettings, TaskSettings
from darkroom.topology import CONSUMED_BY, Node, queues_of
from darkroom.worker import WorkerOptions, add_worker_arguments, with_arguments
from scheduler.provisioning import SECRETS, files
from scheduler.settings import CallbackSettings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("darkroom-")}
ONE_SHOTS = {"provision", "topology", "migrate"}
TASKS = TaskSettings(task_soft_limit_s=25, task_hard_limit_s=30)
IN_CODE = {
    "thumbnailer": thumbnailer.worker.options(Lane.INTERACTIVE, 2, TASKS),
    "thumbnailer-bulk": thumbnailer.worker.options(Lane.BULK, 2, TASKS),
    "embedder": embedder.worker.options(TASKS),
    "embedder-gpu": embedder.worker.options(TASKS),
    "finalize": scheduler.worker.finalize_options(0, TASKS),
    "maintenance": scheduler.worker.maintenance_options(),
    "callbacks": scheduler.worker.callback_options(0, CallbackSettings(webhook_secret="whsec_")),
}
"""The services that are workers, and what their code would run with by itself in a container of two cores."""

FILES = files(dict.fromkeys(SECRETS, "x"), b"salt")


def shown(service: str) -> argparse.Namespace:
    """What a worker's command shows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("process", nargs="?")
    parser.add_argument("--lane")
    add_worker_arguments(parser)
    return parser.parse_args(SERVICES[service]["command"])


def seconds(duration: str) -> int:
    match = re.fullmatch(r"(\d+)([sm])", duration)
    assert match, duration
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def test_every_queue_is_consumed_by_a_service() -> None:
    consumed = [queue for name in IN_CODE.keys() - {"embedder-gpu"} for queue in shown(name).queues.split(",")]
    assert sorted(consumed) == sorted(CONSUMED_BY)
    assert {options.node for options in IN_CODE.values()} == set(Node)


@pytest.mark.parametrize("service", IN_CODE)
def test_a_worker_runs_as_its_code_would(service: str) -> None:
    options: WorkerOptions = IN_CODE[service]
    given = shown(service)
    assert with_arguments(options, given) == options
    assert (given.queues, given.pool) == (",".join(queues_of(options.node)), options.pool)
    assert given.lane == {"thumbnailer": "interactive", "thumbnailer-bulk": "bulk"}.get(service)


@pytest.mark.parametrize("service", IN_CODE)
def test_a_workers_command_shows_what_decides_how_it_takes_work(service: str) -> None:
    given = shown(service)
    assert given.optimization == "fair"
    for name in ("concurrency", "prefetch_multiplier", "max_tasks_per_child", "max_memory_per_child_kib"):
        assert getattr(given, name) == getattr(IN_CODE[service], name)


@pytest.mark.parametrize("service", IN_CODE)
def test_a_container_is_given_longer_to_end_than_its_longest_task(service: str) -> None:
    options = IN_CODE[service]
    longest = options.time_limit_s or options.watchdog_s
    assert longest is not None
    assert seconds(SERVICES[service]["stop_grace_period"]) > longest


@pytest.mark.parametrize("service", ["thumbnailer", "thumbnailer-bulk"])
def test_a_container_that_decodes_has_room_for_every_slot_at_its_ceiling(service: str) -> None:
    memory = SERVICES[service]["deploy"]["resources"]["limits"]["memory"]
    limits = LimitSettings()
    slot = limits.decode_memory_bytes + limits.max_upload_bytes + 100 * 2**20  # and 100 MiB of its own
    assert memory.endswith("g")
    assert IN_CODE[service].concurrency * slot < int(memory[:-1]) * 2**30


def test_beat_has_a_standby() -> None:
    assert SERVICES["beat"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("service", ["thumbnailer", "thumbnailer-bulk", "embedder", "embedder-gpu"])
def test_those_who_open_pictures_have_no_way_to_the_database(service: str) -> None:
    assert not set(SERVICES[service]["networks"]) & set(SERVICES["postgres"]["networks"])
    assert f"{service}/DARKROOM_DATABASE_URL" not in FILES


def test_those_who_decode_what_users_sent_have_no_way_out() -> None:
    for service in ("thumbnailer", "thumbnailer-bulk"):
        assert all(COMPOSE["networks"][network].get("internal") for network in SERVICES[service]["networks"])


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_given_its_own_secrets_only(service: str) -> None:
    volumes = [volume for volume in SERVICES[service].get("volumes", []) if volume.startswith("secrets")]
    if service == "provision":
        provided = {volume.split(":")[1] for volume in volumes}
        assert provided == {"/secrets/provision"} | {f"/secrets/{path.partition('/')[0]}" for path in FILES}
        return
    user = {"thumbnailer-bulk": "thumbnailer", "embedder-gpu": "embedder"} | dict.fromkeys(
        ("finalize", "maintenance", "beat", "migrate"), "scheduler"
    )
    own = f"secrets-{user.get(service, service)}:/run/secrets:ro"
    assert volumes == ([own] if own.split(":")[0] in COMPOSE["volumes"] else [])


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_is_in_the_file(service: str) -> None:
    environment = SERVICES[service].get("environment", {})
    telling = {name for name in environment if re.search("PASSWORD|SECRET|KEY|TOKEN|_URL", name)}
    assert telling <= {"DARKROOM_SECRETS_DIR", "POSTGRES_PASSWORD_FILE"}


def test_ports_are_on_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("service", OURS)
def test_a_container_of_ours_may_as_little_as_possible(service: str) -> None:
    ours = OURS[service]
    assert ours["read_only"] and ours["cap_drop"] == ["ALL"]
    assert ours["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in ours and "cap_add" not in ours
    assert service == "provision" or "user" not in ours


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_limits_comes_back_and_keeps_its_log_small(service: str) -> None:
    described = SERVICES[service]
    assert set(described["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert described["restart"] == ("on-failure" if service in ONE_SHOTS else "unless-stopped")
    assert described["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("service", ["gateway", "thumbnailer", "embedder", "scheduler"])
def test_an_image_holds_its_service_alone_and_asks_its_process(service: str) -> None:
    text = (ROOT / "services" / service / "Dockerfile").read_text()
    others = {"gateway", "thumbnailer", "embedder", "scheduler"} - {service}
    assert not [other for other in others if f"services/{other}" in text]
    assert ("torch" in text) == (service == "embedder")
    assert "\nUSER darkroom\n" in text
    assert ("/readyz" if service == "gateway" else "DARKROOM_HEARTBEAT_FILE") in text.partition("HEALTHCHECK")[2]
    entry = text.rstrip().rpartition("ENTRYPOINT ")[2]
    assert shlex.split(entry.strip("[]")) == [f"darkroom-{service}"]
    assert text.rindex("COPY --from=build") < text.rindex("install --no-cache-dir --no-deps"), "our source comes last"
