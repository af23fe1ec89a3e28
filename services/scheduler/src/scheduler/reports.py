"""The weekly usage report, and the nightly audit of the ledger."""

from datetime import datetime, timedelta

from sqlalchemy import Engine

from darkroom.contracts.base import Frozen, Lane
from darkroom.contracts.messages import JobReport
from darkroom.database import images, upkeep, usage
from darkroom.storage import INCOMING, BlobStore

STORAGE_KINDS = {
    "originals": "originals/",
    "derived": "derived/",
    "embeddings": "embeddings/",
    "backups": "backups/",
    "queries": "queries/",
    "incoming": f"{INCOMING}/",
}


class Photos(Frozen):
    """The photos uploaded in the period, and what they had become when the report was written."""

    accepted: int
    ready: int
    failed: int
    deleted: int
    in_flight: int


class SecondsToReady(Frozen):
    """From upload to ready, of the photos that were worked on; not of duplicates of finished ones."""

    photos: int
    p50: float
    p95: float


class UsageReport(Frozen):
    """One week. Bytes are those of the originals that came for the first time; storage is of now."""

    period_start: datetime
    period_end: datetime
    photos: Photos
    bytes: int
    failures_by_cause: dict[str, int]
    seconds_to_ready: dict[Lane, SecondsToReady]
    storage_bytes: dict[str, int]


def last_week(now: datetime) -> tuple[datetime, datetime]:
    """The last complete week before `now`: from a Monday 00:00 to the next, in the time zone of `now`."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    end = today - timedelta(days=today.weekday())
    return end - timedelta(days=7), end


def report_usage(engine: Engine, store: BlobStore, now: datetime) -> JobReport:
    """Writes the report of the last complete week, in place of an earlier one of the same week."""
    report = build_report(engine, store, *last_week(now))
    with engine.begin() as connection:
        upkeep.save_report(connection, report.period_start, report.period_end, report.model_dump(mode="json"))
    return JobReport(summary=f"week from {report.period_start:%Y-%m-%d}: {report.photos.accepted} photos")


def build_report(engine: Engine, store: BlobStore, start: datetime, end: datetime) -> UsageReport:
    """What was uploaded from `start` until before `end`, and what is stored now."""
    storage = {kind: sum(blob.bytes for blob in store.walk(prefix)) for kind, prefix in STORAGE_KINDS.items()}
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        uploaded = usage.count_uploaded(connection, start, end)
        return UsageReport(
            period_start=start,
            period_end=end,
            photos=Photos(accepted=sum(uploaded.values()), **uploaded),
            bytes=usage.bytes_uploaded(connection, start, end),
            failures_by_cause=usage.count_failures(connection, start, end),
            seconds_to_ready={
                lane: SecondsToReady(photos=speed.photos, p50=round(speed.p50_s, 3), p95=round(speed.p95_s, 3))
                for lane, speed in usage.speeds(connection, start, end).items()
            },
            storage_bytes=storage | {"database": usage.database_bytes(connection)},
        )


def audit_ledger(engine: Engine) -> JobReport:
    """Compares the ledger's counters with a full count, in one snapshot. A difference is an alarm."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        counters, counted = images.read_ledger(connection), images.count_images(connection)
    differences = [
        f"{name}: the ledger says {counters[name]}, {counted[name]} are there"
        for name in images.LEDGER_COLUMNS
        if counters[name] != counted[name]
    ]
    return JobReport(
        summary=f"{counted['accepted']} images counted",
        alarm="; ".join(differences) or None,
    )
