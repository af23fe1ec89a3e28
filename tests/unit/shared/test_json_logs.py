"""One JSON line a log record, whatever is in it."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from darkroom.logs import JsonFormatter


def line(**changes: Any) -> dict[str, Any]:
    record = logging.makeLogRecord(
        {"name": "gateway.uploads", "levelname": "INFO", "msg": "upload.accepted", "created": 0.25} | changes
    )
    written = JsonFormatter("gateway").format(record)
    assert "\n" not in written
    parsed: dict[str, Any] = json.loads(written)
    return parsed


def test_a_line_has_the_time_in_utc_and_where_it_came_from() -> None:
    assert line() == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "info",
        "service": "gateway",
        "logger": "gateway.uploads",
        "event": "upload.accepted",
    }


def test_what_was_passed_as_extra_is_a_field() -> None:
    written = line(image_id="01", files=3)

    assert (written["image_id"], written["files"]) == ("01", 3)


def test_arguments_of_a_library_s_message_are_put_into_its_event() -> None:
    assert line(msg="took %d of %s", args=(2, "prepare"))["event"] == "took 2 of prepare"


def test_an_exception_is_one_field_with_its_traceback() -> None:
    try:
        raise ValueError("no such picture")
    except ValueError:
        written = line(exc_info=sys.exc_info())

    assert "Traceback" in written["exception"]
    assert "no such picture" in written["exception"]


def test_a_value_that_json_does_not_know_is_written_as_text() -> None:
    assert line(folder=Path("/data"), names={1})["folder"] == "/data"


def test_a_line_break_or_an_umlaut_in_a_file_name_stays_inside_the_line() -> None:
    assert line(upload="Übergröße\n.jpg")["upload"] == "Übergröße\n.jpg"
