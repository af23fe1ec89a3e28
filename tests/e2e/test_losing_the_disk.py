"""A Darkroom lost with its disk: its backup and its blobs make another one, in which every photo is found."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from darkroom_cli.client import Darkroom
from darkroom_cli.samples import SAMPLES, write_samples
from darkroom_cli.servers import release_port, reserve_port

DARKROOM = Path(sys.executable).with_name("darkroom")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, as PostgreSQL's sockets want it."""
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def up(folder: Path) -> Iterator[Callable[[Path], tuple[subprocess.Popen[str], str]]]:
    """Starts `darkroom up` on a data folder; the process and its URL."""
    started: list[subprocess.Popen[str]] = []
    ports: list[int] = []

    def start(data_dir: Path) -> tuple[subprocess.Popen[str], str]:
        ports.extend([reserve_port(), reserve_port()])
        options = ["--http-port", str(ports[-2]), "--grpc-port", str(ports[-1]), "--workers", "1"]
        with (folder / "up.log").open("a") as log:
            process = subprocess.Popen(
                [DARKROOM, "up", "--data-dir", data_dir, *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=ENVIRONMENT,
            )
        started.append(process)
        assert process.stdout is not None
        url = f"http://127.0.0.1:{ports[-2]}"
        assert process.stdout.readline() == f"ready: {url}\n", (folder / "up.log").read_text()
        return process, url

    yield start
    for process in started:
        process.terminate()
        process.communicate()
    for port in ports:
        release_port(port)


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)


def darkroom(*arguments: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([DARKROOM, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT)


@pytest.mark.timeout(600)
def test_another_darkroom_goes_on_from_the_backup_and_the_blobs(
    folder: Path, up: Callable[[Path], tuple[subprocess.Popen[str], str]]
) -> None:
    paths = write_samples(folder / "samples", SAMPLES[9:12])
    old, new = folder / "old", folder / "new"
    process, url = up(old)
    with Darkroom(url) as client:
        uploaded = client.upload(paths)
        client.wait([uploaded["batch"]["id"]], timeout_s=120)
        before = {image["id"]: client.image(image["id"]) for image in uploaded["images"]}
    made = darkroom("backup", "--data-dir", old)
    assert made.returncode == 0, made.stderr
    assert darkroom("restore", "--data-dir", old).returncode == 1  # it runs
    stop(process)
    shutil.rmtree(old / "postgres")
    shutil.rmtree(next((old / "blobs" / "derived").iterdir()))  # one photo's pictures did not survive either

    restored = darkroom("restore", "--blobs-from", old / "blobs", "--data-dir", new)

    assert restored.returncode == 0, restored.stderr
    assert "3 photos" in restored.stderr
    _, url = up(new)
    with Darkroom(url) as client:
        assert client.ledger() == {"accepted": 3, "ready": 3, "failed": 0, "deleted": 0, "in_flight": 0}
        [hit] = client.search("a green square", limit=1)["results"]
        assert hit["image"]["id"] == uploaded["images"][0]["id"]
        for image_id, image in before.items():
            assert client.image(image_id) | {"tasks": image["tasks"]} == image  # a rebuilt one has newer tasks
            for size in ("small", "medium", "large"):
                picture = client.thumbnail(image_id, size)  # asks again while one is being made
                assert len(picture.data) == image["thumbnails"][size]["bytes"]
