"""What only the scheduler is told."""

from pathlib import Path

from pydantic import Field, SecretStr

from darkroom.settings import OutboundSettings, TraceStoreSettings


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


class CallbackSettings(OutboundSettings):
    """Delivering callbacks. The `callbacks` worker alone reads these."""

    webhook_secret: SecretStr
    """`whsec_` and base64 of 24 to 64 random bytes; several, separated by spaces, while one replaces another."""
    callback_timeout_s: int = Field(10, ge=1, le=60)
    """From the name's look-up to the answer's headers. A receiver should note the callback and answer, then work."""
    callback_attempts: int = Field(17, ge=1, le=100)
    """The waits between them grow from 5 s to 8 h and make 3 days of 17."""
    callback_host_limit: int = Field(4, ge=1)
    """Callbacks under way to one host at once, in all workers."""
