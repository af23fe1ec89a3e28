"""The page of a photo's trace, in a real browser."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browsing
from conftest import eventually
from gateway_outcomes import finish
from gateway_serving import Served
from opentelemetry.trace import Span, SpanContext, TraceFlags
from photo_spans import Recorder, call, work
from sqlalchemy import Engine

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]

ROWS = "[...document.querySelectorAll('.row:not([hidden]) .span')].map((each) => each.textContent)"
FOCUSED = "document.activeElement.querySelector('.span')?.textContent"
DETAILS = "document.querySelector('#details').innerText"


@pytest.fixture
def keeper(serve: Serve) -> Served:
    return serve(trace_store_enabled=True)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browsing(tmp_path) as page:
        yield page


def record(image: dict[str, Any]) -> tuple[Recorder, Span]:
    """The call's spans, in the trace that the gateway gave the upload."""
    spans = Recorder()
    parent = SpanContext(int(image["trace_id"], 16), 0xABC, is_remote=True, trace_flags=TraceFlags(1))
    return spans, call(spans, parent=parent)


def send(gateway: Served, spans: Recorder) -> None:
    """Exports spans and waits until they are written."""
    assert gateway.parts.traces is not None
    for body in spans.exports():
        gateway.parts.traces.keep(body)
    eventually(lambda: (c := gateway.parts.traces.counters()).stored == c.received)


def test_a_photos_way_is_drawn_and_can_be_walked_with_the_keyboard(
    keeper: Served, photo: bytes, engine: Engine, page: Page
) -> None:
    image = keeper.accepted(photo)[0]
    spans, server = record(image)
    work(spans, server, image["sha256"])
    send(keeper, spans)
    finish(engine, keeper.parts.store, image["sha256"])

    # From the home page, as a person comes.
    page.open(keeper.url)
    page.wait_for("document.querySelector('#photos a.trace[href]') !== null")
    page.read("document.querySelector('#photos a.trace').click()")
    page.wait_for("document.body?.dataset.drawn")
    assert page.read("document.querySelector('#name').textContent") == "photo-0.jpg"
    assert page.read("document.querySelector('.total').textContent") == "320 ms from the call to the end"
    facts = page.read("[...document.querySelectorAll('.facts li')].map((each) => each.textContent)")
    assert facts == ["waited 153 ms in 6 places", "embedded in a batch of 8", "27 spans"]
    legend = page.read("document.querySelector('.legend').innerText")
    assert "thumbnailer" in legend
    assert "wait prepare" in legend

    names = page.read(ROWS)
    assert (len(names), names[0], names[-1]) == (27, "POST /v1/images", "publish image.ready")
    assert page.read("document.querySelectorAll('.row.wait').length") == 6
    assert page.read("document.querySelectorAll('.row.batch').length") == 3
    left, width = page.read(
        "(({left, width}) => [left, width])([...document.querySelectorAll('.row')]"
        ".find((row) => row.innerText.startsWith('decode')).querySelector('.bar').style)"
    )
    assert (left, width) == ("22.5%", "11.875%"), "from 72 to 110 of 320 ms"

    page.read("document.querySelector('.row[tabindex=\"0\"]').focus()")
    assert page.read(FOCUSED) == "POST /v1/images"
    for _ in range(4):
        page.press("ArrowDown")
    assert page.read(FOCUSED) == "dispatch"
    assert "darkroom.image.sha256" in page.read(DETAILS)
    page.press("ArrowLeft")
    assert page.read(ROWS) == ["POST /v1/images", "receive upload", "commit upload", "wait dispatch", "dispatch"]
    page.press("ArrowRight")
    assert page.read(ROWS) == names
    page.press("End")
    page.press("z")
    assert page.read("document.activeElement.querySelector('.bar').style.width") == "100%"
    page.press("Escape")
    assert page.read("document.activeElement.querySelector('.bar').style.width") == "1.25%"

    for width in (1400, 900, 400):
        page.resize(width)
        assert page.read("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    grounds = set()
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        grounds.add(page.read("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
    assert page.errors == []


def test_a_photo_in_flight_grows_on_the_page_and_its_error_is_shown_first(
    keeper: Served, photo: bytes, page: Page
) -> None:
    image = keeper.accepted(photo)[0]
    page.open(f"{keeper.url}/images/{image['id']}/trace")
    page.wait_for("document.querySelector('#notice').innerText.includes('its first spans are still on their way')")
    spans, server = record(image)
    send(keeper, spans)
    page.wait_for(f"{ROWS}.includes('wait dispatch')")
    assert "in flight" in page.read("document.querySelector('.facts').innerText")
    failing = spans.add(
        *("thumbnailer", "process prepare", 60, 90, server), image_sha256=image["sha256"], error="The file ends early."
    )
    spans.add("thumbnailer", "decode", 70, 80, failing, image_sha256=image["sha256"])
    send(keeper, spans)
    page.wait_for(f"{ROWS}.includes('process prepare')")
    assert "1 error" in page.read("document.querySelector('.facts').innerText")
    assert "The file ends early." in page.read(DETAILS)


def test_where_no_trace_is_the_page_says_why(gateway: Served, photo: bytes, page: Page) -> None:
    image = gateway.accepted(photo)[0]
    page.open(f"{gateway.url}/images/{image['id']}/trace")
    page.wait_for("document.body?.dataset.drawn")
    assert "DARKROOM_TRACE_STORE_ENABLED is off" in page.read("document.querySelector('#notice').innerText")
