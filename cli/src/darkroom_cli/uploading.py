"""Uploading many files: which ones, how many to a request, what was refused, and going on after an interruption."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from darkroom_cli.client import Darkroom, ProblemError, Upload

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif"}
)
"""What is taken from a folder; a file that is named is taken whatever its name."""

# A request is accepted as a whole, after its last byte: small enough to lose little, large enough to save round trips.
REQUEST_BYTES = 32 * 2**20
REQUEST_FILES = 25


@dataclass(frozen=True)
class LocalFile:
    """A file to upload, and what tells this version of it from others."""

    path: Path
    bytes: int
    fingerprint: str

    @classmethod
    def of(cls, path: Path) -> "LocalFile":
        """The file as it is now; raises OSError."""
        found = path.stat()
        told = f"{path.resolve()}\0{found.st_size}\0{found.st_mtime_ns}"
        return cls(path, found.st_size, hashlib.sha256(os.fsencode(told)).hexdigest())


@dataclass
class Journal:
    """What an upload has got done, in a file, so that the same command goes on after an interruption.

    `run` goes into the idempotency keys: a request that was accepted just before the interruption is not accepted
    again, and the same upload some other day is a new one.
    """

    path: Path
    run: str = field(default_factory=lambda: uuid4().hex)
    batches: dict[str, str] = field(default_factory=dict)
    """By the fingerprint of each file that is uploaded: its batch."""

    @classmethod
    def open(cls, folder: Path, command: Sequence[str]) -> "Journal":
        """The journal of this command's interrupted run, or a new one."""
        path = folder / f"{hashlib.sha256(json.dumps(list(command)).encode()).hexdigest()[:24]}.json"
        try:
            written = json.loads(path.read_text())
            return cls(path, written["run"], written["batches"])
        except (OSError, ValueError, KeyError):
            return cls(path)

    def save(self) -> None:
        """Writes it in one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"run": self.run, "batches": self.batches}))
        new.replace(self.path)

    def remove(self) -> None:
        """Forgets the run: it is complete."""
        self.path.unlink(missing_ok=True)

    def key_for(self, files: Iterable[LocalFile]) -> str:
        """The idempotency key of a request with these files."""
        return hashlib.sha256("".join([self.run, *(file.fingerprint for file in files)]).encode()).hexdigest()


@dataclass
class Result:
    """What became of an upload: its batches in order, the images' ids, and each refused file with its problem."""

    batch_ids: list[str] = field(default_factory=list)
    accepted: int = 0
    duplicates: int = 0
    resumed: int = 0
    refused: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)


def find_files(arguments: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The files that paths, folders and patterns stand for, each once and in order; and the arguments that match none.

    Folders are searched to any depth for pictures by suffix, without hidden files.
    """
    found: dict[Path, None] = {}
    unmatched = []
    for argument in arguments:
        path = Path(argument)
        # A name is tried before the pattern: brackets are common in names of photos.
        matches = [path] if path.exists() else _matches(argument)
        files = [file for match in matches for file in (_pictures(match) if match.is_dir() else [match])]
        if not files:
            unmatched.append(argument)
        found |= dict.fromkeys(files)
    return list(found), unmatched


def _matches(pattern: str) -> list[Path]:
    # Not Path.glob, which takes no absolute patterns.
    return [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207


def _pictures(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
                yield path


def requests_of(files: Iterable[LocalFile]) -> Iterator[list[LocalFile]]:
    """The files in portions for one request each, by number and size; a large file goes alone."""
    portion: list[LocalFile] = []
    for file in files:
        if portion and (
            len(portion) == REQUEST_FILES or sum(other.bytes for other in portion) + file.bytes > REQUEST_BYTES
        ):
            yield portion
            portion = []
        portion.append(file)
    if portion:
        yield portion


def upload_files(
    client: Darkroom,
    paths: Iterable[Path],
    *,
    journal: Journal,
    lane: str,
    tags: Sequence[str],
    on_sent: Callable[[int], None],
) -> Result:
    """Uploads the files, those that an interrupted run has uploaded excepted. A refused file does not stop the others.

    `on_sent` is told bytes as they are sent, and a negative number for those that have to be sent again. Raises
    UnreachableError; the journal then lets the same call go on where it stopped.
    """
    result = Result()
    files = []
    for path in paths:
        try:
            file = LocalFile.of(path)
        except OSError as exc:
            result.refused.append((path, unreadable(exc)))
            continue
        if file.fingerprint in journal.batches:
            result.resumed += 1
            _add_batch(result, journal.batches[file.fingerprint])
            on_sent(file.bytes)
        else:
            files.append(file)

    def send(portion: list[LocalFile]) -> None:
        sent = 0

        def count(added: int) -> None:
            nonlocal sent
            sent += added
            on_sent(added)

        try:
            answer = client.upload(
                [file.path for file in portion],
                lane=lane,
                tags=tags,
                idempotency_key=journal.key_for(portion),
                on_sent=count,
            )
        except (ProblemError, OSError) as exc:
            on_sent(-sent)
            settle(portion, exc)
        else:
            on_sent(sum(file.bytes for file in portion) - sent)
            _note(result, answer)
            journal.batches |= {file.fingerprint: answer["batch"]["id"] for file in portion}
            journal.save()

    def settle(portion: list[LocalFile], refusal: ProblemError | OSError) -> None:
        """A request is refused as a whole: finds whom it was for, and sends the others again."""
        problem = refusal.problem if isinstance(refusal, ProblemError) else unreadable(refusal)
        named = [file for file in portion if file.path.name == problem.get("file")]
        guilty = portion if len(portion) == 1 else named
        if len(guilty) == 1:
            result.refused.append((guilty[0].path, problem))
            on_sent(guilty[0].bytes)
            if others := [file for file in portion if file is not guilty[0]]:
                send(others)
        else:
            half = len(portion) // 2
            send(portion[:half])
            send(portion[half:])

    for portion in requests_of(files):
        send(portion)
    return result


def unreadable(error: OSError) -> dict[str, Any]:
    """The problem of a file that this machine cannot read."""
    return {"title": "File cannot be read", "detail": error.strerror or str(error)}


def _note(result: Result, answer: Upload) -> None:
    result.accepted += len(answer["images"])
    result.duplicates += sum(bool(image.get("duplicate")) for image in answer["images"])
    _add_batch(result, answer["batch"]["id"])


def _add_batch(result: Result, batch_id: str) -> None:
    if batch_id not in result.batch_ids:
        result.batch_ids.append(batch_id)
