"""The README's first command, as a stranger runs it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from darkroom_cli.samples import SAMPLES
from darkroom_cli.servers import release_port, reserve_port

DARKROOM = Path(sys.executable).with_name("darkroom")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker", ["embedded", "rabbitmq"])
def test_the_demo_takes_every_sample_through_finds_them_and_leaves_nothing_behind(broker: str):
    port = reserve_port()
    # Not tmp_path: the paths of PostgreSQL's sockets are short.
    with tempfile.TemporaryDirectory(prefix="dr-") as folder:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "COLUMNS"))
        }
        done = subprocess.run(
            [
                DARKROOM,
                "demo",
                "--exit",
                "--broker",
                broker,
                "--http-port",
                str(port),
                "--grpc-port",
                str(reserve_port()),
            ],
            capture_output=True,
            text=True,
            env=environment | {"TMPDIR": folder, "HF_HUB_OFFLINE": "1"},
        )
        left = list(Path(folder).glob("darkroom-*"))
        assert done.returncode == 0, done.stdout + done.stderr + "".join(_ends_of_logs(Path(folder)))
        assert left == []
    release_port(port)
    assert f"ready: http://127.0.0.1:{port}" in done.stdout.splitlines()
    assert "every sample is ready and found" in done.stdout
    for sample in SAMPLES:
        assert sample.filename in done.stdout


def _ends_of_logs(folder: Path) -> list[str]:
    return [f"\n--- {log.name}\n{log.read_text()[-1000:]}" for log in sorted(folder.glob("*/logs/*.log"))]
