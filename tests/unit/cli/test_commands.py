"""What the commands say and how they exit, against a gateway that is a function."""

import json
import re

import httpx
import pytest
from click.testing import CliRunner
from rich.console import Console

from darkroom_cli import main as command_line
from darkroom_cli.client import Darkroom

LEDGER = {"accepted": 3, "ready": 2, "failed": 1, "deleted": 0, "in_flight": 0}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a command against the handler of a request; the state folder is the test's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "160")

    def with_gateway(handler, *arguments):
        transport = httpx.MockTransport(handler)
        monkeypatch.setattr(command_line, "_client", lambda: Darkroom("http://gateway", transport=transport))
        return CliRunner().invoke(command_line.main, [str(argument) for argument in arguments])

    return with_gateway


def test_an_interrupted_upload_says_so_and_the_same_command_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr("darkroom_cli.uploading.REQUEST_FILES", 1)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    received: list[str] = []

    def gateway(request: httpx.Request) -> httpx.Response:
        [name] = re.findall(rb'filename="([^"]*)"', request.read())
        if name == b"b.jpg" and "b.jpg" not in received:
            received.append("b.jpg")
            raise KeyboardInterrupt
        received.append(name.decode())
        return httpx.Response(202, json={"batch": {"id": name.decode()}, "images": [{"duplicate": False}]})

    first = run(gateway, "upload", tmp_path)
    assert first.exit_code == 130
    assert "stopped after 1 files; the same command goes on from there" in first.stderr
    second = run(gateway, "upload", tmp_path)
    assert second.exit_code == 0
    assert received == ["a.jpg", "b.jpg", "b.jpg", "c.jpg"]
    assert "2 accepted, 1 were there from the interrupted run" in second.stdout
    assert not list((tmp_path / "state").rglob("*.json"))


def test_the_ledger_is_a_table_or_json_and_a_wrong_one_an_error(run):
    assert json.loads(run(lambda _: httpx.Response(200, json=LEDGER), "ledger", "--json").stdout) == LEDGER
    good = run(lambda _: httpx.Response(200, json=LEDGER), "ledger")
    assert (good.exit_code, "adds up" in good.stdout) == (0, True)
    bad = run(lambda _: httpx.Response(200, json=LEDGER | {"ready": 1}), "ledger")
    assert (bad.exit_code, "does not add up" in bad.stdout) == (1, True)


def test_a_problem_is_shown_on_standard_error_and_nothing_on_standard_output(run):
    problem = {"title": "There is no such image", "status": 404, "detail": "No image has the id x.", "remedy": "List."}
    done = run(lambda _: httpx.Response(404, json=problem), "retry", "x")
    assert done.exit_code == 1
    assert done.stdout == ""
    for part in ("There is no such image", "No image has the id x.", "→ List."):
        assert part in done.stderr


def test_without_a_report_it_says_when_there_will_be_one(run):
    done = run(lambda _: httpx.Response(200, json={"reports": []}), "report")
    assert "Monday" in done.stdout


@pytest.mark.parametrize("status", ["ready", "failed"])
def test_watching_an_image_ends_with_what_became_of_it(run, status):
    image = {"id": "i", "status": status, "filename": "a.jpg", "format": None, "taken_at": None, "tags": []}
    image |= {"lane": "bulk", "palette": None, "thumbnails": {}, "embeddings": [], "ready_at": None, "batch_id": "b"}
    image |= {"error": {"title": "Corrupt"} if status == "failed" else None}

    def gateway(request: httpx.Request) -> httpx.Response:
        is_batch = request.url.path.startswith("/v1/batches/")
        return httpx.Response(404, json={"title": "no batch"}) if is_batch else httpx.Response(200, json=image)

    done = run(gateway, "watch", "i")
    assert done.exit_code == (0 if status == "ready" else 1)
    assert status in done.stdout
    assert ("Corrupt" in done.stdout) is (status == "failed")


OVERVIEW = {"queues": [], "workers": [], "unknown": {"depth": "the broker is away"}}
OVERVIEW |= {"dead_letters": {"supported": False, "note": "Redis has none", "depth": None, "kept": 0}}


def test_queues_are_shown_once_where_nobody_watches(run):
    def gateway(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=OVERVIEW)

    assert json.loads(run(gateway, "queues", "--json").stdout) == OVERVIEW
    assert "the broker is away" in run(gateway, "queues").stdout


def test_queues_are_followed_on_a_terminal_also_past_a_problem(run, monkeypatch):
    monkeypatch.setattr(command_line, "QUEUES_EVERY_S", 0)
    monkeypatch.setattr(command_line, "out", Console(force_terminal=True, width=160, color_system=None))
    answers = iter(
        [
            httpx.Response(200, json=OVERVIEW),
            httpx.Response(500, json={"title": "An error in Darkroom", "status": 500}),
            httpx.ConnectError("refused"),
            httpx.Response(200, json=OVERVIEW | {"unknown": {"depth": "it is back"}}),
        ]
    )

    def gateway(_: httpx.Request) -> httpx.Response:
        answer = next(answers, None)
        if answer is None:
            raise KeyboardInterrupt
        if isinstance(answer, Exception):
            raise answer
        return answer

    done = run(gateway, "queues")
    assert done.exit_code == 0
    parts = ("the broker is away", "An error in Darkroom", "it is back")
    assert [part in done.output for part in parts] == [True] * 3


LETTER = {"id": 7, "queue": "finalize", "task": "scheduler.register_model", "task_id": "t", "sha256": None}
LETTER |= {"generation": None, "reason": "delivery_limit", "deaths": 1, "outcome": "kept", "cause": "it is [b]lost[/b]"}
LETTER |= {"received_at": "2026-03-02T11:59:00Z", "replayed_at": None, "body_bytes": 2}


