"""What a storm is made of: its plan, its photos, and a verdict that finds what is wrong."""

import hashlib
import io
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import eventually
from darkroom_house import InFlight, Stage
from faults import KINDS, Struck, concerns
from PIL import Image
from storm import Accepted, Clients, Course, StormOptions
from storm_photos import storm_photo
from storm_plan import plan, share
from storm_report import StormReport, markdown
from verdict import (
    MAX_DISTANCE,
    Made,
    Verdict,
    check_accepted,
    check_blobs,
    check_events,
    check_image,
    check_ledger,
    check_store,
    distances,
)

from darkroom.errors import PermanentError
from darkroom.settings import ModelSettings
from darkroom.storage import FileStore
from darkroom_cli.local import SERVICES
from embedder.model import load_model

SHA256 = hashlib.sha256(b"").hexdigest()
IDS = ("one", "two")


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    assert plan(1, list(KINDS), 100, 5) == plan(1, list(KINDS), 100, 5)
    assert plan(1, list(KINDS), 100, 5) != plan(2, list(KINDS), 100, 5)


@pytest.mark.parametrize("count", [len(KINDS), 100, 250])
def test_every_kind_has_its_turn_as_often_as_any_other_and_never_twice_in_a_row(count: int) -> None:
    kinds = [strike.kind for strike in plan(3, list(KINDS), count, 5)]
    turns = Counter(kinds)
    assert len(kinds) == count
    assert turns.keys() == KINDS.keys()
    assert max(turns.values()) - min(turns.values()) <= 1
    assert not [kind for kind, following in pairwise(kinds) if kind == following]


def test_a_plan_holds_no_longer_than_it_was_told() -> None:
    assert {1 <= strike.hold_s <= 2 for strike in plan(1, list(KINDS), 100, 2)} == {True}


def test_a_plan_that_would_leave_a_kind_out_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than"):
        plan(1, list(KINDS), len(KINDS) - 1, 5)


@pytest.mark.parametrize(("uploads", "strikes"), [(300, 34), (5000, 150), (70, 34)])
def test_the_uploads_come_in_even_parts_and_one_more_is_kept_to_the_end(uploads: int, strikes: int) -> None:
    given: list[int] = []
    for turn in range(strikes):
        given.append(share(uploads - sum(given), strikes - turn))
    assert 2 <= min(given) <= max(given) <= min(given) + 1
    assert min(given) <= uploads - sum(given) <= max(given)


def test_a_strike_has_two_uploads_also_when_others_needed_more_than_their_parts() -> None:
    assert share(3, 10) == 2


def test_too_few_uploads_for_the_strikes_are_refused_with_the_number_that_is_enough() -> None:
    with pytest.raises(ValueError, match="61 uploads are too few for 30 strikes: send 62"):
        StormOptions("redis", 1, 61, tuple(KINDS), 30)


def test_clients_upload_as_many_as_are_let_in_each_once_and_the_last_at_the_end() -> None:
    sent: list[str] = []
    numbers = iter(range(1, 100))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            sent.append(self.headers["Idempotency-Key"])
            number = next(numbers)
            # The first answer is no 202: the same upload must come again, under the same key.
            body = json.dumps({"images": [{"id": f"image {number}"}]}).encode()
            self.send_response(503 if number == 1 else 202)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        clients = Clients(f"http://127.0.0.1:{server.server_port}", seed=1, uploads=10)
        assert clients.let_in(4, over_s=0.2) == 4
        eventually(lambda: len(clients.accepted) == 4)
        assert clients.left == 6
        clients.finish()
        server.shutdown()
    assert sorted(one.number for one in clients.accepted) == list(range(10))
    assert len(sent) == 11
    assert len(set(sent)) == 10
    assert clients.answers == {"202": 10, "503": 1}


def test_every_service_is_killed_and_paused() -> None:
    for service in SERVICES:
        assert {f"kill {service.name}", f"pause {service.name}"} <= KINDS.keys()


