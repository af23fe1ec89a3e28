"""Which files are uploaded, in which portions, and what happens when some are refused or the connection breaks."""

import re
from pathlib import Path

import httpx
import pytest

from darkroom_cli.client import Darkroom, UnreachableError
from darkroom_cli.uploading import (
    REQUEST_BYTES,
    REQUEST_FILES,
    Journal,
    LocalFile,
    find_files,
    requests_of,
    upload_files,
)


class FakeGateway:
    """Accepts a request as a whole unless a file in it is bad; remembers idempotency keys."""

    def __init__(
        self, *, bad: tuple[str, ...] = (), names_the_file: bool = True, dies_after: int | None = None
    ) -> None:
        self.bad, self.names_the_file, self.dies_after = bad, names_the_file, dies_after
        self.batches: dict[str, list[str]] = {}
        self.requests: list[list[str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        names = re.findall(rb'filename="([^"]*)"', request.read())
        files = [name.decode() for name in names]
        self.requests.append(files)
        for name in files:
            if name in self.bad:
                problem = {"title": "Bad", "status": 415, "detail": f"{name} is bad"}
                return httpx.Response(415, json=problem | ({"file": name} if self.names_the_file else {}))
        batch = f"batch {request.headers['Idempotency-Key']}"
        self.batches.setdefault(batch, files)
        if self.dies_after is not None and len(self.batches) > self.dies_after:
            raise httpx.ReadError("gone, just after it was accepted")
        images = [{"id": name, "duplicate": False} for name in files]
        return httpx.Response(202, json={"batch": {"id": batch}, "images": images})

    @property
    def accepted(self) -> list[str]:
        return sorted(name for files in self.batches.values() for name in files)


def upload(gateway: FakeGateway, paths, journal, *, on_sent=lambda _: None):
    with Darkroom("http://gateway", transport=httpx.MockTransport(gateway), retry_pauses_s=()) as client:
        return upload_files(client, paths, journal=journal, lane="interactive", tags=[], on_sent=on_sent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "deep/er/c.heic", "notes.txt", ".hidden.jpg", ".cache/d.jpg", "[e].gif"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "journal.json")


def test_a_folder_stands_for_its_pictures_at_any_depth(folder):
    files, unmatched = find_files([str(folder)])
    assert [str(path.relative_to(folder)) for path in files] == ["[e].gif", "a.PNG", "b.jpg", "deep/er/c.heic"]
    assert unmatched == []


def test_a_named_file_is_taken_whatever_its_name_and_only_once(folder):
    files, _ = find_files([str(folder / "notes.txt"), str(folder / "[e].gif"), str(folder / "notes.txt")])
    assert [path.name for path in files] == ["notes.txt", "[e].gif"]


def test_patterns_are_expanded_and_what_matches_nothing_is_named(folder):
    files, unmatched = find_files([str(folder / "**" / "*.heic"), str(folder / "*.webp")])
    assert [path.name for path in files] == ["c.heic"]
    assert unmatched == [str(folder / "*.webp")]


def test_a_request_has_a_bounded_number_of_files_and_bytes():
    small = [LocalFile(Path(f"{n}.jpg"), 10, str(n)) for n in range(2 * REQUEST_FILES + 1)]
    assert [len(portion) for portion in requests_of(small)] == [REQUEST_FILES, REQUEST_FILES, 1]
    large = [LocalFile(Path("l.jpg"), REQUEST_BYTES + 1, "l")]
    assert [len(portion) for portion in requests_of([*small[:2], *large, *small[2:4]])] == [2, 1, 2]
    assert list(requests_of([])) == []


@pytest.mark.parametrize("names_the_file", [True, False])
def test_a_refused_file_does_not_stop_the_others(folder, journal, names_the_file):
    gateway = FakeGateway(bad=("b.jpg",), names_the_file=names_the_file)
    sent: list[int] = []
    result = upload(gateway, find_files([str(folder)])[0], journal, on_sent=sent.append)
    assert gateway.accepted == ["[e].gif", "a.PNG", "c.heic"]
    assert [(path.name, problem["detail"]) for path, problem in result.refused] == [("b.jpg", "b.jpg is bad")]
    assert result.accepted == 3
    assert result.batch_ids == list(gateway.batches)
    assert sum(sent) == sum(path.stat().st_size for path in find_files([str(folder)])[0])


def test_of_two_files_with_the_refused_name_only_the_bad_one_is_refused(tmp_path, journal):
    class Strict(FakeGateway):
        def __call__(self, request):
            self.bad = ("same.jpg",) if b"rotten" in request.read() else ()
            return super().__call__(request)

    paths = [tmp_path / folder / "same.jpg" for folder in ("one", "two")]
    for path, data in zip(paths, (b"sound", b"rotten"), strict=True):
        path.parent.mkdir()
        path.write_bytes(data)
    result = upload(Strict(), paths, journal)
    assert [path for path, _ in result.refused] == [paths[1]]
    assert result.accepted == 1


def test_a_file_that_is_gone_is_refused_with_the_reason(tmp_path, journal):
    result = upload(FakeGateway(), [tmp_path / "gone.jpg"], journal)
    assert [problem["detail"] for _, problem in result.refused] == ["No such file or directory"]


def test_an_interrupted_upload_goes_on_and_nothing_is_accepted_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("darkroom_cli.uploading.REQUEST_FILES", 2)
    paths = [tmp_path / f"{n}.jpg" for n in range(6)]
    for path in paths:
        path.write_bytes(path.name.encode())
    gateway = FakeGateway(dies_after=1)
    with pytest.raises(UnreachableError):
        upload(gateway, paths, Journal.open(tmp_path, ["command"]))
    assert len(gateway.batches) == 2  # the second one without our knowing
    gateway.dies_after = None
    gateway.requests.clear()

    result = upload(gateway, paths, Journal.open(tmp_path, ["command"]))

    assert gateway.requests == [["2.jpg", "3.jpg"], ["4.jpg", "5.jpg"]]
    assert gateway.accepted == [path.name for path in paths]
    assert (result.resumed, result.accepted) == (2, 4)
    assert sorted(result.batch_ids) == sorted(gateway.batches)


def test_the_same_upload_another_day_is_a_new_one(folder, tmp_path):
    gateway = FakeGateway()
    for _ in range(2):
        journal = Journal.open(tmp_path, ["command"])
        upload(gateway, [folder / "b.jpg"], journal)
        journal.remove()
    assert gateway.accepted == ["b.jpg", "b.jpg"]


def test_a_file_changed_since_the_interruption_is_uploaded_again(folder, journal):
    gateway = FakeGateway()
    upload(gateway, [folder / "b.jpg"], journal)
    (folder / "b.jpg").write_bytes(b"another picture")
    assert upload(gateway, [folder / "b.jpg"], journal).resumed == 0


def test_a_damaged_journal_is_a_new_one(tmp_path):
    journal = Journal.open(tmp_path, ["command"])
    journal.save()
    journal.path.write_text("{")
    assert Journal.open(tmp_path, ["command"]).batches == {}
