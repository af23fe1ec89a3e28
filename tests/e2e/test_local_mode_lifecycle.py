"""`darkroom up`: what it leaves when it is stopped or killed, and what it finds when it is started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import psutil
import pytest
from conftest import eventually
from safetensors.torch import load_file, save_file

from darkroom_cli.client import Darkroom
from darkroom_cli.samples import SAMPLES, write_samples
from darkroom_cli.servers import release_port, reserve_port

DARKROOM = Path(sys.executable).with_name("darkroom")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, as PostgreSQL's sockets want it."""
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def port() -> Iterator[int]:
    reserved = reserve_port()
    yield reserved
    release_port(reserved)


@pytest.fixture
def start_up(folder: Path, port: int) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `darkroom up` on the test's folder and port; returns when it says that it is ready."""
    started: list[subprocess.Popen[str]] = []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}

    def start(**settings: str) -> subprocess.Popen[str]:
        command = [
            DARKROOM,
            "up",
            "--data-dir",
            folder / "data",
            "--http-port",
            str(port),
            "--grpc-port",
            str(reserve_port()),
            "--workers",
            "1",
        ]
        with (folder / "up.log").open("a") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment | settings
            )
        started.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == f"ready: http://127.0.0.1:{port}\n", (folder / "up.log").read_text()
        return process

    yield start
    for process in started:
        process.terminate()
        process.communicate()


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # since a moment
        return True


def is_nursery(process: psutil.Process) -> bool:
    try:
        return "forking.py" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a session of PostgreSQL that was just ending
        return False


@pytest.mark.timeout(600)
def test_stopped_or_killed_it_leaves_no_process_and_started_again_it_has_everything(folder, port, start_up):
    [path] = write_samples(folder / "samples", SAMPLES[9:10])
    first = start_up()
    with Darkroom(f"http://127.0.0.1:{port}") as client:
        uploaded = client.upload([path])
        client.wait([uploaded["batch"]["id"]], timeout_s=120)
    pids = descendants(first.pid)
    # Ten processes, the guard, the nurseries, and the pools and sessions below them.
    assert len(pids) > 10

    first.send_signal(signal.SIGTERM)

    first.communicate(timeout=120)
    assert first.returncode == 0
    assert [process for process in pids if not is_gone(process)] == []
    assert not (folder / "data" / "processes.json").exists()

    second = start_up()
    with Darkroom(f"http://127.0.0.1:{port}") as client:
        assert client.ledger() == {"accepted": 1, "ready": 1, "failed": 0, "deleted": 0, "in_flight": 0}
        [hit] = client.search("a green square")["results"]
        assert hit["image"]["id"] == uploaded["images"][0]["id"]
        assert client.thumbnail(hit["image"]["id"], "large").media_type == "image/webp"
    pids = descendants(second.pid)

    second.kill()

    eventually(lambda: all(is_gone(process) for process in pids), within_s=60)


@pytest.mark.timeout(600)
def test_killed_services_and_nurseries_are_started_again_and_no_photo_is_lost(folder, port, start_up):
    paths = write_samples(folder / "samples", [sample for sample in SAMPLES if sample.size[0] <= 800])
    up = start_up()
    nurseries = [process for process in descendants(up.pid) if is_nursery(process)]
    assert len(nurseries) == 3
    with Darkroom(f"http://127.0.0.1:{port}") as client:
        uploaded = client.upload(paths, lane="bulk")
        for nursery in nurseries:
            nursery.kill()
        state = json.loads((folder / "data" / "processes.json").read_text())["processes"]
        for name in ("gateway", "thumbnailer-bulk"):
            os.kill(state[name]["pid"], signal.SIGKILL)
        batch = client.wait([uploaded["batch"]["id"]], timeout_s=300)[uploaded["batch"]["id"]]
        assert batch["ready"] == len(paths)
        ledger = client.ledger()
    assert ledger["accepted"] == ledger["ready"] == len(paths)
    state = json.loads((folder / "data" / "processes.json").read_text())["processes"]
    assert state["gateway"]["restarts"] >= 1
    assert state["thumbnailer-bulk"]["restarts"] >= 1
    assert "gateway ended; starts again in 1 s" in (folder / "up.log").read_text()


def another_model(folder: Path) -> Path:
    """The bundled model with other weights by a hair: it finds the same, and is another model."""
    shutil.copytree(files("embedder") / "models" / "tiny", folder)
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] = weights["visual_projection.weight"] * 1.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.timeout(600)
def test_another_model_takes_over_when_it_has_every_photo_and_searches_go_on_meanwhile(folder, port, start_up):
    wanted = [sample for sample in SAMPLES if sample.filename.startswith(("red-", "blue-", "green-"))]
    with Darkroom(f"http://127.0.0.1:{port}") as client:
        first = start_up()
        uploaded = client.upload(write_samples(folder / "samples", wanted))
        client.wait([uploaded["batch"]["id"]], timeout_s=120)
        [old] = client.status()["models"]
        assert (old["state"], old["covered"], old["total"]) == ("active", len(wanted), len(wanted))
        first.terminate()
        first.communicate(timeout=120)

        start_up(DARKROOM_MODEL=str(another_model(folder / "other")))
        answered_by: list[str] = []

        def has_taken_over() -> bool:
            """the other model answers"""
            answer = client.search("a blue star")
            assert answer["results"][0]["image"]["filename"] == "blue-star.webp"
            answered_by.append(answer["model"])
            return answered_by[-1] != old["id"]

        eventually(has_taken_over, within_s=120)
        models = {model["id"]: model for model in client.status()["models"]}

    new = models.pop(answered_by[-1])
    assert (new["state"], new["covered"], new["total"]) == ("active", len(wanted), len(wanted))
    assert models[old["id"]]["covered"] == len(wanted), "the old vectors stay"
    registered = [
        json.loads(line)
        for line in (folder / "data" / "logs" / "finalize.log").read_text().splitlines()
        if "finalize.model_registered" in line
    ]
    assert [(line["model"], line["lacking"]) for line in registered] == [(old["id"], 0), (new["id"], len(wanted))]
