"""The commands against a running Darkroom, as a person types them. All tests share one `darkroom up`."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import eventually
from process_memory import holds

from darkroom_cli.client import Darkroom
from darkroom_cli.samples import SAMPLES, draw, write_samples
from darkroom_cli.servers import PostgresServer, release_port, reserve_port

DARKROOM = Path(sys.executable).with_name("darkroom")
BY_NAME = {sample.filename: sample for sample in SAMPLES}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A running Darkroom; at the end it must stop in good order."""
    port = reserve_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
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
    with (folder / "up.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == f"ready: http://127.0.0.1:{port}\n", (folder / "up.log").read_text()
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.communicate()
    release_port(port)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def darkroom(folder: Path, url: str) -> Run:
    """Runs a command to its end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    environment |= {"DARKROOM_URL": url, "XDG_STATE_HOME": str(folder / "state"), "COLUMNS": "180"}

    def run(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [DARKROOM, *map(str, arguments)], capture_output=True, text=True, env=environment | more, cwd=folder
        )

    return run


@pytest.fixture(scope="module")
def shapes(folder: Path, darkroom: Run) -> Path:
    """A folder of five ready pictures with the tag `shapes`."""
    names = (
        "red-circle-turned.jpg",
        "green-square-cut-out.png",
        "blue-star.webp",
        "purple-heart.tiff",
        "pink-flower.avif",
    )
    write_samples(folder / "shapes", [BY_NAME[name] for name in names])
    done = darkroom("upload", folder / "shapes", "--tag", "shapes", "--watch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 accepted" in done.stdout
    assert "5 ready, 0 failed" in done.stdout
    return folder / "shapes"


pytestmark = pytest.mark.timeout(600)


def test_uploading_known_bytes_again_is_said_and_costs_nothing(darkroom, shapes):
    done = darkroom("upload", shapes / "blue-star.webp", "--watch", "--lane", "bulk")
    assert done.returncode == 0
    assert "1 accepted, 1 of them known already" in done.stdout
    assert "known" in done.stdout.splitlines()[2]


def test_what_is_refused_or_fails_is_listed_with_its_cause_and_the_rest_goes_on(darkroom, shapes, tmp_path):
    (tmp_path / "notes.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut off.jpg").write_bytes((shapes / "red-circle-turned.jpg").read_bytes()[:3000])
    draw("black", "ring", (90, 70), "#ffffff").save(tmp_path / "möhre (1) [x].png")
    done = darkroom("upload", tmp_path, tmp_path / "nothing*.gif", "--watch")
    assert done.returncode == 1
    assert "2 accepted, 2 refused" in done.stdout
    assert "notes.jpg" in done.stdout
    assert "empty.png" in done.stdout
    assert "truncated" in done.stdout
    assert "möhre (1) [x].png" in done.stdout
    assert "1 ready, 1 failed" in done.stdout
    assert "no picture at" in done.stderr


@pytest.mark.parametrize(
    ("text", "name"), [("a red circle", "red-circle-turned.jpg"), ("green square", "green-square-cut-out.png")]
)
def test_a_text_finds_its_picture(darkroom, shapes, text, name):
    done = darkroom("search", text, "--tag", "shapes", "--limit", "2", "--json")
    found = json.loads(done.stdout)["results"]
    assert [len(found), found[0]["image"]["filename"]] == [2, name]
    table = darkroom("search", text, "--tag", "shapes").stdout.splitlines()
    assert len(table) == 6
    assert name in table[1]
    assert found[0]["image"]["id"] in table[1]


def test_a_picture_finds_its_like_and_the_contact_sheet_shows_it(darkroom, shapes, tmp_path):
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $1 > {tmp_path}/opened\n")
    browser.chmod(0o755)
    done = darkroom("search", "--image", shapes / "pink-flower.avif", "--tag", "shapes", "--open", BROWSER=str(browser))
    assert done.returncode == 0, done.stderr
    assert "pink-flower.avif" in done.stdout.splitlines()[1]
    opened = eventually(lambda: (tmp_path / "opened").exists() and (tmp_path / "opened").read_text().strip())
    page = Path(opened.removeprefix("file://"))
    assert page.read_text().count("data:image/webp;base64,") == 5
    page.unlink()


def test_a_search_needs_one_query(darkroom):
    assert darkroom("search").returncode == 2
    assert darkroom("search", "red", "--image", __file__).returncode == 2


def test_an_image_and_a_batch_can_be_watched_to_their_end(darkroom, shapes):
    [image] = json.loads(darkroom("search", "a blue star", "--tag", "shapes", "--limit", "1", "--json").stdout)[
        "results"
    ]
    shown = darkroom("watch", image["image"]["id"])
    assert shown.returncode == 0
    for part in ("blue-star.webp", "WEBP, 1200×900", "shapes", "256×192", "768×576", "192 dimensions"):  # noqa: RUF001
        assert part in shown.stdout
    batch = json.loads(darkroom("watch", image["image"]["batch_id"], "--json").stdout)
    assert [len(one["images"]) for one in batch] == [5]


def test_an_unknown_id_is_a_problem_with_its_remedy(darkroom):
    done = darkroom("watch", "01939c4e-0000-7000-8000-000000000000")
    assert done.returncode == 1
    assert "01939c4e-0000-7000-8000-000000000000" in done.stderr
    assert "→" in done.stderr
    assert done.stdout == ""


def test_only_a_failed_image_can_be_retried(darkroom, shapes):
    [image] = json.loads(darkroom("search", "a blue star", "--tag", "shapes", "--limit", "1", "--json").stdout)[
        "results"
    ]
    done = darkroom("retry", image["image"]["id"])
    assert done.returncode == 1
    assert "failed" in done.stderr


def test_the_ledger_adds_up_and_counts_what_was_accepted(darkroom, shapes, url):
    done = darkroom("ledger", "--json")
    ledger = json.loads(done.stdout)
    assert done.returncode == 0
    assert ledger["accepted"] == ledger["ready"] + ledger["failed"] + ledger["deleted"] + ledger["in_flight"]
    with Darkroom(url) as client:
        assert len(list(client.images(page_size=3))) == ledger["accepted"] - ledger["deleted"]
    assert "adds up" in darkroom("ledger").stdout


def test_the_status_shows_services_jobs_models_and_the_ledger(darkroom, shapes, folder):
    """Jobs that have never run are due at once."""
    jobs = ("audit_ledger", "back_up", "check_blobs", "clean_up", "hint_callbacks", "reconcile", "report_usage")

    def all_have_run() -> bool:
        state = json.loads(darkroom("status", "--json").stdout)
        return {job["name"] for job in state["jobs"] if job["succeeded_at"]} == set(jobs)

    eventually(all_have_run, within_s=120, every_s=1)
    shown = darkroom("status", "--data-dir", folder / "data").stdout
    for part in ("adds up", "broker connected", "active", *(job.replace("_", " ") for job in jobs)):
        assert part in shown
    for process in ("postgres", "redis", "gateway", "thumbnailer-bulk", "embedder", "finalize", "maintenance", "beat"):
        assert process in shown


@pytest.mark.parametrize(
    ("kind", "service", "queue", "worker"),
    [("cpu", "embedder", "embed.bulk", "embedder@"), ("io", "scheduler", "finalize.bulk", "finalize@")],
)
def test_a_probe_goes_through_the_queue_of_a_service(darkroom, kind, service, queue, worker):
    sent = darkroom("probe", kind, "--service", service, "--lane", "bulk", "--json")
    assert sent.returncode == 0, sent.stderr
    task = json.loads(sent.stdout)
    assert (task["state"], task["queue"], task["worker"].startswith(worker)) == ("SUCCESS", queue, True)


def test_a_probe_that_would_hold_up_searches_is_refused(darkroom):
    refused = darkroom("probe", "slow", "--service", "embedder", "--seconds", "3")
    assert refused.returncode == 1
    assert "for the embedder at most 2 are allowed" in refused.stderr


def test_the_steps_of_a_photo_can_be_asked_for(shapes, url):
    with Darkroom(url) as client:
        image = next(client.images(tag="shapes"))
        task = client.task(image["tasks"]["prepare"])
    assert (task["state"], task["queue"]) == ("SUCCESS", "prepare")
    assert task["worker"] is not None and task["worker"].startswith("thumbnailer@")
    assert task["issued_at"] <= task["started_at"] <= task["finished_at"]


def test_the_report_is_there(darkroom, shapes):
    eventually(lambda: json.loads(darkroom("report", "--json").stdout), within_s=120, every_s=1)
    shown = darkroom("report").stdout
    assert "all originals" in shown
    assert "Mon " in shown


def test_the_client_deletes_and_the_search_forgets(url, shapes, tmp_path):
    path = tmp_path / "brown.png"
    draw("brown", "triangle", (120, 120), "#ffffff").save(path)
    with Darkroom(url) as client:
        uploaded = client.upload([path], tags=["deleted"])
        client.wait([uploaded["batch"]["id"]], timeout_s=120)
        [image] = uploaded["images"]
        assert [hit["image"]["id"] for hit in client.search("brown", tags=["deleted"])["results"]] == [image["id"]]
        assert client.search_similar(image["id"], limit=3)["results"]
        client.delete(image["id"])
        assert client.search("brown", tags=["deleted"])["results"] == []
        assert client.ledger()["deleted"] == 1


def test_no_process_that_decodes_pictures_has_the_database_in_its_memory(url, folder):
    """Nor has a process that one of them was forked from, or could be."""
    database_url = PostgresServer(folder / "data" / "postgres").url
    written = json.loads((folder / "data" / "processes.json").read_text())
    kept = {state["pid"]: name for name, state in written["processes"].items()}
    holders, others = set(), set()
    for process in psutil.Process(written["supervisor"]).children(recursive=True):
        with suppress(psutil.NoSuchProcess, FileNotFoundError):  # sessions of PostgreSQL come and go
            scripts = [Path(word).name for word in process.cmdline() if word.endswith(".py")]
            names = [kept[each.pid] for each in (process, *process.parents()) if each.pid in kept] + scripts
            if names[0] not in ("postgres", "redis"):
                (holders if holds(process.pid, database_url) else others).add(names[0])
    assert holders == {"gateway", "finalize", "maintenance", "callbacks", "beat"}
    assert others == {"thumbnailer", "thumbnailer-bulk", "embedder", "forking.py", "guard.py"}


def test_a_second_up_on_the_same_folder_is_refused(darkroom, folder, url):
    done = darkroom("up", "--data-dir", folder / "data", "--http-port", 1)
    assert done.returncode == 1
    assert "already runs" in done.stderr
    assert darkroom("ledger").returncode == 0


def test_a_port_in_use_is_said_before_anything_starts(darkroom, folder, url):
    done = darkroom("up", "--data-dir", folder / "other", "--http-port", url.rsplit(":", 1)[1])
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert "--http-port" in done.stderr
    assert not (folder / "other" / "logs").exists()


def test_a_gateway_that_is_not_there_is_said_with_the_command_to_start_one(darkroom):
    done = darkroom("status", DARKROOM_URL="http://127.0.0.1:1")
    assert done.returncode == 1
    assert "darkroom up" in done.stderr