def test_dead_letters_are_listed_with_what_became_of_them(run, monkeypatch):
    monkeypatch.setattr(command_line, "out", Console(width=160, color_system=None))
    listed = {"supported": True, "note": None, "counts": {"kept": 1, "obsolete": 2, "replayed": 0}}
    listed |= {"dead_letters": [LETTER], "next_page_token": None}
    asked = []

    def gateway(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url.query, "ascii"))
        return httpx.Response(200, json=listed)

    shown = run(gateway, "dead-letters", "list", "--kept").stdout
    for part in (
        "7",
        "finalize",
        "register_model",
        "delivery limit, 1",
        "kept",
        "it is [b]lost",
        "1 kept, 2 obsolete",
    ):
        assert part in shown
    assert json.loads(run(gateway, "dead-letters", "list", "--json").stdout) == listed
    assert asked == ["limit=50&outcome=kept", "limit=50"]


def test_a_broker_without_dead_letters_says_so(run):
    listed = {"supported": False, "note": "Redis has none", "counts": {}, "dead_letters": [], "next_page_token": None}
    shown = run(lambda _: httpx.Response(200, json=listed), "dead-letters", "list").stdout
    assert shown.strip() == "Redis has none"


def test_dead_letters_are_shown_replayed_and_dropped(run):
    asked = []

    def gateway(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.method == "DELETE" and request.url.path.endswith("/7"):
            return httpx.Response(204)
        return httpx.Response(200, json=LETTER | {"body": "[bold]", "replayed": 2, "kept": 1, "dropped": 3})

    assert "[bold]" in run(gateway, "dead-letters", "show", 7).stdout
    assert run(gateway, "dead-letters", "replay", 7, 8).stdout == "7: it is [b]lost[/b]\n8: it is [b]lost[/b]\n"
    assert run(gateway, "dead-letters", "replay", "--all").stdout == "2 replayed, 1 kept\n"
    assert run(gateway, "dead-letters", "drop", 7).stdout == "7: dropped\n"
    assert run(gateway, "dead-letters", "drop", "--all").stdout == "3 dropped\n"
    assert asked == [
        "GET /v1/dead-letters/7",
        "POST /v1/dead-letters/7:replay",
        "POST /v1/dead-letters/8:replay",
        "POST /v1/dead-letters:replay",
        "DELETE /v1/dead-letters/7",
        "DELETE /v1/dead-letters",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["dead-letters", "drop"],
        ["dead-letters", "replay", "7", "--all"],
        ["search"],
        ["search", "red", "--image", __file__],
        ["up", "--broker", "kafka://x"],
    ],
)
def test_a_wrong_command_line_is_refused(run, arguments):
    assert run(lambda _: httpx.Response(500), *arguments).exit_code == 2


TASK = {
    "task_id": "0a",
    "name": "darkroom.probe",
    "state": "PENDING",
    "result": None,
    "progress": None,
    "error": None,
    "queue": "embed.bulk",
    "worker": None,
    "issued_at": "2026-05-04T12:00:00Z",
    "started_at": None,
    "finished_at": None,
}
BEGUN = TASK | {"worker": "embedder@host", "started_at": "2026-05-04T12:00:03.5Z"}
ENDED = BEGUN | {"finished_at": "2026-05-04T12:00:05.5Z"}


class ProbedGateway:
    """Takes a probe, and tells of it one state after the other."""

    def __init__(self, *states):
        self.states = list(states)
        self.sent = None

    def __call__(self, request):
        if request.method == "POST":
            self.sent = (request.url.path, json.loads(request.read()))
            return httpx.Response(202, json={"task_id": TASK["task_id"]})
        return httpx.Response(200, json=self.states.pop(0))


def test_a_probe_is_followed_and_its_wait_told_apart_from_its_run(run):
    result = {"kind": "add", "queue": "embed.bulk", "terms": [412, 77], "sum": 489}
    running = BEGUN | {"state": "PROGRESS", "progress": {"done": 1, "total": 2, "unit": "s"}}
    gateway = ProbedGateway(TASK, running, ENDED | {"state": "SUCCESS", "result": result})
    told = run(gateway, "probe", "add", "--service", "embedder", "--lane", "bulk", "--countdown", "1")
    assert told.exit_code == 0
    assert gateway.sent == ("/v1/probes/add", {"service": "embedder", "lane": "bulk", "countdown_seconds": 1})
    lines = {line.split()[0]: line.split(maxsplit=1)[1].strip() for line in told.stdout.splitlines()}
    assert (lines["waited"], lines["ran"], lines["sum"]) == ("3.50 s", "2.00 s", "489")
    assert (lines["queue"], lines["worker"], lines["state"]) == ("embed.bulk", "embedder@host", "success")


@pytest.mark.parametrize(
    ("kind", "state", "code"),
    [
        ("add", "FAILURE", 1),
        ("add", "REVOKED", 1),
        ("fail", "FAILURE", 0),
        ("fail", "REVOKED", 1),
        ("io", "SUCCESS", 0),
    ],
)
def test_a_probe_ends_well_when_it_did_what_it_was_sent_for(run, kind, state, code):
    error = {"type": "PermanentError", "message": "It was asked to fail."}
    ended = ENDED | {"state": state, "error": error if state != "SUCCESS" else None}
    told = run(ProbedGateway(ended), "probe", kind)
    assert told.exit_code == code
    assert (error["message"] in told.stdout) == (state != "SUCCESS")
    assert json.loads(run(ProbedGateway(ended), "probe", kind, "--json").stdout) == ended


def test_a_probe_can_be_left_alone(run):
    told = run(ProbedGateway(), "probe", "slow", "--seconds", "5", "--no-wait")
    assert (told.exit_code, told.stdout) == (0, "0a\n")
