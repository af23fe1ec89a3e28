"""Each service from `./shared` and its own folder alone, in a clean environment: what is there, and that it runs."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

import pytest
from conftest import eventually
from kombu import Connection

from darkroom.celery_app import declare_topology
from darkroom_cli.servers import ChildProcess, reserve_port

ROOT = Path(__file__).parents[2]
SERVICES = ("gateway", "thumbnailer", "embedder", "scheduler")
COMMANDS = {
    "gateway": ["darkroom-gateway"],
    "thumbnailer": ["darkroom-thumbnailer"],
    "embedder": ["darkroom-embedder"],
    "scheduler": ["darkroom-scheduler", "finalize"],
}

PROBE = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))
"""


@pytest.fixture(scope="module", params=SERVICES)
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A service's name and the `bin` folder of an environment made for it alone."""
    service = str(request.param)
    folder = tmp_path_factory.mktemp(service)
    venv.create(folder)
    # Our own pip, and no bytecode of what nobody imports: both would take longer than all the rest.
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, ROOT / "shared", ROOT / "services" / service], check=True)
    return service, folder / "bin"


@pytest.mark.timeout(600)
def test_a_service_has_what_it_needs_and_nothing_of_the_others(environment: tuple[str, Path]) -> None:
    service, binaries = environment
    candidates = [*SERVICES, "darkroom", "torch", "transformers", "sqlalchemy", "psycopg", "PIL", "fastapi"]
    expected = {
        "gateway": {"gateway", "darkroom", "sqlalchemy", "psycopg", "fastapi"},
        "thumbnailer": {"thumbnailer", "darkroom", "PIL"},
        "embedder": {"embedder", "darkroom", "torch", "transformers", "PIL"},
        "scheduler": {"scheduler", "darkroom", "sqlalchemy", "psycopg"},
    }
    probe = [binaries / "python", "-I", "-c", PROBE, *candidates]
    found = subprocess.run(probe, capture_output=True, text=True, check=True)
    assert set(json.loads(found.stdout)) == expected[service]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
def test_a_service_starts_its_entry_point(
    environment: tuple[str, Path],
    service_env: dict[str, str],
    broker_url: str,
    tmp_path: Path,
) -> None:
    service, binaries = environment
    command, *arguments = COMMANDS[service]
    heartbeat, port = tmp_path / "heartbeat", reserve_port()
    with Connection(broker_url) as connection:
        declare_topology(connection)
    env = service_env | {
        "DARKROOM_HEARTBEAT_FILE": str(heartbeat),
        "DARKROOM_HTTP_PORT": str(port),
        "PYTHONSAFEPATH": "1",
    }
    if service in ("thumbnailer", "embedder"):
        del env["DARKROOM_DATABASE_URL"]
    child = ChildProcess([str(binaries / command), *arguments], log=tmp_path / "log", env=env, grace_s=40)
    child.start()
    try:

        def is_up() -> bool:
            """the service serves"""
            assert child.is_running, (tmp_path / "log").read_text()
            return heartbeat.exists() if service != "gateway" else _answers(port)

        eventually(is_up, within_s=90)
    finally:
        child.stop()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