@pytest.mark.parametrize(
    ("process", "lane", "stage", "is_concerned"),
    [
        ("dispatcher", "bulk", Stage.WAITING, True),
        ("dispatcher", "bulk", Stage.DISPATCHED, False),
        ("thumbnailer", "interactive", Stage.WAITING, False),
        ("thumbnailer", "interactive", Stage.DISPATCHED, True),
        ("thumbnailer", "interactive", Stage.MADE, False),
        ("thumbnailer", "bulk", Stage.DISPATCHED, False),
        ("thumbnailer-bulk", "bulk", Stage.PREPARED, True),
        ("embedder", "bulk", Stage.PREPARED, True),
        ("embedder", "bulk", Stage.DISPATCHED, False),
        ("finalize", "interactive", Stage.MADE, True),
        ("beat", "interactive", Stage.WAITING, True),
    ],
)
def test_a_process_is_struck_while_a_photo_is_before_it(
    process: str, lane: str, stage: Stage, is_concerned: bool
) -> None:
    assert concerns(process, InFlight(SHA256, lane, stage)) is is_concerned


def test_the_photos_of_a_seed_are_the_same_and_good_unless_broken_on_purpose() -> None:
    photos = [storm_photo(5, number) for number in range(50)]
    assert photos == [storm_photo(5, number) for number in range(50)]
    assert [photo.number for photo in photos if photo.is_broken] == [9, 19, 29, 39]  # 49 is 46 again
    assert len({photo.data for photo in photos}) == 48
    assert {photo.lane for photo in photos} == {"interactive", "bulk"}
    for photo in photos:
        if not photo.is_broken:
            Image.open(io.BytesIO(photo.data)).load()


def accepted(*ids: str) -> list[Accepted]:
    return [Accepted(number, image, SHA256) for number, image in enumerate(ids)]


@pytest.mark.parametrize(
    ("told", "stored", "fault"),
    [
        (IDS, IDS, None),
        (("one",), IDS, "1 clients have a 202"),
        (("one", "one"), IDS, "2 clients were told the same image one"),
        (IDS, ("one",), "image two of a 202 is not there"),
        (IDS, (*IDS, "three"), "nobody was told of the image three"),
    ],
)
def test_a_202_without_its_image_and_an_image_without_its_202_are_found(
    told: tuple[str, ...], stored: tuple[str, ...], fault: str | None
) -> None:
    found = list(check_accepted(accepted(*told), 2, stored))
    assert any(fault in one for one in found) if fault else not found


def test_a_ledger_that_is_off_by_one_is_found() -> None:
    ledger = {"accepted": 3, "ready": 2, "failed": 1, "deleted": 0, "in_flight": 0}
    assert not list(check_ledger(ledger, 3, {"ready": 2, "failed": 1}))
    for name in ledger:
        assert len(list(check_ledger(ledger | {name: ledger[name] + 1}, 3, {"ready": 2, "failed": 1}))) == 1


GOOD = Made({}, b"", {"width": 3})
BROKEN = PermanentError.of("image-truncated", "Truncated", 422, "It is truncated.")
READY: dict[str, Any] = {
    "id": "one",
    "filename": "1.png",
    "sha256": SHA256,
    "status": "ready",
    "width": 3,
    "error": None,
    "thumbnails": {},
    "embeddings": [{"model": "m", "dim": 2}],
}
FAILED = READY | {"status": "failed", "error": BROKEN.problem.model_dump()}


