"""Ranges, entity tags and file names in headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.errors import PermanentError
from gateway.rest.blobs import ByteRange, disposition, matches, requested_range


@given(st.text(alphabet="0123456789-, bytes=", max_size=40), st.integers(1, 2**40))
def test_a_range_lies_inside_or_is_refused(header: str, size: int) -> None:
    try:
        asked = requested_range(f"bytes={header}", size)
    except PermanentError as error:
        assert (error.problem.status, error.problem.limit) == (416, size)
    else:
        assert asked is None or 0 <= asked.start < asked.stop <= size


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 10_000))
def test_a_plain_range_means_what_it_says(first: int, last: int, size: int) -> None:
    if last < first:
        assert requested_range(f"bytes={first}-{last}", size) is None
    elif first >= size:
        with pytest.raises(PermanentError):
            requested_range(f"bytes={first}-{last}", size)
    else:
        assert requested_range(f"bytes={first}-{last}", size) == ByteRange(first, min(last + 1, size))


@pytest.mark.parametrize(
    ("header", "is_known"),
    [
        (None, False),
        ('"a"', True),
        ('W/"a"', True),
        ("*", True),
        ('"b", "a"', True),
        ('"b"', False),
        ("a", False),
        ("", False),
        ('"ab"', False),
    ],
)
def test_an_entity_tag_is_compared_weakly(header: str | None, is_known: bool) -> None:
    assert matches(header, "a") is is_known


@given(st.text(min_size=1, max_size=60).filter(lambda name: not any(ord(c) < 32 or ord(c) == 127 for c in name)))
def test_no_file_name_can_break_out_of_its_header(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate, which no upload can bring: names arrive as UTF-8
    header = disposition(name)
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2
    assert header.count(";") >= 2
