"""What an operator, or a deployment, runs to its end: `darkroom-scheduler backup|restore|provision`.

Results go to standard output, everything on the way to standard error.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from darkroom.contracts.keys import original_key
from darkroom.database.engine import sync_engine
from darkroom.settings import DatabaseSettings, StorageSettings
from darkroom.storage import open_blob_store
from scheduler import backups, restore
from scheduler.provisioning import SECRETS, provision
from scheduler.restore import Restored
from scheduler.settings import SchedulerSettings

INCOMPLETE = 3
"""The exit status of a restore after which the bytes of photos are missing."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declares them; `run` of the parsed arguments is the function that does it and returns the exit status."""
    commands.add_parser("backup", help="Backs the database up now.").set_defaults(run=back_up)
    restoring = commands.add_parser(
        "restore",
        help="Restores a backup into an empty database.",
        description="Restores a backup into an empty database, checks every blob, and lists the originals that are "
        "missing. The services must not run. docs/backup.md describes it.",
    )
    restoring.add_argument("backup", nargs="?", help="a dump's name in the blob store, or a file (default: the newest)")
    restoring.add_argument("--blobs-from", metavar="URL", help="another store, to take dump and blobs from")
    restoring.add_argument("--replace", action="store_true", help="empty the database first if it has photos")
    restoring.add_argument(
        "--list", action="store_true", dest="is_list", help="show the backups that there are, and end"
    )
    restoring.set_defaults(run=restore_backup)
    provisioning = commands.add_parser("provision", help="Writes each service's secrets into a folder of its own.")
    provisioning.add_argument("folder", type=Path)
    provisioning.add_argument("--rotate", action="append", default=[], choices=SECRETS, help="make this one anew")
    provisioning.add_argument("--retire", action="store_true", help="sign callbacks with the newest secret only")
    provisioning.set_defaults(run=make_secrets)


def back_up(arguments: argparse.Namespace) -> int:
    """Backs the database up, as the daily job does, and says where the dump lies."""
    database, settings = DatabaseSettings(), SchedulerSettings()
    store = open_blob_store(StorageSettings().blob_url)
    url = database.database_url.get_secret_value()
    report = backups.back_up(sync_engine(database), store, url, settings.pg_bin_dir, datetime.now(UTC))
    _tell(report.summary, sys.stdout)
    return 0


def restore_backup(arguments: argparse.Namespace) -> int:
    """Restores a backup, or lists those that there are."""
    store = open_blob_store(StorageSettings().blob_url)
    source = open_blob_store(arguments.blobs_from) if arguments.blobs_from else None
    stores = [one for one in (source, store) if one is not None]
    if arguments.is_list:
        for blob in (blob for each in stores for blob in restore.list_backups(each)):
            _tell(f"{blob.key}  {blob.bytes} bytes", sys.stdout)
        return 0
    database = DatabaseSettings()
    engine, url = sync_engine(database), database.database_url.get_secret_value()
    dump = restore.find_backup(stores, arguments.backup)
    bin_dir = SchedulerSettings().pg_bin_dir
    in_flight = restore.restore_database(engine, url, dump, bin_dir, is_replaced=arguments.replace, say=_tell)
    done = restore.restore_blobs(engine, store, source, _tell)
    for sha256 in done.missing:
        _tell(original_key(sha256), sys.stdout)
    for line in summary(dump.name, in_flight, done):
        _tell(line)
    return INCOMPLETE if done.missing else 0


def make_secrets(arguments: argparse.Namespace) -> int:
    """Makes the secrets that are missing, and writes them where the services find them."""
    provision(arguments.folder, rotate=arguments.rotate, retire=arguments.retire)
    return 0


def summary(name: str, in_flight: int, done: Restored) -> list[str]:
    """What a restore did, and what is left to do, in sentences."""
    lines = [
        f"restored {name}: {done.originals} photos, {done.copied_blobs} blobs copied ({done.copied_bytes} bytes)",
        f"{in_flight} unfinished photos go on and {done.rebuilt} are rendered again when the services run",
    ]
    if done.unknown:
        lines.append(
            f"{done.unknown} originals in the store have no row: they were uploaded after the backup, or are deleted; "
            "upload again what is wanted before DARKROOM_ORPHAN_GRACE_S has passed, for they will be removed"
        )
    if done.missing:
        lines.append(
            f"{len(done.missing)} originals are missing, listed on standard output: put them into the store, or their "
            "photos fail with original-missing"
        )
    return lines


def _tell(text: str, to: TextIO = sys.stderr) -> None:
    to.write(f"{text}\n")
    to.flush()
