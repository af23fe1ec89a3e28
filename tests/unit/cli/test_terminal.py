"""What the terminal shows."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from darkroom_cli import contact_sheet, rendering
from darkroom_cli.client import Picture
from darkroom_cli.supervisor import ProcessState

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def image(**changes):
    known = {
        "id": "0192f0c1-0000-7000-8000-0000deadbeef",
        "status": "ready",
        "sha256": "0" * 64,
        "filename": "red.jpg",
        "format": "JPEG",
        "bytes": 55_108,
        "width": 1200,
        "height": 1600,
        "taken_at": None,
        "tags": ["one", "two"],
        "external_id": None,
        "lane": "interactive",
        "palette": [{"hex": "#ff0000", "share": 1.0}],
        "thumbnails": {
            size: {"url": "/", "width": 192, "height": 256, "bytes": 1000 * n}
            for n, size in enumerate(("small", "medium", "large"), 1)
        },
        "embeddings": [{"model": "tiny@0123456789ab", "dim": 192}],
        "error": None,
        "attempts": 0,
        "created_at": "2026-03-02T11:59:00Z",
        "ready_at": "2026-03-02T11:59:00.420Z",
        "batch_id": "b",
        "duplicate": False,
    }
    return known | changes


def text_of(renderable, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (55_108, "55.1 KB"), (999_960, "1.0 MB"), (123_456_789, "123 MB")],
)
def test_sizes(count, text):
    assert rendering.bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.418, "0.42 s"), (9.996, "10 s"), (59, "59 s"), (185, "3 min 5 s"), (7260, "2 h 1 min"), (187_200, "2 d 4 h")],
)
def test_durations(seconds, text):
    assert rendering.seconds_text(seconds) == text


def test_the_table_says_what_each_image_became():
    shown = text_of(rendering.images_table([image(), image(duplicate=True), image(status="processing")], 160))
    assert "red.jpg" in shown
    assert "1.0  2.0  3.0" in shown
    assert "0.42 s" in shown
    assert "known" in shown
    assert "processing" in shown
    assert "0192f0c1-0000-7000-8000-0000deadbeef" in shown


@pytest.mark.parametrize(("width", "shown_id"), [(80, ""), (100, "…deadbeef"), (132, image()["id"])])
def test_a_row_is_one_line_and_shows_as_much_of_the_id_as_fits(width, shown_id):
    big = image(filename="a-name-that-is-longer-than-most.jpg", width=40_000, height=30_000, bytes=209_715_200)
    shown = text_of(rendering.images_table([big], width), width=width)
    assert len(shown.splitlines()) == 2
    assert shown_id in shown
    assert ("deadbeef" in shown) is bool(shown_id)


def test_many_images_are_counted_and_only_their_failures_listed():
    failed = image(filename="bad.jpg", status="failed", error={"title": "Corrupt", "detail": "at byte 7"})
    shown = text_of(rendering.outcome_of([*[image()] * (rendering.LISTED + 1), failed], 160))
    assert "red.jpg" not in shown
    assert "bad.jpg" in shown
    assert "at byte 7" in shown
    assert "51 ready, 1 failed" in shown
    assert "red.jpg" in text_of(rendering.outcome_of([image(), failed], 160))


def test_a_search_shows_whole_ids_at_any_width():
    shown = text_of(rendering.hits_table({"results": [{"image": image(), "score": 0.5}], "model": "m"}), width=80)
    assert image()["id"] in shown
    assert len(shown.splitlines()) == 2


def test_markup_in_a_file_name_is_shown_as_it_is():
    assert "[red]x[/red].jpg" in text_of(rendering.images_table([image(filename="[red]x[/red].jpg")], 160))
    assert "[bold]" in text_of(rendering.problem_text({"title": "[bold]", "detail": "[/bold]"}))


def test_a_problem_says_what_why_and_what_to_do():
    shown = text_of(rendering.problem_text({"title": "Too large", "detail": "big.jpg has 2", "remedy": "Shrink it."}))
    assert [line.strip() for line in shown.splitlines()] == ["✗ Too large", "big.jpg has 2", "→ Shrink it."]


def test_details_of_a_failed_image_end_with_its_problem():
    shown = text_of(rendering.image_details(image(status="failed", error={"title": "Corrupt", "detail": "byte 7"})))
    assert "failed" in shown
    assert "byte 7" in shown


@pytest.mark.parametrize(("ready", "verdict"), [(3, "adds up"), (2, "does not add up")])
def test_the_ledger_says_whether_it_adds_up(ready, verdict):
    ledger = {"accepted": 5, "ready": ready, "failed": 1, "deleted": 1, "in_flight": 0}
    assert rendering.adds_up(ledger) is (ready == 3)
    assert verdict in text_of(rendering.ledger_table(ledger))


def test_the_status_page_shows_every_part():
    state = {
        "version": "1.2.3",
        "ledger": {"accepted": 0, "ready": 0, "failed": 0, "deleted": 0, "in_flight": 0},
        "dispatcher": {"connected": False, "waiting": 7, "oldest_wait_s": 61.0, "backfills": 5},
        "callbacks": {"pending": 12, "failing": 6, "failed": 8},
        "store": {"oldest_check_s": 3720.0},
        "uploads": {"refusal": {"detail": "7 images are in flight and the limit is 6."}, "free_bytes": None},
        "models": [{"id": "tiny@0123456789ab", "state": "active", "covered": 3, "total": 4, "dim": 192}],
        "jobs": [
            {"name": "back_up", "started_at": None, "finished_at": "2026-03-02T00:00:05Z", "summary": "9 MB"}
            | {"succeeded_at": "2026-03-02T00:00:05Z", "alarm": None},
            {"name": "audit", "started_at": None, "finished_at": None, "summary": None}
            | {"succeeded_at": None, "alarm": "1 image is missing"},
        ],
    }
    processes = {"gateway": ProcessState(pid=None, restarts=2, since="2026-03-02T11:59:30+00:00")}
    shown = text_of(rendering.status_page(state, processes, "data/logs", NOW))
    for part in (
        "1.2.3",
        "broker away",
        "7 to dispatch",
        "1 min 1 s",
        "5 to embed again",
        "1 h 2 min",
        "refused: 7 images",
        "3 of 4",
        "back up",
    ):
        assert part in shown
    for part in ("11 h 59 min ago", "9 MB", "never", "1 image is missing", "gateway", "down", "30 s", "data/logs"):
        assert part in shown
    assert "12 callbacks to deliver, 6 of them failing so far, 8 given up" in shown


def queue(name: str, **changes):
    known = {"name": name, "node": "embedder", "depth": 0, "oldest_age_s": 0.12, "consumers": 1, "in_hand": 0}
    return known | {"rate_per_s": 0.0, "probe": {"state": "ok", "text": "back after 0.12 s"}} | changes


def queues_of(*queues, unknown=None, **dead):
    letters = {"supported": True, "note": None, "depth": 0, "consumers": 1, "kept": 0} | dead
    return {"queues": list(queues), "dead_letters": letters, "workers": [], "unknown": unknown or {}}


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_queues_show_what_waits_and_who_works(width):
    waiting = queue("embed.bulk", depth=12_345, oldest_age_s=185.0, in_hand=16, rate_per_s=21.49)
    shown = text_of(rendering.queues_page(queues_of(queue("embed"), waiting), width), width)
    for part in ("embed.bulk", "12,345", "3 min 5 s", "16", "21", "ok", "0 to be read, 0 for a person"):
        assert part in shown
    assert len(shown.splitlines()) == 5
    assert ("embedder" in shown) is (width >= 100)
    assert ("back after" in shown) is (width == 160)


def test_queues_of_which_nothing_is_known_say_why():
    away = queue("embed", depth=None, consumers=None, in_hand=None, rate_per_s=None, oldest_age_s=None, probe=None)
    reason = "the broker does not answer (OSError)"
    unknown = {"depth": reason, "consumers": reason}
    shown = text_of(rendering.queues_page(queues_of(away, unknown=unknown, kept=2), 160))
    assert shown.count(rendering.NOTHING) == 6
    assert shown.count(reason) == 1
    assert "2 for a person: darkroom dead-letters list" in shown
    assert "none" in text_of(rendering.queues_page(queues_of(away, supported=False), 160))


def test_a_report_shows_its_figures_with_their_units():
    report = {
        "period_start": "2026-02-23T00:00:00Z",
        "period_end": "2026-03-02T00:00:00Z",
        "report": {
            "photos": {"accepted": 12_345, "ready": 12_340, "failed": 3, "deleted": 2, "in_flight": 0},
            "bytes": 5_000_000,
            "failures_by_cause": {"image-truncated": 1, "image-corrupt": 2},
            "seconds_to_ready": {"bulk": {"photos": 9000, "p50": 0.25, "p95": 3.25}},
            "storage_bytes": {"originals": 9_000_000, "database": 12_000_000},
        },
    }
    shown = text_of(rendering.report_page(report))
    for part in ("Mon 23 Feb 2026", "12,345", "5.0 MB", "9,000", "0.25 s", "3.25 s", "all database", "12.0 MB"):
        assert part in shown
    assert shown.index("image-corrupt") < shown.index("image-truncated")


def test_the_contact_sheet_holds_its_pictures_and_nothing_of_a_name_is_markup():
    hit = {"image": image(filename='<script>"x".jpg', id="one"), "score": 0.1234}
    bare = {"image": image(filename=None, id="two", thumbnails={}), "score": 0.1}
    found = {"results": [hit, bare], "model": "m"}
    page = contact_sheet.page([contact_sheet.Section("a <red> circle", found, {"one": Picture(b"png", "image/png")})])
    assert "data:image/png;base64,cG5n" in page
    assert "<script>" not in page
    assert "a &lt;red&gt; circle" in page
    assert "0.123" in page
    assert page.count("<figure>") == 2
    assert "http" not in page
