"""What may be said about an upload, and what makes two of them the same."""

import secrets
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.contracts.base import Lane
from darkroom.errors import PermanentError
from darkroom.outbound import OutboundPolicy
from gateway.models import page_token, read_page_token
from gateway.receiving import ReceivedForm, SyncedFile
from gateway.uploads import UploadOptions, check_idempotency_key, fingerprint, new_ids, read_options

PUBLIC = OutboundPolicy()


def test_fields_are_read_and_repeated_tags_counted_once() -> None:
    fields = [("tags", "b"), ("lane", "bulk"), ("tags", "a"), ("tags", "b"), ("external_id", "x")]
    fields += [("callback_url", "https://example.org/hook?x=1")]
    assert read_options(fields, PUBLIC) == UploadOptions(Lane.BULK, ("b", "a"), "x", "https://example.org/hook?x=1")
    assert read_options([], PUBLIC) == UploadOptions(Lane.INTERACTIVE, (), None, None)


@pytest.mark.parametrize(
    ("field", "value", "slug"),
    [
        ("lane", "fast", "invalid-field"),
        ("lane", "", "invalid-field"),
        ("lane", "INTERACTIVE", "invalid-field"),
        ("tags", "", "invalid-field"),
        ("tags", "x" * 65, "invalid-field"),
        ("external_id", "", "invalid-field"),
        ("external_id", "x" * 257, "invalid-field"),
        ("callback_url", "", "invalid-field"),
        ("callback_url", "http://example.org/", "invalid-field"),
        ("callback_url", "https://169.254.169.254/latest/meta-data", "invalid-field"),
        ("callback_url", "https://user:password@example.org/", "invalid-field"),
        ("webhook_url", "https://example.org/", "unknown-field"),
        ("tag", "a", "unknown-field"),
    ],
)
def test_what_is_not_known_is_refused_and_not_ignored(field: str, value: str, slug: str) -> None:
    with pytest.raises(PermanentError) as refused:
        read_options([(field, value)], PUBLIC)
    assert refused.value.problem.slug == slug
    assert field in refused.value.problem.detail
    assert refused.value.problem.remedy


def test_the_limits_themselves_are_accepted() -> None:
    tags = [("tags", f"{n:064d}") for n in range(32)]
    assert len(read_options([*tags, ("external_id", "x" * 256)], PUBLIC).tags) == 32
    with pytest.raises(PermanentError, match="33"):
        read_options([*tags, ("tags", "one more")], PUBLIC)


class NoWriter:
    """A writer that is never asked."""

    def write(self, chunk: bytes) -> None:
        raise AssertionError

    def sync(self) -> None:
        raise AssertionError

    def place(self, key: str) -> None:
        raise AssertionError

    def discard(self) -> None:
        raise AssertionError


def form(*files: tuple[str | None, str]) -> ReceivedForm:
    return ReceivedForm([SyncedFile(NoWriter(), name, sha256, 1) for name, sha256 in files])


def test_a_fingerprint_sees_every_difference_and_no_other() -> None:
    options = UploadOptions(Lane.BULK, ("a", "b"), "x")
    same = fingerprint(form(("n", "1"), ("m", "2")), options)
    assert fingerprint(form(("n", "1"), ("m", "2")), UploadOptions(Lane.BULK, ("a", "b"), "x")) == same
    others = [
        fingerprint(form(("m", "2"), ("n", "1")), options),
        fingerprint(form(("n", "1")), options),
        fingerprint(form(("other", "1"), ("m", "2")), options),
        fingerprint(form((None, "1"), ("m", "2")), options),
        fingerprint(form(("n", "1"), ("m", "2")), UploadOptions(Lane.INTERACTIVE, ("a", "b"), "x")),
        fingerprint(form(("n", "1"), ("m", "2")), UploadOptions(Lane.BULK, ("ab",), "x")),
        fingerprint(form(("n", "1"), ("m", "2")), UploadOptions(Lane.BULK, ("a", "b"), None)),
        fingerprint(form(("n", "1"), ("m", "2")), UploadOptions(Lane.BULK, ("a", "b"), "x", "https://example.org/")),
    ]
    assert len({same, *others}) == 9


@given(st.integers(1, 200), st.integers(0, 2**48 - 1))
def test_ids_rise_in_the_order_of_the_files(count: int, unix_ms: int) -> None:
    ids = new_ids(count, unix_ms, secrets.randbits)
    assert ids == sorted(set(ids))
    assert len(ids) == count
    assert {one.version for one in ids} == {7}


@given(st.uuids())
def test_a_page_token_leads_back_to_its_id(last: UUID) -> None:
    class Row:
        id = last

    token = page_token([Row()], 1)  # type: ignore[list-item]
    assert read_page_token(token) == last
    assert page_token([Row()], 2) is None, "a page that is not full is the last"  # type: ignore[list-item]


@given(st.text(max_size=64))
def test_any_other_page_token_is_refused(token: str) -> None:
    try:
        assert read_page_token(token) is not None
    except PermanentError as error:
        assert error.problem.slug == "invalid-field"


@pytest.mark.parametrize("key", ["k", "550e8400-e29b-41d4-a716-446655440000", "k" * 255, "with space"])
def test_an_idempotency_key_may_be_any_short_plain_text(key: str) -> None:
    assert check_idempotency_key(key) == key


@pytest.mark.parametrize("key", ["", "k" * 256, "é", "a\tb"])
def test_any_other_idempotency_key_is_refused(key: str) -> None:
    with pytest.raises(PermanentError):
        check_idempotency_key(key)
