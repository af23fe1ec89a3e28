"""When a callback is sent again, and how it is signed."""

import base64
import json
import time
from datetime import UTC, datetime
from uuid import UUID

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from darkroom.database.callbacks import Claimed, Settlement
from darkroom.errors import ConfigurationError
from darkroom.outbound import Host
from scheduler.callbacks import RetryPolicy, retry_after_s, wait_s
from scheduler.posting import Answer
from scheduler.signing import read_keys, signed_headers

ID = UUID(int=7)
NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
POLICY = RetryPolicy(attempts=5)
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()


def attempt(number: int, host_failures: int = 0) -> Claimed:
    return Claimed(ID, "https://example.org/", "{}", number, Host("example.org"), host_failures, has_more=False)


SILENT = Answer(None, "no answer within 10 s")


@pytest.mark.parametrize(
    ("claimed", "answer", "expected"),
    [
        (attempt(1), Answer(200), Settlement("delivered", 200, None)),
        (attempt(5), Answer(204), Settlement("delivered", 204, None)),
        (attempt(1), Answer(500), Settlement("pending", 500, "the receiver answered 500", 5)),
        (attempt(2), Answer(404), Settlement("pending", 404, "the receiver answered 404", 15)),
        (
            attempt(1),
            Answer(301),
            Settlement("pending", 301, "the receiver answered 301; redirects are not followed", 5),
        ),
        (attempt(5), Answer(500), Settlement("failed", 500, "the receiver answered 500; given up")),
        (
            attempt(1),
            Answer(410),
            Settlement("failed", 410, "the receiver answered 410: it wants no more at this URL", is_gone=True),
        ),
        (attempt(1), SILENT, Settlement("pending", None, "no answer within 10 s", 5, pause_host_s=5)),
        (attempt(1, 3), SILENT, Settlement("pending", None, "no answer within 10 s", 5, pause_host_s=40)),
        (attempt(1, 99), SILENT, Settlement("pending", None, "no answer within 10 s", 5, pause_host_s=300)),
        (attempt(5), SILENT, Settlement("failed", None, "no answer within 10 s; given up", 0, pause_host_s=5)),
        (
            attempt(1),
            Answer(429, retry_after="60"),
            Settlement("pending", 429, "the receiver answered 429", 60, pause_host_s=60),
        ),
        (
            attempt(3),
            Answer(503, retry_after="7200"),
            Settlement("pending", 503, "the receiver answered 503", 7200, pause_host_s=300),
        ),
        (attempt(3), Answer(500, retry_after="7"), Settlement("pending", 500, "the receiver answered 500", 45)),
    ],
)
def test_what_follows_from_an_answer(claimed: Claimed, answer: Answer, expected: Settlement) -> None:
    assert POLICY.settlement(claimed, answer, NOW, jitter=0) == expected


def test_waits_grow_to_eight_hours_and_last_three_days_in_all() -> None:
    waits = [wait_s(number, 0) for number in range(1, 17)]
    assert waits[:5] == [5, 15, 45, 135, 405]
    assert waits == sorted(waits)
    assert waits[-1] == wait_s(1000, 0) == 8 * 3600
    assert 2.5 * 86_400 < sum(waits) < sum(wait_s(number, 1) for number in range(1, 17)) < 3.5 * 86_400


def test_jitter_only_lengthens_a_wait_and_seconds_stay_whole() -> None:
    assert [wait_s(4, jitter) for jitter in (0, 0.5, 1)] == [135, 148, 162]
    assert isinstance(wait_s(4, 0.123), int)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("0", 0),
        ("120", 120),
        ("9" * 400, 86_400),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("", 0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0),
        ("Mon, 04 May 2026 12:00:00 +99999999999999999999", 0),
        ("Mon, 04 May 2026 12:05:00 GMT", 300),
        ("Mon, 04 May 2026 11:00:00 GMT", 0),
        ("Mon, 04 May 2027 12:00:00 GMT", 86_400),
    ],
)
def test_a_receiver_may_ask_for_at_most_a_day(header: str | None, seconds: int) -> None:
    assert retry_after_s(header, NOW) == seconds


def test_the_library_of_the_standard_accepts_the_signature() -> None:
    body = '{"type": "image.ready", "data": {"filename": "Straße ☀"}}'
    headers = signed_headers(read_keys(SECRET), ID, int(time.time()), body.encode())
    assert Webhook(SECRET).verify(body, headers) == json.loads(body)
    assert headers["webhook-id"] == str(ID)


@pytest.mark.parametrize("change", ["body", "webhook-id", "webhook-timestamp", "secret"])
def test_whatever_is_changed_breaks_the_signature(change: str) -> None:
    now = int(time.time())
    headers = signed_headers(read_keys(SECRET), ID, now, b"{}")
    changed = {"webhook-id": str(UUID(int=8)), "webhook-timestamp": str(now + 1)}
    headers |= {change: changed[change]} if change in changed else {}
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER if change == "secret" else SECRET).verify("{ }" if change == "body" else "{}", headers)


def test_while_a_secret_is_replaced_both_are_accepted() -> None:
    headers = signed_headers(read_keys(f"{OTHER} {SECRET}"), ID, int(time.time()), b"{}")
    for secret in (SECRET, OTHER):
        Webhook(secret).verify("{}", headers)


@pytest.mark.parametrize(
    "secrets",
    ["", "  ", "secret", "whsec_", "whsec_REPLACE_ME", SECRET.removeprefix("whsec_"), "whsec_c2hvcnQ=", f"{SECRET} x"],
)
def test_a_secret_that_cannot_sign_ends_the_start_and_is_not_shown(secrets: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_keys(secrets)
    assert "DARKROOM_WEBHOOK_SECRET" in str(refused.value)
    assert "c2hvcnQ" not in str(refused.value)
    assert SECRET not in str(refused.value)
