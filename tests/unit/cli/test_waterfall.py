"""A photo's trace in the terminal."""

import io

import pytest
from photo_spans import Recorder, call, trace_id, work
from rich.console import Console

from darkroom_cli.waterfall import bar, milliseconds_text, trace_page
from gateway.trace_models import ImageTrace
from gateway.trace_view import links_of, view

SHA = "a" * 64


def answer(spans: Recorder, of: str, status: str = "ready", now_ms: int | None = None) -> dict:
    own = [span for span in spans.spans() if span.trace_id == of]
    linked_ids = links_of(own, SHA)
    linked = [span for span in spans.spans() if span.trace_id in linked_ids]
    now_ns = now_ms and spans.start_ns + now_ms * 1_000_000
    found = ImageTrace(
        image_id="0192f0c1-0000-7000-8000-0000deadbeef",
        filename="red.jpg",
        sha256=SHA,
        status=status,
        is_growing=False,
        is_cut=False,
        traces=[view(of, "upload", own, linked, SHA, now_ns)],
    )
    return found.model_dump(mode="json")


def lines_of(shown: dict, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(trace_page(shown, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_every_span_is_one_line_of_the_terminals_width(width):
    spans = Recorder()
    server = call(spans)
    work(spans, server, SHA)
    shown = answer(spans, trace_id(server))
    lines = lines_of(shown, width)
    assert max(map(len, lines)) <= width
    begin = next(n for n, line in enumerate(lines) if line.startswith("POST /v1/images"))
    for span, line in zip(shown["traces"][0]["spans"], lines[begin:], strict=False):
        assert line.startswith(" " * span["depth"] + span["name"])
        sign = {"work": "█", "wait": "░", "batch": "▒"}[span["category"]]
        assert sign in line
        assert not {"█", "░", "▒"} - {sign} & set(line)


def test_at_80_columns_a_photo_looks_so():
    spans = Recorder()
    server = call(spans)
    work(spans, server, SHA)
    lines = lines_of(answer(spans, trace_id(server)), 80)
    assert lines[0] == "red.jpg ready"
    assert "320 ms · waited 153 ms · 8 photos in the batch" in lines
    assert "  thumbnailer          119 ms    37%  ███████████" in lines
    assert "    decode                        38 ms          █████" in lines
    assert "      wait batch                  20 ms                          ░░░" in lines
    assert "       batch ×8                   30 ms                            ▒▒▒▒" in lines  # noqa: RUF001


def test_a_wait_of_more_than_a_minute_is_told_in_full():
    spans = Recorder()
    server = call(spans)
    spans.add("gateway", "wait dispatch", 10, 754_010, server)
    lines = lines_of(answer(spans, trace_id(server)), 80)
    assert any(line.startswith(" wait dispatch ") and " 12 min 34 s " in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_what_went_wrong_is_said_once_and_what_goes_on_is_marked():
    spans = Recorder()
    server = call(spans)
    sent = spans.add(
        *("thumbnailer", "publish prepare", 30, 34, server),
        kind="producer",
        image_sha256=SHA,
        messaging_destination="prepare",
        retry_number=1,
    )
    failed = spans.add(
        *("thumbnailer", "process prepare", 10, 30, server), image_sha256=SHA, error="no blob", retry_number=1
    )
    spans.add("thumbnailer", "get blob", 12, 20, failed, image_sha256=SHA, error="no blob")
    assert sent
    text = "\n".join(lines_of(answer(spans, trace_id(server), "processing", 2000), 80))
    assert text.count("✗ no blob") == 1
    assert "process prepare ✗ retry 1" in text
    assert "wait prepare …" in text
    assert "In flight" in text


@pytest.mark.parametrize(
    ("start", "length", "total", "expected"),
    [
        (0, 100, 100, (0, 40)),
        (50, 25, 100, (20, 10)),
        (100, 0, 100, (39, 1)),
        (0, 0, 100, (0, 1)),
        (0, 0, 0, (0, 1)),
        (99.9, 0.1, 100, (39, 1)),
        (10, 1000, 100, (4, 36)),
    ],
)
def test_a_bar_is_seen_and_stays_inside(start, length, total, expected):
    assert bar(start, length, total, 40) == expected


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0.0 ms"), (0.44, "0.4 ms"), (9.96, "10 ms"), (999.4, "999 ms"), (1200, "1.20 s"), (185_000, "3 min 5 s")],
)
def test_durations(ms, text):
    assert milliseconds_text(ms) == text
