"""Blobs are written durably or not at all, whatever happens around the write."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from darkroom import storage
from darkroom.errors import BlobMissingError, ConfigurationError
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


def test_a_blob_comes_back_as_it_was_put(store: FileStore) -> None:
    store.put(KEY, b"first")
    store.put(KEY, b"second, longer")

    assert store.get(KEY) == b"second, longer"
    assert store.info(KEY).bytes == 14
    assert store.exists(KEY)
    assert leftovers(store) == []


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


def test_a_reader_sees_all_of_a_blob_or_nothing(store: FileStore) -> None:
    contents = [bytes([number]) * 300_000 for number in range(8)]
    seen: set[bytes] = set()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            if store.exists(KEY):
                seen.add(store.get(KEY))

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents:
        store.put(KEY, content)
    is_over.set()
    reader.join()

    assert seen <= set(contents)


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


def test_an_upload_has_no_name_before_it_is_placed(store: FileStore) -> None:
    writer = store.new_writer()
    writer.write(b"by")
    writer.write(b"tes")
    writer.sync()

    assert not store.exists(KEY)
    writer.place(KEY)
    assert store.get(KEY) == b"bytes"
    assert leftovers(store) == []


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


def test_placing_over_a_blob_of_another_size_repairs_it(store: FileStore) -> None:
    store.path(KEY).parent.mkdir(parents=True)
    store.path(KEY).write_bytes(b"by")  # as a crash of a file system may leave it
    writer = store.new_writer()
    writer.write(b"bytes")
    writer.sync()
    writer.place(KEY)

    assert store.get(KEY) == b"bytes"


def test_an_upload_that_is_discarded_leaves_nothing(store: FileStore) -> None:
    writer = store.new_writer()
    writer.write(b"bytes")
    writer.discard()
    writer.discard()

    assert leftovers(store) == []


def test_discarding_after_placing_keeps_the_blob(store: FileStore) -> None:
    writer = store.new_writer()
    writer.write(b"bytes")
    writer.sync()
    writer.place(KEY)
    writer.discard()

    assert store.get(KEY) == b"bytes"


MISSING: dict[str, Callable[[FileStore], object]] = {
    "get": lambda store: store.get(KEY),
    "info": lambda store: store.info(KEY),
    "read_range": lambda store: store.read_range(KEY, 0),
}


@pytest.mark.parametrize("call", MISSING)
def test_what_is_not_there_is_told_by_its_key(store: FileStore, call: str) -> None:
    with pytest.raises(BlobMissingError, match=KEY):
        MISSING[call](store)


def test_deleting_twice_is_harmless_and_takes_empty_folders_along(store: FileStore) -> None:
    store.put(KEY, b"bytes")
    store.delete(KEY)
    store.delete(KEY)

    assert not store.exists(KEY)
    assert [path.name for path in store.root.iterdir() if path.name != INCOMING] == ["derived"]
    assert list((store.root / "derived").iterdir()) == []


def test_deleting_one_of_two_keeps_the_other(store: FileStore) -> None:
    neighbour = KEY.replace("large", "small")
    store.put(KEY, b"1")
    store.put(neighbour, b"2")
    store.delete(KEY)

    assert store.get(neighbour) == b"2"


@pytest.mark.parametrize("depth", ["derived/ab/x", "derived/ab/abcd/r1-webp"])
def test_puts_and_deletes_that_race_in_one_folder_lose_nothing(store: FileStore, depth: str) -> None:
    # Each thread's deletes remove the folders that the other one is about to write into.
    errors: list[BaseException] = []
    start = threading.Barrier(3)

    def work(name: str) -> None:
        key = f"{depth}/{name}/file"
        try:
            start.wait()
            for turn in range(60):
                store.put(key, b"%d" % turn)
                assert store.get(key) == b"%d" % turn
                store.delete(key)
                assert not store.exists(key)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []


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


@pytest.mark.parametrize(
    "key", ["/etc/passwd", "../outside", "derived/../../outside", "derived/..", "..", "", ".", "a//b", "a/./b", "a/"]
)
def test_a_key_that_is_no_plain_path_below_the_folder_is_refused(store: FileStore, key: str) -> None:
    for call in (store.get, store.info, store.exists, store.delete, lambda key: store.put(key, b"x")):
        with pytest.raises(ValueError, match="not a blob key"):
            call(key)
    assert [path.name for path in store.root.parent.iterdir()] == [store.root.name]


def test_a_walk_finds_the_blobs_below_a_folder_and_no_others(store: FileStore) -> None:
    for key in ("derived/ab/1/x", "derived/ab/1/y/z", "derived/ab/11/x", "originals/ab/1"):
        store.put(key, key.encode())

    assert {(each.key, each.bytes) for each in store.walk("derived/ab/1/")} == {
        ("derived/ab/1/x", 14),
        ("derived/ab/1/y/z", 16),
    }
    assert list(store.walk("derived/ab/2")) == []
    assert all(each.modified_s > 0 for each in store.walk("derived/ab/1"))


def test_a_walk_goes_on_when_a_blob_disappears_under_it(store: FileStore) -> None:
    for name in "abc":
        store.put(f"queries/1/{name}", b"x")

    found = []
    for blob in store.walk("queries/1"):
        found.append(blob.key)
        for name in "abc":
            store.delete(f"queries/1/{name}")

    assert len(found) == 1


@pytest.mark.parametrize("start", [0, 1, 4, 9, 10, 11])
def test_a_range_has_the_bytes_from_its_start(store: FileStore, start: int) -> None:
    store.put(KEY, b"0123456789")

    pieces = list(store.read_range(KEY, start, chunk_bytes=4))

    assert b"".join(pieces) == b"0123456789"[start:]
    assert all(len(piece) <= 4 for piece in pieces)


def test_a_reader_keeps_the_bytes_that_are_deleted_under_it(store: FileStore) -> None:
    store.put(KEY, b"0123456789")
    pieces = store.read_range(KEY, 0, chunk_bytes=4)
    next(pieces)
    store.delete(KEY)

    assert b"".join(pieces) == b"456789"


def test_a_folder_is_named_by_its_url(tmp_path: Path) -> None:
    store = open_blob_store((tmp_path / "with space").as_uri())
    store.put(KEY, b"x")

    assert (tmp_path / "with space" / KEY).read_bytes() == b"x"


@pytest.mark.parametrize("url", ["s3://bucket", "/data", "file://host/data", "file:data", ""])
def test_a_url_that_names_no_folder_is_refused_at_boot(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DARKROOM_BLOB_URL"):
        open_blob_store(url)


def test_a_folder_is_synced_by_its_own_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = SyncRecord(monkeypatch)

    storage.sync_folder(tmp_path)

    assert synced.paths == [tmp_path]
