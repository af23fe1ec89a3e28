"""What only the scheduler is told."""

from pathlib import Path

from pydantic import Field

from darkroom.settings import TraceStoreSettings


class SchedulerSettings(TraceStoreSettings):
    """Checking, cleaning up and backing up."""

    pg_bin_dir: Path | None = None
    """Folder of `pg_dump` and `pg_restore`, at least as new as the server; blank: those on PATH."""
    blob_checks_per_s: int = Field(100, ge=0, le=100_000)
    """How fast the store is gone through, eight blobs for each photo: a million photos in a day. 0: not at all."""
    sweep_grace_s: int = Field(3600, ge=0)
    """How long the blobs of an original stay after its last image was deleted: downloads that run come to their end."""
    orphan_grace_s: int = Field(86_400, ge=3600)
    """Age of a blob without a row before it goes. Far above the longest upload, whose row comes after its blob."""
    backups_kept: int = Field(7, ge=1)
    """How many of the newest database backups stay; they are daily."""
