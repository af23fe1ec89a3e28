"""Multipart bodies, in every way that a network may cut them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.errors import PermanentError
from gateway.multipart import Event, MultipartReader, PartBegins, PartData, PartEnds

CONTENT_TYPE = 'multipart/form-data; boundary="cut here"'

BODY = (
    b'--cut here\r\nContent-Disposition: form-data; name="lane"\r\n\r\nbulk\r\n'
    b"--cut here\r\ncontent-disposition: form-data; name=file; "
    b'filename="a \\"b\\" \xc3\xa9.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    b"\r\n--cut her\r\n--\r\n"  # nearly a boundary
    b'\r\n--cut here\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n'
    b"--cut here--\r\n"
)

PARTS = [("lane", None, b"bulk"), ("file", 'a "b" é.jpg', b"\r\n--cut her\r\n--\r\n"), ("file", "", b"")]


def parts(events: list[Event]) -> list[tuple[str, str | None, bytes]]:
    """Each part's name, file name and bytes."""
    read: list[tuple[str, str | None, bytes]] = []
    is_open = False
    for event in events:
        match event:
            case PartBegins(name=name, filename=filename):
                assert not is_open
                is_open = True
                read.append((name, filename, b""))
            case PartData(data=data):
                assert is_open
                name, filename, before = read[-1]
                read[-1] = (name, filename, before + data)
            case PartEnds():
                assert is_open
                is_open = False
    assert not is_open
    return read


@given(st.lists(st.integers(0, len(BODY)), max_size=20))
def test_a_body_means_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    reader, events = MultipartReader(CONTENT_TYPE), list[Event]()
    edges = [0, *sorted(cuts), len(BODY)]
    for start, stop in pairwise(edges):
        if start < stop:
            events += reader.feed(BODY[start:stop])
    reader.finish()
    assert parts(events) == PARTS


def test_a_part_is_passed_on_before_it_is_complete() -> None:
    reader = MultipartReader(CONTENT_TYPE)
    head = b'--cut here\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    assert reader.feed(head) == [PartBegins("file", "a")]
    assert parts([PartBegins("", None), *reader.feed(b"x" * 100_000), PartEnds()])[0][2] == b"x" * 100_000


@pytest.mark.parametrize("length", range(len(BODY) - len(b"--\r\n")))
def test_a_body_that_ends_too_early_is_malformed(length: int) -> None:
    reader = MultipartReader(CONTENT_TYPE)
    with pytest.raises(PermanentError) as refused:
        if length:
            reader.feed(BODY[:length])
        reader.finish()
    assert refused.value.problem.slug == "malformed-upload"


@given(st.binary(max_size=300))
def test_any_other_bytes_are_malformed_and_nothing_worse(body: bytes) -> None:
    reader = MultipartReader(CONTENT_TYPE)
    try:
        reader.feed(b"--cut here" + body)
        reader.finish()
    except PermanentError as error:
        assert error.problem.slug == "malformed-upload"


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=x"],
)
def test_any_other_content_type_is_refused(content_type: str | None) -> None:
    with pytest.raises(PermanentError) as refused:
        MultipartReader(content_type)
    assert refused.value.problem.slug == "wrong-content-type"
    assert refused.value.problem.status == 415