@pytest.mark.parametrize(
    ("image", "expected", "fault"),
    [
        (READY, GOOD, None),
        (FAILED, BROKEN, None),
        (READY, BROKEN, "is broken and is ready"),
        (FAILED, GOOD, "is good and is failed"),
        (READY | {"width": 4}, GOOD, "has the width 4; it must be 3"),
        (READY | {"embeddings": []}, GOOD, "has 0 vectors"),
        (READY | {"sha256": "f" * 64}, GOOD, "has other bytes"),
        (
            FAILED | {"error": {"type": "https://darkroom.example/problems/killed-worker"}},
            BROKEN,
            "failed for https://darkroom.example/problems/killed-worker",
        ),
    ],
)
def test_an_image_that_is_not_what_a_direct_computation_says_is_found(
    image: dict[str, Any], expected: Made | PermanentError, fault: str | None
) -> None:
    found = list(check_image(image, SHA256, expected))
    assert any(fault in one for one in found) if fault else not found


def test_a_picture_that_is_missing_or_has_other_bytes_is_found(tmp_path: Any) -> None:
    store = FileStore(tmp_path)
    store.put("derived/a", b"right")
    store.put("derived/b", b"wrong")
    assert not list(check_blobs(store, {"derived/a": b"right"}))
    assert list(check_blobs(store, {"derived/b": b"right", "derived/c": b"right"})) == [
        "derived/b has other bytes than a direct computation gives",
        "derived/c is missing",
    ]


def test_a_blob_too_much_and_a_blob_too_few_are_found() -> None:
    assert not list(check_store(["a", "b"], ["b", "a"]))
    assert list(check_store(["a", "orphan"], ["a", "gone"])) == ["gone is missing", "orphan belongs to nothing"]


EVENTS = [
    ("image.accepted", "batch 1", "one"),
    ("image.ready", "batch 1", "one"),
    ("batch.completed", "batch 1", None),
    ("image.accepted", "batch 2", "two"),
    ("image.failed", "batch 2", "two"),
    ("batch.completed", "batch 2", None),
]


def test_an_event_too_much_and_an_event_too_few_are_found() -> None:
    ends = {"one": "ready", "two": "failed"}
    assert not list(check_events(EVENTS, ends))
    for number, event in enumerate(EVENTS):
        assert list(check_events([*EVENTS, event], ends)), event
        assert list(check_events([*EVENTS[:number], *EVENTS[number + 1 :]], ends)), event


def test_a_report_has_every_kind_with_the_work_it_met_and_says_what_is_wrong() -> None:
    struck = [
        Struck(1.0, "kill beat", {"waiting": 2}, "", 0.1),
        Struck(2.0, "purge a queue", {"in embed": 3}, "3 messages of embed", 0.1),
        Struck(3.0, "kill beat", {"waiting": 1, "made": 4}, "", 0.1),
    ]
    figures = {"ledger": {"accepted": 10}, "originals": 9, "dispatches": 11, "farthest_vector": 0.0}
    options = StormOptions("redis", 7, 10, ("kill beat", "purge a queue"), 3)
    verdict = Verdict(["the ledger has 9 ready"], figures | {"left_for_the_sweeper": 0})
    page = markdown([StormReport(options, "a tmpfs", "2 cores", Course(struck), verdict)], "--broker redis --seed 7")
    assert 'make chaos ARGS="--broker redis --seed 7"' in page
    assert "## On redis: WRONG" in page
    assert "- **WRONG**: the ledger has 9 ready" in page
    assert "| kill beat | 2 | 3 waiting, 4 made | 2 |" in page
    assert "| purge a queue | 1 | 3 in queues | 3 |" in page


def test_a_vector_of_another_picture_is_far_from_a_direct_computation() -> None:
    model = load_model("bundled", ModelSettings())
    proxies = []
    for number in (1, 3):
        file = io.BytesIO()
        Image.open(io.BytesIO(storm_photo(1, number).data)).convert("RGB").save(file, "JPEG")
        proxies.append(file.getvalue())
    right = list(model.embed_pictures([model.preprocessing.pixels(proxy) for proxy in proxies]).astype(np.float16))
    assert max(distances(model, proxies, right)) < MAX_DISTANCE / 10
    assert min(distances(model, proxies, right[::-1])) > MAX_DISTANCE * 10
