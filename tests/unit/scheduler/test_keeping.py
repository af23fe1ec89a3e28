"""Pure parts of cleaning up, backing up and reporting."""

from datetime import UTC, datetime

import pytest

from darkroom.contracts import keys
from darkroom.contracts.base import OutputFormat, ThumbnailSize
from darkroom.contracts.keys import Recipe
from darkroom.errors import ConfigurationError
from scheduler.backups import libpq_environment
from scheduler.reports import last_week
from scheduler.retention import sha256_in

SHA = "ab" * 32
RECIPE = Recipe(output=OutputFormat.WEBP, version=1)


@pytest.mark.parametrize(
    "key",
    [
        keys.original_key(SHA),
        keys.proxy_key(SHA, RECIPE),
        keys.prepared_key(SHA, RECIPE),
        keys.thumbnail_key(SHA, RECIPE, ThumbnailSize.SMALL),
        keys.embedding_key("tiny@0123456789ab", SHA),
    ],
)
def test_every_key_of_an_original_tells_its_hash(key: str) -> None:
    assert sha256_in(key) == SHA


@pytest.mark.parametrize(
    "key", ["incoming/0123", "queries/1/proxy.jpg", "backups/x.dump", f"elsewhere/ab/{SHA}", f"originals/ab/{SHA}.tmp"]
)
def test_other_keys_belong_to_no_original(key: str) -> None:
    assert sha256_in(key) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql+psycopg://dark:s%40cret@db.example:5433/photos?sslmode=require",
            {
                "PGUSER": "dark",
                "PGPASSWORD": "s@cret",
                "PGHOST": "db.example",
                "PGPORT": "5433",
                "PGDATABASE": "photos",
                "PGSSLMODE": "require",
            },
        ),
        (
            "postgresql+psycopg://darkroom@/photos?host=/tmp/my%20socket",
            {"PGUSER": "darkroom", "PGHOST": "/tmp/my socket", "PGDATABASE": "photos"},
        ),
    ],
)
def test_postgresqls_programs_are_led_by_their_environment(url: str, expected: dict[str, str]) -> None:
    assert libpq_environment(url) == expected


def test_a_parameter_that_cannot_be_passed_on_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="target_session_attrs"):
        libpq_environment("postgresql+psycopg://db.example/photos?target_session_attrs=read-write")


@pytest.mark.parametrize("now", ["2026-05-11 00:00:00", "2026-05-11 07:30:00", "2026-05-17 23:59:59"])
def test_a_report_is_about_the_last_complete_week(now: str) -> None:
    week = last_week(datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert week == (datetime(2026, 5, 4, tzinfo=UTC), datetime(2026, 5, 11, tzinfo=UTC))
