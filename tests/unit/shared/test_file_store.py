"""Blobs are written durably or not at all, whatever happens around the write."""

import os
from pathlib import Path

import pytest

from darkroom import storage
from darkroom.errors import ConfigurationError
from darkroom.storage import INCOMING, FileStore, open_blob_store

KEY = "derived/ab/abcd/r1-webp/large.webp"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "blobs")


class SyncRecord:
    """What was synced, in order, each as the path that its descriptor had at that moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[Path] = []
        self._really = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        self.paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        self._really(descriptor)


def leftovers(store: FileStore) -> list[Path]:
    return list((store.root / INCOMING).iterdir())


def test_a_put_syncs_the_file_before_its_name_and_every_new_folder(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = SyncRecord(monkeypatch)

    store.put(KEY, b"bytes")

    folder = store.path(KEY).parent
    assert synced.paths[0].parent == store.root / INCOMING
    assert set(synced.paths[1:]) == {store.root, *list(folder.parents)[: len(Path(KEY).parts) - 2], folder}
    # The name itself comes last: nothing is promised before.
    assert synced.paths[-1] == folder


def test_the_bytes_are_synced_before_the_file_has_its_name(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    visible: list[bool] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().parent.name == INCOMING:
            visible.append(store.exists(KEY))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.put(KEY, b"bytes")

    assert visible == [False]


def test_a_write_that_fails_leaves_what_was_there_and_no_trace(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(KEY, b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.put(KEY, b"after")

    assert store.get(KEY) == b"before"
    assert leftovers(store) == []


def test_a_raw_write_that_takes_less_than_it_was_given_goes_on(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.new_writer()
    really = writer._file

    class Reluctant:
        def write(self, view: memoryview) -> int:
            return int(really.write(view[:3]) or 0)

        def __getattr__(self, name: str) -> object:
            return getattr(really, name)

    monkeypatch.setattr(writer, "_file", Reluctant())
    writer.write(b"ten bytes!")
    writer.sync()
    writer.place(KEY)

    assert store.get(KEY) == b"ten bytes!"


def test_placing_what_is_there_already_leaves_it_and_syncs_its_name(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(KEY, b"bytes")
    before = store.path(KEY).stat().st_ino
    writer = store.new_writer()
    writer.write(b"bytes")
    writer.sync()
    synced = SyncRecord(monkeypatch)

    writer.place(KEY)
    writer.discard()

    assert store.path(KEY).stat().st_ino == before
    assert store.path(KEY).parent in synced.paths
    assert leftovers(store) == []


def test_deleting_twice_is_harmless_and_takes_empty_folders_along(store: FileStore) -> None:
    store.put(KEY, b"bytes")
    store.delete(KEY)
    store.delete(KEY)

    assert not store.exists(KEY)
    assert [path.name for path in store.root.iterdir() if path.name != INCOMING] == ["derived"]
    assert list((store.root / "derived").iterdir()) == []


def test_a_folder_that_goes_while_it_is_being_made_is_made_again(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same race as above, but sure to happen: the parent vanishes just before the folder is made in it.
    really, remaining = Path.mkdir, [2]

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if self.name == "r1-webp" and remaining[0]:
            remaining[0] -= 1
            self.parent.rmdir()
        really(self, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", mkdir)

    store.put(KEY, b"bytes")

    assert store.get(KEY) == b"bytes"


def test_a_folder_that_goes_right_after_it_got_the_blob_is_no_error(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = Path.replace

    def replace(self: Path, target: Path) -> Path:
        placed = really(self, target)
        store.delete(KEY)
        return placed

    monkeypatch.setattr(Path, "replace", replace)

    store.put(KEY, b"bytes")

    assert not store.exists(KEY)


def test_a_folder_is_named_by_its_url(tmp_path: Path) -> None:
    store = open_blob_store((tmp_path / "with space").as_uri())
    store.put(KEY, b"x")

    assert (tmp_path / "with space" / KEY).read_bytes() == b"x"


@pytest.mark.parametrize("url", ["/data", "file://host/data", "file:data", ""])
def test_a_url_that_names_no_folder_is_refused_at_boot(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DARKROOM_BLOB_URL"):
        open_blob_store(url)


def test_a_folder_is_synced_by_its_own_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = SyncRecord(monkeypatch)

    storage.sync_folder(tmp_path)

    assert synced.paths == [tmp_path]
